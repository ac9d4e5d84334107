"""Team: the processes of a data-parallel training, which sum gradients and end together.

Every process holds the same network and the same data, and works on its part of each batch. The
processes exchange all messages through a ``Team``.

*If one process fails, all end.* Until ``allocate``, every message is an all-gather of records of
one length. After it, every message is an all-reduce of one vector, which has an element for "I have
failed". So a process that raises an error can answer the others in whatever message they wait;
``fail`` does so. Then all processes exchange what happened, and no message is left that would keep
MPI from finalizing.

*Waiting.* Messages are non-blocking and tested in a loop, so that Python's signal handlers run. If
a handler raises an exception, it is kept until the message is complete, so that no message is left
half-done. A second exception is raised at once, and MPI is aborted when the process ends.

*A process that dies* (killed, or out of memory) cannot answer. On systems with /proc, the others
check once a second whether the processes of their own machine still exist. If one does not, they
name it, raise an error, and abort MPI as they end. Many launchers are faster: Hydra (MPICH, Intel
MPI) sends SIGKILL to all within milliseconds of a death, and prints the process id of one of them,
not necessarily the first. Open MPI's mpirun names the right one. At the start, rank 0 logs which
process has which rank (level info, logger "nnbackend"), from ``Team.processes``. Watching the
processes of other machines is left to the launcher.

*The same bits.* The rounding of a sum depends on the order in which MPI, or NCCL, adds. The MPI
standard advises implementers to keep that order from run to run for the same number of processes in
the same places. MPICH does, and gives all processes the same result. ``check_equal`` detects
processes whose results differ.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from nnbackend.core.types import Array
from nnbackend.device import Device
from nnbackend.errors import DistributedError, InputError

__all__ = ["Team"]

_LOGGER = logging.getLogger("nnbackend")

# Bytes of a record: the facts of a training, or a process's report of its failure.
_RECORD_BYTES = 16384

# Characters of an error's message, or of a fact, to pass on.
_TEXT_LENGTH = 1000
_FACT_START = 100

# 16-bit words of each process in the vector, for values that are not to be summed. A float32 holds
# each exactly, and so does its sum with the other processes' zeros.
_WORDS = 16

# A waiting process first only yields its core, as MPI's own waiting does: sleeping takes at least
# 50 us, and messages progress only while they are tested.
_SPIN_SECONDS = 0.1
_SLEEP_SECONDS = 0.0005
_LOOK_SECONDS = 1.0

# Leave the others this long to find out by themselves which process died.
_GRACE_SECONDS = 2.0

# Do not sleep for 0 s instead, which takes 50 us on Linux.
_give_way: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0.0))


class Team:
    """The processes of one training.

    Methods that say "collective" have to be called by all processes, in the same order. If a
    process raises an error between two of them, pass it to ``fail``, then call ``close``.

    Parameters
    ----------
    communicator : mpi4py.MPI.Intracomm
        The processes; collective. The team uses a duplicate, so that its messages do not mix with
        the caller's.

    Attributes
    ----------
    rank, size : int
        The number of this process, and the number of processes.
    processes : tuple of str
        The process id and host of each rank, such as ``"process 4711 on node3"``.
    stop_requested : bool
        Whether a process has called ``request_stop``; after each ``reduce_step`` it is the same on
        all of them.

    Raises
    ------
    InputError
        If ``communicator`` is not one of mpi4py.

    Examples
    --------
    >>> import pytest
    >>> MPI = pytest.importorskip("mpi4py.MPI", exc_type=ImportError)
    >>> team = Team(MPI.COMM_SELF)
    >>> team.rank, team.size, team.rows(10)
    (0, 1, slice(0, 10, None))
    >>> team.close()
    """

    def __init__(self, communicator: Any) -> None:
        # Do not import mpi4py, which starts MPI: whoever has a communicator has imported it.
        mpi = sys.modules.get("mpi4py.MPI")
        if mpi is None or not isinstance(communicator, mpi.Intracomm):
            raise InputError(
                "expected one of mpi4py's, such as mpi4py.MPI.COMM_WORLD, got "
                f"{type(communicator).__name__}; mpi4py comes with: pip install 'nnbackend[mpi]'",
                argument="communicator",
            )
        if communicator == mpi.COMM_NULL:
            raise InputError(
                "expected one with processes in it, got COMM_NULL; call this only in "
                "those that belong to it",
                argument="communicator",
            )
        self._mpi: Any = mpi
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()
        self.stop_requested = False
        self._asks_to_stop = False
        self._is_over = False
        self._held: BaseException | None = None
        self._watched: dict[int, tuple[int, str]] = {}
        self._is_broken = False
        self._device: Device
        self._vector: Any = None
        self._sums: Array = None
        self._all_reduce: Callable[[Array], None] | None = None
        self._comm, request = communicator.Idup()
        self._wait(request)
        pid, host = os.getpid(), socket.gethostname()
        records = self._records({"pid": pid, "host": host, "birth": _birth(pid)})
        self.processes = tuple(f"process {told['pid']} on {told['host']}" for told in records)
        for rank, told in enumerate(records):
            # Do not watch a process that cannot be seen, because it runs in another container.
            is_seen = told["host"] == host and told["birth"] == _birth(told["pid"]) != ""
            if is_seen and rank != self.rank:
                self._watched[rank] = told["pid"], told["birth"]
        if self.rank == 0:
            _LOGGER.info(
                "%s", "; ".join(f"rank {i}: {process}" for i, process in enumerate(self.processes))
            )
        try:
            self._release()
        except BaseException as error:  # noqa: BLE001 - it is raised again
            # Do this here, since the caller has no team to do it with.
            try:
                self.fail(error)
            finally:
                self.close()

    @property
    def local_rank(self) -> int:
        """The number of this process among those on its machine."""
        hosts = [process.rpartition(" on ")[2] for process in self.processes]
        return hosts[: self.rank].count(hosts[self.rank])

    def rows(self, n: int) -> slice:
        """Return this process's part of the ``n`` rows of a batch; it may be empty."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def agree(self, facts: Mapping[str, str]) -> None:
        """Check that all processes have the same facts; collective, before ``allocate``.

        Parameters
        ----------
        facts : mapping from str to str
            The texts that have to be equal, by name: versions, options, digests of data.

        Raises
        ------
        DistributedError
            On all processes, if the facts of one differ from those of rank 0.
        """
        own = {name: _shortened(text) for name, text in facts.items()}
        records = [record["facts"] for record in self._records({"facts": own})]
        self._release()
        names = dict.fromkeys(name for record in records for name in record)
        differing = {
            name: ranks
            for name in names
            if (ranks := [i for i, r in enumerate(records) if r.get(name) != records[0].get(name)])
        }
        if not differing:
            return
        self._is_over = True
        name, ranks = next(iter(differing.items()))
        others = ", ".join(other for other in differing if other != name)
        raise DistributedError(
            f"the processes of one training were not given the same: {name} is "
            f"{_quoted(records[0].get(name))} on rank 0, {_quoted(records[ranks[0]].get(name))} on "
            f"{_listed(ranks)}" + (f"; {others} differ as well" if others else ""),
            ranks[0],
        )

    def share(self, make: Callable[[], bytes | None]) -> bytes | None:
        """Return on all processes the bytes that rank 0 makes; collective, before ``allocate``."""
        content = make() if self.rank == 0 else None
        length = self._records({"length": None if content is None else len(content)})[0]["length"]
        if length:
            buffer = np.empty(length, np.uint8)
            if content is not None:
                buffer[:] = np.frombuffer(content, np.uint8)
            self._wait(self._comm.Ibcast(buffer, 0))
            content = buffer.tobytes()
        self._release()
        return b"" if length == 0 else content

    def allocate(self, device: Device, n_parameters: int, dtype: Any) -> None:
        """Make the buffers of the steps; collective, before ``reduce_step`` and the like.

        Sums of GPU arrays use NCCL, for which each process needs a GPU of its own.

        Parameters
        ----------
        device : Device
            The device of the gradients.
        n_parameters : int
            Elements of a gradient.
        dtype : dtype
            The dtype of the gradients and of their sums, float32 or float64.
        """
        self._device = device
        n_words = self.size * _WORDS
        if device.kind == "cpu":
            vector = np.zeros(max(n_parameters + 2, n_words) + 2, dtype)
            self._sums = vector[: n_parameters + 2]
        else:
            # On GPUs, the host's vector only carries the flags.
            vector = np.zeros(n_words + 2)
            self._all_reduce = device.nccl_all_reduce(self.size, self.rank, self.share)
            self._sums = device.xp.zeros(n_parameters + 2, dtype=dtype)
        self._records({})
        self._vector = vector
        self._release()

    def reduce_step(self, gradient: Array, loss: Any, weight: Any) -> tuple[Any, Any]:
        """Replace the gradient of this process's rows by that of the whole batch; collective.

        With the weights w_r of the ranks, gradient := sum_r(w_r gradient_r) / sum_r w_r, or 0 if
        the weights sum to 0.

        Parameters
        ----------
        gradient : array (n_parameters,)
            The mean over this process's rows; overwritten.
        loss : float or 0-d array
            The mean loss of these rows.
        weight : float or 0-d array
            Their number, or the sum of their weights. If it is 0, gradient and loss are ignored.

        Returns
        -------
        loss, weight : float or 0-d array
            The loss of the whole batch, by the same formula, and the sum of the weights, with the
            same bits on all processes.

        Raises
        ------
        DistributedError
            If another process has failed or died.
        """
        # Gradients may be infinite; the training reports that.
        with np.errstate(over="ignore", invalid="ignore"):
            if self._all_reduce is None:
                return self._host_step(gradient, loss, weight)
            return self._device_step(self._all_reduce, gradient, loss, weight)

    def _host_step(self, gradient: Array, loss: Any, weight: Any) -> tuple[Any, Any]:
        sums = self._sums
        if weight > 0:
            np.multiply(gradient, weight, out=sums[:-2])
            sums[-2] = loss * weight
        else:
            sums[:-2] = sums[-2] = 0.0
        sums[-1] = weight
        self._exchange()
        self._release()
        if self.size == 1 and weight > 0:
            # Return the exact numbers, as without a team.
            return loss, weight
        total = sums[-1]
        divisor = total if total > 0 else total.dtype.type(1)
        np.divide(sums[:-2], divisor, out=gradient)
        return sums[-2] / divisor, total

    def _device_step(
        self, all_reduce: Callable[[Array], None], gradient: Array, loss: Any, weight: Any
    ) -> tuple[Any, Any]:
        """Sum on the GPUs without waiting for them, after all processes have arrived here."""
        xp, sums = self._device.xp, self._sums
        sums[-1] = weight
        own = sums[-1]
        sums[:-2] = xp.where(own > 0, gradient * own, 0.0)
        sums[-2] = xp.where(own > 0, loss * own, 0.0)
        self._exchange()
        self._release()
        all_reduce(sums)
        divisor = xp.where(sums[-1] > 0, sums[-1], 1.0)
        gradient[...] = sums[:-2] / divisor
        # Do not return a view: the next step overwrites the sums.
        return sums[-2] / divisor, sums[-1] * 1.0

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums over the processes, in float64 and in the order of ranks; collective."""
        sums: list[float] = []
        for start in range(0, len(values), _WORDS // 4):
            own = np.array(values[start : start + _WORDS // 4], np.float64)
            told = self._gather(own.view(np.uint16)).view(np.float64)
            sums.extend(sum(column) for column in told.T.tolist())
        self._release()
        return sums

    def check_equal(self, parameters: Array) -> None:
        """Check that all processes have the same parameters, bit for bit; collective.

        Raises
        ------
        DistributedError
            On all processes, if the parameters of one differ from those of rank 0.
        """
        host = np.ascontiguousarray(self._device.to_numpy(parameters))
        digest = hashlib.blake2b(host.data, digest_size=2 * _WORDS).digest()
        told = self._gather(np.frombuffer(digest, np.uint16))
        self._release()
        ranks = np.flatnonzero((told != told[0]).any(axis=1)).tolist()
        if ranks:
            self._is_over = True
            raise DistributedError(
                f"the parameters on {_listed(ranks)} are no longer those of rank 0; the processes "
                "need the same libraries and the same kind of machine",
                ranks[0],
            )

    def request_stop(self) -> None:
        """Make ``stop_requested`` true on all processes; signal handlers may call this."""
        self._asks_to_stop = True

    def fail(self, error: BaseException) -> NoReturn:
        """End the training on all processes because of an error on this one, and raise it.

        On the others, the current or next collective method raises a ``DistributedError``. An error
        that the team has already raised on all processes is only raised again.
        """
        if not self._is_over:
            self._is_over = True
            try:
                if self._vector is not None:
                    # Use a new vector, since the old one may still be in transit.
                    vector = np.zeros_like(self._vector)
                    vector[-1] = 1
                    self._sum(vector)
                message = ": ".join(filter(None, (type(error).__name__, str(error))))
                self._records({"failed": message[:_TEXT_LENGTH]})
            except DistributedError:
                # The record of this process is among them, or another process has died.
                pass
            except BaseException:
                self._abort_at_exit()
                raise
        raise error

    def close(self) -> None:
        """Wait for the last messages of all processes, and free the communicator; collective.

        Raises
        ------
        DistributedError
            If another process has failed.
        """
        if self._comm is None:
            return
        try:
            if not self._is_over:
                self._is_over = True
                if self._vector is None:
                    self._records({})
                else:
                    self._exchange()
                self._release()
        finally:
            comm, self._comm = self._comm, None
            if not self._is_broken:
                comm.Free()
            self._all_reduce = None

    def _exchange(self) -> None:
        """Sum the vector and its flags over the processes; raise if a process has failed."""
        vector = self._vector
        vector[-2], vector[-1] = self._asks_to_stop, 0
        self._sum(vector)
        if vector[-1] > 0:
            self._is_over = True
            self._records({})
        self.stop_requested = self.stop_requested or bool(vector[-2] > 0)

    def _sum(self, vector: np.ndarray[Any, Any]) -> None:
        self._wait(self._comm.Iallreduce(self._mpi.IN_PLACE, vector))

    def _gather(self, words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the uint16 words of each process (size, n), sending them in the vector."""
        vector = self._vector
        vector[:] = 0
        start = self.rank * _WORDS
        vector[start : start + len(words)] = words
        self._exchange()
        told = vector[: self.size * _WORDS].astype(np.uint16).reshape(self.size, _WORDS)
        # Clear the vector: elements that a step does not overwrite would grow with every sum.
        vector[:] = 0
        return np.ascontiguousarray(told[:, : len(words)])

    def _records(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the record of each process; raise if one reports a failure."""
        text = json.dumps(record).encode()
        if len(text) > _RECORD_BYTES:
            raise InputError(
                f"expected at most {_RECORD_BYTES} bytes, got {len(text)}; pass digests",
                argument="facts",
            )
        own, table = np.zeros(_RECORD_BYTES, np.uint8), np.empty((self.size, _RECORD_BYTES), "u1")
        own[: len(text)] = np.frombuffer(text, np.uint8)
        self._wait(self._comm.Iallgather(own, table))
        records = [json.loads(row.tobytes().rstrip(b"\0")) for row in table]
        failed = [rank for rank, told in enumerate(records) if "failed" in told]
        if failed:
            self._is_over = True
            raise DistributedError(
                "; ".join(f"rank {rank} failed: {records[rank]['failed']}" for rank in failed),
                failed[0],
            ) from self._held
        return records

    def _wait(self, request: Any) -> None:
        """Wait until a message is complete; keep the first exception raised meanwhile."""
        start = looked = time.monotonic()
        while True:
            try:
                while not request.Test():
                    now = time.monotonic()
                    if now - start < _SPIN_SECONDS:
                        _give_way()
                        continue
                    time.sleep(_SLEEP_SECONDS)
                    if now - looked > _LOOK_SECONDS:
                        looked = now
                        self._look_for_dead()
            except DistributedError:
                raise
            except self._mpi.Exception as error:
                self._abort_at_exit()
                raise DistributedError(
                    f"a message between the processes failed: {error}"
                ) from error
            except BaseException as error:
                if self._held is not None:
                    self._abort_at_exit()
                    raise
                self._held = error
            else:
                return

    def _release(self) -> None:
        """Raise the exception that was kept during a message."""
        held, self._held = self._held, None
        if held is not None:
            raise held

    def _look_for_dead(self) -> None:
        for rank, (pid, birth) in self._watched.items():
            if _birth(pid) != birth:
                message = f"rank {rank} has died ({self.processes[rank]})"
                # Write the line in one piece: all processes write now, and may be killed soon.
                sys.stderr.write(f"rank {self.rank}: {message}; this training ends\n")
                sys.stderr.flush()
                self._abort_at_exit()
                raise DistributedError(message, rank)

    def _abort_at_exit(self) -> None:
        """Abort MPI at exit, where this process would otherwise wait for the others for ever."""
        self._is_over = True
        if not self._is_broken:
            self._is_broken = True
            atexit.register(_abort, self._mpi.COMM_WORLD)


def _abort(world: Any) -> None:
    for stream in (sys.stdout, sys.stderr):
        # The stream may be None, closed, or a pipe that nobody reads.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    time.sleep(_GRACE_SECONDS)
    world.Abort(1)


def _birth(pid: int) -> str:
    """Return the start time of a process; "" if it does not exist, or there is no /proc.

    A later process with the same number has another start time.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name stands in parentheses, and may hold spaces and parentheses itself.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    is_zombie = fields[0] in ("Z", "X")
    return "" if is_zombie else fields[19]


def _shortened(text: str) -> str:
    """Return a short text that differs for different texts."""
    if len(text) <= _TEXT_LENGTH:
        return text
    return f"{text[:_FACT_START]}... (sha256 {hashlib.sha256(text.encode()).hexdigest()})"


def _quoted(text: str | None) -> str:
    return "not given" if text is None else repr(text)


def _listed(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
