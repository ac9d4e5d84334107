"""Find the processes of a training, and make sure that they end together."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnbackend.errors import DistributedError, MissingDependencyError
from nnbackend.parallel.team import Team

__all__ = ["all_or_none", "together", "world_of_launcher"]

# The variables in which launchers pass the number of processes: MPICH, Intel MPI and Slurm with
# --mpi=pmi2; Open MPI; MVAPICH2.
_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

# An error has this attribute after a team has told all processes of it.
_TOLD = "told_to_all"

_SECONDS_TO_PRINT = 0.2


@contextmanager
def together(communicator: Any) -> Iterator[Team | None]:
    """Yield the team of a communicator, in which an error in one process ends all.

    Yield None if the communicator is None: this process is alone.
    """
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
        # All processes end together, in MPI_Finalize. The launcher ends those that are left after
        # the first, and loses what it has not read yet of their tracebacks.
        atexit.register(time.sleep, _SECONDS_TO_PRINT)
        team.fail(error)
        raise
    finally:
        team.close()


@contextmanager
def all_or_none(communicator: Any) -> Iterator[None]:
    """Abort MPI if this process fails within the context and has not told the others.

    Between two teams nothing else would reach the other processes, and they would wait for ever.
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
    """Return the processes that an MPI launcher started together with this one, if any.

    A launcher is recognized by an environment variable: ``PMI_SIZE`` (mpiexec of MPICH and Intel
    MPI; srun --mpi=pmi2), ``OMPI_COMM_WORLD_SIZE`` (mpirun of Open MPI), ``MV2_COMM_WORLD_SIZE``
    (MVAPICH2), ``PMIX_RANK`` (prterun; srun --mpi=pmix). Do not call this function in child
    processes, which inherit the variable.

    Returns
    -------
    mpi4py.MPI.Intracomm or None
        ``mpi4py.MPI.COMM_WORLD``; None for a single process. Without a launcher, return None and do
        not import mpi4py.

    Raises
    ------
    MissingDependencyError
        If there is a launcher, but no mpi4py or no MPI library.
    DistributedError
        If the MPI library is not the launcher's, so that each process is alone.

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
