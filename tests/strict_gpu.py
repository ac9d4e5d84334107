"""A GPU for machines that have none: CuPy's arrays as far as training uses them, on NumPy's.

Stricter than CuPy, never kinder: an operation, an assignment or an index that mixes NumPy's arrays
with the device's is a TypeError, as is NumPy's reading of a device array.
"""

import importlib.machinery
import operator
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import array_api_compat.numpy as host_namespace
import numpy as np

from nnbackend import device

__all__ = ["Array", "install"]


# What the attribute ``device`` of arrays is, as an argument too.
_GPU = SimpleNamespace(id=0)


class Array:
    """An array in the device's memory."""

    __array_ufunc__ = None

    def __init__(self, host):
        self._host = host
        self.device = _GPU

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    T = property(lambda self: Array(self._host.T))
    mT = property(lambda self: Array(self._host.mT))

    def __array__(self, *_arguments, **_options):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __getitem__(self, key):
        return _outside(np.asarray(self._host[_inside(key)]))

    def __setitem__(self, key, value):
        self._host[_inside(key)] = _inside(value)

    def __len__(self):
        return len(self._host)

    def __bool__(self):
        return bool(self._host)

    def __int__(self):
        return int(self._host)

    def __float__(self):
        return float(self._host)

    __hash__ = None


def _inside(value):
    """Return what the device computes with: nothing that is in the host's memory."""
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if type(value) in (list, tuple):
        return type(value)(map(_inside, value))
    if value is _GPU:
        return "cpu"
    return value._host if isinstance(value, Array) else value


def _outside(value):
    if isinstance(value, np.ndarray | np.generic):
        return Array(np.asarray(value))
    if type(value) in (list, tuple):
        return type(value)(map(_outside, value))
    return value


def _on_device(function):
    return lambda *arguments, **options: _outside(
        function(*map(_inside, arguments), **{name: _inside(x) for name, x in options.items()})
    )


for _name in ("add", "sub", "mul", "truediv", "pow", "mod", "and", "or", "matmul"):
    _function = getattr(operator, f"{_name}_" if _name in ("and", "or") else _name)
    setattr(Array, f"__{_name}__", _on_device(_function))
    setattr(Array, f"__r{_name}__", _on_device(lambda x, y, f=_function: f(y, x)))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "invert", "abs"):
    setattr(Array, f"__{_name}__", _on_device(getattr(operator, _name)))
for _name in ("any", "all", "min", "max", "sum", "round", "reshape", "astype", "copy"):
    setattr(Array, _name, _on_device(getattr(np.ndarray, _name)))


class _Namespace:
    """Functions of the array API standard."""

    def __getattr__(self, name):
        found = getattr(host_namespace, name)
        return found if isinstance(found, type) or not callable(found) else _on_device(found)

    @staticmethod
    def asarray(x, dtype=None, copy=None):
        """Return an array of the device; this alone takes NumPy's."""
        if isinstance(x, Array):
            return Array(host_namespace.asarray(x._host, dtype=dtype, copy=copy))
        # What comes from the host is a copy.
        return Array(np.array(x, dtype=dtype))


class OutOfMemoryError(MemoryError):
    """What CuPy raises."""


def install(monkeypatch, free_bytes=2**30):
    """Let this process see one GPU with so much free memory."""
    pool = SimpleNamespace(free_bytes=lambda: 0, total_bytes=lambda: 0)
    cupy = ModuleType("cupy")
    cupy.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    cupy.ndarray = Array
    cupy.asnumpy = lambda x: np.array(x._host) if isinstance(x, Array) else np.asarray(x)
    cupy.get_default_memory_pool = lambda: pool
    cupy.cuda = SimpleNamespace(
        Device=lambda _index: nullcontext(),
        get_current_stream=lambda: SimpleNamespace(synchronize=lambda: None),
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=SimpleNamespace(
            CUDARuntimeError=RuntimeError,
            getDeviceCount=lambda: 1,
            memGetInfo=lambda: (free_bytes, 2**30),
        ),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(
        device,
        "_namespace",
        lambda kind: _Namespace() if kind == "cuda" else host_namespace,
    )
