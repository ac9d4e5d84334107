"""Draw the curves of a training: losses over epochs, and losses over learning rates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnbackend.figures import NEUTRAL, TRAINING, VALIDATION, new_figure, render
from nnbackend.training.history import History

__all__ = ["loss_curves", "rate_curve"]


def loss_curves(
    history: History, title: str, *, penalized: bool = False, unit: str | None = None
) -> bytes:
    """Return a PNG of the training loss and any validation loss over the epochs.

    Parameters
    ----------
    history : History
        A history of at least one epoch.
    title : str
        The heading.
    penalized : bool, default False
        Whether the training loss contains penalties; if so, the legend says it.
    unit : str, optional
        The unit of the loss.
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
        The rate to mark.
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
    # The last loss may be a million times the others, so show twice the range of the fall.
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
