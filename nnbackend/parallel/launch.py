"""How the processes of a training are found, and how they end together."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnbackend.errors import DistributedError, MissingDependencyError
from nnbackend.parallel.team import Team

__all__ = ["all_or_none", "together", "world_of_launcher"]

# What launchers tell a process about how many there are: those of MPICH and Intel MPI, and Slurm's
# with --mpi=pmi2; that of Open MPI; that of MVAPICH2.
_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

# An error that a team has told all processes of has this attribute.
_TOLD = "told_to_all"


@contextmanager
def together(communicator: Any) -> Iterator[Team | None]:
    """Yield the processes of a communicator; an error in one ends all. None: this one is alone."""
    if communicator is None:
        yield None
        return
    team = Team(communicator)
    try:
        yield team
    except DistributedError:
        raise
    except BaseException as error:
        error.__dict__[_TOLD] = True
        team.fail(error)
        raise
    finally:
        team.close()


@contextmanager
def all_or_none(communicator: Any) -> Iterator[None]:
    """End all processes by MPI's own means if one fails here and has not told the others.

    Between two teams nothing else would reach them: they would wait for ever.
    """
    try:
        yield
    except DistributedError:
        raise
    except Exception as error:
        if communicator is not None and _TOLD not in error.__dict__:
            message = f"rank {communicator.Get_rank()} failed: {type(error).__name__}: {error}"
            print(message, file=sys.stderr, flush=True)
            communicator.Abort(2)
        raise


def world_of_launcher() -> Any:
    """Return the processes that an MPI launcher has started this one with, if it has.

    Launchers are known by what they put into the environment: ``PMI_SIZE`` (mpiexec of MPICH and
    Intel MPI; srun --mpi=pmi2), ``OMPI_COMM_WORLD_SIZE`` (mpirun of Open MPI),
    ``MV2_COMM_WORLD_SIZE`` (MVAPICH2), ``PMIX_RANK`` (prterun; srun --mpi=pmix). Processes started
    by such a process inherit that: do not call this in them.

    Returns
    -------
    mpi4py.MPI.Intracomm or None
        ``mpi4py.MPI.COMM_WORLD``; None for a single process, or without a launcher, where mpi4py
        is not imported.

    Raises
    ------
    MissingDependencyError
        If there is a launcher, but no mpi4py or no MPI library.
    DistributedError
        If the MPI library is not that of the launcher, so that each process is alone.

    Examples
    --------
    >>> world_of_launcher() is None
    True
    """
    sizes = [os.environ[name] for name in _SIZE_VARIABLES if name in os.environ]
    if "1" in sizes or not (sizes or "PMIX_RANK" in os.environ):
        return None
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise MissingDependencyError(
            f"started by an MPI launcher, but mpi4py cannot be imported ({error}); it comes, with "
            "an MPI library, with: pip install 'nnbackend[mpi]'"
        ) from error
    world = MPI.COMM_WORLD
    if world.Get_size() > 1:
        return world
    if sizes:
        raise DistributedError(
            f"the launcher has started {sizes[0]} processes, but {MPI.Get_library_version()[:40]} "
            "finds one; use the mpiexec of that library"
        )
    return None
