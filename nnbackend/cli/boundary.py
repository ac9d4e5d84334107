"""A picture of the classes that a network with two features predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nnbackend.figures import NEUTRAL, TRAINING, VALIDATION, new_figure, render
from nnbackend.model.network import Network

__all__ = ["decision_boundary"]


def decision_boundary(
    net: Network,
    X: np.ndarray[Any, Any],
    y: np.ndarray[Any, Any],
    title: str,
    table_of: Callable[[np.ndarray[Any, Any]], Any] | None = None,
) -> bytes:
    """Return a PNG of the classes that a network with two features predicts over the plane.

    Parameters
    ----------
    net : Network
        With a sigmoid or softmax output; its names label the classes.
    X : array (n_samples, 2)
        Points to draw: all of them, training and held-out.
    y : array (n_samples,)
        Their true classes, 0 to n_classes - 1.
    title : str
        The heading.
    table_of : callable, optional
        Returns what the network takes of points; by default the points.
    """
    from matplotlib.colors import ListedColormap

    extent = X.max(axis=0) - X.min(axis=0)
    # A constant feature gets an axis of a visible length around its value.
    margin = np.where(extent > 0, 0.08 * extent, 0.1 * np.abs(X).max(axis=0) + 0.1)
    low, high = X.min(axis=0) - margin, X.max(axis=0) + margin
    first, second = np.meshgrid(*(np.linspace(low[i], high[i], 300) for i in (0, 1)))
    grid = np.stack([first.ravel(), second.ravel()], axis=1)
    predicted = (
        net.to("cpu").predict(grid if table_of is None else table_of(grid)).reshape(first.shape)
    )
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
