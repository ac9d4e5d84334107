"""Several processes under mpiexec: sums against NumPy, and that all end together."""

import contextlib
import logging
import os
import re
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from launcher import UNDER_MPI, launch_under_mpi, mpi_library

from nnbackend import device
from nnbackend.errors import DeviceError, DistributedError, InputError, MissingDependencyError
from nnbackend.parallel.launch import world_of_launcher
from nnbackend.parallel.team import Team

PROGRAMS = os.path.join(os.path.dirname(__file__), "mpi_programs.py")
LAUNCHER_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMIX_RANK")


def under_mpi(test):
    for mark in UNDER_MPI:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def mpi():
    return mpi_library()


@pytest.fixture(scope="module")
def launch():
    return partial(launch_under_mpi, PROGRAMS)


@under_mpi
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_sums_are_those_of_numpy_and_a_stop_is_seen_at_the_same_step(launch, n):
    done = launch(n, "sums")
    assert (done.returncode, done.stderr) == (0, "")


@under_mpi
@pytest.mark.parametrize("n", [1, 2, 4])
def test_failures_and_differences_end_all_with_the_same_message(launch, n):
    done = launch(n, "failures")
    assert (done.returncode, done.stderr) == (0, "")


@under_mpi
def test_an_error_that_nobody_catches_ends_the_job_with_its_traceback(launch):
    own = r"^ValueError: the disk is full$"
    told = r"^nnbackend.errors.DistributedError: rank 1 failed: ValueError: the disk is full$"
    # MPICH's launcher sometimes loses what a process has printed just before its end.
    for _ in range(3):
        done = launch(3, "uncaught")
        assert done.returncode == 1
        found = [len(re.findall(line, done.stderr, re.MULTILINE)) for line in (own, told)]
        if found == [1, 2]:
            break
    assert found == [1, 2]


@under_mpi
def test_a_killed_process_ends_the_job_and_the_log_has_the_ranks(launch):
    done = launch(3, "killed")
    assert done.returncode != 0
    # What else is printed is the launcher's: MPICH's may name another process that it has ended.
    assert re.search(r"rank 0: process \d+ on .+; rank 1: process \d+ on ", done.stderr)


@under_mpi
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="there is no /proc")
def test_the_others_notice_a_killed_process_by_themselves(launch, tmp_path):
    launch(3, "noticed", tmp_path)
    for rank in (0, 2):
        said = (tmp_path / str(rank)).read_text(encoding="utf-8").splitlines()
        assert len(said) == 2
        died = re.fullmatch(
            rf"rank {rank}: (rank 1 has died \(process \d+ on .+\)); this training ends", said[0]
        )
        assert said[1] == f"1, {died[1]}"


@under_mpi
def test_a_second_interrupt_ends_a_wait_for_one_that_does_not_answer(launch):
    done = launch(2, "impatient")
    assert done.returncode != 0
    assert done.stderr.count("\nKeyboardInterrupt\n") == 1


def test_what_is_no_communicator_is_refused(mpi):
    for given in (None, 3, mpi.COMM_NULL):
        with pytest.raises(InputError, match=r"communicator: expected one .*, got "):
            Team(given)
    freed = mpi.COMM_SELF.Dup()
    freed.Free()
    with pytest.raises(InputError, match=r"got (COMM_NULL|Comm)"):
        Team(freed)


def test_too_many_facts_are_refused(mpi):
    team = Team(mpi.COMM_SELF)
    with pytest.raises(InputError, match="facts: expected at most 16384 bytes, got"):
        team.agree({str(i): "x" * 1000 for i in range(20)})
    team.close()


def test_processes_are_logged(mpi, caplog):
    with caplog.at_level(logging.INFO, "nnbackend"):
        team = Team(mpi.COMM_SELF)
    team.close()
    assert caplog.messages == [f"rank 0: {team.processes[0]}"]
    assert team.processes[0].startswith(f"process {os.getpid()} on ")


@pytest.fixture
def no_launcher(monkeypatch):
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_launcher")
def test_without_a_launcher_mpi4py_is_not_imported(monkeypatch):
    # None makes the import an error.
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert world_of_launcher() is None
    monkeypatch.setenv("PMI_SIZE", "1")
    assert world_of_launcher() is None


@pytest.mark.usefixtures("no_launcher")
@pytest.mark.parametrize("name", LAUNCHER_VARIABLES)
def test_a_launcher_without_mpi4py_names_the_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setenv(name, "4")
    with pytest.raises(MissingDependencyError, match=r"pip install 'nnbackend\[mpi\]'"):
        world_of_launcher()


@pytest.mark.usefixtures("no_launcher")
def test_the_launcher_of_another_library_is_noticed(monkeypatch):
    world = SimpleNamespace(Get_size=lambda: 1)
    library = SimpleNamespace(COMM_WORLD=world, Get_library_version=lambda: "MPICH Version: 5")
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=library))
    monkeypatch.setenv("PMIX_RANK", "0")
    assert world_of_launcher() is None
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(DistributedError, match=r"has started 4 processes, but MPICH .* finds one"):
        world_of_launcher()
    world.Get_size = lambda: 4
    assert world_of_launcher() is world


class FakeNCCL:
    """What of cupy.cuda.nccl is used, for one process."""

    available = True
    NCCL_FLOAT32, NCCL_FLOAT64, NCCL_SUM = 7, 8, 0
    unique_id = tuple(range(-64, 64))

    class NcclError(RuntimeError):
        pass

    def __init__(self):
        self.calls = []

    def get_unique_id(self):
        return self.unique_id

    def NcclCommunicator(self, size, unique_id, rank):  # noqa: N802 - CuPy's name
        if rank >= size:
            raise self.NcclError("NCCL_ERROR_INVALID_USAGE")
        assert unique_id == self.unique_id
        assert isinstance(unique_id, tuple)
        return SimpleNamespace(allReduce=lambda *arguments: self.calls.append(arguments))


def test_nccl_gets_addresses_counts_types_and_the_current_stream(monkeypatch):
    nccl = FakeNCCL()
    cuda = SimpleNamespace(
        nccl=nccl,
        Device=contextlib.nullcontext,
        get_current_stream=lambda: SimpleNamespace(ptr=99),
    )
    monkeypatch.setattr(device, "import_cupy", lambda: SimpleNamespace(cuda=cuda))
    gpu = device.Device("cuda", 1)
    all_reduce = gpu.nccl_all_reduce(4, 3, lambda make: make())
    for dtype in (np.float32, np.float64):
        array = SimpleNamespace(data=SimpleNamespace(ptr=1234), size=5, dtype=np.dtype(dtype))
        all_reduce(array)
    assert nccl.calls == [(1234, 1234, 5, 7, 0, 99), (1234, 1234, 5, 8, 0, 99)]
    with pytest.raises(DeviceError, match=r"'cuda:1': NCCL .*INVALID_USAGE.* GPU of its own"):
        gpu.nccl_all_reduce(4, 4, lambda make: make())
    nccl.available = False
    with pytest.raises(DeviceError, match="pip install nvidia-nccl-cu13"):
        gpu.nccl_all_reduce(4, 3, lambda make: make())
