"""Choose the grids and blocks of kernels over matrices and vectors."""

from __future__ import annotations

from nnbackend.engines.cuda.source import THREADS

__all__ = [
    "MAX_BLOCKS",
    "MAX_ROW_BLOCKS",
    "block_shape",
    "column_grid",
    "element_grid",
    "flat_grid",
]

# The blocks of a kernel over many elements: several for each multiprocessor of a large GPU.
MAX_BLOCKS = 1024
MAX_ROW_BLOCKS = 512


def block_shape(columns: int, most: int) -> tuple[int, int]:
    """Return a block's width, a power of two that covers the columns if possible, and height."""
    width = 1
    while width < min(columns, most):
        width *= 2
    return width, THREADS // width


def element_grid(rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return grid and block of a kernel over all elements of a matrix."""
    block = block_shape(columns, 32)
    across = -(-columns // block[0])
    return (across, max(1, min(-(-rows // block[1]), MAX_BLOCKS // across))), block


def column_grid(rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return grid and block of a kernel that sums columns; a thread adds about eight rows."""
    block = block_shape(columns, 32)
    across = -(-columns // block[0])
    down = max(1, min(-(-rows // (8 * block[1])), MAX_ROW_BLOCKS // across))
    return (across, down), block


def flat_grid(n: int) -> tuple[int, int]:
    """Return the grid of a kernel over a flat vector."""
    return min(-(-n // THREADS), MAX_BLOCKS), 1
