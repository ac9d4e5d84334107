"""Drive trainings: do the tasks that they yield, of one training or of several side by side.

A training is a generator: it yields the next task for its engine, and goes on when the task is
done. So a training alone and one among many are the same program.
"""

from __future__ import annotations

import inspect
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from types import FrameType
from typing import Any, Generic, Self, TypeVar

from nnbackend.engines.base import Crew, Done, Task, Training

__all__ = ["Alone", "Ended", "alone", "do_alone", "one_by_one", "together"]

_R = TypeVar("_R")

# Signals are looked for as often, and trainings that are done.
_SECONDS_PER_LOOK = 0.05
# Trainings that are begun before others go on.
_BEGUN_AT_ONCE = 4


def alone(training: Training[_R]) -> _R:
    """Run a training to its end, and return its result."""
    advance: Callable[[Any], Task] = training.send
    given: Any = None
    task: Task | None = None
    while True:
        try:
            while True:
                with _device_of(task):
                    task = advance(given)
                with _device_of(task):
                    advance, given = training.send, (0.0, task.do())
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        except BaseException as error:
            # Whatever a task raises, or a signal's handler anywhere here, ends the training as it
            # decides.
            if inspect.getgeneratorstate(training) == inspect.GEN_CLOSED:
                raise
            advance, given = training.throw, error


def _device_of(task: Task | None) -> AbstractContextManager[Any]:
    """Return a context in which arrays are made on the device of a task.

    One that a training itself had entered would last while others go on.
    """
    return nullcontext() if task is None else task.engine.device.activate()


def one_by_one(tasks: Sequence[Task]) -> list[Done]:
    """Do tasks, one after another."""
    return [do_alone(task) for task in tasks]


class Alone:
    """A crew that does a task when it is asked for, one after another."""

    has_threads = False

    def __init__(self) -> None:
        self._tasks: deque[Task] = deque()

    def take(self, task: Task) -> None:
        """Take a task over."""
        self._tasks.append(task)

    def done(self, seconds: float) -> list[tuple[Task, Done]]:
        """Do the next task, if there is time."""
        if not self._tasks or seconds <= 0:
            return []
        task = self._tasks.popleft()
        return [(task, do_alone(task))]

    def close(self) -> None:
        """Forget the tasks."""
        self._tasks.clear()


def do_alone(task: Task) -> Done:
    """Do a task in this thread."""
    start = perf_counter()
    try:
        with _device_of(task):
            return Done(task.do(), None, perf_counter() - start)
    except Exception as error:  # noqa: BLE001 - it ends the task's training, no other
        return Done(None, error, perf_counter() - start)


@dataclass(eq=False)
class Ended(Generic[_R]):
    """A training that has ended.

    Attributes
    ----------
    number : int
        Its place among all.
    value : object
        What it returned.
    error : Exception or None
        What it raised.
    seconds : float
        How long its own work took.
    """

    number: int
    value: _R | None
    error: Exception | None
    seconds: float


class _Live(Generic[_R]):
    """A training that waits for its task."""

    def __init__(self, number: int, training: Training[_R]) -> None:
        self.number, self.training = number, training
        self.task: Task | None = None
        self._since = self._seconds = 0.0

    def begin(self) -> Ended[_R] | None:
        """Let the training go on to its first task; return it if it ends."""
        return self._advance(self.training.send, None)

    def take(self, done: Done) -> Ended[_R] | None:
        """Hand the training its task's outcome; return it if it ends."""
        self._seconds += done.seconds
        if done.error is not None:
            return self._advance(self.training.throw, done.error)
        idle = max(0.0, perf_counter() - self._since - done.seconds)
        return self._advance(self.training.send, (idle, done.value))

    def interrupt(self) -> Ended[_R] | None:
        """Tell the training of an interrupt; return it if it ends."""
        if inspect.getgeneratorstate(self.training) != inspect.GEN_SUSPENDED:
            return None
        return self._advance(self.training.throw, KeyboardInterrupt())

    def _advance(self, send: Callable[[Any], Task], given: Any) -> Ended[_R] | None:
        start = perf_counter()
        value: _R | None = None
        error: Exception | None = None
        try:
            with _device_of(self.task):
                self.task = send(given)
        except StopIteration as end:
            value = end.value
        except Exception as raised:  # noqa: BLE001 - the caller decides what it means for others
            error = raised
        else:
            self._note(start)
            return None
        self._note(start)
        return Ended(self.number, value, error, self._seconds)

    def _note(self, start: float) -> None:
        self._since = perf_counter()
        self._seconds += self._since - start


def together(
    trainings: Iterable[Training[_R]],
    most: int,
    on_round: Callable[[], None] | None = None,
    is_interrupted: Callable[[_R], bool] = lambda _: False,
) -> Generator[Ended[_R], None, None]:
    """Run trainings side by side, and yield each when it ends.

    Python runs in this thread, also while tasks are being done in others. Close this, and the
    trainings that go on are closed.

    Parameters
    ----------
    trainings : iterable of trainings
        They are taken from it, and begun, when others have ended.
    most : int
        How many run at the same time.
    on_round : callable, optional
        Called whenever some tasks are done.
    is_interrupted : callable, optional
        Whether a training's result says that an interrupt ended it: then it ends all.

    Raises
    ------
    KeyboardInterrupt
        After an interrupt, once every training that had begun was told, and was yielded if that
        ended it.
    """
    with _Interrupts() as interrupts:
        group: _Group[_R] = _Group(most, on_round, interrupts)
        try:
            for ended in group.run(enumerate(trainings)):
                yield ended
                if ended.error is None:
                    _end_all_if(is_interrupted(ended.value))  # type: ignore[arg-type]
        except KeyboardInterrupt as interrupt:
            group.stop()
            yield from group.interrupted()
            raise interrupt from None
        finally:
            group.close()


def _end_all_if(is_interrupted: bool) -> None:
    if is_interrupted:
        raise KeyboardInterrupt


class _Interrupts:
    """Notes SIGINT within its context, and passes it on.

    Python drops the ``KeyboardInterrupt`` that a handler raises within a callback of its own, such
    as that of a weak reference. Only the main thread can have handlers.
    """

    def __init__(self) -> None:
        self._came = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):
                self._previous = previous
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_error: object) -> None:
        # An abandoned training may be closed in any thread, or within another's context.
        if (
            self._previous is not None
            and threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) == self._note
        ):
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        self._previous(number, frame)

    def raise_if_any(self) -> None:
        """Raise a KeyboardInterrupt if one has come."""
        if self._came:
            raise KeyboardInterrupt


class _Group(Generic[_R]):
    """Trainings that run side by side, and the crews that do their tasks."""

    def __init__(
        self, most: int, on_round: Callable[[], None] | None, interrupts: _Interrupts
    ) -> None:
        self._most, self._on_round, self._interrupts = most, on_round, interrupts
        self._crews: dict[type, Crew] = {}
        # By the identity of the task; a training that is going on has none.
        self._waiting: dict[int, _Live[_R]] = {}
        self._current: _Live[_R] | None = None

    def run(self, trainings: Iterator[tuple[int, Training[_R]]]) -> Iterator[Ended[_R]]:
        """Run trainings to their ends."""
        while True:
            self._interrupts.raise_if_any()
            n_begun = 0
            while len(self._waiting) < self._most and n_begun < _BEGUN_AT_ONCE:
                begun = next(trainings, None)
                if begun is None:
                    break
                n_begun += 1
                self._current = entry = _Live(*begun)
                yield from self._settled(entry, entry.begin())
            if not self._waiting:
                if n_begun == 0:
                    return
                continue
            for task, done in self._some_done(waits=n_begun == 0):
                self._current = entry = self._waiting.pop(id(task))
                yield from self._settled(entry, entry.take(done))
            if self._on_round is not None:
                self._on_round()

    def _settled(self, entry: _Live[_R], ended: Ended[_R] | None) -> Iterator[Ended[_R]]:
        """Give a training's next task to a crew, or yield the training if it has ended."""
        if ended is not None:
            self._current = None
            yield ended
            return
        task = entry.task
        assert task is not None  # noqa: S101 - a training that goes on has one
        self._waiting[id(task)], self._current = entry, None
        engine = task.engine = task.engine.current()
        kind = type(engine)
        if kind not in self._crews:
            self._crews[kind] = engine.crew(self._most)
        self._crews[kind].take(task)

    def _some_done(self, *, waits: bool) -> Sequence[tuple[Task, Done]]:
        """Return some tasks that are done; wait for one if there is nothing else to do."""
        done = [pair for crew in self._crews.values() for pair in crew.done(0.0)]
        if not done and waits:
            # Those that work in this thread first: the others' work goes on meanwhile.
            for crew in sorted(self._crews.values(), key=lambda crew: crew.has_threads):
                done += crew.done(0.0 if done else _SECONDS_PER_LOOK)
        return done

    def stop(self) -> None:
        """Leave all engines between two steps."""
        for crew in self._crews.values():
            crew.close()
        self._crews.clear()

    def interrupted(self) -> Iterator[Ended[_R]]:
        """Tell all trainings of an interrupt; yield those that it ends."""
        entries = list(self._waiting.values())
        if self._current is not None:
            entries.append(self._current)
        for entry in entries:
            ended = entry.interrupt()
            if ended is not None:
                yield ended

    def close(self) -> None:
        """End everything."""
        self.stop()
        for entry in self._waiting.values():
            entry.training.close()
        if self._current is not None:
            self._current.training.close()
