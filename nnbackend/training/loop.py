"""The loop of a training: run epochs, record them, validate, stop, write checkpoints."""

from __future__ import annotations

import math
import signal
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from nnbackend.core.optimizers import OptimizerState
from nnbackend.data.examples import Data, Examples
from nnbackend.device import get_device
from nnbackend.engines import Engine, EngineState, Problem, Training
from nnbackend.training.checkpoint import Checkpoint
from nnbackend.training.epochs import EpochRunner, Epochs
from nnbackend.training.errors import CheckpointError, DivergenceError
from nnbackend.training.history import History
from nnbackend.training.options import TrainingOptions
from nnbackend.training.signals import Interruption
from nnbackend.training.stopping import Stopping
from nnbackend.training.validation import Validation

if TYPE_CHECKING:
    from nnbackend.model.network import Network
    from nnbackend.parallel import Team
    from nnbackend.training.checkpoint_folder import Keeper

__all__ = ["Loop"]


class _StoppedError(Exception):
    """A signal ends the training between two steps."""


class Loop:
    """The loop of one call to ``train``.

    Parameters
    ----------
    net : Network
        The network, which gets the parameters at the end, and before callbacks.
    engine : Engine
        The engine that takes the steps.
    problem : Problem
        The training problem.
    examples : Examples
        The data.
    validation : Data or None
        Data whose loss is computed after every epoch.
    options : TrainingOptions
        The options of ``train``.
    shuffle : numpy.random.Generator
        The generator of the orders.
    interruption : Interruption
        The signal handlers.
    team : Team or None
        The processes that share every step.

    Attributes
    ----------
    history : History
        The finished epochs.
    """

    def __init__(
        self,
        net: Network,
        engine: Engine,
        problem: Problem,
        examples: Examples,
        validation: Data | None,
        options: TrainingOptions,
        shuffle: np.random.Generator,
        interruption: Interruption,
        team: Team | None = None,
    ) -> None:
        epochs = options.epochs
        self.net, self.team, self.epochs = net, team, epochs
        self._engine, self._problem, self._examples = engine, problem, examples
        self._device, self._interruption = get_device(net.device), interruption
        self._validation = None if validation is None else Validation(engine, validation, team)
        self._runner = EpochRunner(engine, problem, examples, epochs, shuffle, team)
        self._stopping = Stopping(net, engine, options, team)
        self._keeper: Keeper | None = None
        self._last_good: Any = None
        self.history = History(n_samples=examples.n_samples)

    @property
    def steps(self) -> int:
        """The number of steps of an epoch."""
        return self._runner.steps

    def keep(self, keeper: Keeper) -> None:
        """Write checkpoints with ``keeper``."""
        self._keeper = self._runner.keeper = keeper

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same training; call this before the first step.

        Raises
        ------
        CheckpointError
            If the checkpoint cannot be from this training.
        """
        self._require_possible(checkpoint)
        place, state = self._device.place, checkpoint.engine
        finite = place(state.finite)
        optimizer = OptimizerState(state.optimizer.step, tuple(map(place, state.optimizer.arrays)))
        self._engine.set_state(
            EngineState(place(state.parameters), finite, optimizer, state.totals, state.dropout)
        )
        self._last_good = finite
        self._runner.resume(checkpoint.position, checkpoint.order)
        history = self.history = checkpoint.history
        for losses in zip(history.loss, history.validation_loss or history.loss, strict=True):
            self._runner.observe(losses[-1])
        best = None if checkpoint.best is None else place(checkpoint.best)
        self._stopping.resume(history, best)
        if self._keeper is not None:
            self._keeper.start(self._steps_done)

    def _require_possible(self, checkpoint: Checkpoint) -> None:
        steps, arrays = self.steps, checkpoint.engine.optimizer.arrays
        n_arrays = len(self._problem.optimizer.state_names)
        if checkpoint.position >= steps or len(arrays) != n_arrays:
            raise CheckpointError(
                f"expected less than {steps} steps of an epoch and {n_arrays} arrays "
                f"of {self._problem.optimizer.name}, got {checkpoint.position} and {len(arrays)}; "
                "choose another folder",
                argument="checkpoint",
            )
        if checkpoint.position and not self._engine.runs_parts:
            raise CheckpointError(
                "expected the end of an epoch for engine='cuda', got one in mid-epoch; "
                "resume with the engine that the training began with",
                argument="checkpoint",
            )
        if checkpoint.history.n_epochs > self.epochs:
            raise CheckpointError(
                f"expected at least the {checkpoint.history.n_epochs} that the checkpoint "
                f"has, got {self.epochs}",
                argument="epochs",
            )

    def run(self) -> Training[History]:
        """Run the epochs, and give the network its final parameters, whatever ends them."""
        history, engine = self.history, self._engine
        self._last_good = self._snapshot_to_validate(self._last_good)
        try:
            yield from self._run_to_the_end()
        except KeyboardInterrupt:
            history.stopped = "interrupted"
            # The interrupt may have come between two entries of an epoch. Drop an incomplete epoch;
            # its seconds would have been the last entry.
            for entries in (history.loss, history.validation_loss, history.learning_rate):
                del entries[len(history.epoch_seconds) :]
            self._restore_good_if_bad()
        except GeneratorExit:
            # Nobody goes on with this training.
            history.stopped = "interrupted"
            self._restore_good_if_bad()
            raise
        except CheckpointError as error:
            error.history = history
            raise
        finally:
            if self._stopping.best is not None:
                engine.restore(self._stopping.best)
            self.net.take_parameters(engine.parameters)
            if self._interruption.number == signal.SIGINT:
                # Report Ctrl-C at any time, even during the last write: loops over trainings check
                # for it.
                history.stopped, self._interruption.number = "interrupted", None
            history.peak_device_bytes = self._device.pool_bytes()
            history.optimizer_state = engine.optimizer_state
        return history

    def _run_to_the_end(self) -> Training[None]:
        """Run the remaining epochs, and write a checkpoint at the end or after a signal."""
        history = self.history
        # A training that early stopping or a callback has ended is not continued.
        is_over = history.stopped == "callback" or self._stopping.has_run_out_of_patience(history)
        if history.stopped != "callback":
            is_early = is_over and self._epoch < self.epochs
            history.stopped = "early stopping" if is_early else "completed"
        try:
            while not is_over and self._epoch < self.epochs:
                yield from self._run_epochs()
                reason = self._stopping.decide(history)
                if reason is not None:
                    history.stopped, is_over = reason, True
                elif self._epoch < self.epochs:
                    self._pause()
        except _StoppedError:
            self._tell_of_the_signal()
            history.stopped = "terminated"
        try:
            self._write_checkpoint()
        finally:
            # The epoch that the signal interrupted may have been diverging.
            self._restore_good_if_bad()

    @property
    def _epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.history.epoch_seconds)

    @property
    def _steps_done(self) -> int:
        return self._runner.steps_done(self._epoch)

    def _run_epochs(self) -> Training[None]:
        """Run one epoch, or several if nothing happens between them, and record them."""
        runner = self._runner
        start = perf_counter() - runner.idle
        most = 1 if self._validation is not None else self._stopping.horizon(self.history)
        # Pass the methods at each call. If the runner stored them, the two objects would refer to
        # each other, and only the garbage collector would free the device's memory.
        epochs = yield from runner.run(
            self._epoch, most=most, pause=self._pause, while_waiting=self._end_if_asked
        )
        own_loss = None
        if self._validation is not None:
            idle, own_loss = yield self._validation.evaluation()
            runner.idle += idle
        losses, validation_loss, is_finite = self._read(epochs, own_loss)
        seconds = (perf_counter() - runner.idle - start) / len(losses)
        good = losses if is_finite else losses[:-1]
        self._record(good, validation_loss, epochs.rates, seconds)
        if not is_finite:
            self._diverge(losses[-1], validation_loss, epochs.rates[len(good)])
        runner.begin_next(seconds)
        self._last_good = self._snapshot_to_validate(None)

    def _read(self, epochs: Epochs, own: Any) -> tuple[list[float], float | None, bool]:
        """Read the losses of epochs, and whether all is finite, in one transfer.

        Engines that compute many networks at once have read them already, for all.

        ``own`` is the loss on this process's part of the validation data.
        """
        if isinstance(epochs.losses, np.ndarray):
            values, is_finite = epochs.losses.tolist(), bool(epochs.is_finite)
        else:
            xp, dtype = self._device.xp, epochs.losses.dtype
            scalars = [epochs.is_finite] if own is None else [epochs.is_finite, own]
            parts = [xp.reshape(xp.astype(xp.asarray(x), dtype), (1,)) for x in scalars]
            values = self._device.to_numpy(xp.concat([epochs.losses, *parts])).tolist()
            own = None if own is None else values.pop()
            is_finite = bool(values.pop())
        validation_loss = None
        if self._validation is not None:
            validation_loss = self._validation.loss_of_all(float(own))
        return values, validation_loss, is_finite and math.isfinite(validation_loss or 0.0)

    def _record(
        self,
        losses: list[float],
        validation_loss: float | None,
        rates: list[float],
        seconds: float,
    ) -> None:
        """Add finite epochs to the history; only a single one can have a validation loss."""
        history = self.history
        # An iterable of batches is counted during a whole pass.
        history.n_samples = self._examples.n_samples or history.n_samples
        history.loss.extend(losses)
        history.learning_rate.extend(rates[: len(losses)])
        if validation_loss is not None:
            history.validation_loss.extend([validation_loss] * len(losses))
        if self._runner.watches_losses:
            for loss in losses:
                self._runner.observe(loss if validation_loss is None else validation_loss)
        # The last, since an interrupt drops what has no seconds.
        history.epoch_seconds.extend([seconds] * len(losses))

    def _pause(self) -> None:
        """Write a checkpoint if one is due, and end the training if a signal has come."""
        self._end_if_asked()
        if self._keeper is not None and self._keeper.is_due(self._steps_done):
            self._write_checkpoint()

    def _end_if_asked(self) -> None:
        """End the training after a signal; in a team, end all processes after their next step."""
        has_signal = self._interruption.number is not None
        is_to_end = has_signal
        if self.team is not None:
            is_to_end = self.team.stop_requested
            if has_signal:
                self.team.request_stop()
        if is_to_end:
            raise _StoppedError

    def _tell_of_the_signal(self) -> None:
        """Make all processes of a team end like the one that received the signal."""
        if self.team is not None:
            is_term = self._interruption.number == signal.SIGTERM
            is_any = self.team.total([float(is_term)])[0] > 0
            self._interruption.number = signal.SIGTERM if is_any else signal.SIGINT

    def _write_checkpoint(self) -> None:
        """Write a checkpoint, unless its numbers are not finite."""
        if self._keeper is None:
            return
        to_numpy, state = self._device.to_numpy, self._engine.state
        best, optimizer = self._stopping.best, state.optimizer
        checkpoint = Checkpoint(
            self._keeper.identity,
            EngineState(
                to_numpy(state.parameters),
                to_numpy(state.finite),
                OptimizerState(optimizer.step, tuple(map(to_numpy, optimizer.arrays))),
                state.totals,
                state.dropout,
            ),
            None if best is None else to_numpy(best),
            self._runner.position,
            self._runner.order_state,
            self.history,
        )
        self._keeper.write(self.net, checkpoint, self._steps_done)

    def _diverge(self, loss: float, validation_loss: float | None, rate: float) -> NoReturn:
        self._stopping.note_the_best(self.history)
        self._restore_good()
        self.history.stopped = "diverged"
        what = self._what_diverged(loss, validation_loss)
        message = self._divergence_message(what, loss, validation_loss, rate)
        raise DivergenceError(message, self.history, what)

    def _what_diverged(self, loss: float, validation_loss: float | None) -> str:
        if not math.isfinite(loss):
            what = f"the loss became {loss}"
        elif validation_loss is not None and not math.isfinite(validation_loss):
            what = f"the validation loss became {validation_loss}"
        else:
            what = "a parameter became NaN or infinite"
        return f"{what} in epoch {self.history.n_epochs + 1}"

    def _divergence_message(
        self, what: str, loss: float, validation_loss: float | None, rate: float
    ) -> str:
        epoch = self.history.n_epochs
        kept_epoch = epoch if self._stopping.best is None else self.history.best_epoch
        kept = f"after epoch {kept_epoch}" if kept_epoch else "before training"
        # No earlier epoch has shown that the validation loss can be finite.
        is_new = epoch == 0 and math.isfinite(loss) and not math.isfinite(validation_loss or 0.0)
        data = "look for outliers in the validation data, " if is_new else ""
        return (
            f"{what}; the network keeps its parameters from {kept}: {data}lower the "
            f"learning rate (it was {rate:g}), clip the gradient (clip_norm=1.0), or standardize "
            "the features"
        )

    def _restore_good_if_bad(self) -> None:
        xp = self._device.xp
        if not bool(xp.all(xp.isfinite(self._engine.parameters))):
            self._restore_good()

    def _restore_good(self) -> None:
        if self._last_good is None:
            self._engine.restore_finite()
        else:
            self._engine.restore(self._last_good)

    def _snapshot_to_validate(self, known: Any) -> Any:
        """Return the parameters to restore if the validation loss turns out not to be finite."""
        if self._validation is None:
            return None
        return self._engine.snapshot() if known is None else known
