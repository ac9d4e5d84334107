"""Element-wise functions that several formulas share."""

from __future__ import annotations

from nnbackend.core.types import Array, Namespace

__all__ = ["sign"]


def sign(xp: Namespace, x: Array) -> Array:
    """Return 1, -1 or 0, and 0 for NaN as well, as torch's ``sign`` does.

    The standard's function returns NaN for NaN, and array-api-compat's version on CuPy does that by
    masked assignment, which waits for the device. A loss or penalty of NaN is NaN in any case.

    Examples
    --------
    >>> import numpy as np
    >>> sign(np, np.asarray([-2.0, -0.0, np.inf, np.nan]))
    array([-1.,  0.,  1.,  0.])
    """
    return xp.astype(x > 0, x.dtype) - xp.astype(x < 0, x.dtype)
