"""Checkpoint: the state of a training between two steps, and its conversion from and to bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnbackend.checks import positive_integer, real
from nnbackend.core.optimizers import OptimizerState
from nnbackend.engines import EngineState
from nnbackend.errors import InputError, UnusableModelError
from nnbackend.io.format import STATE, read_training, to_bytes
from nnbackend.model.network import Network
from nnbackend.training.errors import CheckpointError
from nnbackend.training.history import LISTS, History

__all__ = ["Checkpoint", "read_checkpoint"]

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training between two steps.

    Attributes
    ----------
    identity : dict
        All that decides the outcome, as JSON values; a training that resumes has to have the same.
    engine : EngineState
        The state of the engine, in NumPy arrays.
    best : array (n_parameters,) or None
        The parameters that early stopping would restore.
    position : int
        The number of steps done in the current epoch.
    order : dict
        The state that the generator of the orders had at the beginning of the epoch.
    history : History
        The finished epochs.
    is_text : bool
        Whether the values of the identity are text, as version 0.1.0 wrote them.
    """

    identity: Mapping[str, Any]
    engine: EngineState
    best: Any
    position: int
    order: Mapping[str, Any]
    history: History
    is_text: bool = False

    @property
    def engine_name(self) -> str:
        """The name of the engine that the training began with."""
        return str(self.identity.get("engine", "")).strip("'")

    @property
    def is_finite(self) -> bool:
        """Whether losses and parameters are finite; if not, the epoch will raise an error."""
        return all(map(math.isfinite, self.engine.totals or ())) and bool(
            np.isfinite(self.engine.parameters).all()
        )

    def _arrays(self) -> dict[str, _Array]:
        """Return by name the arrays other than the parameters."""
        state = self.engine.optimizer.arrays
        arrays = {f"{STATE}{number}": array for number, array in enumerate(state)}
        for name in LISTS:
            if entries := getattr(self.history, name):
                arrays[f"history.{name}"] = np.asarray(entries, np.float64)
        if self.position:
            arrays["finite"] = self.engine.finite
        return arrays if self.best is None else {**arrays, "best": self.best}

    def to_bytes(self, net: Network) -> bytes:
        """Return the content of a file with the network, these parameters, and this state."""
        host = net.to("cpu").copy()
        host.parameters[...] = self.engine.parameters
        description = {
            "options" if self.is_text else "identity": dict(self.identity),
            "optimizer_step": self.engine.optimizer.step,
            "totals": list(self.engine.totals or ()),
            "position": self.position,
            "generators": {"shuffle": self.order, "dropout": self.engine.dropout},
            "n_epochs": self.history.n_epochs,
            "history": {
                name: value for name, value in self.history.to_dict().items() if name not in LISTS
            },
        }
        return to_bytes(host, description, self._arrays())

    @classmethod
    def from_parts(
        cls, net: Network, description: Mapping[str, Any], arrays: Mapping[str, _Array]
    ) -> Checkpoint:
        """Return the checkpoint that ``to_bytes`` wrote.

        Raises
        ------
        ValueError, TypeError, KeyError
            If ``to_bytes`` cannot have written these parts.
        """
        is_text = "identity" not in description
        identity = dict(description["options" if is_text else "identity"].items())
        position = positive_integer("position", description["position"], minimum=0)
        step = positive_integer("optimizer_step", description["optimizer_step"], minimum=0)
        if step > 2**53:
            raise InputError(f"optimizer_step: expected at most 2**53, got {step:.1e}")
        totals = None
        if position:
            loss, weight = (real("totals", value) for value in description["totals"])
            totals = loss, weight
        generators = description["generators"]
        for name in ("shuffle", "dropout"):
            np.random.default_rng(0).bit_generator.state = generators[name]
        state = tuple(
            arrays[f"{STATE}{i}"] for i in range(sum(n.startswith(STATE) for n in arrays))
        )
        parameters = net.parameters
        finite = arrays["finite"] if position else parameters
        engine = EngineState(
            parameters, finite, OptimizerState(step, state), totals, generators["dropout"]
        )
        lists = {
            name: arrays[f"history.{name}"].tolist() if f"history.{name}" in arrays else []
            for name in LISTS
        }
        history = History.from_dict({**description["history"], **lists})
        return cls(
            identity, engine, arrays.get("best"), position, generators["shuffle"], history, is_text
        )


def read_checkpoint(path: str, net: Network) -> Checkpoint:
    """Read a checkpoint of a network with the structure and dtype of ``net``.

    Raises
    ------
    ModelFileError
        If it is damaged, or not a checkpoint.
    CheckpointError
        If it is of another network.
    """
    stored, description, arrays = read_training(path)
    if (stored.structure, stored.dtype) != (net.structure, net.dtype):
        raise CheckpointError(
            f"checkpoint: expected one of {net!r}, got {path!r} of {stored!r}; choose another "
            "folder"
        )
    try:
        return Checkpoint.from_parts(stored, description, arrays)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise UnusableModelError(
            f"path: {path!r} is not a valid checkpoint: {type(error).__name__}: {error}"
        ) from error
