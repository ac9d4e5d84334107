"""Pictures of a training, drawn without touching matplotlib's global state."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from nnbackend.errors import MissingDependencyError
from nnbackend.network import Network
from nnbackend.training import History

__all__ = ["decision_boundary", "drawn", "loss_curves", "new_figure", "rate_curve", "render"]

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


def loss_curves(
    history: History, title: str, *, penalized: bool = False, unit: str | None = None
) -> bytes:
    """Return a PNG of the loss and, where there is one, the validation loss over the epochs.

    Parameters
    ----------
    history : History
        At least one epoch.
    title : str
        The heading.
    unit : str, optional
        What the loss is measured in.
    penalized : bool, default False
        Whether the training loss contains penalties, which the legend then says.
    """
    figure = new_figure()
    axes = figure.add_subplot()
    label = "training loss (with penalties)" if penalized else "training loss"
    epochs = np.arange(1, history.n_epochs + 1)
    style = {"marker": "o", "markersize": 4} if history.n_epochs <= 5 else {}
    axes.plot(epochs, history.loss, color=TRAINING, label=label, **style)
    if history.validation_loss:
        axes.plot(
            epochs, history.validation_loss, color=VALIDATION, label="validation loss", **style
        )
    if history.best_epoch is not None:
        axes.axvline(
            history.best_epoch,
            color=NEUTRAL,
            linestyle="--",
            linewidth=1,
            label=f"best epoch ({history.best_epoch})",
        )
    if min(history.loss + history.validation_loss) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("loss" if unit is None else f"loss ({unit})")
    axes.set_title(title, fontsize=11)
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(frameon=False)
    return render(figure)


def decision_boundary(
    net: Network,
    X: np.ndarray[Any, Any],
    y: np.ndarray[Any, Any],
    title: str,
) -> bytes:
    """Return a PNG of the classes that a network with two features predicts over the plane.

    Parameters
    ----------
    net : Network
        With two inputs and a sigmoid or softmax output; its names label axes and classes.
    X : array (n_samples, 2)
        Points to draw: all of them, training and held-out.
    y : array (n_samples,)
        Their true classes, 0 to n_classes - 1.
    title : str
        The heading.
    """
    from matplotlib.colors import ListedColormap

    extent = X.max(axis=0) - X.min(axis=0)
    # A constant feature gets an axis of a visible length around its value.
    margin = np.where(extent > 0, 0.08 * extent, 0.1 * np.abs(X).max(axis=0) + 0.1)
    low, high = X.min(axis=0) - margin, X.max(axis=0) + margin
    first, second = np.meshgrid(*(np.linspace(low[i], high[i], 300) for i in (0, 1)))
    grid = np.stack([first.ravel(), second.ravel()], axis=1)
    predicted = net.to("cpu").predict(grid).reshape(first.shape)
    n_classes = int(max(y.max(), predicted.max())) + 1
    colours = [VALIDATION, TRAINING, "#3a9d5d", "#e0a030", "#7a4fa3", "#50b5c4"]
    palette = ListedColormap([colours[i % len(colours)] for i in range(n_classes)])
    figure = new_figure()
    axes = figure.add_subplot()
    limits = {"vmin": -0.5, "vmax": n_classes - 0.5, "cmap": palette}
    axes.pcolormesh(first, second, predicted, alpha=0.25, shading="auto", rasterized=True, **limits)
    axes.contour(
        first,
        second,
        predicted,
        levels=np.arange(n_classes - 1) + 0.5,
        colors=NEUTRAL,
        linewidths=0.8,
    )
    points = axes.scatter(X[:, 0], X[:, 1], c=y, s=14, edgecolors="white", linewidths=0.3, **limits)
    names = net.feature_names or ("x1", "x2")
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    if n_classes <= len(colours):
        labels = net.class_names or tuple(str(i) for i in range(n_classes))
        axes.legend(points.legend_elements()[0], labels, loc="upper right", fontsize=9)
    axes.set_title(title, fontsize=11)
    return render(figure)


def rate_curve(
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float | None,
    title: str,
    file_format: str = "png",
) -> bytes:
    """Return a PNG or SVG of the losses of a learning-rate range test.

    Parameters
    ----------
    rates : sequence of float
        The learning rates, on a logarithmic axis.
    losses, smoothed : sequence of float
        The loss after the step at each rate, and its average over neighbours.
    suggestion : float or None
        The rate that is marked.
    title : str
        The heading.
    file_format : {"png", "svg"}, default "png"
        The format of the file.
    """
    figure = new_figure()
    axes = figure.add_subplot()
    axes.plot(rates, losses, color=NEUTRAL, linewidth=0.8, alpha=0.6, label="loss after the step")
    axes.plot(rates, smoothed, color=TRAINING, label="smoothed")
    if suggestion is not None:
        axes.axvline(
            suggestion,
            color=VALIDATION,
            linestyle="--",
            linewidth=1,
            label=f"suggestion ({suggestion:.2g})",
        )
    # The last loss may be a million times the others: the range shown is twice that of the fall.
    low, first = min(smoothed), losses[0]
    if first > low:
        axes.set_ylim(low - 0.1 * (first - low), first + (first - low))
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.set_title(title, fontsize=11)
    axes.grid(visible=True, which="major", alpha=0.25)
    axes.legend(frameon=False)
    return render(figure, file_format)


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
