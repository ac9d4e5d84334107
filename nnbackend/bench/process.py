"""A contestant's process as its parent sees it: a line of JSON in, a line of JSON out."""

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

__all__ = ["ContestantError", "ContestantProcess"]


class ContestantError(Exception):
    """A contestant has dropped out; ``status`` and ``reason`` are its entry's."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class ContestantProcess:
    """A contestant's process, which answers every line with one.

    Parameters
    ----------
    **job
        What ``benchmark_worker.Worker`` takes.

    Attributes
    ----------
    started : float
        When, by ``time.perf_counter``.
    notes : dict
        What the parent wants to keep with it.
    has_failed : bool
        Whether it has been given up.
    """

    def __init__(self, **job: Any) -> None:
        command = [sys.executable, "-m", "nnbackend.bench.worker", json.dumps(job)]
        self.notes: dict[str, Any] = {}
        self.has_failed = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.started = time.perf_counter()
        # A group of its own, which ends with it: torch compiles in further processes.
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        # A pipe has no timeout, a queue has.
        for line in self._process.stdout or ():
            self._answers.put(line)
        self._answers.put("")

    def ask(self, command: str, patience: float, **options: Any) -> dict[str, Any]:
        """Send a command and return the answer; raise ``ContestantError`` for anything else."""
        self.send(command, **options)
        return self.answer(patience)

    def send(self, command: str, **options: Any) -> None:
        """Send a command."""
        self._command = command
        # Of a process that has ended, ``answer`` tells.
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.write(f"{json.dumps({'command': command, **options})}\n")
                self._process.stdin.flush()

    def answer(self, patience: float) -> dict[str, Any]:
        """Return the answer to the last command; raise ``ContestantError`` for anything else."""
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
        """End the process and what it has started."""
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
