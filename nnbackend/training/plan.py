"""Plan: a training that is checked, and has not begun."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.core.objective import Objective
from nnbackend.data.batches import Feed
from nnbackend.data.examples import Data, Examples, Resident
from nnbackend.data.stream import Stream
from nnbackend.device import Device, get_device
from nnbackend.engines import Problem, Start, default_engine, get_engine
from nnbackend.engines.choice import checked_engine
from nnbackend.errors import InputError
from nnbackend.model.network import Network
from nnbackend.training.checkpoint import Checkpoint
from nnbackend.training.loop import Loop
from nnbackend.training.options import TrainingOptions
from nnbackend.training.resuming import set_optimizer_state
from nnbackend.training.signals import Interruption

if TYPE_CHECKING:
    from nnbackend.parallel import Team

__all__ = ["Plan", "engine_name", "objective_of", "problem_of", "require_network"]


@dataclass(frozen=True)
class Plan:
    """A training that is checked, and has not begun.

    Attributes
    ----------
    net : Network
        The network.
    options : TrainingOptions
        The options.
    problem : Problem
        What the engine has to know.
    examples : Examples
        The data.
    form : Data
        Data with the form of the examples.
    validation : Data or None
        The validation data.
    engine : str
        The name of the engine.
    """

    net: Network
    options: TrainingOptions
    problem: Problem
    examples: Examples
    form: Data
    validation: Data | None
    engine: str

    def begin(self, interruption: Interruption, team: Team | None = None) -> Loop:
        """Make the engine; return the loop that runs the training."""
        net, options, problem = self.net, self.options, self.problem
        device = get_device(net.device)
        make_engine = get_engine(self.engine, options.precision, device)
        seeds = np.random.SeedSequence(options.seed).spawn(2)
        shuffle, dropout = map(np.random.default_rng, seeds)
        engine = make_engine(Start(problem, device, net.parameters, self.form, dropout, team))
        set_optimizer_state(engine, options.optimizer_state, problem, device)
        return Loop(
            net, engine, problem, self.examples, self.validation, options, shuffle, interruption,
            team,
        )  # fmt: skip


def problem_of(objective: Objective, options: TrainingOptions, batch_size: int) -> Problem:
    """Return the problem that options state."""
    return Problem(
        objective, options.optimizer, batch_size, options.clip_value, options.clip_norm,
        options.precision, options.loss_by_rows,
    )  # fmt: skip


def objective_of(net: Network, options: TrainingOptions) -> Objective:
    """Return what training a network with these options minimizes."""
    return net.objective(
        options.loss, options.l1, options.l2, penalty_per_sample=options.penalty_per_sample
    )


def require_network(net: Any, name: str = "net") -> None:
    """Raise an InputError if something is no network."""
    if not isinstance(net, Network):
        raise InputError(f"expected a nnbackend.Network, got {type(net).__name__}", argument=name)


def engine_name(
    examples: Examples,
    options: TrainingOptions,
    device: Device,
    found: Checkpoint | None = None,
) -> str:
    """Return the name of the engine to use."""
    engine = options.engine
    if found is not None and engine == "auto":
        # Keep the engine, and with it the bits: another machine may mean another one by "auto".
        engine = checked_engine("engine", found.engine_name)
    if isinstance(examples, Feed):
        if engine not in ("auto", "reference"):
            raise InputError(
                f"expected 'auto' or 'reference' with an iterable of batches, got "
                f"{engine!r}; pass arrays X and y for it",
                argument="engine",
            )
        return "reference"
    if isinstance(examples, Resident) and examples.n_without_weight and engine == "cuda":
        raise InputError(
            "expected fewer weights of 0 than examples in a batch with "
            f"engine='cuda', got {examples.n_without_weight} that are 0; leave those examples out, "
            "or use engine='reference'",
            argument="sample_weight",
        )
    if isinstance(examples, Stream) and engine == "cuda":
        raise InputError(
            "expected 'auto', 'native' or 'reference' with data that is read in blocks, got "
            "'cuda', whose steps are planned for data on the GPU",
            argument="engine",
        )
    if engine != "auto":
        return engine
    return default_engine(device)
