"""The command ``nnbackend``: arguments in, library calls, tables and pictures out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nnbackend.cli.parser import make_parser
from nnbackend.cli.printing import complain
from nnbackend.cli.terminal import OutputError, standard_streams
from nnbackend.errors import NNBackendError

__all__ = ["main"]


# What the other commands call the library's arguments.
_ARGUMENTS = {"path": "MODEL", "X": "DATA"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    with standard_streams():
        try:
            try:
                return _run(arguments)
            finally:
                # Here, where it can be told that the last of it cannot be written.
                sys.stdout.flush()
        except OutputError as error:
            if error.is_closed_pipe:
                # As a shell reports a tool that SIGPIPE has ended, quietly: 128 + 13. With pipefail
                # a pipeline thus tells a reader that left early from one that read all.
                return 141
            complain("nnbackend", str(error))
            return 2


def _run(arguments: Sequence[str] | None) -> int:
    options = make_parser().parse_args(arguments)
    try:
        options.run(options)
    except OutputError:
        raise
    except NNBackendError as error:
        complain(f"nnbackend {options.command}", _in_options(error, options))
        return 2
    except MemoryError as error:
        complain(f"nnbackend {options.command}", f"not enough memory ({error})")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _in_options(error: NNBackendError, options: argparse.Namespace) -> str:
    """Return an error's sentence with the option that was typed for the library's argument."""
    name, colon, rest = str(error).partition(":")
    if name in _ARGUMENTS and options.command != "train":
        return f"{_ARGUMENTS[name]}:{rest}"
    option = {"hidden": "activation", "path": "out"}.get(name, name)
    if options.command == "train" and hasattr(options, option) and name.isidentifier():
        return f"--{option.replace('_', '-')}{colon}{rest}"
    return str(error)
