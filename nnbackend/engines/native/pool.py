"""Do the tasks of many networks in a pool of threads, each network in one thread at a time."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any

from nnbackend.engines.base import Done
from nnbackend.engines.driving import do_alone
from nnbackend.engines.native.interface import pool_functions
from nnbackend.engines.native.library import library
from nnbackend.engines.native.threads import threads_allowed

if TYPE_CHECKING:
    from nnbackend.engines.base import Task

__all__ = ["Pool"]

# A thread looks as often whether it is to stop.
_SECONDS_PER_SLICE = 0.02


class Pool:
    """A crew whose threads carry on the tasks of native engines while Python goes on.

    Parameters
    ----------
    most : int
        How many tasks it has at the same time.
    """

    has_threads = True

    def __init__(self, most: int) -> None:
        own = library()
        if own is None:
            raise RuntimeError("the native library is missing")
        self._functions, self._n_threads = pool_functions(own), min(threads_allowed(), most)
        self._process, self._most = os.getpid(), most
        self._pool: int | None = None
        self._over: Any = (ctypes.c_void_p * most)()
        # By the address of the run.
        self._begun: dict[int, tuple[Task, Any]] = {}
        # Tasks of networks that would keep several threads busy, while there may be few of them.
        self._large: list[Task] = []
        self._alone: list[Task] = []
        self._refused: list[tuple[Task, Done]] = []

    def take(self, task: Task) -> None:
        """Begin a task, or keep it for later."""
        engine: Any = task.engine
        if engine.is_alone_with(task):
            self._alone.append(task)
        elif engine.n_threads > 1:
            self._large.append(task)
        else:
            self._begin(task)

    def _begin(self, task: Task) -> None:
        engine: Any = task.engine
        try:
            call = engine.begin(task)
        except Exception as error:  # noqa: BLE001 - it ends the task's training, no other
            self._refused.append((task, Done(None, error, 0.0)))
            return
        if self._pool is None:
            self._pool = self._functions.new(self._n_threads, self._most, _SECONDS_PER_SLICE)
            if not self._pool:
                raise MemoryError("a pool of threads does not fit the memory")
        address = ctypes.addressof(call.run)
        self._begun[address] = task, call
        self._functions.begin(self._pool, *engine.handle, address)

    def done(self, seconds: float) -> list[tuple[Task, Done]]:
        """Return tasks that are done."""
        refused, self._refused = self._refused, []
        if self._large and (self._begun or len(self._large) >= self._n_threads):
            large, self._large = self._large, []
            for task in large:
                self._begin(task)
        found = refused + self._found(0.0 if refused or self._large or self._alone else seconds)
        # In this thread: a network that all threads work on, as no other does, or one that needs
        # Python, in which only one thread at a time can be.
        here = self._large or self._alone
        if seconds > 0 and not found and here:
            task = here.pop(0)
            return [(task, do_alone(task))]
        return found

    def _found(self, seconds: float) -> list[tuple[Task, Done]]:
        if self._pool is None:
            return []
        # It waits for nothing where nothing is being done.
        n = self._functions.over(self._pool, seconds, self._over)
        found = []
        for address in self._over[:n]:
            task, call = self._begun.pop(int(address))
            engine: Any = task.engine
            found.append((task, engine.outcome(task, call)))
        return found

    def close(self) -> None:
        """Stop the threads."""
        # A forked process has the pool's memory, but not its threads.
        has_threads = self._pool is not None and os.getpid() == self._process
        # Another interrupt may end this anywhere, and then it is called again. The threads must
        # leave the memory of the engines before anything forgets these.
        if has_threads:
            self._functions.stop(self._pool)
        for task, call in self._begun.values():
            engine: Any = task.engine
            engine.count_steps(call)
        self._begun.clear()
        self._large.clear()
        self._alone.clear()
        pool, self._pool = self._pool, None
        if has_threads:
            self._functions.free(pool)
