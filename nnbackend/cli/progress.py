"""Show the progress of a training, and handle Ctrl-C."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

from nnbackend.cli.terminal import show
from nnbackend.errors import MissingDependencyError

if TYPE_CHECKING:
    from nnbackend.training.history import Callback, TrainingState

__all__ = ["first_interrupt_only", "progress_bar"]


@contextlib.contextmanager
def first_interrupt_only() -> Iterator[Callable[[], None]]:
    """Let the first Ctrl-C end the training; yield a function that ignores all further ones."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def ignore_others() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def handle(_signal: int, _frame: Any) -> None:
        ignore_others()
        show("interrupted: writing what was learnt so far", sys.stderr)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield ignore_others
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def progress_bar(epochs: int, *, is_quiet: bool) -> Iterator[list[Callback]]:
    """Yield callbacks that draw a progress bar, if there is a terminal to draw on."""
    if is_quiet or not sys.stderr.isatty():
        yield []
        return
    try:
        from rich import progress
        from rich.console import Console
    except ImportError as error:
        raise MissingDependencyError(
            "the progress bar needs rich; install it with: pip install rich"
        ) from error
    columns = (
        progress.TextColumn("epoch {task.completed}/{task.total}"),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[losses]}"),
        progress.TimeElapsedColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=epochs, losses="")
        last = 0.0

        def update(state: TrainingState) -> None:
            nonlocal last
            now = monotonic()
            if now - last < 0.05 and state.epoch < state.epochs:
                return
            last = now
            losses = f"loss {state.history.loss[-1]:.4f}"
            if state.history.validation_loss:
                losses += f"  validation {state.history.validation_loss[-1]:.4f}"
            bar.update(task, completed=state.epoch, losses=losses)

        yield [update]
