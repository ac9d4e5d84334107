"""As much of CuPy as the CUDA engine uses, on the host's memory: its own lines run without a GPU.

Kernels run as C++, and products in an emulated cuBLASLt, on the addresses and the numbers that a
launch would pass to the driver. What is launched during a capture is kept and not run; a copy or a
read during a capture is an error, as on a GPU.

Everything is done at once, in the order of the calls, which a GPU does not promise: there a stream
runs behind another, or behind the host, only where it waits. So every stream and the host keep
count of what they have waited for, and an operation is an error unless its stream has waited for
the last write to all that it reads or writes, and for the reads of what it writes.
"""

import itertools
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
from cublaslt_emulation import Emulation
from cuda_emulation import compile_cuda

__all__ = ["Event", "Library", "Stream", "make_cupy"]


class Timeline:
    """Operations one after the other: a stream's, or the host's.

    ``seen`` is how many operations of each timeline, by its number, come before the next one here.
    """

    numbers = itertools.count()

    def __init__(self):
        self.number = next(self.numbers)
        self.seen = {}

    def see(self, seen):
        for number, count in seen.items():
            self.seen[number] = max(count, self.seen.get(number, 0))

    def has_seen(self, number, count):
        return self.seen.get(number, 0) >= count


class Machine:
    """The memory, the host, and the streams that are current, the innermost last."""

    def __init__(self):
        self.host = Timeline()
        self.current = [Stream(non_blocking=True)]
        self.allocations = []
        self.pinned = []
        # Copies out of pinned memory: stream and count of the operation, source, what it held.
        self.copies = []

    def keep(self, values):
        """Return a new array that holds the values."""
        values = np.asarray(values)
        # As CuPy's, arrays begin at multiples of 512 bytes.
        room = np.zeros(values.nbytes + 1024, np.uint8)
        start = -room.ctypes.data % 512
        array = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
        array[...] = values
        self.allocations.append(Allocation(array))
        return array.view(Array)

    def find(self, address):
        """Return the allocation that an address is in."""
        for allocation in self.allocations:
            if allocation.start <= address < allocation.end:
                return allocation
        raise AssertionError("the address is in no array")

    def allocate_pinned(self, n_bytes):
        memory = bytearray(n_bytes)
        self.pinned.append(np.frombuffer(memory, np.uint8))
        return memory

    def check_copies(self):
        """Assert that the host left alone what copies read that it has not waited for."""
        self.copies = [copy for copy in self.copies if not self.host.has_seen(*copy[:2])]
        for *_, source, held in self.copies:
            assert source.tobytes() == held, "the host wrote to what a copy may still read"


class Allocation:
    """The memory of an array: the last write to it, and the reads since, by timeline."""

    def __init__(self, array):
        self.array = array
        self.start, self.end = array.ctypes.data, array.ctypes.data + array.nbytes
        self.write = (0, 0)
        self.reads = {}

    def read_by(self, stream):
        assert stream.has_seen(*self.write), "a read that does not wait for the last write"
        self.reads[stream.number] = stream.seen[stream.number]

    def written_by(self, stream):
        assert stream.has_seen(*self.write), "a write that does not wait for the last write"
        assert all(map(stream.has_seen, self.reads, self.reads.values())), (
            "a write that does not wait for reads of what was there"
        )
        self.write, self.reads = (stream.number, stream.seen[stream.number]), {}


class Stream(Timeline):
    """A stream that does everything at once, or keeps it for a graph."""

    machine: ClassVar = None

    def __init__(self, *, non_blocking):
        assert non_blocking
        super().__init__()
        self.records = None
        self.ptr = id(self)

    def __enter__(self):
        self.machine.current.append(self)

    def __exit__(self, *_):
        self.machine.current.pop()

    def begin_capture(self):
        assert self.machine.current[-1] is self
        self.records = []

    def end_capture(self):
        records, self.records = self.records, None
        return Graph(records)

    def launch(self, call, reads, writes):
        if self.records is None:
            self.use(reads, writes)
            call()
        else:
            self.records.append((call, reads, writes))

    def use(self, reads, writes):
        """Count an operation on allocations, and assert that it waits for all that it has to."""
        assert self.records is None, "a copy or a read during a capture"
        self.see(self.machine.host.seen)
        self.seen[self.number] = self.seen.get(self.number, 0) + 1
        for allocation in reads:
            allocation.read_by(self)
        for allocation in writes:
            allocation.written_by(self)

    def wait_event(self, event):
        assert self.records is None
        self.see(event.seen)

    def record(self):
        event = Event()
        event.record(self)
        return event


class Event:
    """A place in a stream; waiting for one that was never recorded is none."""

    def __init__(self):
        self.seen = {}

    def record(self, stream):
        assert stream.records is None
        self.seen = dict(stream.seen)

    def synchronize(self):
        Stream.machine.check_copies()
        Stream.machine.host.see(self.seen)


class Graph:
    def __init__(self, records):
        self.records = records

    def launch(self, stream):
        assert stream.records is None
        for record in self.records:
            stream.launch(*record)


class Array(np.ndarray):
    """An array with the attributes of CuPy's, whose operations are the current stream's."""

    @property
    def data(self):
        return Pointer(self, 0)

    def set(self, values, stream):
        assert values.flags.c_contiguous
        assert values.dtype == self.dtype
        assert values.shape == self.shape
        machine = Stream.machine
        machine.check_copies()
        stream.use([], allocations([self]))
        if any(np.may_share_memory(values, memory) for memory in machine.pinned):
            moment = stream.number, stream.seen[stream.number]
            machine.copies.append((*moment, values, values.tobytes()))
        plain(self)[...] = values

    def copy(self):
        return operation(np.array, self)

    def get(self):
        stream = Stream.machine.current[-1]
        stream.use(allocations([self]), [])
        Stream.machine.host.see(stream.seen)
        return np.array(self)

    def __getitem__(self, key):
        # A single element is an array, too.
        keys = np.index_exp[key]
        has_rest = any(each is ... for each in keys)
        return super().__getitem__(keys if has_rest else (*keys, ...))

    def __setitem__(self, key, value):
        arrays = [value] if isinstance(value, Array) else []
        Stream.machine.current[-1].use(allocations(arrays), allocations([self]))
        plain(self)[key] = plain(value)

    def __array_ufunc__(self, function, method, *arguments, **options):
        return operation(getattr(function, method), *arguments, **options)

    def __bool__(self):
        return bool(self.get())

    def __int__(self):
        return int(self.get())

    def __float__(self):
        return float(self.get())


def plain(value):
    """Return a value with NumPy's arrays in place of those here."""
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value.view(np.ndarray) if isinstance(value, Array) else value


def arrays_in(values):
    for value in values:
        if isinstance(value, list | tuple):
            yield from arrays_in(value)
        elif isinstance(value, Array):
            yield value


def allocations(arrays):
    return [Stream.machine.find(array.ctypes.data) for array in arrays if array.size]


def operation(function, *arguments, out=None, **options):
    """Carry a function of NumPy out in the current stream, into ``out`` or a new array."""
    (out,) = out if isinstance(out, tuple) else (out,)
    into = {} if out is None else {"out": plain(out)}
    result = function(*plain(arguments), **into, **options)
    if not isinstance(result, np.ndarray | np.generic):
        return result
    result = Stream.machine.keep(result) if out is None else out
    Stream.machine.current[-1].use(allocations(arrays_in(arguments)), allocations([result]))
    return result


class Pointer:
    """A place in an array."""

    def __init__(self, array, n_bytes):
        self.array, self.n_bytes = array, n_bytes

    @property
    def ptr(self):
        return self.array.ctypes.data + self.n_bytes

    def __add__(self, n_bytes):
        return Pointer(self.array, self.n_bytes + n_bytes)


class RawModule:
    def __init__(self, *, code, options):
        assert options == ("-std=c++17",)
        self.module = compile_cuda(code)

    def get_function(self, name):
        return RawKernel(self.module, name)


class RawKernel:
    max_dynamic_shared_size_bytes = 48 * 1024

    def __init__(self, module, name):
        self.module, self.name = module, name
        self.is_loaded = False
        codes = module.kernels[name].parameters.decode()
        self.codes = [codes[i : i + 3] for i in range(0, len(codes), 3)]

    @property
    def num_regs(self):
        self.is_loaded = True
        return len(self.codes)

    def __call__(self, grid, block, arguments, *, shared_mem):
        stream = Stream.machine.current[-1]
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        assert self.is_loaded or stream.records is None, "loading a kernel fails during a capture"
        values, reads, writes = [], [], []
        for argument, code in zip(arguments, self.codes, strict=True):
            dtype = np.dtype(code[1:])
            if code[0] == "=":
                # A number goes to the driver as it is: its type has to be the parameter's.
                assert argument.dtype == dtype, (self.name, argument, code)
                values.append(argument)
                continue
            assert argument.dtype == np.uintp, (self.name, argument, code)
            allocation = Stream.machine.find(argument)
            array = allocation.array.reshape(-1)
            values.append((array, (int(argument) - allocation.start) // array.itemsize))
            (writes if code[0] == ">" else reads).append(allocation)
        stream.launch(
            lambda: self.module.launch(self.name, grid, block, values, shared_mem), reads, writes
        )


class Namespace(SimpleNamespace):
    """The module cupy: what is given, and NumPy's functions as operations of the streams."""

    def __getattr__(self, name):
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found
        return lambda *arguments, **options: operation(found, *arguments, **options)


def make_cupy(shared_bytes=227 * 1024):
    """Return the module, on a machine of its own."""
    Stream.machine = machine = Machine()

    class Device:
        def __init__(self, index):
            assert index == 0
            self.attributes = {"MaxSharedMemoryPerBlockOptin": shared_bytes}

    def ndarray(shape, dtype, memptr, strides):
        assert memptr.array.dtype == dtype
        flat = memptr.array.reshape(-1)[memptr.n_bytes // memptr.array.itemsize :]
        return np.lib.stride_tricks.as_strided(flat, shape, strides, subok=True)

    def ascontiguousarray(x):
        if isinstance(x, Array) and x.flags.c_contiguous:
            return x
        return operation(np.ascontiguousarray, x)

    cuda = SimpleNamespace(
        Stream=Stream,
        Event=Event,
        Device=Device,
        get_current_stream=lambda: machine.current[-1],
        alloc_pinned_memory=machine.allocate_pinned,
    )
    return Namespace(
        cuda=cuda, RawModule=RawModule, ndarray=ndarray, ascontiguousarray=ascontiguousarray
    )


class Library(Emulation):
    """The emulated cuBLASLt, which obeys streams and a capture.

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
        assert Stream.machine.current[-1].records is None, "the heuristic fails during a capture"
        return super().heuristic(*arguments)

    def is_open(self, T):
        return T >= 0 if self.passes_zero else T > 0

    def relu(self, T):
        return np.where(T > 0, T, 0) if self.hides_nan else np.maximum(T, 0)

    def matmul(self, *arguments):
        machine = Stream.machine
        _lt, wanted, _alpha, A, _, B, _, _beta, _C, _, D, _, _algorithm, workspace, *_ = arguments
        assert arguments[-1] == machine.current[-1].ptr

        def call():
            # A GPU does not warn.
            with np.errstate(over="ignore", invalid="ignore"):
                Emulation.matmul(self, *arguments)

        attributes = self.attributes(wanted)
        epilogue = attributes[7]
        # Sums of columns, and what is kept for the way back.
        is_written = {8: epilogue & (16 | 256), 11: epilogue & (2 | 32)}
        reads, writes = [A, B], [D, workspace]
        for key, writing in is_written.items():
            if key in attributes:
                (writes if writing else reads).append(attributes[key])
        machine.current[-1].launch(
            call, list(map(machine.find, reads)), list(map(machine.find, writes))
        )
        return 0
