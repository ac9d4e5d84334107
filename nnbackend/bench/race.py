"""Measure the throughput of training, with contestants that take turns.

Every contestant runs in its own process, so that no library's threads, memory or settings affect
another's. All may use the same cores: those of this process, whatever limits of threads its
environment has, which some libraries would ignore. The contestants start one after the other, take
their first step (which compiles), and then take turns. Each round gives everyone a turn and begins
with another contestant, so that a change of the machine's speed affects all alike. A turn is a
warm-up and one timed stretch of many steps, which ends with the loss on the host. The result is the
median over the rounds.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from nnbackend.bench.contestants import CONTESTANTS, LIMIT, OWN
from nnbackend.bench.own import own_contestants
from nnbackend.bench.process import ContestantError, ContestantProcess
from nnbackend.bench.report import Entry, Report, Result
from nnbackend.bench.startup import measure_startup
from nnbackend.bench.workload import DIGITS, Workload
from nnbackend.checks import lookup, positive_integer, real
from nnbackend.device import Device, devices, get_device
from nnbackend.engines import PRECISIONS
from nnbackend.errors import InputError

__all__ = ["run_benchmark"]

# The time limit of start-up, and of the first call, which may compile.
PATIENCE_SECONDS = 300.0

# Wait before a turn, since other processes' threads spin for some milliseconds after theirs.
PAUSE_SECONDS = 0.05
MAX_EPOCHS = 100


def run_benchmark(
    workloads: Iterable[Workload],
    *,
    contestants: Sequence[str] | None = None,
    device_names: Sequence[str] | None = None,
    precision: str = "float32",
    rounds: int = 7,
    seconds: float = 0.5,
    keep_processes: bool = False,
    startup: bool = False,
    patience: float | None = None,
    on_progress: Callable[[str], object] = lambda _: None,
    on_result: Callable[[Result], object] = lambda _: None,
) -> Report:
    """Time contestants on workloads.

    Parameters
    ----------
    workloads : iterable of Workload
        ``DIGITS`` is trained to an accuracy; for the others, steps are timed. Each one is requested
        when the one before is done.
    contestants : sequence of str, optional
        Keys of ``CONTESTANTS``; by default all of them, each engine once. The limit always takes
        part.
    device_names : sequence of str, optional
        By default every device of the machine that has the precision. Each contestant runs on all
        of them that it supports.
    precision : {"float32", "tf32", "bfloat16"}, default "float32"
        The precision in which all contestants compute products of float32 data. Only GPUs have the
        last two. On GPUs, "float32" excludes TF32, which some libraries would use by default.
    rounds : int, default 7
        The number of turns of each contestant.
    seconds : float, default 0.5
        The length of a turn, which is at least one epoch.
    keep_processes : bool, default False
        Use one process of each contestant for all workloads, and start all at once. That is faster,
        but omits start-up and first step, which would not be those of a new process.
    startup : bool, default False
        Measure first what fresh processes cost on the CPU.
    patience : float, optional
        The seconds that a start-up, or a first call, which may compile, can take; by default 300.
    on_progress, on_result : callable
        Called with a line of text, and with each finished ``Result``.

    Returns
    -------
    Report
        The report, which includes contestants that are not installed, fail or hang, with the
        reason.

    Raises
    ------
    InputError, DeviceError
        If an argument is invalid, or a device does not exist.
    """
    from datetime import UTC, datetime

    from nnbackend.bench.environment import environment

    rounds = positive_integer("rounds", rounds)
    seconds = real("seconds", seconds, above=0.0)
    for name in contestants or ():
        lookup("contestants", name, CONTESTANTS)
    patience = PATIENCE_SECONDS if patience is None else real("patience", patience, above=0.0)
    places = _places(device_names, precision)
    report = Report(
        results=[],
        settings={
            "precision": precision,
            "rounds": rounds,
            "seconds_per_round": seconds,
            "keep_processes": keep_processes,
            "load_average": _load(),
        },
        environment=environment(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        startups=measure_startup(on_progress) if startup else [],
    )
    with contextlib.closing(_Processes(precision, are_kept=keep_processes)) as processes:
        for workload in workloads:
            entries = [
                Entry(name, place.name)
                for place in places
                for name in _contestants(contestants, place, precision, workload)
            ]
            make = _StepRace if workload.accuracy is None else _AccuracyRace
            race = make(workload, processes, seconds, patience)
            race.run(entries, rounds, on_progress)
            entries.sort(key=lambda entry: entry.median if entry.seconds else math.inf)
            report.results.append(Result(workload, entries, precision))
            on_result(report.results[-1])
    return report


def _places(device_names: Sequence[str] | None, precision: str) -> list[Device]:
    """Return the devices to run on."""
    lookup("precision", precision, dict.fromkeys(PRECISIONS))
    places = [get_device(name) for name in device_names or [info.name for info in devices()]]
    if precision == "float32":
        return places
    gpus = [place for place in places if place.kind == "cuda"]
    if not gpus or (device_names and len(gpus) < len(places)):
        raise InputError(
            f"expected 'float32' on device 'cpu', got {precision!r}, which NVIDIA GPUs have",
            argument="precision",
        )
    return gpus


def _load() -> float | None:
    """Return how many programs wanted a core in the last minute; None if that is unknown."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _contestants(
    asked: Sequence[str] | None, place: Device, precision: str, workload: Workload
) -> list[str]:
    """Return the contestants that run on a device, with the limit last."""
    peers = [name for name in CONTESTANTS if name not in OWN]
    everyone = asked or (*own_contestants(place, precision), *peers)
    names = [name for name in everyone if name != LIMIT]
    if workload.accuracy is None:
        names.append(LIMIT)
    return [name for name in dict.fromkeys(names) if place.kind in CONTESTANTS[name].kinds]


class _Processes:
    """The contestants' processes: new ones for every workload, or the same ones for all."""

    def __init__(self, precision: str, *, are_kept: bool) -> None:
        self.are_kept = are_kept
        self._precision = precision
        self._open: dict[tuple[str, str], ContestantProcess] = {}

    def get(self, entry: Entry) -> ContestantProcess:
        """Return the process of a contestant on a device; start a new one if it has failed."""
        key = entry.contestant, entry.device
        process = self._open.get(key)
        if process is not None and process.has_failed:
            process.close()
            process = None
        if process is None:
            process = ContestantProcess(
                contestant=entry.contestant, device=entry.device, precision=self._precision
            )
            self._open[key] = process
        return process

    def close(self) -> None:
        """End all processes."""
        for process in self._open.values():
            process.close()
        self._open = {}


class _Race(ABC):
    """The rounds of all contestants on one workload."""

    def __init__(
        self, workload: Workload, processes: _Processes, seconds: float, patience: float
    ) -> None:
        self.workload = workload
        self.processes = processes
        self.seconds = seconds
        self.patience = patience

    def run(self, entries: list[Entry], rounds: int, on_progress: Callable[[str], object]) -> None:
        """Fill the entries with measurements, or with the reasons why there are none."""
        is_over = not self.processes.are_kept
        with tempfile.TemporaryDirectory(prefix="nnbackend-bench-") as folder:
            job = {"workload": self.workload.to_dict(), "data": self.write_data(folder)}
            try:
                runners = self._start_all(entries, job, on_progress)
                self._take_turns(runners, rounds, on_progress)
            finally:
                if is_over:
                    self.processes.close()
        for entry, process in runners:
            if entry.status == "ok":
                self.finish(entry, process)
            else:
                entry.seconds = []
            if not is_over:
                entry.first_seconds = None

    def _start_all(
        self, entries: list[Entry], job: dict[str, Any], on_progress: Callable[[str], object]
    ) -> list[tuple[Entry, ContestantProcess]]:
        """Start all processes, take their first step, and return them with their entries."""
        are_kept = self.processes.are_kept
        if are_kept:
            for entry in entries:
                self.processes.get(entry).send("load", **job)
        runners = []
        for index, entry in enumerate(entries, start=1):
            on_progress(f"{self.workload.name}: starting {entry.title} ({index} of {len(entries)})")
            process = self.processes.get(entry)
            runners.append((entry, process))
            with _reporting(entry):
                if not are_kept:
                    process.send("load", **job)
                entry.versions = process.answer(self.patience)["versions"]
                if not are_kept:
                    entry.startup_seconds = time.perf_counter() - process.started
                self.start(entry, process)
        return runners

    def _take_turns(
        self,
        runners: list[tuple[Entry, ContestantProcess]],
        rounds: int,
        on_progress: Callable[[str], object],
    ) -> None:
        for turn in range(rounds):
            on_progress(f"{self.workload.name}: round {turn + 1} of {rounds}")
            shift = turn * len(runners) // rounds
            for entry, process in runners[shift:] + runners[:shift]:
                with _reporting(entry):
                    if entry.status == "ok":
                        time.sleep(PAUSE_SECONDS)
                        entry.seconds.append(self.turn(entry, process))

    def write_data(self, folder: str) -> str | None:
        """Write the data to a file, unless the workload uses random numbers."""
        del folder
        return None

    @abstractmethod
    def start(self, entry: Entry, process: ContestantProcess) -> None:
        """Prepare the contestant and take its first step."""

    @abstractmethod
    def turn(self, entry: Entry, process: ContestantProcess) -> float:
        """Take a turn and return its seconds, for ``Entry.seconds``."""

    def finish(self, entry: Entry, process: ContestantProcess) -> None:
        """Complete the entry after the last round."""
        del entry, process


class _StepRace(_Race):
    """Measures the seconds per step."""

    def start(self, entry: Entry, process: ContestantProcess) -> None:
        prepared = process.ask("prepare", self.patience)["seconds"]
        patience = self.patience + 20 * self.seconds
        reply = process.ask("calibrate", patience, seconds=self.seconds)
        process.notes = {
            "epochs": reply["epochs"],
            "warm_up": reply["warm_up"],
            "steps": reply["first_call"]["steps"],
        }
        entry.first_seconds = prepared + reply["first_call"]["seconds"]
        entry.threads = reply["threads"]

    def turn(self, entry: Entry, process: ContestantProcess) -> float:
        del entry
        patience = self.patience + 20 * self.seconds
        if process.notes["warm_up"]:
            process.ask("warm_up", patience, epochs=process.notes["warm_up"])
        reply = process.ask("run", patience, epochs=process.notes["epochs"])
        seconds: float = reply["seconds"] / reply["steps"]
        return seconds

    def finish(self, entry: Entry, process: ContestantProcess) -> None:
        # The later steps of the first call cost as much as any later steps.
        later = entry.median * (process.notes["steps"] - 1)
        entry.first_seconds = max((entry.first_seconds or 0.0) - later, entry.median)


class _AccuracyRace(_Race):
    """Measures the seconds until the workload's accuracy is reached on held-out digits."""

    def write_data(self, folder: str) -> str:
        return _write_digits(folder)

    def start(self, entry: Entry, process: ContestantProcess) -> None:
        prepared = process.ask("prepare", self.patience)["seconds"]
        entry.first_seconds = prepared + self.turn(entry, process)

    def turn(self, entry: Entry, process: ContestantProcess) -> float:
        target = self.workload.accuracy
        reply = process.ask("train_to", self.patience, accuracy=target, max_epochs=MAX_EPOCHS)
        entry.epochs, entry.accuracy = reply["epochs"], reply["accuracy"]
        entry.threads = reply["threads"]
        if not reply["is_reached"]:
            raise ContestantError(
                "failed", f"reached {entry.accuracy:.3f} in {MAX_EPOCHS} epochs, not {target}"
            )
        seconds: float = reply["seconds"]
        return seconds


@contextlib.contextmanager
def _reporting(entry: Entry) -> Iterator[None]:
    """Write a contestant's failure into its entry."""
    try:
        yield
    except ContestantError as error:
        entry.status, entry.reason = error.status, error.reason


def _write_digits(folder: str) -> str:
    """Write the digits to a file, standardized with the training part's statistics."""
    from nnbackend.data.datasets import load_dataset

    digits = load_dataset("digits")
    order = np.random.default_rng(0).permutation(len(digits.y))
    training, held_out = np.split(order, [DIGITS.n_samples])
    mean, scale = digits.X[training].mean(axis=0), digits.X[training].std(axis=0)
    X = ((digits.X - mean) / np.where(scale > 0, scale, 1.0)).astype(np.float32)
    path = os.path.join(folder, "digits.npz")
    parts = {"X": X[training], "X_test": X[held_out]}
    np.savez(path, y=digits.y[training], y_test=digits.y[held_out], **parts)
    return path
