"""Data at the door: checked once, in the caller's words, and placed on the network's device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnbackend.core.distributions import DISTRIBUTIONS
from nnbackend.core.losses import Loss
from nnbackend.core.types import Array
from nnbackend.data.given import Given
from nnbackend.device import Device
from nnbackend.errors import InputError

__all__ = [
    "DTYPES",
    "check_features",
    "check_finite",
    "check_sample_weight",
    "check_targets",
    "dtype_name",
    "no_weight_error",
    "place",
]


def check_finite(
    name: str,
    x: Array,
    device: Device,
    original: Array | None = None,
    labels: Sequence[Any] | None = None,
) -> None:
    """Raise an InputError that says where, if an array of the device holds NaN or infinity.

    ``original`` and ``labels`` are as for ``place``.
    """
    if x.dtype.kind != "f":
        return
    xp = device.xp
    if bool(xp.all(xp.isfinite(x))):
        return
    bad = np.argwhere(~np.isfinite(device.to_numpy(x)))
    where = tuple(int(i) for i in bad[0])
    value = float((x if original is None else original)[where])
    index = ", ".join(str(i) for i in where)
    column = (
        ""
        if labels is None or len(where) != 2
        else f", row {where[0]} of column {labels[where[-1]]!r}"
    )
    count = f" ({len(bad)} such values)" if len(bad) > 1 else ""
    if np.isfinite(value):
        raise InputError(
            f"{value:g} at [{index}]{column}{count} is too large for {x.dtype}; scale the "
            "data or use dtype='float64'",
            argument=name,
        )
    raise InputError(
        f"expected finite numbers, got {value} at [{index}]{column}{count}; remove or impute them",
        argument=name,
    )


def place(
    name: str,
    x: Array,
    device: Device,
    dtype: Any,
    original: Array | None = None,
    labels: Sequence[Any] | None = None,
) -> Array:
    """Return ``x`` on ``device`` in ``dtype``, finite.

    ``original`` is what the caller gave, for the message, where ``x`` was computed from it, and
    ``labels`` are what its columns are called.
    """
    placed = device.place(x, dtype)
    check_finite(name, placed, device, x if original is None else original, labels)
    return placed


def _n_samples(name: str, x: Array) -> int:
    n_samples = int(x.shape[0])
    if n_samples == 0:
        raise InputError(
            f"expected at least one example, got shape {tuple(x.shape)}", argument=name
        )
    return n_samples


def check_features(
    given: Given,
    n_features: int,
    device: Device,
    dtype: Any = None,
    names: Sequence[str] | None = None,
) -> Array:
    """Return features (n_samples, n_features) on ``device``.

    Parameters
    ----------
    given : Given
        Finite real numbers (n_samples, n_features), one example per row.
    n_features : int
        The size of the network's input layer.
    device : Device
        The network's.
    dtype : dtype, optional
        The dtype to convert to. By default, floating dtypes stay and others become float64.
    names : sequence of str, optional
        The columns of a data frame that are read, in this order.

    Raises
    ------
    InputError
        If its shape, dtype or values are not as described.
    """
    name, X = given.name, given.array(device, names)
    if X.ndim != 2:
        hint = f"; {given.two_axes_hint}" if X.ndim == 1 else ""
        raise InputError(
            f"expected a 2-D array (n_samples, {n_features}), got shape {tuple(X.shape)}{hint}",
            argument=name,
        )
    if X.shape[1] != n_features:
        raise InputError(
            f"expected {n_features} features (columns), as many as the network's input "
            f"layer, got shape {tuple(X.shape)}",
            argument=name,
        )
    _n_samples(name, X)
    if dtype is None:
        dtype = X.dtype if X.dtype.kind == "f" and X.dtype.itemsize in (4, 8) else np.float64
    return place(name, X, device, dtype, labels=given.labels(names))


def check_targets(
    given: Given,
    *,
    n_samples: int,
    n_targets: int,
    loss: Loss,
    device: Device,
    dtype: Any,
) -> Array:
    """Return targets in the form that the loss takes, on ``device``.

    Parameters
    ----------
    given : Given
        (n_samples,) or (n_samples, n_targets) numbers; for a loss of kind ``"classes"`` integer
        labels (n_samples,) or rows that sum to one, to within 1e-3: they are divided by their sums.
    n_samples, n_targets : int
        Rows of X, and columns of targets: the size of the output layer, unless its outputs are the
        distribution of one target.
    loss : Loss
        Decides which values are allowed.
    device : Device
        The network's.
    dtype : dtype
        The network's.

    Returns
    -------
    array (n_samples, n_targets) of ``dtype``, or int64 labels (n_samples,)

    Raises
    ------
    InputError
        If its shape, dtype or values are not as described.
    """
    name, y = given.name, given.array(device)
    is_distribution = loss.kind == "classes"
    one = "column" if loss.output in DISTRIBUTIONS else "output"
    if is_distribution:
        if y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1 and n_targets > 1):
            home = given.device or Device("cpu")
            return _check_labels(name, y, n_samples, n_targets, loss, device, home)
        expected = f"integer labels ({n_samples},) or rows ({n_samples}, {n_targets})"
        is_column = False
    else:
        is_column = y.ndim == 1 and n_targets == 1
        column = f"({n_samples},) or " if n_targets == 1 else ""
        expected = f"{column}({n_samples}, {n_targets})"
    if tuple(y.shape) != ((n_samples,) if is_column else (n_samples, n_targets)):
        raise InputError(
            f"expected {expected}: one row for each of the {n_samples} examples in X and "
            f"{n_targets} {'outputs' if n_targets > 1 else one}, got shape {tuple(y.shape)}"
            + (
                "; for one class out of several use output='softmax'"
                if loss.kind == "binary" and y.ndim == 1 and n_targets > 1
                else ""
            ),
            argument=name,
        )
    labels = given.labels(None)
    y = place(name, y, device, np.float64 if is_distribution else dtype, labels=labels)
    if is_column:
        y = y.reshape(-1, 1)
    _check_values(name, y, loss, device)
    if is_distribution:
        # The gradient p - t is that of rows that sum to 1 exactly, not nearly.
        y = place(name, y / device.xp.sum(y, axis=1, keepdims=True), device, dtype)
    return y


def _check_labels(
    name: str,
    y: Array,
    n_samples: int,
    n_classes: int,
    loss: Loss,
    device: Device,
    home: Device,
) -> Array:
    if y.shape[0] != n_samples:
        raise InputError(
            f"expected {n_samples} labels, one for each example in X, got {y.shape[0]}",
            argument=name,
        )
    if y.dtype.kind == "f":
        check_finite(name, y, home)
        y = y.reshape(-1)
        if bool((y != y.round()).any()):
            raise InputError(
                f"expected integer class labels for output={loss.output!r}, got fractions "
                f"such as {float(y[y != y.round()][0]):g}",
                argument=name,
            )
    y = y.reshape(-1)
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= n_classes:
        raise InputError(
            f"expected labels 0 to {n_classes - 1}, one for each of the {n_classes} "
            f"outputs, got {low if low < 0 else high}: that class has no column"
            + ("; labels count from 0: subtract 1" if (low, high) == (1, n_classes) else ""),
            argument=name,
        )
    return place(name, y, device, np.int64)


def _check_values(name: str, y: Array, loss: Loss, device: Device) -> None:
    """Check that the values suit the loss; reads one flag from the device."""
    xp = device.xp
    wrong = loss.wrong_targets(xp, y)
    if wrong is not None and bool(xp.any(wrong)):
        first = np.argwhere(device.to_numpy(wrong))[0]
        raise InputError(
            f"expected {loss.expected_targets}, got {float(y[tuple(first)]):g} in row {first[0]}",
            argument=name,
        )


def no_weight_error(name: str, what: str) -> InputError:
    """Return the error of data that has weights, all of them 0."""
    return InputError(f"expected weights >= 0 that are not all zero, got {what}", argument=name)


def check_sample_weight(
    given: Given | None,
    n_samples: int,
    device: Device,
    dtype: Any,
    *,
    is_whole: bool = True,
) -> Array | None:
    """Return sample weights (n_samples,) >= 0 on ``device``; None stays.

    Unless these are only a part of the data, they are not all 0.
    """
    if given is None:
        return None
    name, weight = given.name, given.array(device)
    if tuple(weight.shape) != (n_samples,):
        raise InputError(
            f"expected shape ({n_samples},), one weight for each example in X, got "
            f"{tuple(weight.shape)}",
            argument=name,
        )
    weight = place(name, weight, device, dtype)
    if bool((weight < 0).any()):
        raise InputError(
            f"expected weights >= 0, got a smallest of {float(weight.min()):g}", argument=name
        )
    if is_whole and not bool((weight > 0).any()):
        raise no_weight_error(name, "a largest of 0")
    total = float(weight.sum())
    if not np.isfinite(total):
        raise InputError(
            f"expected weights whose sum is finite, got a largest of "
            f"{float(weight.max()):g}: too large together for {weight.dtype}; only their ratios "
            "count, so divide them by it",
            argument=name,
        )
    return weight


DTYPES = {"float32": np.float32, "float64": np.float64}


def dtype_name(dtype: Any) -> str:
    """Return ``"float32"`` or ``"float64"`` for what names one of them."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None)
    if name is None and isinstance(dtype, type) and issubclass(dtype, np.generic):
        name = dtype.__name__
    if name not in DTYPES:
        raise InputError(f"expected 'float32' or 'float64', got {dtype!r}", argument="dtype")
    return str(name)
