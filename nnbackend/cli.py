"""The command ``nnbackend``: arguments in, library calls, tables and pictures out."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

import nnbackend
from nnbackend.checks import lookup, real
from nnbackend.core import schedules
from nnbackend.core.activations import ACTIVATIONS
from nnbackend.core.initializers import INITIALIZERS
from nnbackend.core.losses import LOSSES
from nnbackend.core.optimizers import OPTIMIZERS, SGD, AdamW, Optimizer, optimizer
from nnbackend.core.schedules import Cosine
from nnbackend.datasets import DATASETS, load_dataset
from nnbackend.errors import InputError, MissingDependencyError, NNBackendError
from nnbackend.terminal import (
    OutputError,
    csv_text,
    printable,
    show,
    standard_streams,
    to_json,
    write_csv,
)

if TYPE_CHECKING:
    from nnbackend.benchmark import Workload
    from nnbackend.benchmark_report import Result as BenchmarkResult
    from nnbackend.datasets import Dataset
    from nnbackend.experiment import Experiment, Result
    from nnbackend.network import Network
    from nnbackend.run_folder import RunFolder
    from nnbackend.training import Callback, TrainingState

__all__ = ["main"]

# What suits each data set that comes along; an argument overrides it.
PRESETS: dict[str, dict[str, Any]] = {
    "breast_cancer": {"hidden": (16, 8), "optimizer": AdamW(3e-3, weight_decay=3.0)},
    "digits": {
        "hidden": (256,),
        "activation": "gelu",
        "dropout": 0.2,
        "optimizer": AdamW(Cosine(3e-3), weight_decay=0.3),
        "epochs": 60,
    },
    "diabetes": {"hidden": (32,), "optimizer": AdamW(3e-3, weight_decay=3.0)},
    # The two-layer network of the textbook, with its full-batch gradient descent.
    "planar": {
        "hidden": (4,),
        "activation": "tanh",
        "initializer": "he_normal",
        "optimizer": SGD(1.2),
        "epochs": 5000,
        "patience": 2000,
        "batch_size": None,
    },
}
# The schedules that need nothing but a rate.
SCHEDULES: dict[str, Any] = {
    name: schedules.SCHEDULES[name]
    for name in ("constant", "cosine", "inverse_scaling", "one_cycle", "reduce_on_plateau")
}

_UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
# What the other commands call the library's arguments.
_ARGUMENTS = {"path": "MODEL", "X": "DATA"}
# Options of ``train`` that are not about what is trained.
_OWN_OPTIONS = {"run", "command", "out", "json", "resume", "checkpoint_every", "data"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    with standard_streams():
        try:
            try:
                return _run(arguments)
            finally:
                # Here, where it can be told that the last of it cannot be written.
                sys.stdout.flush()
        except OutputError as error:
            if error.is_closed_pipe:
                # As a shell reports a tool that SIGPIPE has ended, quietly: 128 + 13. With pipefail
                # a pipeline thus tells a reader that left early from one that read all.
                return 141
            _complain("nnbackend", str(error))
            return 2


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except OutputError:
        raise
    except NNBackendError as error:
        _complain(f"nnbackend {options.command}", _in_options(error, options))
        return 2
    except MemoryError as error:
        _complain(f"nnbackend {options.command}", f"not enough memory ({error})")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _complain(who: str, sentence: str) -> None:
    show(f"{who}: {printable(sentence)}", sys.stderr)


def _in_options(error: NNBackendError, options: argparse.Namespace) -> str:
    """Return an error's sentence with the option that was typed for the library's argument."""
    name, colon, rest = str(error).partition(":")
    if name in _ARGUMENTS and options.command != "train":
        return f"{_ARGUMENTS[name]}:{rest}"
    option = {"hidden": "activation", "path": "out"}.get(name, name)
    if options.command == "train" and hasattr(options, option) and name.isidentifier():
        return f"--{option.replace('_', '-')}{colon}{rest}"
    return str(error)


class _Parser(argparse.ArgumentParser):
    """Repeats what was typed in a form that any terminal can show."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nnbackend",
        description="Train fully connected neural networks on NumPy (CPU) and CuPy (CUDA).",
    )
    parser.add_argument("--version", action="version", version=f"nnbackend {nnbackend.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_predict(commands)
    _add_evaluate(commands)
    _add_export(commands)
    _add_bench(commands)
    _add_info(commands)
    return parser


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network on a file, or on real data that comes along",
        description="Train a network. With no DATA, on the breast-cancer data of scikit-learn. "
        "Defaults are in parentheses; with *, for a file: data that comes along has its own.",
    )
    parser.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="CSV, TSV, Parquet, NPY or NPZ file (needs --target)",
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help=f"data that comes along: {', '.join(DATASETS)}"
    )
    _add_target(parser)
    parser.add_argument(
        "--drop", metavar="COL", action="append", default=[], help="columns to leave out: A,B"
    )
    parser.add_argument(
        "--task",
        choices=["auto", "classification", "regression"],
        default="auto",
        help="auto: text, booleans and whole numbers of at most 20 distinct values are classes",
    )
    network = parser.add_argument_group("network")
    network.add_argument(
        "--hidden", metavar="16,8", help="hidden units by layer, or 'none' (64,32 *)"
    )
    network.add_argument("--activation", metavar="NAME", help=f"{', '.join(ACTIVATIONS)} (relu *)")
    network.add_argument(
        "--initializer", metavar="NAME", help=f"{', '.join(INITIALIZERS)} (by activation *)"
    )
    network.add_argument("--dropout", type=float, metavar="RATE", help="of hidden units (0 *)")
    network.add_argument("--dtype", metavar="NAME", help="float32 (default) or float64")
    network.add_argument("--device", metavar="NAME", help="cpu (default), cuda, cuda:N, auto")
    training = parser.add_argument_group("training")
    training.add_argument(
        "--loss",
        metavar="NAME",
        help=f"{', '.join(name for name in LOSSES if name != 'poisson')} (by task)",
    )
    training.add_argument("--optimizer", metavar="NAME", help=f"{', '.join(OPTIMIZERS)} (adamw *)")
    training.add_argument("--learning-rate", type=float, metavar="RATE", help="(0.001 *)")
    training.add_argument("--weight-decay", type=float, metavar="STRENGTH", help="(0.01 *)")
    training.add_argument("--schedule", metavar="NAME", help=f"{', '.join(SCHEDULES)} (constant *)")
    training.add_argument("--epochs", type=int, metavar="N", help="at most (200 *)")
    training.add_argument("--batch-size", metavar="N", help="examples per step, or 'full' (32 *)")
    training.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="epochs without a lower validation loss (training loss with --validation 0) that end "
        "the training; 0: no early stopping (20 *)",
    )
    training.add_argument("--l1", type=float, metavar="STRENGTH", help="penalty (0)")
    training.add_argument("--l2", type=float, metavar="STRENGTH", help="penalty (0)")
    training.add_argument("--clip-norm", type=float, metavar="NORM", help="(no clipping)")
    training.add_argument("--engine", metavar="NAME", help="auto (default), reference, cpu, cuda")
    training.add_argument(
        "--precision",
        metavar="NAME",
        help="of products, with --engine cuda: float32 (default), tf32, bfloat16",
    )
    training.add_argument("--seed", type=int, metavar="N", help="of the split and the training (0)")
    training.add_argument("--validation", type=float, metavar="SHARE", help="default 0.2")
    training.add_argument("--held-out", type=float, metavar="SHARE", help="default 0.2")
    parser.add_argument("--out", metavar="FOLDER", help="run folder (default: runs/NAME-DATE-TIME)")
    parser.add_argument(
        "--checkpoint-every",
        metavar="N",
        help="epochs, such as 10 or 0.5, or a time, such as 30s, 10min, 1h (1min)",
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a run that was broken off, or, with more --epochs, one that is complete",
    )
    _add_json(parser)
    parser.set_defaults(run=_train)


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser("predict", help="apply a saved model to a file")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("data", metavar="DATA")
    parser.add_argument(
        "--probabilities", action="store_true", help="add a column for each class's probability"
    )
    parser.add_argument("--out", metavar="FILE", help="write CSV there instead of to the terminal")
    parser.add_argument("--device", default="cpu", metavar="NAME")
    _add_json(parser)
    parser.set_defaults(run=_predict)


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="measure a saved model on a file with targets")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("data", metavar="DATA")
    _add_target(parser)
    parser.add_argument("--device", default="cpu", metavar="NAME")
    _add_json(parser)
    parser.set_defaults(run=_evaluate)


def _add_export(commands: Any) -> None:
    parser = commands.add_parser("export", help="write a saved model as an ONNX file")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "out",
        metavar="OUT",
        help="the ONNX file, such as model.onnx; what exists is replaced if it ends in .onnx",
    )
    _add_json(parser)
    parser.set_defaults(run=_export)


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure training throughput on every device, against every installed peer",
        description="Time training steps, each contestant in a process of its own, in turns. "
        "Workloads: planar, small, images, mnist, higgs, wide; and digits, trained to an accuracy. "
        "With none named, all of them.",
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD")
    own = parser.add_argument_group("a workload of your own")
    own.add_argument("--layers", metavar="64-256-1", help="units of each layer, input to output")
    own.add_argument("--batch", type=int, metavar="N", help="examples per step (default 128)")
    own.add_argument("--hidden", metavar="NAME", help=", ".join(ACTIVATIONS))
    own.add_argument("--output", metavar="NAME", help="sigmoid or softmax")
    own.add_argument("--optimizer", metavar="NAME", help="adam (default) or sgd")
    parser.add_argument(
        "--contestants",
        metavar="A,B",
        help="nnbackend, nnbackend-ENGINE, textbook, sklearn, torch, torch-graph, torch-compiled, "
        "jax, jax-scan",
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:N (default: all)")
    parser.add_argument(
        "--precision",
        metavar="NAME",
        help="of products on GPUs: float32 (default), tf32, bfloat16",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each (default 7)")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="what a turn lasts, at least (default 0.5)"
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds of 0.2 s")
    parser.add_argument("--out", metavar="FOLDER", help="default: runs/bench-DATE-TIME")
    _add_json(parser)
    parser.set_defaults(run=_bench)


def _add_info(commands: Any) -> None:
    parser = commands.add_parser("info", help="devices, versions and BLAS; or what a model is")
    parser.add_argument("model", nargs="?", metavar="MODEL")
    _add_json(parser)
    parser.set_defaults(run=_info)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target",
        metavar="COL",
        help="target column: a name; an index in NPY (-1 is the last); a key in NPZ (default y)",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def _train(options: argparse.Namespace) -> None:
    from nnbackend.checkpoints import checkpoint_files
    from nnbackend.distributed import all_or_none, world_of_launcher

    communicator = world_of_launcher()
    how: dict[str, Any] = {
        "checkpoint_every": _interval(options.checkpoint_every),
        "resume": options.resume is not None,
        "communicator": communicator,
    }
    experiment, dataset, net, folder, arguments = _begin(options, communicator)
    if folder is None:
        # Of several processes, the first one speaks and writes.
        with all_or_none(communicator):
            experiment.run(dataset, net, checkpoint=os.devnull, **how)
        return
    is_trained = False
    try:
        folder.require_own()
        if not options.json:
            show(f"{printable(_describe(dataset))}\n{net}: {net.n_parameters:,} parameters")
            if options.resume is not None:
                files = checkpoint_files(folder.checkpoints)
                begun = (
                    f"going on from {files[0]}" if files else "no checkpoint yet: beginning anew"
                )
                show(begun)
        with _first_interrupt_only() as ignore_others:
            with all_or_none(communicator), _progress(experiment, options.json) as callbacks:
                result = experiment.run(
                    dataset, net, callbacks, checkpoint=folder.checkpoints, **how
                )
            is_trained = True
            ignore_others()
            files = result.write(folder)
            # How far it is to go may have changed.
            folder.write_command(arguments, has_outcome=True)
    except BaseException as error:
        is_useless = folder.abandon()
        if not is_useless and (is_trained or isinstance(error, SystemExit)):
            advice = f"what was learnt is kept: go on with: nnbackend train --resume {folder.path}"
            show(advice, sys.stderr)
        raise
    finally:
        folder.close()
    if options.json:
        sys.stdout.write(to_json({"run": str(folder.path), "files": files, **result.to_dict()}))
    else:
        _print_result(result, folder.path, files)
    if result.error is not None:
        raise result.error
    if result.history.stopped == "interrupted":
        raise KeyboardInterrupt


def _begin(
    options: argparse.Namespace, communicator: Any
) -> tuple[Experiment, Dataset, Network, RunFolder | None, list[str]]:
    """Return what is trained on what, the folder where this process writes, and the arguments."""
    from nnbackend.distributed import together
    from nnbackend.run_folder import RunFolder

    folder = None
    with contextlib.ExitStack() as undo, together(communicator) as team:
        is_writer = team is None or team.rank == 0
        if options.resume is not None:
            if is_writer:
                folder = RunFolder.begun(options.resume)
                undo.callback(folder.abandon)
            options = _resumed(options)
        dataset, preset = _chosen_data(options)
        experiment = _experiment(options, preset)
        if team is not None and experiment.device == "cuda":
            experiment = replace(experiment, device=f"cuda:{team.local_rank}")
        net = experiment.network(dataset)
        if is_writer and folder is None:
            folder = RunFolder.made(options.out, dataset.name)
            undo.callback(folder.abandon)
            folder.write_command(_arguments(options))
        if team is not None:
            team.agree({"command": " ".join(_arguments(options))})
            if team.rank == 0:
                # A launcher that reports a process's end names its number alone.
                for rank, process in enumerate(team.processes):
                    show(f"rank {rank} is {process}", sys.stderr)
        undo.pop_all()
    return experiment, dataset, net, folder, _arguments(options)


def _interval(text: str | None) -> float | timedelta:
    """Return how often a checkpoint is due: epochs, or a time with its unit."""
    if text is None:
        return timedelta(minutes=1)
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = text[len(number) :].strip()
    with contextlib.suppress(ValueError, OverflowError):
        count = real("--checkpoint-every", float(number), above=0.0)
        if unit in ("", "epochs", "epoch"):
            return count
        if unit in _UNITS:
            return timedelta(seconds=count * _UNITS[unit])
    raise InputError(
        f"--checkpoint-every: expected epochs, such as 10 or 0.5, or a time, such as 30s, 10min or "
        f"1h, got {text!r}"
    )


def _arguments(options: argparse.Namespace) -> list[str]:
    """Return the arguments that give these options of ``train``, wherever they are given."""
    given = []
    for name, default in vars(_parser().parse_args(["train"])).items():
        value = getattr(options, name)
        if value == default or name in _OWN_OPTIONS:
            continue
        option = f"--{name.replace('_', '-')}"
        given += [f"{option}={entry}" for entry in (value if isinstance(value, list) else [value])]
    if options.data is not None:
        given += ["--", os.path.abspath(options.data)]
    return given


def _resumed(options: argparse.Namespace) -> argparse.Namespace:
    """Return the options that a run was begun with, and how far it is to go."""
    from nnbackend.run_folder import read_command

    allowed = {"run", "command", "json", "resume", "epochs", "checkpoint_every", "data"}
    for name, default in vars(_parser().parse_args(["train"])).items():
        if getattr(options, name) != default and name not in allowed:
            raise InputError(
                f"--{name.replace('_', '-')}: expected nothing but DATA (where it is now), "
                "--epochs, --checkpoint-every and --json along with --resume, which goes on with "
                "what the run began with"
            )
    arguments = read_command(options.resume)
    try:
        silence = io.StringIO()
        with contextlib.redirect_stderr(silence), contextlib.redirect_stdout(silence):
            begun = _parser().parse_args(["train", *arguments])
    except SystemExit as error:
        raise InputError(
            f"--resume: expected the folder of a run, got {options.resume!r}, whose options cannot "
            "be read; begin anew"
        ) from error
    for name in ("epochs", "data"):
        if getattr(options, name) is not None:
            setattr(begun, name, getattr(options, name))
    return begun


def _chosen_data(options: argparse.Namespace) -> tuple[Dataset, dict[str, Any]]:
    if options.data in DATASETS and not Path(options.data).exists():
        raise InputError(
            f"DATA: no such file {options.data!r}; did you mean --dataset {options.data}?"
        )
    if options.loss == "poisson":
        raise InputError("--loss: 'poisson' is for counts, which the command does not train on yet")
    if options.data is None:
        if options.target is not None:
            raise InputError("--target: expected a DATA file with that column, got none")
        for option, is_given in (
            ("--drop", bool(options.drop)),
            ("--task", options.task != "auto"),
        ):
            if is_given:
                raise InputError(f"{option}: expected a DATA file to apply it to, got none")
        name = options.dataset or "breast_cancer"
        return load_dataset(name), PRESETS[name]
    if options.dataset is not None:
        raise InputError(
            f"--dataset: expected either DATA or --dataset, got both {options.data!r} and "
            f"{options.dataset!r}"
        )
    from nnbackend.tables import read_dataset

    drop = [name for names in options.drop for name in names.split(",")]
    return read_dataset(options.data, options.target, drop, options.task), {}


def _experiment(options: argparse.Namespace, preset: dict[str, Any]) -> Experiment:
    from nnbackend.experiment import Experiment

    experiment = replace(Experiment((64, 32), AdamW(1e-3)), **preset)
    given = {
        name: getattr(options, name)
        for name in (
            "activation",
            "initializer",
            "dropout",
            "dtype",
            "device",
            "loss",
            "epochs",
            "patience",
            "l1",
            "l2",
            "clip_norm",
            "engine",
            "precision",
            "seed",
            "validation",
            "held_out",
        )
        if getattr(options, name) is not None
    }
    if options.hidden is not None:
        given["hidden"] = _sizes(options.hidden)
    if options.batch_size is not None:
        given["batch_size"] = _batch_size(options.batch_size)
    for name in ("validation", "held_out"):
        if name in given:
            real(f"--{name.replace('_', '-')}", given[name], minimum=0.0, below=1.0)
    given["optimizer"] = _optimizer(options, experiment.optimizer)
    return replace(experiment, **given)


def _optimizer(options: argparse.Namespace, preset: Optimizer) -> Optimizer:
    """Return the preset, or the optimizer that is named, with what else is given."""
    chosen: Any = preset if options.optimizer is None else optimizer(options.optimizer)
    rate = options.learning_rate
    if options.schedule is not None:
        if rate is None:
            # A schedule's own learning_rate is the number it starts from or rises to.
            rate = getattr(chosen.learning_rate, "learning_rate", chosen.learning_rate)
        rate = lookup("--schedule", options.schedule, SCHEDULES)(rate)
    if rate is not None:
        chosen = replace(chosen, learning_rate=rate)
    if options.weight_decay is not None:
        chosen = replace(chosen, weight_decay=options.weight_decay)
    result: Optimizer = chosen
    return result


def _sizes(text: str) -> tuple[int, ...]:
    if text in ("none", ""):
        return ()
    parts = text.split(",")
    # More digits than a size can have are not even read.
    if not all(part.strip().isdecimal() and len(part) < 20 and int(part) > 0 for part in parts):
        raise InputError(f"--hidden: expected units by layer such as 16,8, or 'none', got {text!r}")
    return tuple(int(part) for part in parts)


def _batch_size(text: str) -> int | None:
    if text == "full":
        return None
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--batch-size: expected an integer or 'full', got {text!r}") from None


def _describe(dataset: Dataset) -> str:
    n_samples, n_features = dataset.X.shape
    what = "regression" if dataset.class_names is None else f"{len(dataset.class_names)} classes"
    return f"{dataset.name}: {n_samples:,} examples x {n_features} features, {what}"


@contextlib.contextmanager
def _first_interrupt_only() -> Iterator[Callable[[], None]]:
    """Let the first Ctrl-C end the training; yield what ignores others from then on."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def ignore_others() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def handle(_signal: int, _frame: Any) -> None:
        ignore_others()
        show("interrupted: writing what was learnt so far", sys.stderr)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield ignore_others
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _progress(experiment: Experiment, quiet: bool) -> Iterator[list[Callback]]:
    """Yield the callbacks that draw a progress bar: none where there is no terminal to draw on."""
    if quiet or not sys.stderr.isatty():
        yield []
        return
    try:
        from rich import progress
        from rich.console import Console
    except ImportError as error:
        raise MissingDependencyError(
            "the progress bar needs rich; install it with: pip install rich"
        ) from error
    columns = (
        progress.TextColumn("epoch {task.completed}/{task.total}"),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[losses]}"),
        progress.TimeElapsedColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=experiment.epochs, losses="")
        last = 0.0

        def update(state: TrainingState) -> None:
            nonlocal last
            now = monotonic()
            if now - last < 0.05 and state.epoch < state.epochs:
                return
            last = now
            losses = f"loss {state.history.loss[-1]:.4f}"
            if state.history.validation_loss:
                losses += f"  validation {state.history.validation_loss[-1]:.4f}"
            bar.update(task, completed=state.epoch, losses=losses)

        yield [update]


def _print_result(result: Result, folder: Path, files: list[str]) -> None:
    history, rows = result.history, result.rows
    best = "" if history.best_epoch is None else f", best epoch {history.best_epoch}"
    shown = (history.best_epoch or history.n_epochs) - 1
    lines = [
        ("epochs", f"{history.n_epochs} ({history.stopped}{best})"),
        ("training loss", f"{history.loss[shown]:.4f} on {len(rows.training):,} examples"),
    ]
    if history.validation_loss:
        loss = history.validation_loss[shown]
        lines.append(("validation loss", f"{loss:.4f} on {len(rows.validation):,} examples"))
    lines += _score_lines(result.scores, "held-out ")
    seconds = sum(history.epoch_seconds)
    lines.append(
        ("throughput", f"{history.samples_per_second:,.0f} examples/s, {seconds:.2f} s of training")
    )
    lines.append(("optimizer", f"{result.experiment.optimizer}"))
    lines.append(("run folder", f"{folder}: {', '.join(files)}"))
    _print_lines(lines)


def _score_lines(scores: dict[str, float], prefix: str = "") -> list[tuple[str, str]]:
    titles = {
        "accuracy": "accuracy",
        "macro_f1": "macro F1",
        "log_loss": "log loss",
        "r2": "R2",
        "rmse": "RMSE",
        "mae": "MAE",
    }
    lines = [
        (f"{prefix}{titles[name]}", f"{score:.4f}")
        for name, score in scores.items()
        if name in titles
    ]
    if lines:
        lines[0] = (lines[0][0], f"{lines[0][1]} on {scores['n_samples']:,} examples")
    return lines


def _print_lines(lines: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in lines)
    show("\n".join(f"{name:<{width}}  {printable(value)}" for name, value in lines))


def _model_features(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Return the loaded model, the table, and the features that the model wants of it."""
    from nnbackend.persistence import load
    from nnbackend.run_folder import model_file
    from nnbackend.tables import read_table

    net = load(model_file(options.model), device=options.device)
    table = read_table(options.data)
    known = net.feature_names or ()
    missing = [name for name in known if name not in table.columns]
    if known and not missing:
        names = list(known)
    elif known and table.has_names:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"DATA: expected the model's {len(known)} feature columns, {missing[0]!r} is missing "
            f"in {options.data}{more}"
        )
    else:
        target = getattr(options, "target", None) or table.target
        left_out = {None if target is None else table.column("--target", target)}
        names = [name for name in table.columns if name not in left_out]
        if len(names) != net.layer_sizes[0]:
            raise InputError(
                f"DATA: expected {net.layer_sizes[0]} feature columns, as many as the model's "
                f"input layer, got {len(names)} in {options.data}"
            )
    return net, table, table.features(names)


def _predict(options: argparse.Namespace) -> None:
    from nnbackend.experiment import finite_predictions
    from nnbackend.run_folder import model_file

    net, _, X = _model_features(options)
    if options.probabilities and net.output not in ("sigmoid", "softmax"):
        raise InputError("--probabilities: expected a classifier, got the model of a regression")
    predicted = finite_predictions(net, X)
    columns: list[tuple[str, list[Any]]]
    if predicted.ndim == 1:
        values = predicted.tolist()
        if net.output in ("sigmoid", "softmax") and net.class_names is not None:
            values = [net.class_names[k] for k in values]
        columns = [("prediction", values)]
    else:
        columns = [(f"prediction_{k}", values.tolist()) for k, values in enumerate(predicted.T)]
    if options.probabilities:
        probability = net.predict_proba(X)
        names = net.class_names or tuple(str(k) for k in range(probability.shape[1]))
        columns += [
            (f"probability_{name}", values.tolist())
            for name, values in zip(names, probability.T, strict=True)
        ]
    if options.out is None:
        if options.json:
            sys.stdout.write(to_json(dict(columns)))
        else:
            write_csv(columns)
        return
    from nnbackend.files import write_atomically

    for name, path in (("MODEL", model_file(options.model)), ("DATA", options.data)):
        if os.path.exists(options.out) and os.path.samefile(options.out, path):
            raise InputError(
                f"--out: expected a file other than {name}, got {options.out!r}, which it is"
            )
    text = to_json(dict(columns)) if options.json else csv_text(columns)
    try:
        write_atomically(options.out, text.encode())
    except InputError as error:
        raise InputError(str(error).replace("path:", "--out:", 1)) from error


def _evaluate(options: argparse.Namespace) -> None:
    from nnbackend.datasets import encode_target
    from nnbackend.experiment import class_indices, evaluate

    net, table, X = _model_features(options)
    n_outputs = net.layer_sizes[-1]
    if n_outputs > 1 and net.output != "softmax":
        raise InputError(
            f"MODEL: expected a model of one target, got one of {n_outputs}, which one column "
            "cannot measure; write what predict gives with --out, and compare it column by column"
        )
    target = options.target or table.target
    if target is None:
        raise InputError("--target: expected the column with the true values, got none")
    target = table.column("--target", target)
    values = table.columns[target]
    if net.output in ("sigmoid", "softmax"):
        y = class_indices(net, target, values)
    else:
        y, _ = encode_target(target, values, "regression")
    scores = evaluate(net, X, y)
    if options.json:
        sys.stdout.write(to_json(scores))
    else:
        _print_lines(_score_lines(scores))


def _export(options: argparse.Namespace) -> None:
    from nnbackend.onnx_export import export_onnx
    from nnbackend.persistence import load
    from nnbackend.run_folder import model_file

    model = model_file(options.model)
    net = load(model)
    if os.path.exists(options.out) and os.path.samefile(options.out, model):
        raise InputError(
            f"OUT: expected a file other than the model, got {options.out!r}, which is the model"
        )
    try:
        export_onnx(net, options.out)
    except InputError as error:
        raise InputError(str(error).replace("path:", "OUT:", 1)) from error
    is_classifier = net.output in ("sigmoid", "softmax")
    outputs = ["label", "probabilities"] if is_classifier else ["prediction"]
    if options.json:
        sys.stdout.write(to_json({"file": options.out, "inputs": ["X"], "outputs": outputs}))
        return
    X = f"X (n_samples, {net.layer_sizes[0]}) {net.dtype}"
    _print_lines([("file", options.out), ("input", X), ("outputs", ", ".join(outputs))])


def _bench(options: argparse.Namespace) -> None:
    from nnbackend.benchmark import run_benchmark
    from nnbackend.benchmark_picture import draw
    from nnbackend.benchmark_report import markdown, print_result
    from nnbackend.plots import drawn
    from nnbackend.run_folder import RunFolder

    workloads = _workloads(options)
    quick = {"rounds": 3, "seconds": 0.2} if options.quick else {}
    given = {name: getattr(options, name) for name in ("precision", "rounds", "seconds")}
    names = None if options.contestants is None else options.contestants.split(",")
    folder = RunFolder.made(options.out, "bench")
    try:
        with _status(shown=not options.json) as say:

            def show_result(result: BenchmarkResult) -> None:
                if not options.json:
                    say("")
                    print_result(result)

            report = run_benchmark(
                workloads,
                contestants=names,
                device_names=None if options.device is None else [options.device],
                on_progress=say,
                on_result=show_result,
                **{**quick, **{name: value for name, value in given.items() if value is not None}},
            )
        files = {"benchmark.json": to_json(report.to_dict(), indent=1).encode()}
        files["benchmark.md"] = markdown(report).encode()
        for name, content in files.items():
            folder.write(name, content)
        if any(result.timed for result in report.results):
            pictures = drawn("benchmark.png", lambda: draw(report)) or {}
            for name, content in pictures.items():
                files[f"benchmark.{name}"] = content
                folder.write(f"benchmark.{name}", content)
    finally:
        # What was written stays.
        folder.abandon()
    if options.json:
        facts = {"run": str(folder.path), "files": list(files), **report.to_dict()}
        sys.stdout.write(to_json(facts))
    else:
        show(f"run folder  {folder.path}: {', '.join(files)}")


def _workloads(options: argparse.Namespace) -> list[Workload]:
    from nnbackend.benchmark import DIGITS, WORKLOADS, custom_workload

    known = {**WORKLOADS, DIGITS.name: DIGITS}
    chosen = [lookup("WORKLOAD", name, known) for name in dict.fromkeys(options.workloads)]
    own = {name: getattr(options, name) for name in ("hidden", "output", "optimizer")}
    own = {name: value for name, value in own.items() if value is not None}
    if options.layers is None:
        for name in ("batch", *own):
            if getattr(options, name) is not None:
                raise InputError(f"--{name}: expected --layers along with it, got none")
        return chosen or list(known.values())
    parts = options.layers.split("-")
    if not all(part.isdecimal() and len(part) < 20 for part in parts):
        raise InputError(
            f"--layers: expected units by layer such as 64-256-1, got {options.layers!r}"
        )
    batch_size = 128 if options.batch is None else options.batch
    return [*chosen, custom_workload([int(part) for part in parts], batch_size, **own)]


@contextlib.contextmanager
def _status(*, shown: bool) -> Iterator[Callable[[str], None]]:
    """Yield what shows a line of text that the next one replaces, where there is a terminal."""
    if not (shown and sys.stderr.isatty()):
        yield lambda _: None
        return

    def say(text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()

    try:
        yield say
    finally:
        say("")


def _info(options: argparse.Namespace) -> None:
    from nnbackend.run_folder import model_file

    if options.model is not None:
        from nnbackend.persistence import load

        net = load(model_file(options.model))
        facts = {
            "layer sizes": net.layer_sizes,
            "hidden": list(net.hidden),
            "output": net.output,
            "dropout": list(net.dropout),
            "dtype": net.dtype,
            "parameters": net.n_parameters,
            "standardized": net.standardization is not None,
            "features": None if net.feature_names is None else list(net.feature_names),
            "classes": None if net.class_names is None else list(net.class_names),
        }
    else:
        from nnbackend.environment import environment

        facts = environment()
    if options.json:
        sys.stdout.write(to_json(facts))
        return
    lines = []
    for name, value in facts.items():
        entries = value if isinstance(value, list) and name in ("devices", "BLAS") else [value]
        for entry in entries:
            shown = ", ".join(map(str, entry.values())) if isinstance(entry, dict) else entry
            lines.append((name, str(shown)))
    _print_lines(lines)
