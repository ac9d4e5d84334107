"""Run a contestant in its own process: ``python -m nnbackend.bench.worker JOB``, with JOB in JSON.

The process reads one JSON object per line, ``{"command": ..., ...}``, and answers each with one. It
ends after an answer with an ``"error"``. Output that a library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from nnbackend.bench.contestant import NotInstalledError, UnsupportedError
from nnbackend.bench.contestants import CONTESTANTS
from nnbackend.bench.workload import Workload
from nnbackend.errors import MissingDependencyError

__all__ = ["Worker", "main"]


class Worker:
    """The commands that the parent sends, as methods.

    Parameters
    ----------
    job : dict
        ``contestant``, ``device`` and ``precision``.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.held_out: tuple[Any, Any] | None = None

    def load(self, workload: dict[str, Any], data: str | None) -> dict[str, Any]:
        """Import the library, and replace any earlier workload by this one (its ``to_dict``).

        ``data`` is None for the workload's random numbers, or the path of an NPZ file with X, y,
        X_test and y_test.
        """
        self.workload, self.data_file = Workload.from_dict(workload), data
        make = CONTESTANTS[self.job["contestant"]]
        self.contestant = make(self.workload, self.job["device"], self.job["precision"])
        self.contestant.load()
        return {"versions": self.contestant.versions()}

    def prepare(self) -> dict[str, Any]:
        """Make the data, then build the network; time only the latter."""
        if self.data_file is None:
            X, y = self.workload.data()
        else:
            with np.load(self.data_file) as arrays:
                X, y = arrays["X"], arrays["y"]
                self.held_out = arrays["X_test"], arrays["y_test"]
        self.judge = self.workload.network()
        parameters = [x.copy() for x in self.judge.weights], [x.copy() for x in self.judge.biases]
        start = perf_counter()
        self.contestant.prepare(X, y, parameters)
        return {"seconds": perf_counter() - start}

    def calibrate(self, seconds: float) -> dict[str, Any]:
        """Time the first call, then find how many epochs last ``seconds``.

        If one call lasts that long, turns need no warm-up. Otherwise, one call brings code and data
        back into the caches of a CPU, and a tenth of a turn raises the clocks of a GPU.
        """
        unit = self.contestant.epochs_per_call
        first_call = self.run(unit)
        epochs, once = unit, first_call
        while True:
            once = self.run(epochs)
            if once["seconds"] >= 0.5 * seconds:
                break
            growth = min(10.0, 0.7 * seconds / max(once["seconds"], 1e-9))
            epochs = max(epochs + unit, round(epochs * growth / unit) * unit)
        calls = max(1, round(epochs / unit * seconds / once["seconds"]))
        warm_up = 0 if calls == 1 else 1 if self.job["device"] == "cpu" else max(1, calls // 10)
        return {
            "first_call": first_call,
            "epochs": calls * unit,
            "warm_up": warm_up * unit,
            "threads": _threads(),
        }

    def run(self, epochs: int) -> dict[str, Any]:
        """Train for some epochs from the initial parameters."""
        self.contestant.reset()
        start = perf_counter()
        loss = self.contestant.run(epochs)
        seconds = perf_counter() - start
        return {
            "seconds": seconds,
            "steps": epochs * self.workload.n_batches,
            "loss": loss if np.isfinite(loss) else None,
        }

    def warm_up(self, epochs: int) -> dict[str, Any]:
        """Bring code and data back into the caches, and raise the clocks, before a turn."""
        self.run(epochs)
        return {}

    def train_to(self, accuracy: float, max_epochs: int) -> dict[str, Any]:
        """Train from the initial parameters until a held-out accuracy is reached."""
        X, y = self.held_out or (None, None)
        reached = 0.0

        def is_done() -> bool:
            nonlocal reached
            self.judge.set_parameters(*self.contestant.parameters())
            reached = float(np.mean(self.judge.predict(X) == y))
            return reached >= accuracy

        self.contestant.reset()
        seconds, epochs = self.contestant.run_until(is_done, max_epochs)
        return {
            "seconds": seconds,
            "epochs": epochs,
            "accuracy": reached,
            "is_reached": reached >= accuracy,
            "threads": _threads(),
        }


def _threads() -> list[dict[str, Any]]:
    """Return the thread pools that this process has loaded, and their sizes."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    pools = {
        (entry["user_api"], entry["internal_api"], entry["num_threads"])
        for entry in threadpool_info()
    }
    found = [{"api": api, "library": name, "threads": size} for api, name, size in sorted(pools)]
    torch = sys.modules.get("torch")
    if torch is not None:
        found.append({"api": "torch", "library": "torch", "threads": torch.get_num_threads()})
    return found


def _answer(command: Callable[..., dict[str, Any]], options: dict[str, Any]) -> dict[str, Any]:
    try:
        return command(**options)
    except (NotInstalledError, MissingDependencyError) as error:
        return {"error": "missing", "reason": str(error)}
    except UnsupportedError as error:
        return {"error": "unsupported", "reason": str(error)}
    except Exception as error:  # noqa: BLE001 - the parent reports any error of a library
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return {"error": "failed", "reason": reason[:300]}


def main() -> int:
    """Answer commands until standard input ends."""
    # Keep messages that a library prints apart from the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker(json.loads(sys.argv[1]))
    for line in sys.stdin:
        options = json.loads(line)
        answer = _answer(getattr(worker, options.pop("command")), options)
        answers.write(f"{json.dumps(answer)}\n")
        answers.flush()
        if "error" in answer:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
