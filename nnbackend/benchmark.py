"""Throughput of training, measured: workloads, and contestants in interleaved rounds.

Every contestant runs in a process of its own, so that no library's threads, memory or settings
touch another's. All start one after the other, take their first step (which compiles), and then
take turns: each round gives everyone a turn, beginning with another one, so that a change of the
machine's speed meets all alike. A turn is a warm-up and one timed stretch of many steps, which ends
with the loss on the host. The figure is the median over the rounds.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nnbackend.benchmark_process import ContestantError, ContestantProcess
from nnbackend.benchmark_report import Entry, Report, Result
from nnbackend.checks import lookup, positive_integer, real
from nnbackend.contestants import own_contestants
from nnbackend.core.activations import activation
from nnbackend.core.optimizers import SGD, Adam
from nnbackend.device import Device, devices, get_device
from nnbackend.engines import PRECISIONS
from nnbackend.errors import InputError
from nnbackend.network import Network
from nnbackend.peers import CONTESTANTS, LIMIT, OWN

__all__ = [
    "DIGITS",
    "WORKLOADS",
    "Workload",
    "custom_workload",
    "run_benchmark",
]

OPTIMIZERS: dict[str, type[SGD | Adam]] = {"sgd": SGD, "adam": Adam}
# For start-up, and for the first call, which may compile.
PATIENCE_SECONDS = 300.0
# Other processes' threads spin for some milliseconds after their turn.
PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Workload:
    """A training to be timed: network, batch, optimizer, and how many batches an epoch has.

    Attributes
    ----------
    name : str
        What it is called.
    layer_sizes : tuple of int
        Units of the input, the hidden and the output layers.
    hidden, output : str
        Activations; the output is ``"sigmoid"`` or ``"softmax"`` and implies the loss.
    batch_size : int
        Examples per step.
    optimizer : SGD or Adam
        Plain gradient descent, or Adam, with a constant rate.
    n_batches : int
        Batches per epoch; 1 is full-batch gradient descent.
    represents : str
        What it stands for.
    accuracy : float or None
        A held-out accuracy to reach, which is timed then; None: steps are timed.

    Examples
    --------
    >>> WORKLOADS["small"].flops_per_step
    645120
    """

    name: str
    layer_sizes: tuple[int, ...]
    hidden: str
    output: str
    batch_size: int
    optimizer: SGD | Adam
    n_batches: int
    represents: str = ""
    accuracy: float | None = None

    @property
    def n_samples(self) -> int:
        """Rows of the data set."""
        return self.n_batches * self.batch_size

    @property
    def learning_rate(self) -> float:
        """The optimizer's rate, which is constant here."""
        rate = self.optimizer.learning_rate
        if not isinstance(rate, float):
            raise InputError(f"optimizer: expected a constant learning rate, got {rate!r}")
        return rate

    @property
    def flops_per_step(self) -> int:
        """Operations in the 3L - 1 matrix products of a step, 2 * batch * n_in * n_out each."""
        pairs = list(zip(self.layer_sizes[:-1], self.layer_sizes[1:], strict=True))
        products = [
            n_in * n_out * (2 if layer == 0 else 3) for layer, (n_in, n_out) in enumerate(pairs)
        ]
        return 2 * self.batch_size * sum(products)

    def __str__(self) -> str:
        layers = "-".join(map(str, self.layer_sizes))
        batch = f"batch {self.batch_size:,}{' (full)' if self.n_batches == 1 else ''}"
        return f"{layers}, {self.hidden}/{self.output}, {batch}, {self.optimizer.name}"

    def network(self, device: str = "cpu") -> Network:
        """Return the network with its initial parameters."""
        return Network(self.layer_sizes, hidden=self.hidden, output=self.output, device=device)

    def data(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return normal random features in float32, and random labels, as many of each class."""
        rng = np.random.default_rng(0)
        X = rng.standard_normal((self.n_samples, self.layer_sizes[0]), dtype=np.float32)
        n_outputs = self.layer_sizes[-1]
        if self.output == "sigmoid" and n_outputs > 1:
            return X, rng.integers(0, 2, (self.n_samples, n_outputs))
        n_classes = 2 if self.output == "sigmoid" else n_outputs
        return X, rng.permutation(np.arange(self.n_samples) % n_classes)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``from_dict`` takes, as JSON can hold it."""
        facts = asdict(self)
        facts["layer_sizes"] = list(self.layer_sizes)
        facts["optimizer"] = self.optimizer.name
        facts["learning_rate"] = self.learning_rate
        return facts

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Workload:
        """Return the workload that ``to_dict`` described."""
        facts = dict(facts)
        rate = facts.pop("learning_rate")
        facts["optimizer"] = OPTIMIZERS[facts["optimizer"]](rate)
        facts["layer_sizes"] = tuple(facts["layer_sizes"])
        return cls(**facts)


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("planar", (2, 4, 1), "tanh", "sigmoid", 400, SGD(0.1), 1, "two-layer network"),
        Workload("small", (30, 64, 32, 1), "relu", "sigmoid", 32, Adam(), 64, "small tables"),
        Workload(
            "images",
            (12288, 20, 7, 5, 1),
            "relu",
            "sigmoid",
            209,
            SGD(0.0075),
            1,
            "L-layer network on 64x64 colour images",
        ),
        Workload("mnist", (784, 512, 512, 10), "relu", "softmax", 128, Adam(), 32, "digits"),
        Workload("higgs", (28, 256, 256, 256, 1), "relu", "sigmoid", 4096, Adam(), 8, "big tables"),
        Workload(
            "wide", (1024, 2048, 2048, 10), "relu", "softmax", 1024, SGD(0.01), 4, "GEMM-bound"
        ),
    )
}

# Time to accuracy: scikit-learn's digits, 1408 of them in 22 batches; the rest is held out.
DIGITS = Workload(
    "digits", (64, 256, 10), "relu", "softmax", 64, Adam(), 22, "real 8x8 digits", accuracy=0.97
)
MAX_EPOCHS = 100


def custom_workload(
    layer_sizes: Sequence[int],
    batch_size: int,
    *,
    hidden: str = "relu",
    output: str | None = None,
    optimizer: str = "adam",
) -> Workload:
    """Return a workload of one's own.

    Parameters
    ----------
    layer_sizes : sequence of int
        Units of the input, the hidden and the output layers.
    batch_size : int
        Examples per step.
    hidden : str, default "relu"
        The hidden layers' activation.
    output : {"sigmoid", "softmax"}, optional
        By default sigmoid for one output, softmax for several.
    optimizer : {"adam", "sgd"}, default "adam"
        With their default rates.

    Returns
    -------
    Workload
        With two to 64 batches per epoch, fewer the larger they are.

    Raises
    ------
    InputError
        If an argument is not as said.

    Examples
    --------
    >>> print(custom_workload([64, 256, 256, 1], 512))
    64-256-256-1, relu/sigmoid, batch 512, adam
    """
    if len(layer_sizes) < 2:
        raise InputError(
            f"layers: expected at least two sizes, such as 64-256-1, got {layer_sizes!r}"
        )
    sizes = tuple(positive_integer("layers", size) for size in layer_sizes)
    batch_size = positive_integer("batch", batch_size)
    hidden = activation("hidden", hidden).name
    output = output or ("sigmoid" if sizes[-1] == 1 else "softmax")
    lookup("output", output, dict.fromkeys(("sigmoid", "softmax")))
    if output == "softmax" and sizes[-1] == 1:
        raise InputError("output: expected 'sigmoid' for a single output unit, got 'softmax'")
    return Workload(
        "-".join(map(str, sizes)),
        sizes,
        hidden,
        output,
        batch_size,
        lookup("optimizer", optimizer, OPTIMIZERS)(),
        max(2, min(64, 2**22 // (batch_size * sizes[0]))),
        "your own",
    )


def run_benchmark(
    workloads: Iterable[Workload],
    *,
    contestants: Sequence[str] | None = None,
    device_names: Sequence[str] | None = None,
    precision: str = "float32",
    rounds: int = 7,
    seconds: float = 0.5,
    keep_processes: bool = False,
    patience: float | None = None,
    on_progress: Callable[[str], object] = lambda _: None,
    on_result: Callable[[Result], object] = lambda _: None,
) -> Report:
    """Time contestants on workloads.

    Parameters
    ----------
    workloads : iterable of Workload
        ``DIGITS`` is trained to an accuracy; of the others, steps are timed. The next one is taken
        when the last one is done.
    contestants : sequence of str, optional
        Keys of ``CONTESTANTS``; by default all of them, each engine once. The limit always takes
        part.
    device_names : sequence of str, optional
        By default every device of the machine that has the precision. Each contestant runs on each
        that it is made for.
    precision : {"float32", "tf32", "bfloat16"}, default "float32"
        How all contestants compute products of float32 data. Only GPUs have the last two; there
        "float32" is float32 alone, also in libraries that would compute in TF32 by themselves.
    rounds : int, default 7
        Turns of each contestant.
    seconds : float, default 0.5
        What a turn is to last, at least one epoch.
    keep_processes : bool, default False
        Whether a contestant's process serves all workloads, and all start at once. That is sooner
        done, but start-up and first step are not those of a new process and are left out.
    patience : float, optional
        How many seconds a start-up, or a first call, which may compile, can take; by default 300.
    on_progress, on_result : callable
        Called with a line of text, and with each finished ``Result``.

    Returns
    -------
    Report
        A contestant that is not installed, fails or hangs is in it, with the reason.

    Raises
    ------
    InputError, DeviceError
        If an argument is not as said, or a device is not there.
    """
    from datetime import UTC, datetime

    from nnbackend.environment import environment

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
            f"precision: expected 'float32' on device 'cpu', got {precision!r}, which NVIDIA GPUs "
            "have"
        )
    return gpus


def _load() -> float | None:
    """Return how many programs wanted a core in the last minute; None where that is not known."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _contestants(
    asked: Sequence[str] | None, place: Device, precision: str, workload: Workload
) -> list[str]:
    """Return who runs on a device; the limit last."""
    peers = [name for name in CONTESTANTS if name not in OWN]
    everyone = asked or (*own_contestants(place, precision), *peers)
    names = [name for name in everyone if name != LIMIT]
    if workload.accuracy is None:
        names.append(LIMIT)
    return [name for name in dict.fromkeys(names) if place.kind in CONTESTANTS[name].kinds]


class _Processes:
    """The contestants' processes: new ones for every workload, or kept for all of them."""

    def __init__(self, precision: str, *, are_kept: bool) -> None:
        self.are_kept = are_kept
        self._precision = precision
        self._open: dict[tuple[str, str], ContestantProcess] = {}

    def get(self, entry: Entry) -> ContestantProcess:
        """Return the process of a contestant on a device, a new one if it has failed."""
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
        """End them all."""
        for process in self._open.values():
            process.close()
        self._open = {}


class _Race(ABC):
    """One workload: a process for each contestant, and their rounds."""

    def __init__(
        self, workload: Workload, processes: _Processes, seconds: float, patience: float
    ) -> None:
        self.workload = workload
        self.processes = processes
        self.seconds = seconds
        self.patience = patience

    def run(self, entries: list[Entry], rounds: int, on_progress: Callable[[str], object]) -> None:
        """Fill the entries with what was measured, or with why it was not."""
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
        """Return the entries with their processes, which have taken the first step."""
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
        """Write the data to a file, if it is not the workload's random numbers."""
        del folder
        return None

    @abstractmethod
    def start(self, entry: Entry, process: ContestantProcess) -> None:
        """Prepare the contestant and take its first step."""

    @abstractmethod
    def turn(self, entry: Entry, process: ContestantProcess) -> float:
        """Return the seconds of a turn: what ``Entry.seconds`` holds."""

    def finish(self, entry: Entry, process: ContestantProcess) -> None:
        """Complete the entry after the last round."""
        del entry, process


class _StepRace(_Race):
    """Seconds per step."""

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
        # The later steps of the first call cost what they cost ever after.
        later = entry.median * (process.notes["steps"] - 1)
        entry.first_seconds = max((entry.first_seconds or 0.0) - later, entry.median)


class _AccuracyRace(_Race):
    """Seconds until the workload's accuracy is reached on held-out digits."""

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
    """Turn a contestant's failure into what its entry says."""
    try:
        yield
    except ContestantError as error:
        entry.status, entry.reason = error.status, error.reason


def _write_digits(folder: str) -> str:
    """Write the digits, standardized with the training part's statistics, to a file."""
    from nnbackend.datasets import load_dataset

    digits = load_dataset("digits")
    order = np.random.default_rng(0).permutation(len(digits.y))
    training, held_out = np.split(order, [DIGITS.n_samples])
    mean, scale = digits.X[training].mean(axis=0), digits.X[training].std(axis=0)
    X = ((digits.X - mean) / np.where(scale > 0, scale, 1.0)).astype(np.float32)
    path = os.path.join(folder, "digits.npz")
    parts = {"X": X[training], "X_test": X[held_out]}
    np.savez(path, y=digits.y[training], y_test=digits.y[held_out], **parts)
    return path
