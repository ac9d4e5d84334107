"""The C structures and functions of the library, and the checks of what goes into them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from enum import IntEnum
from functools import cache
from typing import Any, Literal

import numpy as np

from nnbackend.engines.native.program import Program

__all__ = [
    "CALLBACK",
    "NARROW",
    "NO_CALLBACK",
    "PLAIN",
    "REDUCTIONS",
    "SECONDS_PER_CALL",
    "WRONG_ROWS",
    "Functions",
    "LayerSpec",
    "Mode",
    "PassSpec",
    "PoolFunctions",
    "ProgramSpec",
    "Question",
    "Random",
    "Request",
    "Run",
    "Spec",
    "address",
    "address_of",
    "aligned",
    "functions",
    "pool_functions",
    "program_spec",
]

_Array = np.ndarray[Any, Any]

_SIZE, _POINTER, _REAL = ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_double

# Networks whose layers are all this narrow hold one unit per row, so that examples fill vectors.
NARROW = 16

# C takes whole, aligned arrays.
PLAIN: tuple[Literal["C"], Literal["A"]] = "C", "A"

# A call of the library goes on for so long before Python looks for signals.
SECONDS_PER_CALL = 0.05

# Why a run has failed, if no answer of Python's has, as step.h says.
WRONG_ROWS = 2

# What a pass over all parameters reduces its value to, as network.h says.
REDUCTIONS = {"nothing": 0, "sum": 1, "max": 2}


class Mode(IntEnum):
    """What a run does, as step.h says."""

    TRAIN = 0
    LOSS = 1
    LOGITS = 2
    GRADIENT = 3


class Question(IntEnum):
    """What the library asks Python for, as step.h says."""

    REDUCE = 0
    ACTIVATE = 1
    PULL_BACK = 2
    OUTPUT_LOSS = 3
    UPDATE = 4


def _structure(*fields: tuple[str, Any]) -> Any:
    """Return the fields of a structure, each declared as ``"name name": type``."""
    return [(name, kind) for names, kind in fields for name in names.split()]


class LayerSpec(ctypes.Structure):
    """A layer, as network.h declares it."""

    _fields_ = _structure(
        ("n_in n_out activate pull_back in_place", _SIZE),
        ("dropout", _REAL),
    )


class PassSpec(ctypes.Structure):
    """A pass over all parameters."""

    _fields_ = _structure(("program reduction", _SIZE))


class ProgramSpec(ctypes.Structure):
    """A program."""

    _fields_ = _structure(
        ("code", _POINTER),
        ("n_instructions n_arrays n_registers n_numbers", _SIZE),
        ("numbers kernel", _POINTER),
    )


class Spec(ctypes.Structure):
    """A network in training."""

    _fields_ = _structure(
        ("n_layers batch n_targets labels features_major", _SIZE),
        ("layers programs", _POINTER),
        ("n_programs loss penalize update n_clips", _SIZE),
        ("clips", _POINTER),
        ("penalty_per_sample by_rows n_state n_coefficients", _SIZE),
        ("parameters gradient finite state random", _POINTER),
    )


class Random(ctypes.Structure):
    """The state of a generator PCG64, as random.h declares it."""

    _fields_ = _structure(
        ("state increment", ctypes.c_uint64 * 2), ("has_uint32 uinteger", ctypes.c_uint64)
    )

    @property
    def dictionary(self) -> dict[str, Any]:
        """The state, as NumPy's ``bit_generator.state``."""
        return {
            "bit_generator": "PCG64",
            "state": {
                "state": self.state[0] << 64 | self.state[1],
                "inc": self.increment[0] << 64 | self.increment[1],
            },
            "has_uint32": int(self.has_uint32),
            "uinteger": int(self.uinteger),
        }

    @dictionary.setter
    def dictionary(self, state: Mapping[str, Any]) -> None:
        if state["bit_generator"] != "PCG64":
            raise ValueError(f"expected the state of a PCG64, got {state['bit_generator']}")
        for place, name in ((self.state, "state"), (self.increment, "inc")):
            place[:] = divmod(state["state"][name], 2**64)
        self.has_uint32, self.uinteger = state["has_uint32"], state["uinteger"]


class Request(ctypes.Structure):
    """What the library asks Python for."""

    _fields_ = _structure(("what layer rows", _SIZE), ("arrays", _POINTER * 4))


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER)
NO_CALLBACK = CALLBACK(0)


class Run(ctypes.Structure):
    """A run of epochs."""

    _fields_ = _structure(
        ("mode", _SIZE),
        ("X y weight label order", _POINTER),
        ("n_rows n_samples n_epochs ends", _SIZE),
        ("coefficients losses totals parameters logits", _POINTER),
        ("n_threads batch_rows first_row reduces", _SIZE),
        ("call", CALLBACK),
        ("seconds spent", _REAL),
        ("epoch start step is_over has_failed is_finite", _SIZE),
    )


class Functions:
    """The functions of the library for one dtype.

    Attributes
    ----------
    lanes : int
        The elements of a vector.
    new, free, run : callables
        As in network.h and step.h.
    go_on : int
        The address of the function by which a pool carries a run on.
    kernel : callable
        Returns the address of the compiled form of a program, or None.
    """

    def __init__(self, library: ctypes.CDLL, dtype: str) -> None:
        def function(name: str, result: Any, *arguments: Any) -> Any:
            entry = getattr(library, f"nnbackend_{name}_{dtype}")
            entry.restype, entry.argtypes = result, arguments
            return entry

        self.lanes: int = function("lanes", ctypes.c_int)()
        self.new = function("new", _POINTER, ctypes.POINTER(Spec), _SIZE)
        self.free = function("free", None, _POINTER)
        self.run = function("run", None, _POINTER, ctypes.POINTER(Run))
        go_on = function("go_on", ctypes.c_int, _POINTER, _POINTER, _REAL)
        self.go_on: int | None = ctypes.cast(go_on, _POINTER).value
        self.kernel = function("kernel", _POINTER, ctypes.c_uint64)


class PoolFunctions:
    """The functions of a pool of threads, as in pool.c."""

    def __init__(self, library: ctypes.CDLL) -> None:
        def function(name: str, result: Any, *arguments: Any) -> Any:
            entry = getattr(library, f"nnbackend_pool_{name}")
            entry.restype, entry.argtypes = result, arguments
            return entry

        self.new = function("new", _POINTER, _SIZE, _SIZE, _REAL)
        self.begin = function("begin", None, _POINTER, _POINTER, _POINTER, _POINTER)
        self.over = function("over", _SIZE, _POINTER, _REAL, _POINTER)
        self.stop = function("stop", None, _POINTER)
        self.free = function("free", None, _POINTER)


@cache
def pool_functions(library: ctypes.CDLL) -> PoolFunctions:
    """Return the library's functions for pools."""
    return PoolFunctions(library)


@cache
def functions(library: ctypes.CDLL, dtype: str) -> Functions:
    """Return the library's functions for a dtype."""
    return Functions(library, dtype)


def address(array: _Array, dtype: Any, shape: tuple[int, ...], *, writes: bool = False) -> int:
    """Return the address of an array's memory, after checking all that C takes for granted."""
    flags = array.flags
    is_dense = flags.c_contiguous and flags.aligned
    if array.dtype != dtype or array.shape != shape or not is_dense:
        raise ValueError(
            f"expected a C-contiguous array of {dtype} and shape {shape}, got {array.dtype}, "
            f"{array.shape}, strides {array.strides}{'' if flags.aligned else ', unaligned'}"
        )
    if writes and not flags.writeable:
        raise ValueError("expected an array that can be written, got one that is read-only")
    return address_of(array)


def address_of(array: _Array) -> int:
    """Return the address of an array's memory."""
    # Several times as fast as array.ctypes.data, which makes an object first.
    return int(array.__array_interface__["data"][0])


def aligned(n: int, dtype: Any) -> _Array:
    """Return zeros (n,) that begin with a cache line."""
    dtype = np.dtype(dtype)
    memory = np.zeros(n * dtype.itemsize + 64, np.uint8)
    start = -address_of(memory) % 64
    return memory[start : start + n * dtype.itemsize].view(dtype)


def program_spec(program: Program, own: Functions, dtype: Any) -> tuple[ProgramSpec, list[_Array]]:
    """Return a program as the library takes it, and the arrays that have to live as long."""
    values = [0.0] * len(program.numbers) + program.constants
    numbers = aligned(max(len(values), 1) * own.lanes, dtype)
    with np.errstate(over="ignore"):
        numbers[: len(values) * own.lanes] = np.repeat(np.asarray(values, dtype), own.lanes)
    spec = ProgramSpec(
        address(program.code, np.int32, program.code.shape),
        len(program.code),
        len(program.arrays),
        program.n_registers,
        max(len(values), 1),
        address(numbers, dtype, numbers.shape),
        own.kernel(program.key),
    )
    return spec, [program.code, numbers]
