"""``nnbackend train``."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from nnbackend.checks import lookup, real
from nnbackend.cli.presets import PRESETS, SCHEDULES
from nnbackend.cli.printing import print_lines, score_lines
from nnbackend.cli.terminal import printable, show, to_json
from nnbackend.core.optimizers import AdamW, Optimizer, optimizer
from nnbackend.data.datasets import DATASETS, load_dataset
from nnbackend.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from nnbackend.cli.experiment import Experiment, Result
    from nnbackend.cli.run_folder import RunFolder
    from nnbackend.data.datasets import Dataset
    from nnbackend.model.network import Network
    from nnbackend.training.history import Callback, TrainingState

__all__ = ["train"]


_UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


# Options of ``train`` that are not about what is trained.
_OWN_OPTIONS = {"run", "command", "out", "json", "resume", "checkpoint_every", "data"}


def train(options: argparse.Namespace) -> None:
    from nnbackend.parallel.launch import all_or_none, world_of_launcher
    from nnbackend.training.checkpoint_folder import checkpoint_files

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
    from nnbackend.cli.run_folder import RunFolder
    from nnbackend.parallel.launch import together

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


def _parser() -> argparse.ArgumentParser:
    # The parser knows this module.
    from nnbackend.cli.parser import make_parser

    return make_parser()


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
    from nnbackend.cli.run_folder import read_command

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
    from nnbackend.data.tables import read_dataset

    drop = [name for names in options.drop for name in names.split(",")]
    return read_dataset(options.data, options.target, drop, options.task), {}


def _experiment(options: argparse.Namespace, preset: dict[str, Any]) -> Experiment:
    from nnbackend.cli.experiment import Experiment

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
    lines += score_lines(result.scores, "held-out ")
    seconds = sum(history.epoch_seconds)
    lines.append(
        ("throughput", f"{history.samples_per_second:,.0f} examples/s, {seconds:.2f} s of training")
    )
    lines.append(("optimizer", f"{result.experiment.optimizer}"))
    lines.append(("run folder", f"{folder}: {', '.join(files)}"))
    print_lines(lines)
