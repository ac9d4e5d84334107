"""Data to train on: what comes along, and what a user's file holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnbackend.checks import lookup
from nnbackend.errors import InputError, MissingDependencyError

__all__ = ["DATASETS", "Dataset", "class_name", "encode_target", "load_dataset", "planar"]


# A target with more distinct whole numbers than this is taken for a quantity, not for classes.
MAX_INTEGER_CLASSES = 20


@dataclass(frozen=True)
class Dataset:
    """Features and targets with their names.

    Attributes
    ----------
    name : str
        The name of the data; run folders are named after it.
    X : array (n_samples, n_features) of float64
        Features.
    y : array (n_samples,)
        int64 class indices, or float64 values where ``class_names`` is None.
    feature_names : tuple of str
        One per column of ``X``.
    target_name : str
        The name of the target.
    class_names : tuple of str or None
        One per class; None for a regression.
    """

    name: str
    X: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]
    feature_names: tuple[str, ...]
    target_name: str
    class_names: tuple[str, ...] | None


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


def encode_target(
    column: str, values: np.ndarray[Any, Any], task: str = "auto"
) -> tuple[np.ndarray[Any, Any], tuple[str, ...] | None]:
    """Return a target column as class indices with class names, or as numbers with None.

    Parameters
    ----------
    column : str
        The column's name, for messages.
    values : array (n_samples,)
        Numbers, booleans or strings.
    task : {"auto", "classification", "regression"}, default "auto"
        Auto: strings, booleans, and whole numbers of at most 20 distinct values are classes.

    Raises
    ------
    InputError
        If strings are to be a regression target, or there are fewer than two classes.
    """
    if values.dtype.kind not in "biufUO":
        raise InputError(
            f"column {column!r} has the unsupported dtype {values.dtype}", argument="--target"
        )
    is_number = values.dtype.kind in "biuf"
    if is_number and not np.all(np.isfinite(values)):
        row = int(np.argmin(np.isfinite(values)))
        raise InputError(
            f"column {column!r} holds {values[row]} in row {row}; expected finite numbers",
            argument="--target",
        )
    if task == "auto":
        is_class = not is_number or values.dtype.kind == "b"
        if values.dtype.kind in "iuf":
            distinct = np.unique(values)
            is_whole = bool(np.all(distinct == np.round(distinct)))
            is_class = is_whole and len(distinct) <= MAX_INTEGER_CLASSES
        task = "classification" if is_class else "regression"
    if task == "regression":
        if not is_number:
            raise InputError(
                f"column {column!r} holds text; expected numbers for --task regression",
                argument="--target",
            )
        return values.astype(np.float64), None
    classes, codes = np.unique(values, return_inverse=True)
    if len(classes) < 2:
        raise InputError(
            f"expected at least two classes in column {column!r}, got only "
            f"{repr(classes.tolist()[0]) if len(classes) else 'an empty column'}",
            argument="--target",
        )
    if len(classes) > 1000 and len(classes) > len(values) // 2:
        raise InputError(
            f"column {column!r} has {len(classes)} distinct values in {len(values)} rows;"
            " use --task regression if they are quantities",
            argument="--target",
        )
    return codes.reshape(-1).astype(np.int64), tuple(class_name(entry) for entry in classes)


def class_name(value: Any) -> str:
    """Return the name of the class that a target value stands for: 2.0 and 2 are one class."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)
