"""Programs under mpiexec, as tests start them."""

import os
import shutil
import subprocess
import sys

import pytest
from backends import require

# Against hanging only.
PATIENCE = 120

# One after the other: each of these tests starts more processes than there may be cores.
UNDER_MPI = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


def mpi_library():
    """Return mpi4py's module; skip the test where there is none."""
    require("mpi4py")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        _missing(f"mpi4py finds no MPI library: {error}")
    return MPI


def mpiexec():
    """Return the command that starts processes; skip the test where there is none."""
    mpi = mpi_library()
    beside = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    path = beside if os.path.exists(beside) else shutil.which("mpiexec")
    if path is None:
        _missing("there is no mpiexec")
    if "Open MPI" in mpi.Get_library_version():
        return [path, "--oversubscribe", "--allow-run-as-root"]
    return [path]


def launch_under_mpi(program, n, *arguments):
    """Run a Python program in ``n`` processes, warnings being errors."""
    command = [*mpiexec(), "-n", str(n), sys.executable, "-W", "error", program]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def _missing(reason):
    if os.environ.get("NNBACKEND_REQUIRE_ORACLES") == "1":
        pytest.fail(f"NNBACKEND_REQUIRE_ORACLES=1, but {reason}")
    pytest.skip(reason)
