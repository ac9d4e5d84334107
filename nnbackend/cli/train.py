"""``nnbackend train``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnbackend.checks import real
from nnbackend.cli.naming import naming, option_name
from nnbackend.cli.options import FIELDS, add_options
from nnbackend.cli.parser import add_json
from nnbackend.cli.printing import LINE_NAMES, print_lines, score_lines
from nnbackend.cli.progress import first_interrupt_only, progress_bar
from nnbackend.cli.request import Request
from nnbackend.cli.terminal import printable, show, to_json
from nnbackend.data.typed import Table
from nnbackend.errors import InputError

if TYPE_CHECKING:
    from nnbackend.cli.evaluation import Split
    from nnbackend.cli.experiment import Experiment
    from nnbackend.cli.result import Result
    from nnbackend.cli.run_folder import RunFolder
    from nnbackend.data.datasets import Dataset
    from nnbackend.data.encoding import TableEncoding
    from nnbackend.model.network import Network

__all__ = ["add"]


_UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "train",
        argument_default=argparse.SUPPRESS,
        help="train a network on a file, or on real data that comes along",
        description="Train a network. With no DATA, on the breast-cancer data of scikit-learn. "
        "Defaults are in parentheses; with *, of tables: NPY and NPZ files, and data that comes "
        "along, have others.",
    )
    add_options(parser)
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        default=None,
        help="run folder (default: runs/NAME-DATE-TIME)",
    )
    parser.add_argument(
        "--checkpoint-every",
        metavar="N",
        default=None,
        help="epochs, such as 10 or 0.5, or a time, such as 30s, 10min, 1h (1min)",
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        default=None,
        help="continue a run that was broken off, or, with more --epochs, one that is complete",
    )
    add_json(parser)
    names = {name: option_name(name) for name in FIELDS}
    names |= {"hidden": "--activation", "path": "--out", "sample_weight": "--weight"}
    parser.set_defaults(run=_train, names=names, parser=parser)


@dataclass(frozen=True)
class _Run:
    """A run, ready to train; only the process that writes has a folder."""

    request: Request
    experiment: Experiment
    dataset: Dataset
    rows: Split
    net: Network
    folder: RunFolder | None


def _train(options: argparse.Namespace) -> None:
    from nnbackend.cli.result import run as run_experiment
    from nnbackend.parallel.launch import all_or_none, world_of_launcher

    communicator = world_of_launcher()
    how: dict[str, Any] = {
        "checkpoint_every": _interval(options.checkpoint_every),
        "resume": options.resume is not None,
        "communicator": communicator,
    }
    run = _set_up(options, communicator)
    if run.folder is None:
        # Only the first of several processes prints and writes.
        with all_or_none(communicator):
            run_experiment(
                run.experiment, run.dataset, run.rows, run.net, checkpoint=os.devnull, **how
            )
        return
    result, files = _trained(run, run.folder, how, is_quiet=options.json)
    if options.json:
        facts = {"run": str(run.folder.path), "files": files, **result.to_dict()}
        sys.stdout.write(to_json(facts))
    else:
        _print_result(result, run.folder.path, files)
    if result.error is not None:
        raise result.error
    if result.history.stopped == "interrupted":
        raise KeyboardInterrupt


def _trained(
    run: _Run, folder: RunFolder, how: dict[str, Any], *, is_quiet: bool
) -> tuple[Result, list[str]]:
    """Train and write the result; return it with the names of its files."""
    from nnbackend.cli.result import run as run_experiment
    from nnbackend.parallel.launch import all_or_none

    is_trained = False
    try:
        folder.require_own()
        if not is_quiet:
            _print_beginning(run, folder, is_resumed=how["resume"])
        with first_interrupt_only() as ignore_others:
            epochs = run.experiment.training.epochs
            with (
                all_or_none(how["communicator"]),
                progress_bar(epochs, is_quiet=is_quiet) as callbacks,
            ):
                result = run_experiment(
                    run.experiment,
                    run.dataset,
                    run.rows,
                    run.net,
                    callbacks=callbacks,
                    checkpoint=folder.checkpoints,
                    **how,
                )
            is_trained = True
            ignore_others()
            files = result.write(folder)
            # The number of epochs may have changed.
            folder.write_command(run.request.stored(), has_outcome=True)
    except BaseException as error:
        is_useless = folder.abandon()
        if not is_useless and (is_trained or isinstance(error, SystemExit)):
            advice = f"what was learnt is kept: go on with: nnbackend train --resume {folder.path}"
            show(advice, sys.stderr)
        raise
    finally:
        folder.close()
    return result, files


def _set_up(options: argparse.Namespace, communicator: Any) -> _Run:
    """Make, or resume, a run: in the process that writes, with its folder."""
    from nnbackend.cli.evaluation import split
    from nnbackend.cli.run_folder import RunFolder
    from nnbackend.parallel.launch import together

    folder = None
    with contextlib.ExitStack() as undo, together(communicator) as team:
        is_writer = team is None or team.rank == 0
        request = Request.from_options(options)
        if options.resume is not None:
            if is_writer:
                folder = RunFolder.begun(options.resume)
                undo.callback(folder.abandon)
            request = _resumed(request, options)
        dataset = request.dataset()
        experiment = request.experiment(len(dataset.y))
        request = request.settled(experiment)
        if team is not None and experiment.network.device == "cuda":
            experiment = experiment.on(f"cuda:{team.local_rank}")
        shares = experiment.split
        rows = split(dataset, shares.validation, shares.held_out, experiment.training.seed)
        encoding = None
        if isinstance(dataset.X, Table):
            encoding = _fitted(dataset.features(rows.training), request.column_kinds)
        net = experiment.make_network(dataset, encoding)
        if is_writer and folder is None:
            folder = RunFolder.made(options.out, dataset.name)
            undo.callback(folder.abandon)
            folder.write_command(request.stored())
        if team is not None:
            team.agree({"command": json.dumps(request.stored(), sort_keys=True)})
            if team.rank == 0:
                # When a process ends, its launcher reports only the process number.
                for rank, process in enumerate(team.processes):
                    show(f"rank {rank} is {process}", sys.stderr)
        undo.pop_all()
    return _Run(request, experiment, dataset, rows, net, folder)


def _fitted(table: Table, kinds: Mapping[str, str]) -> TableEncoding:
    """Return what the columns of the training part become."""
    from nnbackend.data.deciding import EncodingOptions, Survey

    asked = {name: kind for name, kind in kinds.items() if name in table.columns}
    survey = Survey(EncodingOptions(columns=asked))
    with naming(X="DATA", columns="--columns"):
        survey.update(table)
        return survey.encoding()


def _resumed(request: Request, options: argparse.Namespace) -> Request:
    """Return the request of a run to resume, with the changes that are allowed."""
    from nnbackend.cli.run_folder import read_command

    others = [name for name in request.fields if name not in ("epochs", "data")]
    if options.out is not None:
        others.append("out")
    if others:
        raise InputError(
            "expected nothing but DATA (where it is now), --epochs, "
            "--checkpoint-every and --json along with --resume, which goes on with what the run "
            "began with",
            argument=f"{option_name(others[0])}",
        )
    begun = read_command(options.resume, lambda stored: Request.from_stored(stored, options.parser))
    return begun.replaced(request)


def _interval(text: str | None) -> float | timedelta:
    """Convert the interval between checkpoints: epochs, or a time with its unit."""
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
        f"expected epochs, such as 10 or 0.5, or a time, such as 30s, 10min or 1h, got {text!r}",
        argument="--checkpoint-every",
    )


def _print_beginning(run: _Run, folder: RunFolder, *, is_resumed: bool) -> None:
    from nnbackend.data.encoding import described
    from nnbackend.training.checkpoint_folder import checkpoint_files

    show(f"{printable(_describe(run.dataset))}\n{run.net}: {run.net.n_parameters:,} parameters")
    if run.dataset.target is not None:
        encoding = run.net.encoding
        columns = [] if encoding is None else described(encoding.columns, LINE_NAMES)
        print_lines([*run.dataset.target.facts, *columns])
    if is_resumed:
        files = checkpoint_files(folder.checkpoints)
        show(f"going on from {files[0]}" if files else "no checkpoint yet: beginning anew")


def _describe(dataset: Dataset) -> str:
    n_samples, n_features = len(dataset.y), len(dataset.feature_names)
    what = "regression" if dataset.class_names is None else f"{len(dataset.class_names)} classes"
    return f"{dataset.name}: {n_samples:,} examples x {n_features} features, {what}"


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
    lines.append(("optimizer", f"{result.experiment.training.optimizer}"))
    lines.append(("run folder", f"{folder}: {', '.join(files)}"))
    print_lines(lines)
