"""Pictures of a training, drawn without touching matplotlib's global state."""

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

# More than an axis of any picture here has.
_MOST_TICKS = 100


def drawn(name: str, draw: Callable[[], T]) -> T | None:
    """Return what ``draw`` gives; None, with a warning that names the picture, where that fails.

    What was measured is worth more than its picture, and drawing depends on much that is not ours:
    fonts, and the user's settings.
    """
    try:
        return draw()
    except Exception as error:  # noqa: BLE001 - whatever it is, it costs a picture alone
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        _LOGGER.warning("nnbackend: %s was not drawn (%s)", name, reason[:300])
        return None


def new_figure(width: float = 7.0, height: float = 4.6) -> Any:
    """Return an empty figure of a size in inches; it belongs to no window and no global state."""
    try:
        Figure = _figure_class()
    except ImportError as error:
        raise MissingDependencyError(
            "drawing needs matplotlib; install it with: pip install matplotlib"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _figure_class() -> Any:
    """Import matplotlib, whichever backend the environment names: none is needed here.

    A notebook hands the name of its own on to what it starts, where that may not be installed;
    matplotlib then cannot be imported.
    """
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend is not None:
        from matplotlib import rcParams

        # As its own import does, for those who import it after this.
        with contextlib.suppress(ValueError):
            rcParams["backend"] = backend
    return Figure


def render(figure: Any, file_format: str = "png") -> bytes:
    """Return a figure as the content of a PNG or SVG file; text is shown as it stands.

    Titles and labels hold names of the user's, in which a dollar sign begins no formula.
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
    """Return the text of an axis without its label: numbers, whose powers are formulas.

    matplotlib adds ticks while it draws, in the style that is set for all figures. That may ask for
    LaTeX: then all that there may be are made beforehand.
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
    """Return a character, or how it is spelt if it has no shape, such as half a pair."""
    if character.isprintable() or character == "\n":
        return character
    return character.encode("unicode_escape").decode()
