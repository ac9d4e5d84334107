"""Devices by name: where arrays live and which namespace computes on them.

There is one rule of placement: **a network's device is where it computes.**

- Data in the host's memory (NumPy arrays, CPU tensors of torch, CPU arrays of JAX, any other array
  that DLPack can read there; lists, data frames) is copied to the network's device once, when it
  enters a public function. Results are returned to the host.
- Arrays in a GPU's memory (CuPy's, CUDA tensors of torch, CUDA arrays of JAX) have to be on the
  network's device, and results stay there. A tensor on ``cuda:0`` given to a network on ``cpu``, or
  one on ``cuda:1`` given to a network on ``cuda:0``, raises an ``InputError`` that names both
  devices.
- The arrays of one call (X, y, weights) have to be all in the host's memory or all on that device;
  lists and data frames go with both.

Results are arrays of the same library as X, or NumPy arrays if X is a list or a data frame. Nothing
else is moved: all other data is read in place, and given data is never written to. A torch tensor
that requires grad is refused, since no gradient flows back.

Only this module imports cupy, and only if CUDA is asked for or if an array on a GPU is given to a
network there. It imports no other array library: whoever made an array has imported its library.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from nnbackend.core.types import Array, Namespace
from nnbackend.errors import DeviceError, InputError

__all__ = [
    "Device",
    "DeviceInfo",
    "device_of",
    "devices",
    "get_device",
    "import_cupy",
    "in_library_of",
    "is_native",
    "require_same_device",
]

# DLPack's numbers for the memory that NumPy and CuPy can read: the host's, pinned or not; CUDA's.
_HOST_KINDS, _CUDA_KINDS = (1, 3), (2, 13)

_INSTALL = (
    "install it with: pip install 'cupy-cuda13x[ctk]' (or cupy-cuda12x for CUDA 12; the extras "
    "nnbackend[cuda13] and nnbackend[cuda12] do that)"
)


@dataclass(frozen=True)
class Device:
    """A place to compute: the host's memory, or one CUDA GPU.

    Attributes
    ----------
    kind : {"cpu", "cuda"}
        The sort of device.
    index : int
        Which GPU; 0 for the CPU.
    """

    kind: str
    index: int = 0

    @property
    def name(self) -> str:
        """``"cpu"``, or ``"cuda:0"``, ``"cuda:1"``, ..."""
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"

    def __str__(self) -> str:
        return self.name

    @property
    def xp(self) -> Namespace:
        """The array API namespace that computes here."""
        return _namespace(self.kind)

    def activate(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which new arrays of ``xp`` are made on this device."""
        if self.kind == "cpu":
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[Any] = import_cupy().cuda.Device(self.index)
        return context

    def place(self, x: Array, dtype: Any = None, *, copy: bool | None = None) -> Array:
        """Return ``x`` as an array on this device; copy host data, but none from another GPU."""
        with self.activate():
            return self.xp.asarray(x, dtype=dtype, copy=copy)

    def share(self, x: Any) -> Array:
        """Return another library's array, which is on this device, as an array of ``xp``.

        The result shares its memory, so only read it. If the library cannot share the array, its
        own error is raised.
        """
        if self.kind == "cpu":
            # Try the library's own conversion first: it refuses arrays that DLPack would misread,
            # and it handles missing values.
            return np.asarray(x) if hasattr(x, "__array__") else np.from_dlpack(x)
        with self.activate():
            return import_cupy().from_dlpack(x)

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        """Return an array of this device as a NumPy array; on CUDA, wait for the transfer."""
        if self.kind == "cpu":
            return np.asarray(x)
        return np.asarray(import_cupy().asnumpy(x))

    def synchronize(self) -> None:
        """Wait until everything that was launched on this device is done."""
        if self.kind == "cuda":
            with self.activate():
                import_cupy().cuda.get_current_stream().synchronize()

    def free_bytes(self) -> int:
        """Return how many bytes new arrays can take, including free blocks in CuPy's pool.

        On the CPU, return the size of the memory, used or not.
        """
        if self.kind == "cpu":
            return _host_memory() or sys.maxsize
        with self.activate():
            cupy = import_cupy()
            free: int = cupy.cuda.runtime.memGetInfo()[0]
            return free + int(cupy.get_default_memory_pool().free_bytes())

    def total_bytes(self) -> int:
        """Return the size of the device's memory."""
        if self.kind == "cpu":
            return _host_memory() or sys.maxsize
        with self.activate():
            return int(import_cupy().cuda.runtime.memGetInfo()[1])

    def pool_bytes(self) -> int | None:
        """Return how many bytes of the device CuPy's memory pool holds; None on the CPU.

        Freed blocks stay in the pool, so after a training this is at least its peak.
        """
        if self.kind == "cpu":
            return None
        with self.activate():
            return int(import_cupy().get_default_memory_pool().total_bytes())

    def nccl_all_reduce(
        self, size: int, rank: int, share: Callable[[Callable[[], bytes]], bytes | None]
    ) -> Callable[[Array], None]:
        """Return a function that sums an array over ``size`` processes' GPUs, in place.

        The sum runs on the current stream. All processes have to call this method; ``share``
        returns on all of them what rank 0 makes.
        """
        nccl = import_cupy().cuda.nccl
        if not nccl.available:
            raise DeviceError(
                f"device {self.name!r}: CuPy finds no NCCL, which sums over several GPUs; install "
                "it with: pip install nvidia-nccl-cu13 (or -cu12 for CUDA 12)"
            )
        # CuPy returns the identifier as signed bytes.
        unique_id = share(lambda: np.array(nccl.get_unique_id(), np.int8).tobytes())
        numbers = np.frombuffer(unique_id or b"", np.int8).tolist()
        with self.activate():
            try:
                communicator = nccl.NcclCommunicator(size, tuple(numbers), rank)
            except nccl.NcclError as error:
                raise DeviceError(
                    f"device {self.name!r}: NCCL does not connect the processes ({error}); each "
                    "needs a GPU of its own"
                ) from error
        types = {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64}

        def all_reduce(x: Array) -> None:
            pointer, stream = x.data.ptr, import_cupy().cuda.get_current_stream().ptr
            communicator.allReduce(
                pointer, pointer, x.size, types[x.dtype.name], nccl.NCCL_SUM, stream
            )

        return all_reduce

    def out_of_memory_errors(self) -> tuple[type[Exception], ...]:
        """Return the errors that are raised if the device's memory does not suffice."""
        return () if self.kind == "cpu" else (import_cupy().cuda.memory.OutOfMemoryError,)


@dataclass(frozen=True)
class DeviceInfo:
    """A description of a device, as ``nnbackend info`` shows it.

    Attributes
    ----------
    name : str
        The name that ``device=`` takes.
    description : str
        The processor's own name.
    memory_bytes : int or None
        The device's memory; None if the operating system does not report it.
    """

    name: str
    description: str
    memory_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary."""
        return asdict(self)


@lru_cache(maxsize=2)
def _namespace(kind: str) -> Namespace:
    if kind == "cuda":
        import_cupy()
    if kind == "cpu" and hasattr(np, "__array_namespace_info__"):
        # NumPy from 2.1 on has all of the standard. The other namespace loads numpy.testing,
        # numpy.f2py and more, which takes as long as importing NumPy.
        return np
    return importlib.import_module(f"array_api_compat.{'numpy' if kind == 'cpu' else 'cupy'}")


def import_cupy() -> Any:
    """Return the module cupy; raise a DeviceError that says what is missing."""
    try:
        import cupy
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            raise DeviceError(f"device 'cuda': CuPy is not installed; {_INSTALL}") from error
        reason = " ".join(str(error).split())[:300]
        raise DeviceError(
            f"device 'cuda': CuPy is installed but cannot be imported ({reason}); {_INSTALL}"
        ) from error
    return cupy


def _cuda_device_count() -> int:
    """Return how many GPUs CuPy can use; raise a DeviceError that says what is missing."""
    cupy = import_cupy()
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(
            "device 'cuda': CuPy is installed but finds no usable NVIDIA GPU or driver "
            f"({error}); check that nvidia-smi lists a GPU and that the CuPy package fits the "
            f"driver: {_INSTALL}"
        ) from error
    if count == 0:
        raise DeviceError(
            "device 'cuda': CuPy finds no NVIDIA GPU on this machine; use device='cpu' or 'auto'"
        )
    return int(count)


def get_device(device: str | Device = "cpu") -> Device:
    """Return the device of a name, after checking that it exists.

    Parameters
    ----------
    device : str or Device
        ``"cpu"``; ``"cuda"`` or ``"cuda:N"``; ``"auto"`` for the first GPU if CuPy can use one,
        else the CPU.

    Returns
    -------
    Device

    Raises
    ------
    DeviceError
        If CuPy, a driver or that GPU is missing; the message says which and what to do.
    InputError
        If the name is none of these.

    Examples
    --------
    >>> get_device("cpu").name
    'cpu'
    """
    if isinstance(device, Device):
        # Check only that it exists: the object may come from another machine.
        get_device(device.name)
        return device
    if device == "cpu":
        return Device("cpu")
    if device == "auto":
        if importlib.util.find_spec("cupy") is None:
            return Device("cpu")
        try:
            _cuda_device_count()
        except DeviceError:
            return Device("cpu")
        return Device("cuda")
    match = re.fullmatch(r"cuda(?::(\d{1,4}))?", device) if isinstance(device, str) else None
    if match is None:
        raise InputError(
            f"expected 'cpu', 'cuda', 'cuda:N' or 'auto', got {device!r}", argument="device"
        )
    count, index = _cuda_device_count(), int(match[1] or 0)
    if index >= count:
        raise DeviceError(
            f"device {device!r}: this machine has {count} GPU{'s' if count > 1 else ''} "
            f"(cuda:0{f' to cuda:{count - 1}' if count > 1 else ''})"
        )
    return Device("cuda", index)


def _is_cupy(x: Any) -> bool:
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(x, cupy.ndarray)


def is_native(x: Any) -> bool:
    """Whether ``x`` is a NumPy or CuPy array, the two kinds that networks compute with."""
    return isinstance(x, np.ndarray | np.generic) or _is_cupy(x)


def device_of(x: Any) -> Device | None:
    """Return the device of an array of any library; None for other objects or devices."""
    if isinstance(x, np.ndarray | np.generic):
        return Device("cpu")
    if _is_cupy(x):
        return Device("cuda", int(x.device.id))
    try:
        kind, index = x.__dlpack_device__()
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        # Either this is no array, or its library places it on no device or on several.
        return None
    if kind in _HOST_KINDS:
        return Device("cpu")
    return Device("cuda", int(index)) if kind in _CUDA_KINDS else None


def in_library_of(given: Any, result: Array) -> Array:
    """Return a NumPy or CuPy array as an array of the library of ``given``, sharing its memory.

    One that is not contiguous, such as a column, is copied: JAX takes no other.
    If ``given`` belongs to no array library (a list, a data frame), return the array itself.
    """
    home = device_of(given)
    if home is None or is_native(given):
        return result
    from array_api_compat import array_namespace, is_array_api_obj

    if not is_array_api_obj(given):
        return result
    result = result if result.flags.c_contiguous else result.copy()
    # As soon as this returns, another library's stream may reuse the memory of ``given``.
    home.synchronize()
    return array_namespace(given).from_dlpack(result)


def devices() -> list[DeviceInfo]:
    """Return the devices of this machine: the CPU, then every GPU that CuPy can use.

    Examples
    --------
    >>> import nnbackend as nb
    >>> nb.devices()[0].name
    'cpu'
    """
    found = [DeviceInfo("cpu", _processor_name(), _host_memory())]
    if importlib.util.find_spec("cupy") is None:
        return found
    try:
        count = _cuda_device_count()
    except DeviceError:
        return found
    for index in range(count):
        properties = import_cupy().cuda.runtime.getDeviceProperties(index)
        found.append(
            DeviceInfo(
                f"cuda:{index}", properties["name"].decode(), int(properties["totalGlobalMem"])
            )
        )
    return found


def _processor_name() -> str:
    import platform

    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _host_memory() -> int | None:
    import os

    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def require_same_device(**devices: Device | None) -> None:
    """Check that named arrays are on one device; None, as for a list, fits any."""
    found = {name: device for name, device in devices.items() if device is not None}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in found.items())
        raise InputError(
            f"expected arrays on one device, got {listed}; move them to one device first",
            argument=f"{', '.join(found)}",
        )
