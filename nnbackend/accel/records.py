"""What became of the calls: how many were taken over, how many were not and why, and seconds."""

from __future__ import annotations

import textwrap
import threading
from collections import Counter
from collections.abc import Mapping

__all__ = ["FAILED", "LEFT", "TAKEN", "Records"]

TAKEN = "taken over"
LEFT = "left to scikit-learn"
FAILED = "ended with an error"

# Reasons can contain values of the caller's: a program that runs for months must not collect them.
_MAX_REASONS = 200
_MAX_CHARACTERS = 120


class Records:
    """Counts and seconds of calls, by outcome, by what was called, and by reason."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[tuple[str, str, str]] = Counter()
        self._seconds: Counter[tuple[str, str, str]] = Counter()

    def add(self, outcome: str, name: str, seconds: float, reason: str = "") -> None:
        """Count a call."""
        key = outcome, name, textwrap.shorten(reason, _MAX_CHARACTERS, placeholder=" ...")
        with self._lock:
            if reason and key not in self._calls and len(self._calls) >= _MAX_REASONS:
                key = outcome, name, "other reasons"
            self._calls[key] += 1
            self._seconds[key] += seconds  # type: ignore[assignment]

    def text(self) -> str:
        """Return the report: one line for each thing that was called, and for each reason."""
        with self._lock:
            calls, seconds = dict(self._calls), dict(self._seconds)
        if not calls:
            return "nnbackend.accel: nothing was called that it takes over"
        n_taken = sum(n for (outcome, *_), n in calls.items() if outcome == TAKEN)
        lines = [f"nnbackend.accel took over {n_taken} of {sum(calls.values())} calls"]
        width = max(len(name) for _, name, _ in calls)
        for outcome in (TAKEN, LEFT, FAILED):
            chosen = {key: n for key, n in calls.items() if key[0] == outcome}
            if chosen:
                lines += ["", f"{outcome:<{width + 2}}  {'calls':>7}  {'seconds':>9}"]
                lines += _rows(chosen, seconds, width)
        return "\n".join(lines)


def _rows(
    calls: Mapping[tuple[str, str, str], int],
    seconds: Mapping[tuple[str, str, str], float],
    width: int,
) -> list[str]:
    return [
        f"  {key[1]:<{width}}  {calls[key]:>7}  {seconds[key]:>9.3f}  {key[2]}".rstrip()
        for key in sorted(calls)
    ]
