"""Make and render matplotlib figures without touching matplotlib's global state."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from nnbackend.errors import MissingDependencyError

__all__ = ["NEUTRAL", "TRAINING", "VALIDATION", "drawn", "new_figure", "render"]

TRAINING, VALIDATION, NEUTRAL = "#1f5fa8", "#d1495b", "#555555"
_LOGGER = logging.getLogger("nnbackend")
T = TypeVar("T")

# No axis of a picture here has more ticks.
_MOST_TICKS = 100


def drawn(name: str, draw: Callable[[], T]) -> T | None:
    """Return the result of ``draw``; if it fails, log a warning with the name and return None.

    A measurement is worth more than its picture, and drawing depends on fonts and on the user's
    settings, so a failure must not lose the measurement.
    """
    try:
        return draw()
    except Exception as error:  # noqa: BLE001 - any failure costs only the picture
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        _LOGGER.warning("nnbackend: %s was not drawn (%s)", name, reason[:300])
        return None


def new_figure(width: float = 7.0, height: float = 4.6) -> Any:
    """Return an empty figure with a size in inches, outside of any window or global state."""
    try:
        Figure = _figure_class()
    except ImportError as error:
        raise MissingDependencyError(
            "drawing needs matplotlib; install it with: pip install matplotlib"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _figure_class() -> Any:
    """Import matplotlib's Figure, whichever backend the environment names.

    A notebook passes the name of its backend on to the processes that it starts. If that backend is
    not installed there, matplotlib cannot be imported, although no backend is needed here.
    """
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend is not None:
        from matplotlib import rcParams

        # Set the backend as matplotlib's import does, for code that imports it later.
        with contextlib.suppress(ValueError):
            rcParams["backend"] = backend
    return Figure


def render(figure: Any, file_format: str = "png") -> bytes:
    """Return a figure as the content of a PNG or SVG file, showing all text literally.

    Titles and labels hold the user's names, in which a dollar sign does not begin a formula.
    """
    from matplotlib.text import Text

    numbers: set[Any] = set()
    for axes in figure.axes:
        numbers |= _numbers(axes.xaxis) | _numbers(axes.yaxis)
    for text in set(figure.findobj(Text)) - numbers:
        text.set_usetex(False)
        text.set_parse_math(False)
        text.set_text("".join(map(_shown, text.get_text())))
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file_format, dpi=130)
    return buffer.getvalue()


def _numbers(axis: Any) -> set[Any]:
    """Return the tick labels and offset of an axis, whose powers of ten are formulas.

    matplotlib adds ticks while it draws, in the style that is set for all figures. That style may
    ask for LaTeX, so this function makes every possible tick beforehand.
    """
    from matplotlib import rcParams
    from matplotlib.text import Text

    if rcParams["text.usetex"] or not rcParams["text.parse_math"]:
        axis.get_major_ticks(_MOST_TICKS)
        axis.get_minor_ticks(_MOST_TICKS)
    found = set(axis.findobj(Text)) - {axis.label}
    for text in found:
        text.set_usetex(False)
        text.set_parse_math(True)
    return found


def _shown(character: str) -> str:
    """Return a character, or its escape if it cannot be drawn, such as a lone surrogate."""
    if character.isprintable() or character == "\n":
        return character
    return character.encode("unicode_escape").decode()
