"""CuPy's namespace of array-api-compat on the host, where to read an array is an error.

array-api-compat writes some functions of the standard in terms of CuPy's, and some of these wait
for the device: they assign by a mask, for one, whose true elements have to be counted.
"""

import functools
import importlib
import sys
from contextlib import nullcontext
from types import ModuleType

import numpy as np

__all__ = ["DeviceArray", "namespace", "on_device"]


class DeviceArray(np.ndarray):
    """An array whose elements the host may not look at."""

    def __array_wrap__(self, array, context=None, return_scalar=False):
        # CuPy has no scalars.
        return np.asarray(array).view(DeviceArray)

    def _refuse(self, *_arguments):
        raise AssertionError("the host reads an array of the device")

    __bool__ = __int__ = __float__ = __index__ = __complex__ = item = tolist = _refuse

    def __getitem__(self, key):
        self._check(key)
        return np.asarray(super().__getitem__(key)).view(DeviceArray)

    def __setitem__(self, key, value):
        self._check(key)
        super().__setitem__(key, value)

    def _check(self, key):
        for part in key if isinstance(key, tuple) else (key,):
            if getattr(part, "dtype", None) == np.bool_:
                self._refuse()


def on_device(x):
    """Return an array of the device."""
    return np.array(x).view(DeviceArray)


def namespace(monkeypatch):
    """Return array-api-compat's namespace for CuPy, made anew of NumPy's functions."""
    cupy = ModuleType("cupy")
    cupy.__all__ = [name for name in np.__all__ if name != "test"]
    cupy.__dict__.update({name: _placed(getattr(np, name)) for name in cupy.__all__})
    cupy.ndarray, cupy.bool_ = DeviceArray, np.bool_
    cupy.linalg, cupy.fft = np.linalg, np.fft
    cupy.cuda, device = ModuleType("cupy.cuda"), ModuleType("cupy.cuda.device")
    cupy.cuda.Device = device.Device = lambda _index: nullcontext()
    modules = {"": cupy, ".cuda": cupy.cuda, ".cuda.device": device}
    for name, module in {**modules, ".linalg": np.linalg, ".fft": np.fft}.items():
        monkeypatch.setitem(sys.modules, f"cupy{name}", module)
    for name in _loaded():
        monkeypatch.delitem(sys.modules, name)
    xp = importlib.import_module("array_api_compat.cupy")
    # The next to import it gets the true one, or the error that there is none.
    for name in _loaded():
        del sys.modules[name]
    return xp


def _loaded():
    return [name for name in sys.modules if name.startswith("array_api_compat.cupy")]


def _placed(value):
    """Return a function whose results are arrays of the device; what is none, as it is."""
    if isinstance(value, type) or not callable(value):
        return value

    def call(*arguments, **options):
        result = value(*arguments, **options)
        return result.view(DeviceArray) if isinstance(result, np.ndarray) else result

    return functools.wraps(value)(call)
