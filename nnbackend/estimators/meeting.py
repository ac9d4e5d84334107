"""Fit estimators side by side that scikit-learn fits one by one, in calls of joblib.

scikit-learn hands its searches, validations and ensembles to joblib as calls, each of which makes,
fits and scores models. Here every call has a thread of its own, but one thread runs at a time: a
call goes on until it fits one of our models. It then hands the training over and rests until that
has ended. The thread that asked for the calls' results drives the trainings of all resting calls
together.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any

from joblib import parallel_config
from joblib.parallel import ParallelBackendBase

from nnbackend.engines import Training
from nnbackend.engines.choice import trainings_at_once
from nnbackend.engines.driving import Ended, alone, together
from nnbackend.floating_point import callers_errors, own_errors

__all__ = ["LARGEST", "Calls", "clock", "fit_alone_or_together", "n_bytes", "side_by_side"]

# Bytes of data that calls hold at the same time, unless two of them alone hold more.
LARGEST = 2**30
# Waiting for ever is not interrupted on every system.
_A_WHILE = 0.2

_CALL: ContextVar[_Call | None] = ContextVar("call", default=None)


class Calls:
    """The calls that ran side by side.

    Attributes
    ----------
    n_calls : int
        How many have ended.
    n_together : int
        How many of these fitted models of ours beside others.
    on_end : callable or None
        Called when what has handed calls to joblib has all their results.
    """

    def __init__(self) -> None:
        self.n_calls = self.n_together = 0
        self.on_end: Callable[[], None] | None = None


@contextmanager
def side_by_side(*, once: bool = False) -> Iterator[Calls]:
    """Let scikit-learn fit models of ours side by side within a ``with`` statement.

    What scikit-learn would do in processes, if ``n_jobs`` were set, then shares this process:
    searches, ``cross_validate``, ``learning_curve``, bagging, one-vs-rest and the like. Each model
    becomes what it would become alone. Models that are not ours, have callbacks or use L-BFGS are
    fitted one by one. ``n_jobs`` has no effect: trainings use all processors.

    A function of the caller's, such as a scorer, may run in another thread than the caller's, as
    with joblib's backend "threading", but never beside another one.

    Parameters
    ----------
    once : bool, default False
        Apply only to the first joblib call; what a search refits afterwards keeps its own
        ``n_jobs``.

    Yields
    ------
    Calls
        Counts of the calls, and of those that fitted models beside others.

    Examples
    --------
    >>> import nnbackend as nb
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import validation_curve
    >>> X, y = load_iris(return_X_y=True)
    >>> model = nb.MLPClassifier(8, tol=0.1, random_state=0)
    >>> options = {"param_name": "alpha", "param_range": [0.01, 0.1], "cv": 3}
    >>> with nb.side_by_side() as calls:
    ...     train_scores, test_scores = validation_curve(model, X, y, **options)
    >>> calls.n_together, test_scores.shape
    (6, (2, 3))
    """
    call = _current_call()
    backend = _Backend(_Meeting() if call is None else call.backend.meeting)
    config = parallel_config(backend=backend)
    if once:
        backend.unregister = config.unregister
    with config:
        yield backend.calls


def fit_alone_or_together(training: Training[str], data: Any) -> None:
    """Run a training to its end: beside those of other calls where it is a part of a call.

    Parameters
    ----------
    training : Training
        Returns why it stopped. An interrupt ends a training alone, but all the calls.
    data : array-like
        The features that it reads.
    """
    call = _current_call()
    if call is None:
        alone(training)
    else:
        call.run(training, data)


def n_bytes(data: Any) -> int:
    """Return about how many bytes data has as numbers in float64."""
    return 8 * math.prod(getattr(data, "shape", ()))


def clock() -> float:
    """Return seconds, without those for which a call has rested while others ran."""
    call = _current_call()
    return perf_counter() - (0.0 if call is None else call.idle)


def _current_call() -> _Call | None:
    call = _CALL.get()
    # A thread that the caller's code has started may have inherited the context.
    return None if call is None or call.thread is not threading.current_thread() else call


class _Cancelled(BaseException):
    """Ends a call of which nobody wants the result."""


class _Backend(ParallelBackendBase):  # type: ignore[misc]
    """The calls of one ``with`` statement, as joblib sees them."""

    supports_sharedmem = True
    uses_threads = True
    # joblib's sign for all processors; how many calls run at once is asked for when they do.
    default_n_jobs = -1

    def __init__(self, meeting: _Meeting) -> None:
        super().__init__()
        self.meeting, self.calls = meeting, Calls()
        self.open: set[_Call] = set()
        self.unregister: Callable[[], None] | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        del n_jobs
        return trainings_at_once()

    def submit(self, func: Any, callback: Callable[[Any], Any] | None = None) -> _Call:
        return self.meeting.add(_Call(self, func, callback))

    # The method's name before joblib 1.5.
    apply_async = submit

    def terminate(self) -> None:
        if self.unregister is not None:
            self.unregister()
        self.meeting.end_if_idle()
        if self.calls.on_end is not None:
            self.calls.on_end()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        del ensure_ready
        self.meeting.cancel(self)


class _Call:
    """A call of joblib's, in a thread that runs only while the meeting waits for it.

    Attributes
    ----------
    is_done : bool
        Whether it has returned or raised.
    wish : object
        What it rests for: the end of a training, or of another call, or the end of all calls of a
        backend.
    data : array-like
        What its training reads.
    ended : Ended
        Its training, when that has ended.
    idle : float
        Seconds for which it has rested while others trained.
    """

    def __init__(
        self, backend: _Backend, function: Any, callback: Callable[[Any], Any] | None
    ) -> None:
        self.backend, self.callback = backend, callback
        self.wish: Any = None
        self.data: Any = None
        self.ended: Ended[str] | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_done = self.is_cancelled = self.is_left = self.has_shared = False
        self._function = function
        self.idle = 0.0
        self._go: SimpleQueue[None] = SimpleQueue()
        self._back: SimpleQueue[None] = SimpleQueue()
        self._filters: Any = None
        self.thread = threading.Thread(target=self._whole, name="nnbackend call", daemon=True)

    def get(self, timeout: float | None = None) -> Any:
        """Return its result, as joblib asks for it."""
        del timeout
        return self.backend.meeting.result_of(self)

    # In the thread that drives:

    def go_on(self) -> None:
        """Let the call run until it rests or is done."""
        others = warnings.filters, warnings.showwarning
        # Filters belong to the process, and would be mixed up where two calls set theirs.
        warnings.filters, warnings.showwarning = self._filters or others
        try:
            if self.thread.ident is None:
                self.thread.start()
            else:
                self._go.put(None)
            while not self._is_back():
                pass
            self._filters = warnings.filters, warnings.showwarning
        except BaseException:
            self.is_left = True
            raise
        finally:
            warnings.filters, warnings.showwarning = others

    def _is_back(self) -> bool:
        try:
            self._back.get(timeout=_A_WHILE)
        except Empty:
            return False
        return True

    def end(self) -> None:
        """Have the call end, wherever it is; an interrupted one ends when it wants to rest."""
        self.is_cancelled = True
        if self.thread.ident is None:
            self.is_done = True
        elif self.is_left:
            self._go.put(None)
        else:
            while not self.is_done:
                self.go_on()

    # In its own thread:

    def run(self, training: Training[str], data: Any) -> None:
        """Run a training to its end, beside others."""
        start = perf_counter()
        self.data, self.has_shared = data, True
        self.rest(training)
        self.data, ended, self.ended = None, self.ended, None
        assert ended is not None  # noqa: S101 - the meeting lets it go on only then
        self.idle += perf_counter() - start - ended.seconds
        if ended.error is not None:
            raise ended.error

    def rest(self, wish: Any) -> None:
        """Let others run until a wish is fulfilled."""
        if not self.is_cancelled:
            self.wish = wish
            self._back.put(None)
            self._go.get()
            self.wish = None
        if self.is_cancelled:
            raise _Cancelled

    def _whole(self) -> None:
        try:
            self.result = self.backend.meeting.context.copy().run(self._called)
        except _Cancelled:
            pass
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is wanted
            self.error = error
        finally:
            self.is_done = True
            self._back.put(None)

    def _called(self) -> Any:
        _CALL.set(self)
        results = self._function()
        for result in results:
            # scikit-learn takes the time from the start of a fit to its end.
            if isinstance(result, dict) and isinstance(result.get("fit_time"), float):
                result["fit_time"] = max(0.0, result["fit_time"] - self.idle)
        return results


class _Meeting:
    """The calls that wait for one another.

    Attributes
    ----------
    context : contextvars.Context
        What calls run in: the state of the caller.
    """

    def __init__(self) -> None:
        self.context = copy_context()
        self._new: deque[_Call] = deque()
        self._resting: deque[_Call] = deque()
        self._training: dict[int, _Call] = {}
        self._waiting: dict[_Call, list[_Call]] = {}
        self._driver: Generator[Ended[str]] | None = None
        self._n_begun = 0
        self._is_interrupted = False

    def add(self, call: _Call) -> _Call:
        """Add a call, which runs when there is room."""
        call.backend.open.add(call)
        self._new.append(call)
        return call

    def result_of(self, call: _Call) -> Any:
        """Return what a call returns, when it is done."""
        asking = _current_call()
        if asking is not None:
            if not call.is_done:
                asking.rest(call)
        else:
            while not call.is_done:
                self._drive()
        error, call.error = call.error, None
        try:
            if error is not None:
                raise error
            return call.result
        finally:
            # No cycle of an error and its traceback keeps a thread for the garbage collector.
            del error

    def cancel(self, backend: _Backend) -> None:
        """End all calls of a backend."""
        asking = _current_call()
        if asking is not None:
            asking.rest(backend)
            return
        self._end(backend)
        self.end_if_idle()

    def end_if_idle(self) -> None:
        """Let go of the threads, and of the last training, if there is none to go on with."""
        if self._driver is not None and not self._training and _current_call() is None:
            self._driver.close()
            self._driver = None

    def _drive(self) -> None:
        """Go on with the trainings until one ends, and with its call."""
        if self._driver is None:
            self._driver, self._n_begun = together(_Trainings(self), trainings_at_once()), 0
        ended = self._next_ended()
        if ended is None:
            self._driver = None
            return
        call = self._training.pop(ended.number, None)
        # A training ends at an interrupt, and keeps what it has learnt. But nobody gets its model.
        if ended.value == "interrupted":
            raise KeyboardInterrupt
        if call is not None and not self._is_interrupted:
            call.ended = ended
            self._go_on(call)

    @own_errors
    def _next_ended(self) -> Ended[str] | None:
        return next(self._driver, None) if self._driver is not None else None

    def next_training(self) -> Training[str] | None:
        """Return a training to begin, if there is one and room for it; begin calls for it."""
        while not self._resting:
            if not self._new or self._is_full():
                return None
            with callers_errors():
                self._go_on(self._new.popleft())
        call = self._resting.popleft()
        self._training[self._n_begun] = call
        self._n_begun += 1
        training: Training[str] = call.wish
        return training

    def _is_full(self) -> bool:
        held = {id(call.data): n_bytes(call.data) for call in self._training.values()}
        return len(self._training) > 1 and sum(held.values()) + max(held.values()) > LARGEST

    def _go_on(self, call: _Call) -> None:
        """Let a call run until it rests for a training or is done; then those that rest for it."""
        going = [call]
        while going:
            call = going.pop()
            try:
                call.go_on()
            except BaseException:
                self._is_interrupted = True
                raise
            if call.is_done:
                self._finish(call)
                going += self._waiting.pop(call, [])
            elif isinstance(call.wish, _Backend):
                self._end(call.wish)
                going.append(call)
            elif isinstance(call.wish, _Call):
                if call.wish.is_done:
                    going.append(call)
                else:
                    self._waiting.setdefault(call.wish, []).append(call)
            else:
                self._resting.append(call)

    def _finish(self, call: _Call) -> None:
        call.backend.open.discard(call)
        call.backend.calls.n_calls += 1
        call.backend.calls.n_together += call.has_shared
        # joblib submits more, in the caller's code, unless this ends all.
        if call.error is None and call.callback is not None:
            call.callback(call.result)

    def _end(self, backend: _Backend) -> None:
        for call in list(backend.open):
            backend.open.discard(call)
            if call in self._new:
                self._new.remove(call)
            if call in self._resting:
                self._resting.remove(call)
            self._waiting.pop(call, None)
            self._training = {n: other for n, other in self._training.items() if other is not call}
            call.end()


class _Trainings:
    """The trainings that can begin: none for now is not the end, and later there may be more."""

    def __init__(self, meeting: _Meeting) -> None:
        self._meeting = meeting

    def __iter__(self) -> _Trainings:
        return self

    def __next__(self) -> Training[str]:
        training = self._meeting.next_training()
        if training is None:
            raise StopIteration
        return training
