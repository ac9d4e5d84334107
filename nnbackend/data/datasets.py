"""Data to train on: what comes along, and what a user's file holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnbackend.checks import lookup
from nnbackend.data.target import Target
from nnbackend.data.typed import Table
from nnbackend.errors import MissingDependencyError

__all__ = ["DATASETS", "Dataset", "load_dataset", "planar"]


@dataclass(frozen=True)
class Dataset:
    """Features and targets with their names.

    Attributes
    ----------
    name : str
        The name of the data; run folders are named after it.
    X : array (n_samples, n_features) of float64, or Table
        Features; a table is encoded before a network takes it.
    y : array (n_samples,)
        int64 class indices, or float64 values where ``class_names`` is None.
    feature_names : tuple of str
        One per column of ``X``.
    target_name : str
        The name of the target.
    class_names : tuple of str or None
        One per class; None for a regression.
    target : Target or None
        What a file's target column is; None of data that comes along.
    weight : array (n_samples,) or None
        The weight of each example.
    groups : array (n_samples,) of int64 or None
        The group of each example: none is in two parts.
    order : array (n_samples,) of int64 or float64, or None
        What the examples are ordered by, in time: the last are held out.
    """

    name: str
    X: Any
    y: np.ndarray[Any, Any]
    feature_names: tuple[str, ...]
    target_name: str
    class_names: tuple[str, ...] | None
    target: Target | None = None
    weight: np.ndarray[Any, Any] | None = None
    groups: np.ndarray[Any, Any] | None = None
    order: np.ndarray[Any, Any] | None = None

    def features(self, rows: Any) -> Any:
        """Return the features of some rows, of the type that ``X`` has."""
        return self.X.take(rows) if isinstance(self.X, Table) else self.X[rows]


def planar(n_samples: int = 400, seed: int = 1) -> Dataset:
    """Return points of two classes that lie on the alternating petals of a flower in the plane.

    Each class covers half of the angles theta, with the radius 4 sin(4 theta); angle and radius
    carry normal noise with a standard deviation of 0.2. A linear model cannot separate them.

    Parameters
    ----------
    n_samples : int, default 400
        Points, half of each class.
    seed : int, default 1
        Draws the noise.

    Returns
    -------
    Dataset

    Examples
    --------
    >>> flower = planar(100)
    >>> flower.X.shape, flower.y.mean()
    ((100, 2), np.float64(0.5))
    """
    rng = np.random.default_rng(seed)
    half = n_samples // 2
    y = np.repeat(np.asarray([0, 1]), half)
    angle = np.linspace(0.0, 2.0 * np.pi, 2 * half) + 0.2 * rng.standard_normal(2 * half)
    radius = 4.0 * np.sin(4.0 * angle) + 0.2 * rng.standard_normal(2 * half)
    X = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)
    return Dataset("planar", X, y, ("x1", "x2"), "petal", ("red", "blue"))


def _from_sklearn(name: str) -> Callable[[], Dataset]:
    def load() -> Dataset:
        try:
            from sklearn import datasets
        except ImportError as error:
            raise MissingDependencyError(
                f"--dataset {name} comes with scikit-learn; install it with: pip install "
                "scikit-learn"
            ) from error
        bunch = getattr(datasets, f"load_{name}")()
        classes = bunch.get("target_names")
        return Dataset(
            name=name,
            X=np.asarray(bunch.data, dtype=np.float64),
            y=np.asarray(bunch.target, dtype=np.float64 if classes is None else np.int64),
            feature_names=tuple(str(column) for column in bunch.feature_names),
            target_name="target",
            class_names=None if classes is None else tuple(str(entry) for entry in classes),
        )

    return load


DATASETS: dict[str, Callable[[], Dataset]] = {
    "breast_cancer": _from_sklearn("breast_cancer"),
    "diabetes": _from_sklearn("diabetes"),
    "digits": _from_sklearn("digits"),
    "planar": planar,
}


def load_dataset(name: str) -> Dataset:
    """Return one of the data sets that come along.

    Parameters
    ----------
    name : {"breast_cancer", "digits", "diabetes", "planar"}
        Tumours (569 x 30, two classes), hand-written digits (1797 x 64, ten classes) and disease
        progression (442 x 10, a regression) from scikit-learn; or ``planar()``.

    Returns
    -------
    Dataset
    """
    return lookup("--dataset", name, DATASETS)()
