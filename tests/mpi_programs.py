"""What the tests of distributed training run under mpiexec: ``python mpi_programs.py NAME``.

A failed assertion ends all processes, with its traceback and exit code 3.
"""

import logging
import os
import signal
import sys
import time
import traceback

import numpy as np
from mpi4py import MPI

from nnbackend.device import Device
from nnbackend.errors import DistributedError, InputError
from nnbackend.parallel import team as distributed
from nnbackend.parallel.team import Team

WORLD = MPI.COMM_WORLD
RANK, SIZE = WORLD.rank, WORLD.size
N = 1000
CPU = Device("cpu")


class FakeGPU:
    """NumPy as a GPU, and MPI as NCCL."""

    kind = "cuda"
    xp = np

    def nccl_all_reduce(self, size, rank, share):
        assert share(lambda: bytes(range(128))) == bytes(range(128))
        assert (size, rank) == (SIZE, RANK)
        self.calls = 0

        def all_reduce(x):
            self.calls += 1
            WORLD.Allreduce(MPI.IN_PLACE, x)

        return all_reduce

    def to_numpy(self, x):
        return x.copy()


def new_team(device=CPU, n=N, dtype="float32"):
    team = Team(WORLD)
    team.agree({"data": "0" * 64})
    team.allocate(device, n, dtype)
    return team


def expect(error_type, function, *arguments):
    try:
        function(*arguments)
    except error_type as error:
        return error
    raise AssertionError(f"expected {error_type.__name__}")


def check_parts():
    team = Team(WORLD)
    for n in (0, 1, 2, 3, 7, 128):
        parts = WORLD.allgather(team.rows(n))
        rows = [i for part in parts for i in range(n)[part]]
        sizes = [len(range(n)[part]) for part in parts]
        assert rows == list(range(n))
        assert max(sizes) - min(sizes) <= 1
    pids = WORLD.allgather(os.getpid())
    assert [process.split()[1] for process in team.processes] == list(map(str, pids))
    assert team.share(lambda: None) is None
    assert team.share(lambda: b"") == b""
    content = bytes(range(256)) * 5000
    assert team.share(lambda: content) == content
    team.close()


def check_sums(device, n, dtype):
    team = new_team(device, n, dtype)
    # Numbers whose products and sums have no rounding.
    rng = np.random.default_rng(n)
    gradients = rng.integers(-50, 50, (SIZE, n)).astype(dtype)
    losses = rng.integers(0, 50, SIZE).astype(dtype)
    for weights in (
        np.ones(SIZE),
        np.arange(SIZE),
        rng.integers(1, 9, SIZE),
        np.eye(SIZE)[-1] * 0.5,
        np.zeros(SIZE),
    ):
        total = weights.sum()
        expected = (weights @ gradients) / np.asarray(total or 1, dtype)
        own = gradients[RANK].copy() if weights[RANK] else np.full(n, np.nan, dtype)
        own_loss = losses[RANK] if weights[RANK] else np.nan
        loss, weight = team.reduce_step(own, own_loss, weights[RANK])
        if SIZE == 1 and not total:
            assert not own.any()
        np.testing.assert_array_equal(own, expected.astype(dtype), strict=True)
        assert weight == total
        assert loss == ((weights @ losses) / np.asarray(total or 1, dtype)).astype(dtype)
    check_rounding(team, n, dtype)
    # Totals are exact in float64, whatever the network's dtype is.
    values = [[0.1 * (rank + 1), 1e300, -0.0, 2.0**-1074, 3.0 + rank] for rank in range(SIZE)]
    assert team.total(values[RANK]) == [sum(column) for column in zip(*values, strict=True)]
    assert np.isnan(team.total([np.nan if RANK == SIZE - 1 else 1.0])).all()
    assert np.isposinf(team.total([np.inf if RANK == 0 else 1.0])).all()
    assert team.total([]) == []
    own = gradients[RANK].copy()
    team.reduce_step(own, 1.0, 1)
    np.testing.assert_array_equal(own, (gradients.sum(0) / np.asarray(SIZE, dtype)).astype(dtype))
    team.check_equal(gradients[0])
    team.close()
    team.close()


def check_rounding(team, n, dtype):
    """Sums with rounding: the same bits on all ranks and each time, near those of NumPy."""
    gradients = np.random.default_rng(n).normal(size=(SIZE, n)).astype(dtype)
    weights = np.random.default_rng(n + 1).random(SIZE) * 100
    first = None
    for _ in range(3):
        own = gradients[RANK].copy()
        loss, _ = team.reduce_step(own, np.asarray(0.3, dtype), weights[RANK])
        assert np.dtype(type(loss) if np.isscalar(loss) else loss.dtype) == np.dtype(dtype)
        bits = own.tobytes(), float(loss)
        assert all(other == bits for other in WORLD.allgather(bits))
        assert first in (None, bits)
        first = bits
    exact = weights @ gradients.astype(np.float64) / weights.sum()
    np.testing.assert_allclose(own, exact, rtol=0, atol=8 * np.finfo(dtype).eps)


def check_huge(team):
    """What overflows becomes infinite, without a warning."""
    own = np.full(N, 3e38, np.float32)
    team.reduce_step(own, 1.0, 2)
    assert SIZE == 1 or np.isinf(own).all()


def check_stop(device):
    team = new_team(device)
    seen = []
    for step in range(5):
        if (step, RANK) == (2, SIZE - 1):
            signal.signal(signal.SIGUSR1, lambda *_: team.request_stop())
            os.kill(os.getpid(), signal.SIGUSR1)
        team.reduce_step(np.ones(N, np.float32), 0.0, 1)
        seen.append(team.stop_requested)
    assert seen == [False, False, True, True, True]
    check_huge(team)
    team.close()


def sums():
    check_parts()
    for dtype in ("float32", "float64"):
        for n in (1, N):
            for device in (CPU, FakeGPU()):
                check_sums(device, n, dtype)
    for device in (CPU, FakeGPU()):
        check_stop(device)


def check_differences():
    for odd in range(1, SIZE):
        team = Team(WORLD)
        facts = {"numpy": "2.1", "data": "a" * 2000 + ("b" if odd == RANK else "")}
        if odd == RANK:
            facts["extra"] = "1"
        error = expect(DistributedError, team.agree, facts)
        assert error.rank == odd
        assert f"on rank {odd}" in str(error)
        assert "data is 'aaa" in str(error)
        assert "; extra differ" in str(error)
        assert expect(DistributedError, team.fail, error) is error
        team.close()

        team = new_team()
        parameters = np.ones(N)
        team.check_equal(parameters)
        if odd == RANK:
            parameters[7] = np.nextafter(1, 2)
        error = expect(DistributedError, team.check_equal, parameters)
        assert error.rank == odd
        assert f"on rank {odd} are" in str(error)
        assert expect(DistributedError, team.fail, error) is error
        team.close()
    team = Team(WORLD)
    error = expect(DistributedError, team.agree, {"version": str(min(RANK, 1))})
    assert "version is '0' on rank 0, '1' on rank" in str(error)
    team.close()


STAGES = ("agree", "share", "make", "allocate", "step", "later step", "total", "check", "close")


def train(failing, stage, device, raised):
    """Do what a training does; at a stage, some ranks raise instead of going on."""

    def reach(name):
        if name == stage and RANK in failing:
            # Not all at the same time: some have answered before others fail.
            time.sleep(0.002 * RANK)
            raise raised

    def make():
        reach("make")
        return b"abc"

    team = Team(WORLD)
    try:
        reach("agree")
        team.agree({"a": "b"})
        reach("share")
        team.share(make)
        reach("allocate")
        team.allocate(device, N, np.float32)
        for step in range(4):
            reach(("step", "", "later step", "")[step])
            team.reduce_step(np.ones(N, np.float32), 1.0, 1)
        reach("total")
        team.total([1.0])
        reach("check")
        team.check_equal(np.ones(N))
        reach("close")
    except DistributedError:
        raise
    except BaseException as error:  # noqa: BLE001 - raised again
        team.fail(error)
    finally:
        team.close()


def failures():
    groups = [(rank,) for rank in range(SIZE)] + [(0, SIZE - 1), tuple(range(SIZE))]
    for device in (CPU, FakeGPU()):
        for stage in STAGES:
            for failing in [(0,)] if stage == "make" else groups:
                raised = InputError(f"bad {stage} of {RANK}")
                expected = raised if RANK in failing else None
                error = expect(
                    (DistributedError, InputError), train, failing, stage, device, raised
                )
                if expected is not None:
                    assert error is raised
                    continue
                assert error.rank == failing[0]
                assert str(error) == "; ".join(
                    f"rank {rank} failed: InputError: bad {stage} of {rank}" for rank in failing
                )
    if SIZE > 1:
        check_differences()
        check_interrupts()


def check_interrupts():
    """A handler raises while the message of a step is waited for: it is raised after that."""

    def handle(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, handle)
    team = new_team()
    gradient = np.full(N, float(RANK), np.float32)
    if RANK == 0:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        error = expect(KeyboardInterrupt, team.reduce_step, gradient, 1.0, 1)
        assert expect(KeyboardInterrupt, team.fail, error) is error
    else:
        time.sleep(0.4)
        team.reduce_step(gradient, 1.0, 1)
        assert (gradient == np.arange(SIZE).mean(dtype=np.float32)).all()
        error = expect(DistributedError, team.total, [1.0])
        assert str(error) == "rank 0 failed: KeyboardInterrupt"
    team.close()

    # While the others are waited for at the very start.
    if RANK == 0:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        expect(KeyboardInterrupt, Team, WORLD)
    else:
        time.sleep(0.4)
        team = Team(WORLD)
        error = expect(DistributedError, team.agree, {})
        assert str(error) == "rank 0 failed: KeyboardInterrupt"
        team.close()


def uncaught():
    train((1,), "later step", CPU, ValueError("the disk is full"))


def killed():
    """One process is killed in the middle of a step, and the launcher ends the others."""
    logging.basicConfig(level=logging.INFO)
    die_in_step(new_team())


def die_in_step(team, before=lambda: None):
    for step in range(1000):
        if (step, RANK) == (3, 1):
            before()
            os.kill(os.getpid(), signal.SIGKILL)
        team.reduce_step(np.ones(N, np.float32), 1.0, 1)


def noticed():
    """The same, but the launcher sleeps until the others have noticed by themselves."""
    folder, launcher = sys.argv[2], os.getppid()
    if RANK != 1:
        # The launcher ends the processes before it has passed all of this on.
        sys.stderr = open(f"{folder}/{RANK}.part", "w")  # noqa: SIM115 - until the process ends
    team = new_team()
    error = expect(DistributedError, die_in_step, team, lambda: os.kill(launcher, signal.SIGSTOP))
    print(f"{error.rank}, {error}", file=sys.stderr, flush=True)
    assert expect(DistributedError, team.fail, error) is error
    team.close()
    os.rename(f"{folder}/{RANK}.part", f"{folder}/{RANK}")
    while not all(os.path.exists(f"{folder}/{rank}") for rank in range(SIZE) if rank != 1):
        time.sleep(0.01)
    os.kill(launcher, signal.SIGCONT)


def impatient():
    """A second signal does not wait for a process that does not answer."""

    def handle(*_):
        raise KeyboardInterrupt

    distributed._GRACE_SECONDS = 0.1
    team = new_team()
    if RANK == 0:
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.2)
        team.reduce_step(np.ones(N, np.float32), 1.0, 1)
    time.sleep(60)


if __name__ == "__main__":
    try:
        globals()[sys.argv[1]]()
    except AssertionError:
        traceback.print_exc()
        sys.stderr.flush()
        WORLD.Abort(3)
