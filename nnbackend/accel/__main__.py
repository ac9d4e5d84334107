"""Run a program with nnbackend in the place of scikit-learn's neural networks."""

from __future__ import annotations

import atexit
import os
import runpy
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from nnbackend import accel

_USAGE = "usage: python -m nnbackend.accel [--report] (SCRIPT | -m MODULE | -c CODE) [ARGUMENT ...]"
_HELP = f"""{_USAGE}

Run a Python program with nnbackend in the place of scikit-learn's MLPClassifier and MLPRegressor.

  SCRIPT     a file, or a folder or archive with a __main__.py
  -m MODULE  a module, as python -m runs it
  -c CODE    a program as text
  --report   print at the end, on standard error, which calls were taken over, which were left to
             scikit-learn and why, and how long they took
  -h, --help print this
"""


@dataclass(frozen=True)
class _Request:
    """What to run: its kind ("-m", "-c" or "" for a file), its name or text, and its arguments."""

    kind: str
    target: str
    arguments: Sequence[str]
    has_report: bool


def _refuse(message: str) -> NoReturn:
    print(f"{_USAGE}\nnnbackend.accel: {message}", file=sys.stderr)
    sys.exit(2)


def _parsed(arguments: Sequence[str]) -> _Request:
    """Read our own options; everything after the program is the program's."""
    has_report = False
    for position, argument in enumerate(arguments):
        rest = arguments[position + 1 :]
        if argument == "--report":
            has_report = True
        elif argument in ("-h", "--help"):
            print(_HELP, end="")
            sys.exit(0)
        elif argument in ("-m", "-c"):
            if not rest:
                _refuse(f"expected {'a module' if argument == '-m' else 'code'} after {argument}")
            return _Request(argument, rest[0], rest[1:], has_report)
        elif argument.startswith("-"):
            _refuse(f"expected --report, -m, -c or a script, got {argument}")
        else:
            return _Request("", argument, rest, has_report)
    _refuse("expected a script, -m MODULE or -c CODE, got nothing")


def _run(request: _Request) -> None:
    """Run the program as Python does, as ``__main__``."""
    sys.argv = [request.target if request.kind != "-c" else "-c", *request.arguments]
    if request.kind == "-m":
        runpy.run_module(request.target, run_name="__main__", alter_sys=True)
        return
    has_path = not sys.flags.safe_path
    if request.kind == "-c":
        if has_path:
            sys.path[0] = ""
        program = types.ModuleType("__main__")
        sys.modules["__main__"] = program
        exec(compile(request.target, "<string>", "exec"), vars(program))  # noqa: S102 - as python -c
        return
    if not os.path.exists(request.target):
        _refuse(f"cannot open {request.target!r}: there is no such file")
    if has_path:
        sys.path[0] = os.path.dirname(os.path.realpath(request.target))
    runpy.run_path(request.target, run_name="__main__")


def _main() -> None:
    request = _parsed(sys.argv[1:])
    accel.install()
    if request.has_report:
        # After a traceback of the program, too.
        atexit.register(lambda: print(f"\n{accel.report()}", file=sys.stderr))
    _run(request)


if __name__ == "__main__":
    _main()
