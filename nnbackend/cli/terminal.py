"""Output of the command: safe text for any terminal, on streams that may fail or be closed.

There are two kinds of output. *Text for readers* - tables, messages, progress - is shown: what the
stream's encoding lacks becomes a backslash escape, and so do control characters in names, which
could move the cursor or change colours. *Data* is CSV or JSON: JSON escapes by itself. CSV in a
file or a pipe is what ``--out`` writes, bytes of UTF-8 with every name as it is, so that it comes
back as it was, whatever the locale; CSV on a terminal is text for a reader, and is shown.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from nnbackend.errors import NNBackendError

__all__ = [
    "OutputError",
    "csv_text",
    "printable",
    "show",
    "standard_streams",
    "to_json",
    "write_csv",
]


# Error handlers that raise for some text.
_STRICT = ("strict", "surrogateescape", "surrogatepass")


class OutputError(NNBackendError):
    """Standard output cannot be written; ``__cause__`` is the system's error."""

    @property
    def is_closed_pipe(self) -> bool:
        """Whether the reader has gone."""
        return isinstance(self.__cause__, BrokenPipeError)


def printable(text: str, keep: str = "") -> str:
    r"""Escape everything that ``repr`` escapes, except quotes.

    Examples
    --------
    >>> print(printable("\x1b[31mgrün\n"))
    \x1b[31mgrün\n
    """
    return "".join(
        sign
        if sign.isprintable() or sign in keep
        else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )


def show(text: str, file: TextIO | None = None) -> None:
    """Print lines for a reader, and flush."""
    print(printable(text, keep="\n"), file=file or sys.stdout, flush=True)


def write_csv(columns: list[tuple[str, list[Any]]]) -> None:
    """Write columns to standard output: readable on a terminal, as data elsewhere."""
    if sys.stdout.isatty():
        shown = [
            (printable(name), [printable(x) if isinstance(x, str) else x for x in values])
            for name, values in columns
        ]
        sys.stdout.write(csv_text(shown))
        return
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:  # a caller replaced standard output by a stream of text
        sys.stdout.write(csv_text(columns))
        return
    sys.stdout.flush()
    binary.write(csv_text(columns).encode())


def csv_text(columns: list[tuple[str, list[Any]]]) -> str:
    """Return columns, each a name and its values, as CSV with a header line."""
    import csv
    from types import SimpleNamespace

    lines: list[str] = []
    # Before Python 3.13 the writer quotes only the line ends that it writes itself.
    ends = "\r\n"
    writer = csv.writer(SimpleNamespace(write=lines.append), lineterminator=ends)
    writer.writerow([name for name, _ in columns])
    writer.writerows(zip(*(values for _, values in columns), strict=True))
    return "".join(f"{line.removesuffix(ends)}\n" for line in lines)


def to_json(facts: dict[str, Any], indent: int | None = None) -> str:
    """Return facts as a line of JSON.

    JSON has neither NaN nor infinity: such a number becomes null, and its name is listed in
    ``not_finite``, an entry that is there in this case only.

    Examples
    --------
    >>> print(to_json({"rmse": float("inf"), "loss": [0.5, float("nan")]}), end="")
    {"rmse": null, "loss": [0.5, null], "not_finite": ["rmse", "loss[1]"]}
    """
    lost: list[str] = []

    def finite(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            prefix = f"{name}." if name else ""
            return {key: finite(entry, f"{prefix}{key}") for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [finite(entry, f"{name}[{index}]") for index, entry in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            lost.append(name)
            return None
        return value

    whole = finite(facts, "")
    if lost:
        whole["not_finite"] = lost
    return f"{json.dumps(whole, allow_nan=False, indent=indent)}\n"


class _Stream:
    """A standard stream that raises one class of error for all failures.

    If standard output cannot be written, the command ends with an OutputError. If standard error
    cannot be written, the text is lost: there is nowhere left to report it.
    """

    def __init__(self, stream: Any, *, is_required: bool) -> None:
        self._stream, self._is_required = stream, is_required

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def buffer(self) -> _Stream:
        """The underlying stream of bytes, with the same errors."""
        return _Stream(self._stream.buffer, is_required=self._is_required)

    def write(self, content: Any) -> int:
        with self._failures():
            self._stream.write(content)
        return len(content)

    def flush(self) -> None:
        with self._failures():
            self._stream.flush()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._discard()
            if self._is_required:
                raise OutputError(
                    f"cannot write to standard output ({error.strerror or error}); make room, or "
                    "send it elsewhere"
                ) from error

    def _discard(self) -> None:
        """Discard the buffers, which Python would write once more when it ends."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Wrap the standard streams, so that no output ends the command with a traceback.

    Treat a closed stream (``>&-``) as ``>/dev/null``: whoever closes it wants to see nothing.
    """
    with contextlib.ExitStack() as stack:
        if sys.stdout is None or sys.stderr is None:
            _open_descriptors()
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:
                stream = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            if getattr(stream, "errors", None) in _STRICT and hasattr(stream, "reconfigure"):
                stack.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors="backslashreplace")
            stack.callback(setattr, sys, name, getattr(sys, name))
            setattr(sys, name, _Stream(stream, is_required=name == "stdout"))
        yield


def _open_descriptors() -> None:
    """Open those of descriptors 0 to 2 that are closed.

    Otherwise a file that is opened later gets the number, and what C libraries write to it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
