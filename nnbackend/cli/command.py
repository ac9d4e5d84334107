"""The command ``nnbackend``: arguments in, library calls, tables and pictures out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nnbackend._version import __version__
from nnbackend.cli import bench, models, train
from nnbackend.cli.naming import renamed
from nnbackend.cli.parser import Parser
from nnbackend.cli.printing import complain
from nnbackend.cli.terminal import OutputError, standard_streams
from nnbackend.errors import NNBackendError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    with standard_streams():
        try:
            try:
                return _run(arguments)
            finally:
                # Flush here, where a failure can still be reported.
                sys.stdout.flush()
        except OutputError as error:
            if error.is_closed_pipe:
                # Exit quietly with 128 + 13, as a shell reports a tool that SIGPIPE has ended.
                # With pipefail a pipeline can tell whether its reader has read everything.
                return 141
            complain("nnbackend", str(error))
            return 2


def _parser() -> Parser:
    parser = Parser(
        prog="nnbackend",
        description="Train fully connected neural networks on NumPy (CPU) and CuPy (CUDA).",
    )
    parser.add_argument("--version", action="version", version=f"nnbackend {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (train, models, bench):
        module.add(commands)
    return parser


def _run(arguments: Sequence[str] | None) -> int:
    options: argparse.Namespace = _parser().parse_args(arguments)
    who = f"nnbackend {options.command}"
    try:
        options.run(options)
    except OutputError:
        raise
    except NNBackendError as error:
        complain(who, renamed(error, options.names))
        return 2
    except MemoryError as error:
        complain(who, f"not enough memory ({error})")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
