"""As much of CuPy as ``CudaExecutor`` uses, on the host's memory: its own lines run without a GPU.

Kernels run as C++, and products in an emulated cuBLASLt, on the addresses and the numbers that a
launch would pass to the driver. What is launched during a capture is kept and not run; a copy or a
read during a capture is an error, as on a GPU.
"""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
from cuda_emulation import compile_cuda
from test_cublaslt import Emulation

__all__ = ["Library", "make_cupy"]


class Array(np.ndarray):
    """An array with the attributes of CuPy's."""

    @property
    def data(self):
        return Pointer(self, 0)

    def set(self, values, stream):
        assert values.flags.c_contiguous
        assert values.dtype == self.dtype
        assert values.shape == self.shape
        assert not stream.records
        self[...] = values


class Pointer:
    """A place in an array."""

    def __init__(self, array, n_bytes):
        self.array, self.n_bytes = array, n_bytes

    @property
    def ptr(self):
        return self.array.ctypes.data + self.n_bytes

    def __add__(self, n_bytes):
        return Pointer(self.array, self.n_bytes + n_bytes)


class Stream:
    """A stream that does everything at once, or keeps it for a graph."""

    current: ClassVar = []

    def __init__(self, *, non_blocking):
        assert non_blocking
        self.records = None
        self.ptr = id(self)

    def __enter__(self):
        self.current.append(self)

    def __exit__(self, *_):
        self.current.pop()

    def begin_capture(self):
        assert self.current[-1] is self
        self.records = []

    def end_capture(self):
        records, self.records = self.records, None
        return Graph(records)

    def launch(self, call):
        if self.records is None:
            call()
        else:
            self.records.append(call)

    def wait_event(self, event):
        assert event.stream is not None or event.is_new

    def record(self):
        return Event(self)


class Event:
    def __init__(self, stream=None):
        self.stream, self.is_new = stream, stream is None

    def record(self, stream):
        self.stream, self.is_new = stream, False

    def synchronize(self):
        pass


class Graph:
    def __init__(self, records):
        self.records = records

    def launch(self, stream):
        assert stream.records is None
        for call in self.records:
            call()


def make_cupy(shared_bytes=227 * 1024):
    """Return the module."""
    arrays = []

    def keep(array):
        # As CuPy's, arrays begin at multiples of 512 bytes.
        room = np.zeros(array.nbytes + 1024, np.uint8)
        start = -room.ctypes.data % 512
        aligned = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        aligned[...] = array
        arrays.append(aligned.view(Array))
        return arrays[-1]

    class RawModule:
        def __init__(self, *, code, options):
            assert options == ("-std=c++17",)
            self.module = compile_cuda(code)

        def get_function(self, name):
            return RawKernel(self.module, name)

    class RawKernel:
        max_dynamic_shared_size_bytes = 48 * 1024
        num_regs = 32

        def __init__(self, module, name):
            self.module, self.name = module, name
            codes = module.kernels[name].parameters.decode()
            self.codes = [codes[i : i + 3] for i in range(0, len(codes), 3)]

        def __call__(self, grid, block, arguments, *, shared_mem):
            assert shared_mem <= self.max_dynamic_shared_size_bytes
            for argument, code in zip(arguments, self.codes, strict=True):
                # A number goes to the driver as it is: its type has to be the parameter's.
                expected = np.dtype(code[1:]) if code[0] == "=" else np.dtype(np.uintp)
                assert argument.dtype == expected, (self.name, argument, code)
            Stream.current[-1].launch(
                lambda: self.module.launch(
                    self.name,
                    grid,
                    block,
                    [
                        find(x) if c[0] != "=" else x
                        for x, c in zip(arguments, self.codes, strict=True)
                    ],
                    shared_mem,
                )
            )

    def find(address):
        """Return the array that an address is in, and the element."""
        for array in arrays:
            start = array.ctypes.data
            if start <= address < start + array.nbytes:
                return array.view(np.ndarray), (int(address) - start) // array.itemsize
        raise AssertionError("the address is in no array")

    class Device:
        def __init__(self, index):
            assert index == 0
            self.attributes = {"MaxSharedMemoryPerBlockOptin": shared_bytes}

    def ndarray(shape, dtype, memptr, strides):
        assert memptr.array.dtype == dtype
        flat = memptr.array.reshape(-1)[memptr.n_bytes // memptr.array.itemsize :]
        return np.lib.stride_tricks.as_strided(flat, shape, strides)

    default = Stream(non_blocking=True)
    Stream.current[:] = [default]
    cuda = SimpleNamespace(
        Stream=Stream,
        Event=Event,
        Device=Device,
        get_current_stream=lambda: Stream.current[-1],
        alloc_pinned_memory=bytearray,
    )
    functions = {name: getattr(np, name) for name in ("where", "isnan", "all", "matmul")}

    def kept(make):
        return lambda *args, **options: keep(make(*args, **options))

    makers = (np.zeros, np.empty, np.asarray, np.ascontiguousarray, np.repeat, np.tile, np.eye)
    made = {make.__name__: kept(make) for make in makers}
    return SimpleNamespace(
        cuda=cuda, RawModule=RawModule, ndarray=ndarray, uint8=np.uint8, **functions, **made
    )


class Library(Emulation):
    """The emulated cuBLASLt, which obeys a capture.

    Parameters
    ----------
    passes_zero : bool
        Whether its ReLU lets a gradient through at 0.
    hides_nan : bool
        Whether its ReLU makes 0 of NaN.
    """

    def __init__(self, *, passes_zero=False, hides_nan=False):
        super().__init__()
        self.passes_zero, self.hides_nan = passes_zero, hides_nan

    def heuristic(self, *arguments):
        assert Stream.current[-1].records is None, "the heuristic fails during a capture"
        return super().heuristic(*arguments)

    def is_open(self, T):
        return T >= 0 if self.passes_zero else T > 0

    def relu(self, T):
        return np.where(T > 0, T, 0) if self.hides_nan else np.maximum(T, 0)

    def matmul(self, *arguments):
        assert arguments[-1] == Stream.current[-1].ptr

        def call():
            # A GPU does not warn.
            with np.errstate(over="ignore", invalid="ignore"):
                Emulation.matmul(self, *arguments)

        Stream.current[-1].launch(call)
        return 0
