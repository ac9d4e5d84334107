"""Describe a training step on the GPU as plain data: buffers, and launches in their order.

A plan names the result and the place of each computation, and holds no array and no pointer. An
executor allocates the buffers and runs the launches, on a GPU (``runtime.py``) or in a test.

All matrices are row-major: element (i, j) of a matrix lies at ``offset + i * ld + j``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

__all__ = ["ITEM_BYTES", "Buffer", "Epilogue", "Kernel", "Launch", "Matrix", "Product", "Vector"]

# Bytes of an element, by NumPy's name of its type; bfloat16 is stored as uint16.
ITEM_BYTES = {
    "float32": 4, "float64": 8, "uint16": 2, "uint32": 4, "int32": 4, "int64": 8, "uint64": 8,
    "uint8": 1,
}  # fmt: skip


class Epilogue(Enum):
    """The operation of a product on its result before writing it, for row-major matrices.

    With T = op(A) op(B):

    - ``NONE``: out = T.
    - ``BIAS``: out = T + vector.
    - ``RELU_BIAS``: out = max(T + vector, 0).
    - ``RELU_AUX_BIAS``: the same, and ``aux`` keeps a bit for each element: whether T + vector > 0.
    - ``GELU_AUX_BIAS``: out = gelu(T + vector), the tanh form, and ``aux`` keeps T + vector.
    - ``DRELU_BGRAD``: out = T where the bit in ``aux`` is set, else 0; vector = column sums of out.
    - ``DGELU_BGRAD``: out = T gelu'(aux); vector = column sums of out.
    - ``BGRAD_B``: out = T; vector = column sums of B, which is not transposed.
    """

    NONE = "none"
    BIAS = "bias"
    RELU_BIAS = "relu_bias"
    RELU_AUX_BIAS = "relu_aux_bias"
    GELU_AUX_BIAS = "gelu_aux_bias"
    DRELU_BGRAD = "drelu_bgrad"
    DGELU_BGRAD = "dgelu_bgrad"
    BGRAD_B = "bgrad_b"


@dataclass(frozen=True)
class Matrix:
    """A row-major matrix within a buffer.

    Attributes
    ----------
    buffer : str
        The buffer's name.
    rows, columns : int
        The shape.
    ld : int
        Elements from one row to the next, at least ``columns``.
    offset : int
        Elements from the buffer's start to the first.
    dtype : {"float32", "float64", "bfloat16"}
        The type of the elements.
    """

    buffer: str
    rows: int
    columns: int
    ld: int
    offset: int = 0
    dtype: str = "float32"


@dataclass(frozen=True)
class Vector:
    """Contiguous elements within a buffer, with attributes as in ``Matrix``."""

    buffer: str
    size: int
    offset: int = 0
    dtype: str = "float32"


@dataclass(frozen=True)
class Product:
    """A launch: out = op(A) op(B), then an epilogue.

    Attributes
    ----------
    A, B, out : Matrix
        The matrices in memory, before any transposition.
    transpose_A, transpose_B : bool
        Whether op is the transposition.
    precision : {"float32", "tf32", "bfloat16", "float64"}
        The precision of the computation: "float32" uses only float32, "tf32" multiplies float32
        operands on tensor cores, "bfloat16" multiplies operands stored in bfloat16. Sums are
        float32 in all of these.
    epilogue : Epilogue
        The operation on the result.
    vector : Vector or None
        The bias that the epilogue reads, or the sums that it writes.
    aux : Matrix or None
        The data that a forward epilogue keeps for the backward one, with the shape of ``out``. For
        ReLU these are bits (dtype ``"bit"``, with ``ld`` in bits and a multiple of 128), for GELU
        elements (with ``ld`` a multiple of 8).
    """

    A: Matrix
    B: Matrix
    out: Matrix
    transpose_A: bool = False
    transpose_B: bool = False
    precision: str = "float32"
    epilogue: Epilogue = Epilogue.NONE
    vector: Vector | None = None
    aux: Matrix | None = None


@dataclass(frozen=True)
class Kernel:
    """A launch of one of our own kernels.

    Attributes
    ----------
    name : str
        The name of the kernel.
    grid, block : tuple of int
        Blocks, and threads of a block, along x and y.
    arguments : tuple
        The arguments in the kernel's order: numbers, and matrices and vectors, which are passed as
        the address of their first element.
    shared_bytes : int
        Dynamic shared memory of a block.
    """

    name: str
    grid: tuple[int, int]
    block: tuple[int, int]
    arguments: tuple[Matrix | Vector | int | float, ...]
    shared_bytes: int = 0


Launch: TypeAlias = Product | Kernel


@dataclass(frozen=True)
class Buffer:
    """Device memory that lives as long as the training.

    Attributes
    ----------
    size : int
        The number of elements.
    dtype : str
        NumPy's name of their type; ``"uint16"`` for bfloat16.
    """

    size: int
    dtype: str
