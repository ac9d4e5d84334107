"""Start a contestant's process and talk to it: one line of JSON in, one line of JSON out."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

__all__ = ["ContestantError", "ContestantProcess", "contestant_environment"]

# Some libraries obey a variable that others ignore. Without any, all use the process's cores.
THREAD_VARIABLES = frozenset(
    {
        "BLIS_NUM_THREADS",
        "GOTO_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "OMP_NUM_THREADS",
        "OMP_THREAD_LIMIT",
        "OPENBLAS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    }
)


def contestant_environment() -> dict[str, str]:
    """Return the environment without limits of threads, so that all may use the same cores."""
    return {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}


class ContestantError(Exception):
    """A contestant has dropped out; ``status`` and ``reason`` go into its entry."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class ContestantProcess:
    """A contestant's process, which answers every command with one line.

    Parameters
    ----------
    **job
        The job of ``worker.Worker``.

    Attributes
    ----------
    started : float
        The time of the start, by ``time.perf_counter``.
    notes : dict
        Values that the parent keeps with the process.
    has_failed : bool
        Whether the process was ended because of an error.
    """

    def __init__(self, **job: Any) -> None:
        command = [sys.executable, "-m", "nnbackend.bench.worker", json.dumps(job)]
        self.notes: dict[str, Any] = {}
        self.has_failed = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.started = time.perf_counter()
        # Start a process group, so that ``close`` also ends the processes in which torch compiles.
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=contestant_environment(),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        # Reading a queue can time out, reading a pipe cannot.
        for line in self._process.stdout or ():
            self._answers.put(line)
        self._answers.put("")

    def ask(self, command: str, patience: float, **options: Any) -> dict[str, Any]:
        """Send a command and return its answer; raise a ``ContestantError`` if there is none."""
        self.send(command, **options)
        return self.answer(patience)

    def send(self, command: str, **options: Any) -> None:
        """Send a command."""
        self._command = command
        # If the process has ended, ``answer`` reports it.
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.write(f"{json.dumps({'command': command, **options})}\n")
                self._process.stdin.flush()

    def answer(self, patience: float) -> dict[str, Any]:
        """Return the answer to the last command; raise a ``ContestantError`` if there is none."""
        self.has_failed = True
        try:
            line = self._answers.get(timeout=patience)
        except queue.Empty:
            self.close()
            raise ContestantError(
                "timeout", f"no answer to {self._command!r} within {patience:.0f} s"
            ) from None
        if not line:
            raise ContestantError("failed", self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContestantError(answer["error"], answer["reason"])
        self.has_failed = False
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        return f"its process ended ({how}){f': {lines[-1][:200]}' if lines else ''}"

    def close(self) -> None:
        """End the process and its child processes."""
        if self._errors.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()
