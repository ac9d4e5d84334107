"""Drive trainings: do the tasks that they yield, of one training or of several side by side.

A training is a generator: it yields the next task for its engine, and goes on when the task is
done. So a training alone and one among many are the same program.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Generic, TypeVar

from nnbackend.engines.base import Done, Task, Training

__all__ = ["Ended", "alone", "one_by_one", "together"]

_R = TypeVar("_R")


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


def one_by_one(tasks: Sequence[Task]) -> list[Done | None]:
    """Do tasks, one after another."""
    return [_do(task) for task in tasks]


def _do(task: Task) -> Done:
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


@dataclass(eq=False)
class _Live(Generic[_R]):
    """A training that waits for its task."""

    number: int
    training: Training[_R]
    task: Any = None
    since: float = 0.0
    seconds: float = 0.0
    error: Exception | None = field(default=None)

    def advance(self, send: Callable[[Any], Task], given: Any) -> Ended[_R] | None:
        """Let the training go on to its next task; return it if it ends."""
        start = perf_counter()
        try:
            with _device_of(self.task):
                self.task = send(given)
        except StopIteration as end:
            return Ended(self.number, end.value, None, self._spent(start))
        except Exception as error:  # noqa: BLE001 - the caller decides what it means for others
            return Ended(self.number, None, error, self._spent(start))
        self._spent(start)
        return None

    def _spent(self, start: float) -> float:
        self.since = perf_counter()
        self.seconds += self.since - start
        return self.seconds

    def take(self, done: Done) -> Ended[_R] | None:
        """Hand the training its task's outcome."""
        self.seconds += done.seconds
        if done.error is not None:
            return self.advance(self.training.throw, done.error)
        idle = perf_counter() - self.since - done.seconds
        return self.advance(self.training.send, (max(0.0, idle), done.value))


def together(
    trainings: Iterable[Training[_R]],
    most: int,
    on_round: Callable[[], None] | None = None,
    is_interrupted: Callable[[_R], bool] = lambda _: False,
) -> Generator[Ended[_R], None, None]:
    """Run trainings side by side, and yield each when it ends.

    Close this, and the trainings that go on are closed.

    Parameters
    ----------
    trainings : iterable of trainings
        They are taken from it, and begun, when others have ended. While some run, it is asked again
        after it had no more.
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
    waiting = enumerate(trainings)
    live: list[_Live[_R]] = []
    try:
        while True:
            for ended in _advanced(live, waiting, most):
                yield ended
                _end_all_if(ended.error is None and is_interrupted(ended.value))  # type: ignore[arg-type]
            if not live:
                return
            if on_round is not None:
                on_round()
    except KeyboardInterrupt as interrupt:
        for entry in live.copy():
            if inspect.getgeneratorstate(entry.training) == inspect.GEN_SUSPENDED:
                told = entry.advance(entry.training.throw, KeyboardInterrupt())
                yield from _ended(live, entry, told)
        raise interrupt from None
    finally:
        for entry in live:
            entry.training.close()


def _end_all_if(is_interrupted: bool) -> None:
    if is_interrupted:
        raise KeyboardInterrupt


def _advanced(
    live: list[_Live[_R]], waiting: Iterator[tuple[int, Training[_R]]], most: int
) -> Iterator[Ended[_R]]:
    """Begin trainings until so many run, and let all do some work; yield those that end."""
    for entry, done in _round(live):
        yield from _ended(live, entry, entry.take(done))
    while len(live) < most and (begun := next(waiting, None)) is not None:
        entry = _Live(*begun)
        live.append(entry)
        yield from _ended(live, entry, entry.advance(entry.training.send, None))


def _ended(live: list[_Live[_R]], entry: _Live[_R], ended: Ended[_R] | None) -> Iterator[Ended[_R]]:
    """Yield a training if it has ended, which leaves the others."""
    if ended is not None:
        live.remove(entry)
        yield ended


def _round(live: Sequence[_Live[Any]]) -> list[tuple[_Live[Any], Done]]:
    """Do the tasks of trainings, those of engines of a kind together; return what is done."""
    kinds: dict[Any, list[_Live[Any]]] = {}
    outcomes: list[tuple[_Live[Any], Done]] = []
    for entry in live:
        task = entry.task
        task.engine = task.engine.current()
        kinds.setdefault(type(task.engine), []).append(entry)
    for kind, entries in kinds.items():
        found = kind.do_together([entry.task for entry in entries])
        outcomes += [
            (entry, done) for entry, done in zip(entries, found, strict=True) if done is not None
        ]
    return outcomes
