"""Endurance: trainings that are killed again and again, and a process that trains for long.

    python tests/endurance.py kills --count 50 --seed 0
    python tests/endurance.py soak --minutes 20

``kills`` ends a training with SIGKILL, at a random moment or in the midst of writing a checkpoint,
has it go on, and holds the result to that of a training that was left alone, bit for bit. ``soak``
trains, kills, resumes and predicts in one process and its children, and looks after that process's
memory, file descriptors, threads and children. Exit code 1: something was lost, differs or grows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import nnbackend as nb
from nnbackend.training.checkpoint_folder import Keeper, checkpoint_files

SMALL = {"sizes": [4, 16, 1], "n_samples": 64, "batch_size": 8, "epochs": 4}
TASKS: dict[str, dict[str, Any]] = {
    # Steps of some 10 ms, and after every second one a checkpoint of 5 MB, which takes longer.
    "large": {"sizes": [64, 512, 512, 1], "n_samples": 512, "batch_size": 64, "epochs": 8},
    "short": {"sizes": [64, 256, 256, 1], "n_samples": 256, "batch_size": 32, "epochs": 6},
}
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
# Hang guard, in seconds.
_PATIENCE = 300.0
# RSS may wander by so much; a leak of 10 kB a round is more in 20 minutes.
_WANDERING_BYTES = 4 * 2**20


def train(task: dict[str, Any], **options: Any) -> tuple[nb.Network, nb.History]:
    """Train a network from its beginning on data that are the same in every process."""
    sizes, rng = task["sizes"], np.random.default_rng(0)
    X = rng.normal(size=(task["n_samples"], sizes[0]))
    y = (X[:, :4].sum(axis=1) > 0).astype(int)
    net = nb.Network(sizes, hidden="tanh", dropout=0.1)
    options = {"engine": "reference", "validation_data": (X[:64], y[:64]), **options}
    options = {"batch_size": task["batch_size"], "epochs": task["epochs"], **options}
    # The threads of a BLAS spin: on a machine that does other things, too, steps would take long.
    with threadpool_limits(1):
        history = nb.train(net, X, y, **options)
    return net, history


# Kills


def child(folder: str, out: str, task: str) -> None:
    """Train with checkpoints, going on from those that there are, and write what came out."""
    seconds: list[float] = []
    write = Keeper.write

    def timed(*arguments: Any) -> None:
        start = monotonic()
        write(*arguments)
        seconds.append(monotonic() - start)

    Keeper.write = timed  # type: ignore[method-assign]
    print("training", flush=True)
    net, history = train(TASKS[task], checkpoint=folder, checkpoint_every=0.25, resume=True)
    nb.save(net, f"{out}.safetensors")
    facts = {"loss": history.loss, "validation_loss": history.validation_loss, "seconds": seconds}
    Path(f"{out}.json").write_text(json.dumps(facts), encoding="utf-8")


@contextlib.contextmanager
def started(folder: Path, out: Path, task: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that has begun to train; it is ended at the end."""
    command = [sys.executable, __file__, "child", str(folder), str(out), task]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or process.stdout.readline() != "training\n":
                raise RuntimeError(f"the training did not begin: exit code {process.wait()}")
            yield process
        finally:
            process.kill()


def is_writing(folder: Path) -> bool:
    """Whether a checkpoint is being written, or was when its process was killed."""
    try:
        return any(map(_TEMPORARY.fullmatch, os.listdir(folder)))
    except FileNotFoundError:
        return False


@dataclass
class Kills:
    """What came of kills.

    Attributes
    ----------
    kills, in_writes : int
        All of them, and those that left an unfinished file.
    identical, different : int
        Trainings that came to their end with the expected bits, and those that did not.
    lost : int
        Kills after which the newest checkpoint was older than before, and checkpoints that were
        found to be damaged.
    failed : int
        Trainings that did not go on.
    seconds : list of float
        What checkpoints took.
    """

    kills: int = 0
    in_writes: int = 0
    identical: int = 0
    different: int = 0
    lost: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost."""
        return self.identical > 0 and self.different == self.lost == self.failed == 0

    def __str__(self) -> str:
        mean = 1e3 * float(np.mean(self.seconds)) if self.seconds else float("nan")
        return (
            f"{self.kills} kills, {self.in_writes} of them during a write; trainings: "
            f"{self.identical} identical, {self.different} different, {self.failed} failed; "
            f"checkpoints: {self.lost} lost, {mean:.0f} ms each"
        )


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint, 0 if there is none."""
    files = checkpoint_files(str(folder))
    return int(Path(files[0]).stem.removeprefix("checkpoint-")) if files else 0


def wait_to_kill(process: subprocess.Popen[str], folder: Path, rng: random.Random) -> bool:
    """Wait for some moment, or, from then on, for a write; return whether the process ended."""
    deadline = monotonic() + rng.uniform(0.05, 0.9)
    while monotonic() < deadline and process.poll() is None:
        sleep(0.005)
    if rng.random() < 0.6:
        while not is_writing(folder) and process.poll() is None:
            sleep(0.0002)
        # Somewhere within.
        sleep(rng.uniform(0.0, 0.015))
    return process.poll() is not None


def undisturbed(task: str) -> tuple[bytes, dict[str, Any]]:
    """Return what comes of a training that is left alone, without checkpoints."""
    net, history = train(TASKS[task])
    facts = {"loss": history.loss, "validation_loss": history.validation_loss}
    return net.parameters.tobytes(), facts


def one_training(
    task: str,
    folder: Path,
    rng: random.Random,
    most: int,
    result: Kills,
    expected: tuple[bytes, Any],
) -> None:
    """Kill a training up to ``most`` times until it comes to its end."""
    out, kept = folder / "out", folder / "checkpoints"
    n_kills = 0
    while True:
        with started(kept, out, task) as process:
            if n_kills < most and not wait_to_kill(process, kept, rng):
                before = newest_step(kept)
                process.kill()
                process.wait()
                n_kills += 1
                result.kills += 1
                result.in_writes += is_writing(kept)
                result.lost += newest_step(kept) < before
                continue
            code = process.wait(_PATIENCE)
        break
    result.lost += len(list(kept.glob("*.damaged")))
    if code != 0:
        result.failed += 1
        return
    facts = json.loads(Path(f"{out}.json").read_text(encoding="utf-8"))
    result.seconds += facts.pop("seconds")
    is_same = (nb.load(f"{out}.safetensors").parameters.tobytes(), facts) == expected
    result.identical += is_same
    result.different += not is_same


def kills(count: int, seed: int, *, most: int = 12, task: str = "large") -> Kills:
    """Kill trainings ``count`` times, each at most ``most`` times."""
    rng, result = random.Random(seed), Kills()  # noqa: S311 - no secret
    expected = undisturbed(task)
    while result.kills < count and not result.failed:
        with tempfile.TemporaryDirectory() as folder:
            most_now = min(most, count - result.kills)
            one_training(task, Path(folder), rng, most_now, result, expected)
    return result


# Soak


@dataclass
class Look:
    """What a process holds at some time."""

    seconds: float
    rss: int
    descriptors: int
    threads: int
    children: int


def look(start: float) -> Look:
    """Return what this process holds."""
    facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    tasks = Path("/proc/self/task").glob("*/children")
    return Look(
        monotonic() - start,
        1024 * int(facts["VmRSS"].split()[0]),
        # One of them is the listing's.
        len(os.listdir("/proc/self/fd")) - 1,
        int(facts["Threads"]),
        sum(len(path.read_text().split()) for path in tasks),
    )


class _BrokenError(Exception):
    """Breaks a training off."""


def break_off(state: nb.TrainingState) -> None:
    """Break a training off in its second epoch."""
    if state.epoch == 2:
        raise _BrokenError


def in_process(folder: Path, engine: str) -> None:
    """Train, break off, go on and predict, in this process, beside a thread that predicts."""
    kept = {"engine": engine, "checkpoint": folder, "checkpoint_every": 0.5}
    expected, _ = train(SMALL, engine=engine)
    with contextlib.suppress(_BrokenError):
        train(SMALL, callbacks=break_off, **kept)
    net, _ = train(SMALL, resume=True, **kept)
    if net.parameters.tobytes() != expected.parameters.tobytes():
        raise RuntimeError(f"{engine}: what went on differs from what was left alone")
    X = np.ones((100, 4))
    thread = threading.Thread(target=net.predict, args=(X,))
    thread.start()
    net.loss_and_gradients(X, np.ones(100))
    thread.join()
    nb.save(net, folder / "model")
    nb.load(folder / "model").predict_proba(X)


def soak(seconds: float, seed: int = 0, *, n_trainings: int = 10) -> tuple[list[Look], Kills]:
    """Train, kill, go on and predict for some time; return what this process held meanwhile."""
    rng, result, looks, start = random.Random(seed), Kills(), [], monotonic()  # noqa: S311
    expected = undisturbed("short")
    while monotonic() - start < seconds or len(looks) < 3:
        with tempfile.TemporaryDirectory() as folder:
            one_training("short", Path(folder), rng, 1, result, expected)
            for number in range(n_trainings):
                in_process(Path(folder) / str(number), ("reference", "native")[number % 2])
        looks.append(look(start))
    return looks, result


def growth(looks: list[Look]) -> tuple[list[str], list[str]]:
    """Return lines about what was held after warming up, and those of them that are not flat."""
    # Allocators, BLAS and kernels settle.
    settled = looks[max(1, len(looks) // 4) :]
    times = np.asarray([entry.seconds for entry in settled])
    rss = np.asarray([entry.rss for entry in settled])
    slope = float(np.polyfit(times - times[0], rss, 1)[0])
    grown = slope * float(times[-1] - times[0])
    line = (
        f"RSS {rss[0] / 2**20:.1f} MiB after warming up, {rss[-1] / 2**20:.1f} MiB at the end; "
        f"trend {grown / 2**10:+.0f} KiB, or {60 * slope / 2**10:+.1f} KiB per minute"
    )
    lines = [line]
    faults = [line] if grown > _WANDERING_BYTES else []
    for name in ("descriptors", "threads", "children"):
        held = [getattr(entry, name) for entry in settled]
        lines.append(f"{name} {held[0]} after warming up, {held[-1]} at the end, {max(held)} most")
        if held[-1] > held[0]:
            faults.append(lines[-1])
    return lines, faults


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    parts = commands.add_parser("kills", help="kill trainings and have them go on")
    parts.add_argument("--count", type=int, default=50)
    parts.add_argument("--seed", type=int, default=0)
    parts = commands.add_parser("soak", help="train for long, and look for what grows")
    parts.add_argument("--minutes", type=float, default=20.0)
    parts.add_argument("--seed", type=int, default=0)
    parts = commands.add_parser("child", help="what is killed")
    parts.add_argument("folder")
    parts.add_argument("out")
    parts.add_argument("task", choices=list(TASKS))
    options = parser.parse_args(arguments)
    if options.command == "child":
        child(options.folder, options.out, options.task)
        return 0
    if options.command == "kills":
        result = kills(options.count, options.seed)
        print(result)
        return 0 if result.is_good else 1
    looks, result = soak(60 * options.minutes, options.seed)
    lines, faults = growth(looks)
    print(f"{len(looks)} rounds in {looks[-1].seconds:.0f} s", result, *lines, sep="\n")
    print("\n".join(f"grows: {fault}" for fault in faults) or "flat")
    return 1 if faults or not result.is_good else 0


if __name__ == "__main__":
    sys.exit(main())
