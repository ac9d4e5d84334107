"""CUDA C kernels on the CPU: compiled unchanged as C++, run block by block on NumPy arrays.

Each thread of a block is a coroutine: it runs until it reaches ``__syncthreads()`` or returns, then
the next one does. Blocks run one after the other. Both follow a chosen order, on which no result
may depend. What goes wrong in silence on a GPU is an error here, or shows as NaN:

- a barrier that not all threads of a block reach, be it that some have returned;
- writing beyond an array argument or beyond dynamic shared memory, and reading there;
- reading shared memory that the block has not written;
- ``float`` that turns into ``double`` unasked.

A source's kernels are functions ``extern "C" __global__ void name(...)``, with or without
``__launch_bounds__``, of numbers and pointers to numbers. Dynamic shared memory is declared as
``extern __shared__ unsigned char dynamic_shared[];``, optionally with ``__align__(n)`` after
``__shared__``. Not supported: what ``cuda_shim.h`` does not define, among it warp intrinsics, and
blocks that wait for one another. ``INFINITY`` and ``NAN`` are defined here, but not by NVRTC.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

SHIM = Path(__file__).with_name("cuda_shim.h")
FLAGS = [
    *("-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden"),
    # Products and sums are rounded one by one; types are punned as in CUDA.
    *("-ffp-contract=off", "-fno-strict-aliasing"),
    # Fortified longjmp refuses to jump to another stack.
    "-U_FORTIFY_SOURCE",
    # One function may take half of a coroutine's stack.
    *("-Wall", "-Werror", "-Wdouble-promotion", "-Wframe-larger-than=32768"),
    *("-Wno-attributes", "-Wno-sign-compare", "-Wno-unknown-pragmas", "-Wno-unused-function"),
]

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
BOUNDS = r"(?:__launch_bounds__\s*\(((?:[^()]|\([^()]*\))*)\)\s*)?"
KERNEL = re.compile(rf'extern\s+"C"\s+__global__\s+{BOUNDS}void\s+{BOUNDS}(\w+)\s*\(')
DYNAMIC_SHARED = re.compile(
    r"extern __shared__ (?:__align__\(\d+\) )?unsigned char dynamic_shared\[\];"
)

MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_BLOCK = (1024, 1024, 64)
MAX_THREADS = 1024  # of a block
MAX_SHARED_BYTES = 227 * 1024  # the shim's SHARED_LIMIT
GUARD_BYTES = 4096


def absent(what):
    """Skip for lack of a tool, or fail where NNBACKEND_REQUIRE_ORACLES=1 asks for it."""
    if os.environ.get("NNBACKEND_REQUIRE_ORACLES") == "1":
        pytest.fail(f"NNBACKEND_REQUIRE_ORACLES=1, but {what} is not installed")
    pytest.skip(f"{what} is not installed")


@functools.cache
def compile_cuda(source):
    """Return the kernels of a source as a ``Module``; skip where there is no compiler.

    Raises
    ------
    ValueError
        If the source has no kernel, or declares dynamic shared memory in another way.
    RuntimeError
        If the source does not compile, or not without a warning; lines count in the source.
    """
    compilers = map(shutil.which, ("g++", "c++", "clang++"))
    compiler = next(filter(None, compilers), None) if sys.platform == "linux" else None
    if compiler is None:
        absent("a C++ compiler for Linux")
    kernels = [
        (name, before or after or str(MAX_THREADS))
        for before, after, name in KERNEL.findall(COMMENT.sub(" ", source))
    ]
    if not kernels:
        raise ValueError('the source has no kernel: extern "C" __global__ void name(...)')
    # Declared as an array of the shim, which is not known to be shared.
    emulated = DYNAMIC_SHARED.sub("", source)
    if re.search(r"extern\s+__shared__", COMMENT.sub(" ", emulated)):
        raise ValueError(
            "dynamic shared memory is to be declared as "
            "extern __shared__ unsigned char dynamic_shared[];"
        )
    entries = ",\n".join(f"EMULATED_KERNEL({name}, {bounds})" for name, bounds in kernels)
    text = (
        f'#include "{SHIM}"\n#line 1 "source.cu"\n{emulated}\n#line 1 "kernels"\n'
        f"const emulation::Kernel emulated_kernels[] = {{\n{entries}}};\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        command = [compiler, *FLAGS, "-x", "c++", "-", "-o", str(library)]
        result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(f"the source does not compile:\n{result.stderr}")
        # With the interpreter's lock: the library runs one launch at a time.
        return Module(ctypes.PyDLL(str(library)), len(kernels))


class Module:
    """The kernels of a source, compiled; ``__device__`` variables last as long as this does."""

    def __init__(self, library, n_kernels):
        self._launch = library.emulated_launch
        self._launch.restype = ctypes.c_char_p
        kernels = (_Kernel * n_kernels).in_dll(library, "emulated_kernels")
        self.kernels = {kernel.name.decode(): kernel for kernel in kernels}

    def launch(self, name, grid, block, arguments, shared_bytes=0, order="forward", *, guard=True):
        """Run a kernel.

        Parameters
        ----------
        name : str
            The kernel's.
        grid, block : tuple of int
            Up to three numbers of blocks, and of threads in a block.
        arguments : sequence
            For a pointer a contiguous array of its type, or a pair of an array and the element that
            the pointer is to; arrays change in place. For another parameter a number, which
            is converted to its type.
        shared_bytes : int
            Of dynamic shared memory.
        order : {"forward", "reversed"} or int
            In which the blocks run, and between two barriers the threads of a block; a number is
            the seed of a random order.
        guard : bool
            Whether the kernel works on copies of the arrays between guard bytes, and to write
            these is an error. Arrays then may not overlap in part.

        Raises
        ------
        ValueError, TypeError, OverflowError
            If a CUDA launch like this would fail, or read its arguments wrongly.
        RuntimeError
            If the kernel leaves a barrier divergent, or writes out of bounds; the arrays then
            are unchanged if guarded.
        """
        if name not in self.kernels:
            raise ValueError(f"no kernel {name!r}: the source has {', '.join(self.kernels)}")
        kernel = self.kernels[name]
        grid, block = _shape("grid", grid, MAX_GRID), _shape("block", block, MAX_BLOCK)
        n_threads = math.prod(block)
        if n_threads > kernel.max_threads:
            raise ValueError(f"{name} takes at most {kernel.max_threads} threads, got {n_threads}")
        if not 0 <= shared_bytes <= MAX_SHARED_BYTES:
            raise ValueError(f"shared_bytes is 0 to {MAX_SHARED_BYTES}, got {shared_bytes}")
        values, copies = _arguments(name, kernel.parameters.decode(), arguments, guard=guard)
        message = self._launch(
            ctypes.byref(kernel),
            _Shape(*grid),
            _Shape(*block),
            _order(order, math.prod(grid)).ctypes,
            _order(order, n_threads).ctypes,
            (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values)),
            ctypes.c_size_t(shared_bytes),
        )
        if message is not None:
            raise RuntimeError(f"{name}: {message.decode()}")
        for copy in copies:
            copy.check(name)
        for copy in copies:
            if copy.target is not None:
                copy.target.reshape(-1).view(np.uint8)[:] = copy.data


class _Kernel(ctypes.Structure):
    """The shim's ``Kernel``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("parameters", ctypes.c_char_p),
        ("call", ctypes.c_void_p),
        ("max_threads", ctypes.c_int),
    )


class _Shape(ctypes.Structure):
    """CUDA's ``dim3``."""

    _fields_ = (("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint))


def _shape(what, shape, limits):
    if not 1 <= len(shape) <= 3 or not all(
        1 <= size <= limit for size, limit in zip(shape, limits, strict=False)
    ):
        raise ValueError(f"{what} is up to three numbers from 1 to {limits}, got {shape}")
    return (*shape, 1, 1)[:3]


def _order(order, n):
    if order == "forward":
        return np.arange(n)
    if order == "reversed":
        return np.arange(n)[::-1].copy()
    return np.random.default_rng(order).permutation(n)


class _Copy:
    """A copy of an array, aligned as on a GPU, between guard bytes."""

    def __init__(self, array, index):
        self.array = array
        self.index = index  # of the first argument that is this array
        self.target = None  # the array, if the kernel may write to it
        # A signalling NaN in every position: to read it shows, any arithmetic changes it.
        pattern = b"\xf5\x7f" if array.dtype == np.float64 else b"\xa5\x7f"
        self._guard = np.frombuffer(pattern * (GUARD_BYTES // 2), np.uint8)
        memory = np.empty(array.nbytes + 2 * GUARD_BYTES + 256, np.uint8)
        start = GUARD_BYTES + -memory.ctypes.data % 256
        self.data = memory[start : start + array.nbytes]
        self.data[:] = array.reshape(-1).view(np.uint8)
        # By the position of their first byte in the array.
        self._guards = {
            -GUARD_BYTES: memory[start - GUARD_BYTES : start],
            array.nbytes: memory[start + array.nbytes :][:GUARD_BYTES],
        }
        for guard in self._guards.values():
            guard[:] = self._guard

    def check(self, name):
        for start, guard in self._guards.items():
            changed = np.flatnonzero(guard != self._guard)
            if changed.size:
                element = (start + int(changed[0])) // self.array.itemsize
                raise RuntimeError(
                    f"{name} writes to element {element} of argument {self.index}, "
                    f"which has {self.array.size}"
                )


def _arguments(name, parameters, arguments, *, guard):
    """Return each argument as an array that holds its value, and the copies pointed to."""
    codes = [parameters[i : i + 3] for i in range(0, len(parameters), 3)]
    if len(arguments) != len(codes):
        raise ValueError(f"{name} takes {len(codes)} arguments, got {len(arguments)}")
    values = []
    copies = {}
    for index, (argument, code) in enumerate(zip(arguments, codes, strict=True)):
        where = f"argument {index} of {name}"
        dtype = np.dtype(code[1:])
        if code[0] == "=":
            values.append(_number(argument, dtype, where))
            continue
        array, offset = argument if isinstance(argument, tuple) else (argument, 0)
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            given = getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"{where} is to be an array of {dtype}, got {given}")
        if not array.flags.c_contiguous:
            raise ValueError(f"{where} is not contiguous")
        if code[0] == ">" and not array.flags.writeable:
            raise ValueError(f"{where} is written to, but read-only")
        if not 0 <= offset <= array.size:
            raise ValueError(f"{where} has {array.size} elements, got the offset {offset}")
        address = array.ctypes.data
        if guard:
            copy = _copy(array, index, copies, where)
            address = copy.data.ctypes.data
            if code[0] == ">":
                copy.target = array
        values.append(np.array([address + offset * array.itemsize], np.uintp))
    return values, list(copies.values())


def _copy(array, index, copies, where):
    """Return the one copy of an array's memory."""
    key = array.ctypes.data, array.nbytes
    if key not in copies:
        for other in copies.values():
            if np.may_share_memory(array, other.array):
                raise ValueError(f"{where} overlaps argument {other.index} in part")
        copies[key] = _Copy(array, index)
    return copies[key]


def _number(value, dtype, where):
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, (int, float)) or (isinstance(value, float) and dtype.kind != "f"):
        raise TypeError(f"{where} is to be a number of {dtype}, got {value!r}")
    return np.array([value], dtype)
