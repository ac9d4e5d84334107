"""Decide how many threads a training uses."""

from __future__ import annotations

import math
import os
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnbackend.core.structure import Structure

__all__ = ["threads_allowed", "threads_worth"]

# A thread is worth starting for so many operations of a step, and so many rows of a batch.
_FLOPS_PER_THREAD = 8e6
_ROWS_PER_THREAD = 16

_CONTROL_GROUP = "/sys/fs/cgroup"


def threads_worth(structure: Structure, batch_size: int) -> int:
    """Return how many threads run a step: no more than are allowed, nor than its work is worth.

    The limit is that of the BLAS libraries in this process, which take theirs from the environment
    (``OMP_NUM_THREADS`` and the like) and from ``threadpoolctl``, and the processors that this
    process may use, at most as many as its container gets the time of.
    """
    flops = sum(6 * batch_size * n_in * n_out for n_in, n_out in structure.weight_shapes)
    worth = min(flops // _FLOPS_PER_THREAD, batch_size // _ROWS_PER_THREAD)
    return 1 if worth < 2 else min(int(worth), threads_allowed())


def threads_allowed() -> int:
    """Return how many threads may run at once, as ``threads_worth`` says."""
    blas: list[int] = [library.get_num_threads() for library in _blas_libraries()]
    return max(1, min([_processors(), *(count for count in blas if count)]))


def _processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), _container_processors(_CONTROL_GROUP))
    return os.cpu_count() or 1


@cache
def _container_processors(folder: str) -> int:
    """Return how many processors' time a container's quota amounts to; 2^16 without one."""
    # Version 2 of the kernel's control groups has both numbers in one file, version 1 in two.
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        words: list[str] = []
        try:
            for name in names:
                with open(os.path.join(folder, name), encoding="ascii") as file:
                    words += file.read().split()
            quota, period = map(int, words)
        except (OSError, ValueError):
            # There is no such file, or it says "max".
            continue
        if quota > 0 and period > 0:
            return math.ceil(quota / period)
    return 2**16


@cache
def _blas_libraries() -> list[Any]:
    from threadpoolctl import ThreadpoolController

    return list(ThreadpoolController().select(user_api="blas").lib_controllers)
