"""The parser class, and options that several commands share."""

from __future__ import annotations

import argparse
from typing import NoReturn

from nnbackend.cli.terminal import printable

__all__ = ["Parser", "add_json", "add_na", "add_target", "texts_of"]


class Parser(argparse.ArgumentParser):
    """A parser that escapes what was typed in its errors."""

    def error(self, message: str) -> NoReturn:
        """End the command with the usage and a message."""
        super().error(printable(message))


def add_target(parser: argparse.ArgumentParser) -> None:
    """Declare ``--target``."""
    parser.add_argument(
        "--target",
        metavar="COL",
        help="target column: a name; an index in NPY (-1 is the last); a key in NPZ (default y)",
    )


def add_na(parser: argparse.ArgumentParser) -> None:
    """Declare ``--na``."""
    parser.add_argument(
        "--na",
        metavar="TEXT",
        action="append",
        help="what stands for a missing value: A,B (nothing, NA, N/A, nan, null, None, ?, -; "
        "nothing in quotes is one)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Declare ``--json``."""
    parser.add_argument(
        "--json",
        action="store_true",
        default=False,
        help="print one JSON object and nothing else",
    )


def texts_of(texts: list[str]) -> list[str]:
    """Return the texts of an option that is repeated, or has commas."""
    return [name for text in texts for name in text.split(",")]
