"""Arrays of any library, in and out of NumPy's and CuPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import sklearn
from array_api_compat import array_namespace, is_array_api_obj, to_device
from array_api_compat import device as array_device

from nnbackend.core.optimizers import OptimizerState
from nnbackend.device import device_of, get_device, in_library_of
from nnbackend.model.network import Network

__all__ = ["dense", "in_library", "library_name", "native", "on_cpu", "on_host"]


def library_name(X: Any) -> str:
    """Return the name of the library that an array is of; lists and frames become NumPy's."""
    if not is_array_api_obj(X):
        return "numpy"
    return str(array_namespace(X).__name__).removeprefix("array_api_compat.")


def on_cpu(x: Any) -> Any:
    """Return an array of any library as NumPy's; what is no array as it is."""
    if not is_array_api_obj(x) or isinstance(x, np.ndarray):
        return x
    home = device_of(x)
    if home is not None and home.kind == "cuda":
        return home.to_numpy(home.share(x))
    # A device that CuPy does not know, such as Apple's, or one that only looks like another.
    device = array_namespace(x).__array_namespace_info__().default_device()
    return np.asarray(to_device(x, device))


def native(X: Any) -> Any:
    """Return an array of any library as CuPy's where it is on a GPU, else as NumPy's."""
    home = device_of(X) if is_array_api_obj(X) else None
    return home.share(X) if home is not None and home.kind == "cuda" else on_cpu(X)


def in_library(X: Any, result: Any) -> Any:
    """Return a result as an array of X's library, where X is; names of classes stay NumPy's."""
    if isinstance(X, np.ndarray) or not is_array_api_obj(X) or result.dtype.kind not in "biuf":
        return result
    if not sklearn.get_config()["array_api_dispatch"]:
        return result
    if isinstance(result, np.ndarray):
        return array_namespace(X).asarray(result, device=array_device(X))
    return in_library_of(X, result)


def on_host(state: OptimizerState | None, net: Network) -> OptimizerState | None:
    """Return an optimizer's state in NumPy arrays, which can be pickled anywhere."""
    if state is None:
        return None
    to_numpy = get_device(net.device).to_numpy
    return OptimizerState(state.step, tuple(np.array(to_numpy(array)) for array in state.arrays))


def dense(X: Any) -> Any:
    """Return a sparse matrix as an array; anything else as it is."""
    return X.toarray() if scipy.sparse.issparse(X) else X
