"""Data at the door: checked once, in the caller's words, and placed on the network's device."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from nnbackend.core.losses import Loss
from nnbackend.core.types import Array
from nnbackend.data.sources import Source
from nnbackend.data.stored_chunks import stored_chunks
from nnbackend.device import Device, device_of, is_native
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
    "to_array",
]


# The names of the dtypes of real numbers that NumPy and CuPy know, in any library.
_REAL = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")


def to_array(name: str, x: Any, device: Device | None = None) -> Array:
    """Return ``x`` as a NumPy or CuPy array of real numbers, or raise what is wrong with it.

    Parameters
    ----------
    name : str
        What the caller calls it.
    x : array of any library, nested sequence of numbers, or data frame
        NumPy and CuPy arrays are returned as they are, other arrays in the same memory; it is only
        to be read.
    device : Device, optional
        The network's: an array on a GPU has to be there.

    Raises
    ------
    InputError
        If it is no array of real numbers, or on another device.
    """
    if x is None:
        raise InputError(f"{name}: expected an array, got None")
    if isinstance(x, Source):
        raise InputError(
            f"{name}: expected an array, got a source, which is for training and standardize; take "
            "its rows block by block, such as source.read(0, 1000).X"
        )
    home = device_of(x)
    if home is not None and home.kind == "cuda" and device not in (None, home):
        raise InputError(
            f"{name}: expected an array on {device}, the network's device, got one on {home}; "
            f"move the network with .to({home.name!r}) or the array"
        )
    if isinstance(x, np.generic):
        x = np.asarray(x)
    elif hasattr(x, "__dlpack__") and not is_native(x):
        x = _shared(name, x, home)
    elif home is None:
        x = _converted(name, x)
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise InputError(
            f"{name}: expected an array without missing values, got a masked array with "
            f"{int(np.ma.getmaskarray(x).sum())} masked; fill them first"
        )
    if x.dtype.kind in "US":
        raise InputError(
            f"{name}: expected real numbers, got dtype {x.dtype} (text); number classes from 0, "
            "for example names, y = numpy.unique(y, return_inverse=True), and encode text features"
        )
    if x.dtype.kind not in "biuf":
        raise InputError(
            f"{name}: expected real numbers, got dtype {x.dtype}; convert it to float, for example "
            "with .astype('float32')"
        )
    return x


def _kind(x: Any) -> str:
    return f"{type(x).__module__.partition('.')[0]}.{type(x).__name__}"


def _converted(name: str, x: Any) -> Array:
    """Return a sequence of numbers or a data frame as a NumPy array."""
    if hasattr(x, "toarray"):
        raise InputError(
            f"{name}: expected a dense array, got the sparse {_kind(x)}; convert it with .toarray()"
        )
    try:
        array = np.asarray(x)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{name}: expected an array or rows of equal length, got {_kind(x)} that NumPy cannot "
            f"convert ({_one_line(error)})"
        ) from error
    stored = stored_chunks(name, x) if array.dtype.kind in "biuf" and array.size else None
    if stored is not None:
        stored.require(0, array, "pass the array's numbers, array[:]")
    return array


def _shared(name: str, x: Any, home: Device | None) -> Array:
    """Return an array of another library as a NumPy or CuPy array in the same memory."""
    kind = _kind(x)
    if "Tracer" in kind:
        raise InputError(
            f"{name}: expected an array, got {kind}, which holds no numbers inside jax.jit, grad "
            "and vmap; call nnbackend outside of them"
        )
    if home is None:
        raise InputError(
            f"{name}: expected an array in the host's memory or on one CUDA GPU, got {kind} "
            f"{_whereabouts(x)}"
        )
    dtype = getattr(x, "dtype", "float64")
    if not _REAL.fullmatch(str(dtype).rpartition(".")[2]):
        raise InputError(
            f"{name}: expected real numbers, got dtype {dtype}; convert it to float32 or float64"
        )
    if "sparse" in str(getattr(x, "layout", "")):
        raise InputError(
            f"{name}: expected a dense array, got the sparse {kind}; convert it with .to_dense()"
        )
    if getattr(x, "requires_grad", False):
        raise InputError(
            f"{name}: expected an array without a gradient, got {kind} that requires grad, and "
            "none flows back through nnbackend; pass .detach()"
        )
    if hasattr(x, "is_neg") and x.is_neg():
        # Of such a tensor DLPack hands out numbers of the wrong sign.
        raise InputError(
            f"{name}: expected an array, got a negated view, {kind}; pass .resolve_neg()"
        )
    try:
        return home.share(x)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{name}: expected an array that can be read where it is, got {kind} "
            f"({_one_line(error)})"
        ) from error


def _whereabouts(x: Any) -> str:
    try:
        return f"on {x.device}"
    except (AttributeError, RuntimeError) as error:  # JAX raises the latter for a deleted array
        return f"({_one_line(error)})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def check_finite(name: str, x: Array, original: Array | None = None) -> None:
    """Raise an InputError that says where, if the array holds NaN or infinity."""
    device = device_of(x)
    if device is None or x.dtype.kind != "f":
        return
    xp = device.xp
    if bool(xp.all(xp.isfinite(x))):
        return
    bad = np.argwhere(~np.isfinite(device.to_numpy(x)))
    where = tuple(int(i) for i in bad[0])
    value = float((x if original is None else original)[where])
    index = ", ".join(str(i) for i in where)
    count = f" ({len(bad)} such values)" if len(bad) > 1 else ""
    if np.isfinite(value):
        raise InputError(
            f"{name}: {value:g} at [{index}]{count} is too large for {x.dtype}; scale the data or "
            "use dtype='float64'"
        )
    raise InputError(
        f"{name}: expected finite numbers, got {value} at [{index}]{count}; remove or impute them"
    )


def place(name: str, x: Array, device: Device, dtype: Any, original: Array | None = None) -> Array:
    """Return ``x`` on ``device`` in ``dtype``, finite.

    ``original`` is what the caller gave, for the message, where ``x`` was computed from it.
    """
    placed = device.place(x, dtype)
    check_finite(name, placed, x if original is None else original)
    return placed


def _n_samples(name: str, x: Array) -> int:
    n_samples = int(x.shape[0])
    if n_samples == 0:
        raise InputError(f"{name}: expected at least one example, got shape {tuple(x.shape)}")
    return n_samples


def check_features(name: str, X: Any, n_features: int, device: Device, dtype: Any = None) -> Array:
    """Return features (n_samples, n_features) on ``device``.

    Parameters
    ----------
    name : str
        What the caller calls it.
    X : array-like (n_samples, n_features)
        Finite real numbers, one example per row.
    n_features : int
        The size of the network's input layer.
    device : Device
        The network's.
    dtype : dtype, optional
        What to convert to; by default floating dtypes are kept and others become float64.

    Raises
    ------
    InputError
        If anything about it is not as said.
    """
    X = to_array(name, X, device)
    if X.ndim != 2:
        hint = "; for one example use X[None, :]" if X.ndim == 1 else ""
        raise InputError(
            f"{name}: expected a 2-D array (n_samples, {n_features}), got shape "
            f"{tuple(X.shape)}{hint}"
        )
    if X.shape[1] != n_features:
        raise InputError(
            f"{name}: expected {n_features} features (columns), as many as the network's input "
            f"layer, got shape {tuple(X.shape)}"
        )
    _n_samples(name, X)
    if dtype is None:
        dtype = X.dtype if X.dtype.kind == "f" and X.dtype.itemsize in (4, 8) else np.float64
    return place(name, X, device, dtype)


def check_targets(
    name: str,
    y: Any,
    *,
    n_samples: int,
    n_outputs: int,
    loss: Loss,
    device: Device,
    dtype: Any,
) -> Array:
    """Return targets in the form that the loss takes, on ``device``.

    Parameters
    ----------
    name : str
        What the caller calls it.
    y : array-like
        (n_samples,) or (n_samples, n_outputs) numbers; for a loss of kind ``"classes"`` integer
        labels (n_samples,) or rows that sum to one, to within 1e-3: they are divided by their sums.
    n_samples, n_outputs : int
        Rows of X, and size of the output layer.
    loss : Loss
        Decides which values are allowed.
    device : Device
        The network's.
    dtype : dtype
        The network's.

    Returns
    -------
    array (n_samples, n_outputs) of ``dtype``, or int64 labels (n_samples,)

    Raises
    ------
    InputError
        If anything about it is not as said.
    """
    y = to_array(name, y, device)
    is_distribution = loss.kind == "classes"
    if is_distribution:
        if y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1 and n_outputs > 1):
            return _check_labels(name, y, n_samples, n_outputs, loss, device)
        expected = f"integer labels ({n_samples},) or rows ({n_samples}, {n_outputs})"
        is_column = False
    else:
        is_column = y.ndim == 1 and n_outputs == 1
        one = f"({n_samples},) or " if n_outputs == 1 else ""
        expected = f"{one}({n_samples}, {n_outputs})"
    if tuple(y.shape) != ((n_samples,) if is_column else (n_samples, n_outputs)):
        raise InputError(
            f"{name}: expected {expected}: one row for each of the {n_samples} examples in X and "
            f"{n_outputs} output{'s' if n_outputs > 1 else ''}, got shape {tuple(y.shape)}"
            + (
                "; for one class out of several use output='softmax'"
                if loss.kind == "binary" and y.ndim == 1 and n_outputs > 1
                else ""
            )
        )
    y = place(name, y, device, np.float64 if is_distribution else dtype)
    if is_column:
        y = y.reshape(-1, 1)
    _check_values(name, y, loss, device)
    if is_distribution:
        # The gradient p - t is that of rows that sum to 1 exactly, not nearly.
        y = place(name, y / device.xp.sum(y, axis=1, keepdims=True), device, dtype)
    return y


def _check_labels(
    name: str, y: Array, n_samples: int, n_classes: int, loss: Loss, device: Device
) -> Array:
    if y.shape[0] != n_samples:
        raise InputError(
            f"{name}: expected {n_samples} labels, one for each example in X, got {y.shape[0]}"
        )
    if y.dtype.kind == "f":
        check_finite(name, y)
        y = y.reshape(-1)
        if bool((y != y.round()).any()):
            raise InputError(
                f"{name}: expected integer class labels for output={loss.output!r}, got fractions "
                f"such as {float(y[y != y.round()][0]):g}"
            )
    y = y.reshape(-1)
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= n_classes:
        raise InputError(
            f"{name}: expected labels 0 to {n_classes - 1}, one for each of the {n_classes} "
            f"outputs, got {low if low < 0 else high}: that class has no column"
            + ("; labels count from 0: subtract 1" if (low, high) == (1, n_classes) else "")
        )
    return place(name, y, device, np.int64)


def _check_values(name: str, y: Array, loss: Loss, device: Device) -> None:
    """Check that the values suit the loss; reads one flag from the device."""
    xp = device.xp
    wrong = loss.wrong_targets(xp, y)
    if wrong is not None and bool(xp.any(wrong)):
        first = np.argwhere(device.to_numpy(wrong))[0]
        raise InputError(
            f"{name}: expected {loss.expected_targets}, got {float(y[tuple(first)]):g} in row "
            f"{first[0]}"
        )


def no_weight_error(name: str, what: str) -> InputError:
    """Return the error of data that has weights, all of them 0."""
    return InputError(f"{name}: expected weights >= 0 that are not all zero, got {what}")


def check_sample_weight(
    name: str,
    sample_weight: Any,
    n_samples: int,
    device: Device,
    dtype: Any,
    *,
    is_whole: bool = True,
) -> Array | None:
    """Return sample weights (n_samples,) >= 0 on ``device``; None stays.

    Unless these are only a part of the data, they are not all 0.
    """
    if sample_weight is None:
        return None
    weight = to_array(name, sample_weight, device)
    if tuple(weight.shape) != (n_samples,):
        raise InputError(
            f"{name}: expected shape ({n_samples},), one weight for each example in X, got "
            f"{tuple(weight.shape)}"
        )
    weight = place(name, weight, device, dtype)
    if bool((weight < 0).any()):
        raise InputError(
            f"{name}: expected weights >= 0, got a smallest of {float(weight.min()):g}"
        )
    if is_whole and not bool((weight > 0).any()):
        raise no_weight_error(name, "a largest of 0")
    total = float(weight.sum())
    if not np.isfinite(total):
        raise InputError(
            f"{name}: expected weights whose sum is finite, got a largest of "
            f"{float(weight.max()):g}: too large together for {weight.dtype}; only their ratios "
            "count, so divide them by it"
        )
    return weight


DTYPES = {"float32": np.float32, "float64": np.float64}


def dtype_name(dtype: Any) -> str:
    """Return ``"float32"`` or ``"float64"`` for what names one of them."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None)
    if name is None and isinstance(dtype, type) and issubclass(dtype, np.generic):
        name = dtype.__name__
    if name not in DTYPES:
        raise InputError(f"dtype: expected 'float32' or 'float64', got {dtype!r}")
    return str(name)
