"""One training: its epochs, in parts where that is asked for, and what happens between them."""

from __future__ import annotations

import math
import signal
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

from nnbackend.core.optimizers import OptimizerState
from nnbackend.core.schedules import Clock, as_schedule
from nnbackend.data.examples import Data, Examples, Resident
from nnbackend.device import get_device
from nnbackend.engines.base import Engine, EngineState, PartialEngine, Problem
from nnbackend.floating_point import callers_errors
from nnbackend.parallel.team import Share
from nnbackend.training.checkpoint import Checkpoint
from nnbackend.training.errors import CheckpointError, DivergenceError
from nnbackend.training.history import Callback, EarlyStopping, History, TrainingState
from nnbackend.training.signals import Interruption

if TYPE_CHECKING:
    from nnbackend.model.network import Network
    from nnbackend.parallel.team import Team
    from nnbackend.training.checkpoint_folder import Keeper

__all__ = ["Generators", "Loop"]


# Ctrl-C, a checkpoint and the history wait that long at most, or for one step.
SECONDS_PER_CALL = 0.1


@dataclass
class Generators:
    """Where a training's random numbers come from."""

    shuffle: np.random.Generator
    dropout: np.random.Generator

    @classmethod
    def of(cls, seed: int | None) -> Generators:
        """Return both, of one seed."""
        return cls(*map(np.random.default_rng, np.random.SeedSequence(seed).spawn(2)))


def _own_part(team: Team, data: Data) -> tuple[Data, float]:
    """Return this process's rows, at least one, and the sum of the weights that they count with."""
    share = Share.of(team, data.n_samples)
    own = data.rows(share.rows.start, share.rows.stop)
    if share.is_idle:
        return own, 0.0
    return own, float(own.n_samples if own.sample_weight is None else own.sample_weight.sum())


class _StoppedError(Exception):
    """A signal came, and the training is to end between two steps."""


class Loop:
    """What lives as long as the call to ``train``.

    Parameters
    ----------
    net : Network
        Gets the parameters at the end, and for callbacks.
    engine : Engine
        Takes the steps.
    problem : Problem
        What is trained, and how.
    examples : Examples
        The data.
    validation : Data or None
        Data to take the loss on after every epoch.
    early_stopping, callbacks, epochs
        As for ``train``.
    generators : Generators
        Those of the orders, and of the engine's dropout masks.
    interruption : Interruption
        Signals, noted or not.
    team : Team or None
        The processes that share every step.

    Attributes
    ----------
    keeper : Keeper or None
        Writes checkpoints.
    """

    def __init__(
        self,
        net: Network,
        engine: Engine,
        problem: Problem,
        examples: Examples,
        validation: Data | None,
        early_stopping: EarlyStopping | None,
        callbacks: tuple[Callback, ...],
        epochs: int,
        generators: Generators,
        interruption: Interruption,
        team: Team | None = None,
    ) -> None:
        self.net, self.engine, self.problem = net, engine, problem
        self.examples, self.validation = examples, validation
        if team is not None and validation is not None:
            self.validation, self.validation_weight = _own_part(team, validation)
        self.early_stopping, self.callbacks, self.epochs = early_stopping, callbacks, epochs
        self.generators, self.interruption = generators, interruption
        self.team = team
        self.keeper: Keeper | None = None
        # What can run an epoch in parts; isinstance would read the properties, which copy arrays.
        self.partial = cast("PartialEngine", engine) if hasattr(engine, "run_steps") else None
        self.device = get_device(net.device)
        self.schedule = as_schedule(problem.optimizer.learning_rate)
        self.schedule_state = self.schedule.start()
        self.steps = len(examples)
        self.history = History(n_samples=examples.n_samples)
        self.state = TrainingState(net, self.history, 0, epochs)
        self.best_loss = math.inf
        self.best: Any = None
        self.last_good: Any = None
        # Where the generator of the orders stood when the epoch began, and its steps that are done.
        self.order_state = generators.shuffle.bit_generator.state
        self.position = 0
        self.steps_per_call = self.epochs_per_call = 1
        self.seconds_per_epoch = math.inf

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same training, before the first step.

        Raises
        ------
        CheckpointError
            If it does not belong to such a training after all.
        """
        n_arrays = len(self.problem.optimizer.state_names)
        if checkpoint.position >= self.steps or len(checkpoint.engine.optimizer.arrays) != n_arrays:
            raise CheckpointError(
                f"checkpoint: expected less than {self.steps} steps of an epoch and {n_arrays} "
                f"arrays of {self.problem.optimizer.name}, got {checkpoint.position} and "
                f"{len(checkpoint.engine.optimizer.arrays)}; choose another folder"
            )
        if checkpoint.position and self.partial is None:
            raise CheckpointError(
                "checkpoint: expected the end of an epoch for engine='cuda', got one in mid-epoch; "
                "go on with the engine that the training began with"
            )
        if checkpoint.history.n_epochs > self.epochs:
            raise CheckpointError(
                f"epochs: expected at least the {checkpoint.history.n_epochs} that the checkpoint "
                f"has, got {self.epochs}"
            )
        place, engine = self.device.place, checkpoint.engine
        finite = place(engine.finite)
        arrays = tuple(map(place, engine.optimizer.arrays))
        optimizer = OptimizerState(engine.optimizer.step, arrays)
        self.engine.set_state(
            EngineState(place(engine.parameters), finite, optimizer, engine.totals)
        )
        self.best = None if checkpoint.best is None else place(checkpoint.best)
        self.last_good = finite
        self.position = checkpoint.position
        self.order_state = checkpoint.generators["shuffle"]
        self.generators.shuffle.bit_generator.state = self.order_state
        self.generators.dropout.bit_generator.state = checkpoint.generators["dropout"]
        history = self.state.history = self.history = checkpoint.history
        for losses in zip(history.loss, history.validation_loss or history.loss, strict=True):
            self.schedule_state = self.schedule.observe(self.schedule_state, losses[-1])
        if history.best_epoch is not None and self.early_stopping is not None:
            self.best_loss = getattr(history, self.early_stopping.monitor)[history.best_epoch - 1]
        if self.keeper is not None:
            self.keeper.start(self._steps_done)

    def run(self) -> History:
        """Run the epochs; whatever ends them, the network gets the parameters it is owed."""
        history, engine = self.history, self.engine
        self.last_good = self._snapshot_to_validate(self.last_good)
        try:
            self._run_to_the_end()
        except KeyboardInterrupt:
            history.stopped = "interrupted"
            # It may have come between two of an epoch's entries; the seconds are the last of them.
            for entries in (history.loss, history.validation_loss, history.learning_rate):
                del entries[len(history.epoch_seconds) :]
            self._restore_good_if_bad()
        except CheckpointError as error:
            error.history = history
            raise
        finally:
            if self.best is not None:
                engine.restore(self.best)
            self._write_back()
            if self.interruption.number == signal.SIGINT:
                # At any time, the last write included: a loop over trainings looks for this.
                history.stopped, self.interruption.number = "interrupted", None
            history.peak_device_bytes = self.device.pool_bytes()
            history.optimizer_state = engine.state.optimizer
        return history

    def _run_to_the_end(self) -> None:
        """Run the epochs that are left, and write where they ended, or where a signal came."""
        history = self.history
        # What a rule or a callback has ended stays ended.
        is_over = history.stopped == "callback" or self._has_run_out_of_patience()
        if history.stopped != "callback":
            is_early = is_over and self._epoch < self.epochs
            history.stopped = "early stopping" if is_early else "completed"
        try:
            while not is_over and self._epoch < self.epochs:
                self._run_epochs()
                is_over = self._should_stop()
                if not is_over and self._epoch < self.epochs:
                    self._pause()
        except _StoppedError:
            self._tell_of_the_signal()
            history.stopped = "terminated"
        try:
            self._write_checkpoint()
        finally:
            # A signal may have come in an epoch that was about to diverge.
            self._restore_good_if_bad()

    @property
    def _epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.history.epoch_seconds)

    def _run_epochs(self) -> None:
        """Run one epoch, or several where nobody looks on, and record them."""
        start, epoch = perf_counter(), self._epoch
        engine = self._engine_in_parts()
        if engine is not None:
            rates = [self._rates(epoch)]
            losses, is_finite = self._in_parts(engine, rates[0])
        else:
            rates = [self._rates(number) for number in range(epoch, epoch + self._epochs_at_once())]
            losses, is_finite = self.engine.run_epochs(self._orders(len(rates)), rates)
        read, validation_loss, finite = self._read(losses, is_finite)
        self.seconds_per_epoch = (perf_counter() - start) / len(read)
        good = read if finite else read[:-1]
        self._record(good, validation_loss, rates)
        if not finite:
            self._diverge(read[-1], validation_loss, rates[len(good)][-1])
        self.order_state = self.generators.shuffle.bit_generator.state
        self.last_good = self._snapshot_to_validate(None)

    def _engine_in_parts(self) -> PartialEngine | None:
        """Return the engine if the next epoch is to be run in parts."""
        if self.partial is None:
            return None
        if (
            self.team is None
            and isinstance(self.examples, Resident)
            and not self.examples.n_without_weight
        ):
            if self.keeper is None:
                return None
            is_short = self.seconds_per_epoch <= SECONDS_PER_CALL
            if is_short and self.keeper.steps_to_go(self._steps_done) >= self.steps:
                return None
        return self.partial

    @property
    def _steps_done(self) -> int:
        return self._epoch * self.steps + self.position

    def _in_parts(self, engine: PartialEngine, rates: list[float]) -> tuple[Any, Any]:
        """Run an epoch from where it stands, pausing between its parts."""
        size = self.problem.batch_size
        epoch = self.examples.parts(self.generators.shuffle, self.position, self._end_if_asked)
        with closing(epoch) as parts:
            for part in parts:
                done = 0
                while done < part.n_steps:
                    n = min(part.n_steps - done, self._steps_at_once())
                    now = slice(self.position, self.position + n)
                    piece, taken = part.steps(done, done + n, size).with_weight(rates[now], size)
                    start = perf_counter()
                    if piece.n_steps:
                        engine.run_steps(piece.data, piece.order, taken)
                    seconds = perf_counter() - start
                    wanted = int(n * SECONDS_PER_CALL / max(seconds, 1e-9))
                    self.steps_per_call = max(1, min(wanted, 16 * n))
                    done += n
                    self.position += n
                    if self.position < self.steps:
                        self._pause()
        self.position = 0
        return engine.end_epoch()

    def _steps_at_once(self) -> int:
        """Return how many steps the next call may run: a process of a team looks after each."""
        if self.team is not None:
            return 1
        if self.keeper is None:
            return self.steps
        return min(self.steps_per_call, self.keeper.steps_to_go(self._steps_done))

    def _epochs_at_once(self) -> int:
        """Return how many epochs the next call may run: 0.1 s of them where nobody looks on."""
        if (
            self.validation is not None
            or self.early_stopping is not None
            or self.callbacks
            or self.schedule.observes
            or math.isinf(self.seconds_per_epoch)
        ):
            return 1
        wanted = int(SECONDS_PER_CALL / max(self.seconds_per_epoch, 1e-9))
        if self.keeper is not None:
            wanted = min(wanted, self.keeper.steps_to_go(self._steps_done) // self.steps)
        self.epochs_per_call = max(1, min(wanted, 16 * self.epochs_per_call))
        most = min(self.engine.max_epochs_per_call, self.epochs - self._epoch)
        return min(self.epochs_per_call, most)

    def _pause(self) -> None:
        """Between two steps: write a checkpoint that is due; end for a signal."""
        self._end_if_asked()
        if self.keeper is not None and self.keeper.is_due(self._steps_done):
            self._write_checkpoint()

    def _end_if_asked(self) -> None:
        """End for a signal, or have all processes of a team do so after their next step."""
        if self.team is not None:
            is_to_end = self.team.stop_requested
            if self.interruption.number is not None:
                self.team.request_stop()
        else:
            is_to_end = self.interruption.number is not None
        if is_to_end:
            raise _StoppedError

    def _tell_of_the_signal(self) -> None:
        """Have all processes of a team end as the one does that a signal came to."""
        if self.team is not None:
            is_term = self.interruption.number == signal.SIGTERM
            is_any = self.team.total([float(is_term)])[0] > 0
            self.interruption.number = signal.SIGTERM if is_any else signal.SIGINT

    def _write_checkpoint(self) -> None:
        """Write where training stands, unless it stands at numbers that are not finite."""
        if self.keeper is None:
            return
        to_numpy, state = self.device.to_numpy, self.engine.state
        optimizer = state.optimizer
        checkpoint = Checkpoint(
            self.keeper.options,
            EngineState(
                to_numpy(state.parameters),
                to_numpy(state.finite),
                OptimizerState(optimizer.step, tuple(map(to_numpy, optimizer.arrays))),
                state.totals,
            ),
            None if self.best is None else to_numpy(self.best),
            self.position,
            {
                "shuffle": self.order_state,
                "dropout": self.generators.dropout.bit_generator.state,
            },
            self.history,
        )
        self.keeper.write(self.net, checkpoint, self._steps_done)

    def _rates(self, epoch: int) -> list[float]:
        clock = Clock(epoch * self.steps, self.steps, self.steps * self.epochs)
        return self.schedule.rates(clock, self.steps, self.schedule_state)

    def _orders(self, n_epochs: int) -> list[Any] | None:
        """Return the orders of epochs, all of them arrays or none."""
        if not isinstance(self.examples, Resident):
            return None
        orders = [self.examples.draw(self.generators.shuffle) for _ in range(n_epochs)]
        return None if orders[0] is None else orders

    def _record(
        self, losses: list[float], validation_loss: float | None, rates: list[list[float]]
    ) -> None:
        """Add good epochs to the history; only a single one has a validation loss."""
        history = self.history
        # Batches that are brought are counted in a whole pass.
        history.n_samples = self.examples.n_samples or history.n_samples
        for loss, epoch_rates in zip(losses, rates, strict=False):
            history.loss.append(loss)
            history.learning_rate.append(epoch_rates[-1])
            if validation_loss is not None:
                history.validation_loss.append(validation_loss)
            watched = loss if validation_loss is None else validation_loss
            self.schedule_state = self.schedule.observe(self.schedule_state, watched)
            history.epoch_seconds.append(self.seconds_per_epoch)

    def _diverge(self, loss: float, validation_loss: float | None, rate: float) -> NoReturn:
        self._restore_good()
        self.history.stopped = "diverged"
        what = self._what_diverged(loss, validation_loss)
        message = self._divergence_message(what, loss, validation_loss, rate)
        raise DivergenceError(message, self.history, what)

    def _restore_good_if_bad(self) -> None:
        xp = self.device.xp
        if not bool(xp.all(xp.isfinite(self.engine.parameters))):
            self._restore_good()

    def _restore_good(self) -> None:
        if self.last_good is None:
            self.engine.restore_finite()
        else:
            self.engine.restore(self.last_good)

    def _snapshot_to_validate(self, known: Any) -> Any:
        """Return the parameters, if good ones may turn out to be bad on the validation data."""
        if self.validation is None:
            return None
        return self.engine.snapshot() if known is None else known

    def _read(self, losses: Any, is_finite: Any) -> tuple[list[float], float | None, bool]:
        """Read the losses of epochs and whether all is finite, in one transfer."""
        xp = self.device.xp
        scalars = [losses, xp.reshape(xp.astype(xp.asarray(is_finite), losses.dtype), (1,))]
        if self.validation is not None:
            loss = xp.astype(xp.asarray(self.engine.data_loss(self.validation)), losses.dtype)
            scalars.append(xp.reshape(loss, (1,)))
        values = self.device.to_numpy(xp.concat(scalars)).tolist()
        validation_loss = values.pop() if self.validation is not None else None
        finite = bool(values.pop())
        if self.team is not None and validation_loss is not None:
            validation_loss = self._validation_loss_of_all(self.team, validation_loss)
        return values, validation_loss, finite and math.isfinite(validation_loss or 0.0)

    def _validation_loss_of_all(self, team: Team, loss: float) -> float:
        """Return the loss on all validation data, of which each process has taken a part."""
        weight = self.validation_weight
        total, total_weight = team.total([weight * loss if weight else 0.0, weight])
        return total / total_weight

    def _should_stop(self) -> bool:
        history, rule = self.history, self.early_stopping
        epoch = history.n_epochs
        if rule is not None:
            watched = getattr(history, rule.monitor)[-1]
            if watched < self.best_loss - rule.min_delta:
                self.best_loss, history.best_epoch = watched, epoch
                if rule.restore_best:
                    self.best = self.engine.snapshot()
        if self.callbacks:
            self._write_back()
            self.state.epoch = epoch
            with callers_errors():
                for callback in self.callbacks:
                    callback(self.state)
        if self._is_asked_to_stop():
            history.stopped = "callback"
            return True
        if epoch < self.epochs and self._has_run_out_of_patience():
            history.stopped = "early stopping"
            return True
        return False

    def _has_run_out_of_patience(self) -> bool:
        rule, history = self.early_stopping, self.history
        return rule is not None and history.n_epochs - (history.best_epoch or 0) >= rule.patience

    def _is_asked_to_stop(self) -> bool:
        """Whether a callback has asked to end; those of one process speak for all."""
        if self.team is None:
            return self.state.stop_requested
        self.team.check_equal(self.engine.parameters)
        return self.team.total([float(self.state.stop_requested)])[0] > 0

    def _write_back(self) -> None:
        self.net.take_parameters(self.engine.parameters)

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
        kept_epoch = epoch if self.best is None else self.history.best_epoch
        kept = f"after epoch {kept_epoch}" if kept_epoch else "before training"
        # No epoch says that the validation data can have a finite loss.
        is_new = epoch == 0 and math.isfinite(loss) and not math.isfinite(validation_loss or 0.0)
        data = "look for outliers in the validation data, " if is_new else ""
        return (
            f"{what}; the network keeps its parameters from {kept}: {data}lower the "
            f"learning rate (it was {rate:g}), clip the gradient (clip_norm=1.0), or standardize "
            "the features"
        )
