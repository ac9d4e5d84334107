"""Figures as lines of text."""

from __future__ import annotations

import sys
from typing import TextIO

from nnbackend.cli.terminal import printable, show

__all__ = ["LINE_NAMES", "complain", "print_lines", "score_lines"]

# As many names of columns or classes are told in a line.
LINE_NAMES = 12


def complain(who: str, sentence: str) -> None:
    """Print an error for a reader."""
    show(f"{who}: {printable(sentence)}", sys.stderr)


def score_lines(scores: dict[str, float], prefix: str = "") -> list[tuple[str, str]]:
    """Return scores as names and values for ``print_lines``."""
    titles = {
        "accuracy": "accuracy",
        "macro_f1": "macro F1",
        "log_loss": "log loss",
        "r2": "R2",
        "rmse": "RMSE",
        "mae": "MAE",
        "nll": "negative log-likelihood",
        "pinball": "mean pinball loss",
        "coverage": f"coverage of {scores.get('expected_coverage', 0.0):g} intervals",
    }
    lines = [
        (f"{prefix}{titles[name]}", f"{score:.4f}")
        for name, score in scores.items()
        if name in titles
    ]
    if lines:
        lines[0] = (lines[0][0], f"{lines[0][1]} on {scores['n_samples']:,} examples")
    return lines


def print_lines(lines: list[tuple[str, str]], file: TextIO | None = None) -> None:
    """Print names and values in two columns, by default to standard output."""
    width = max(len(name) for name, _ in lines)
    show("\n".join(f"{name:<{width}}  {printable(value)}" for name, value in lines), file)
