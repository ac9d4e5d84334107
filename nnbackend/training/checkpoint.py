"""Checkpoint: the state of a training between two steps, and its conversion from and to bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnbackend.checks import positive_integer, real
from nnbackend.core.optimizers import OptimizerState
from nnbackend.device import get_device
from nnbackend.engines import EngineState
from nnbackend.errors import InputError, ModelFileError, UnusableModelError
from nnbackend.io.container import Claim, Contents, read_file
from nnbackend.io.format import Attachment, read_attachment, read_network, to_bytes
from nnbackend.model.network import Network
from nnbackend.training.errors import CheckpointError
from nnbackend.training.history import LISTS, History

__all__ = ["Checkpoint", "parse_checkpoint", "read_checkpoint", "read_training", "training_bytes"]

_Array = np.ndarray[Any, Any]

# The name of the attachment, and prefixes of the names of its arrays: the optimizer's state, and
# the history's lists with a number for each epoch.
_ATTACHMENT = "training"
_STATE = "state"
_HISTORY = "history."


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
        arrays = {f"{_STATE}{number}": array for number, array in enumerate(state)}
        for name in LISTS:
            if entries := getattr(self.history, name):
                arrays[f"{_HISTORY}{name}"] = np.asarray(entries, np.float64)
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
        return training_bytes(host, description, self._arrays())

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
            raise InputError(f"expected at most 2**53, got {step:.1e}", argument="optimizer_step")
        totals = None
        if position:
            loss, weight = (real("totals", value) for value in description["totals"])
            totals = loss, weight
        generators = description["generators"]
        for name in ("shuffle", "dropout"):
            np.random.default_rng(0).bit_generator.state = generators[name]
        state = tuple(
            arrays[f"{_STATE}{i}"] for i in range(sum(n.startswith(_STATE) for n in arrays))
        )
        parameters = net.parameters
        finite = arrays["finite"] if position else parameters
        engine = EngineState(
            parameters, finite, OptimizerState(step, state), totals, generators["dropout"]
        )
        lists = {
            name: arrays[f"{_HISTORY}{name}"].tolist() if f"{_HISTORY}{name}" in arrays else []
            for name in LISTS
        }
        history = History.from_dict({**description["history"], **lists})
        return cls(
            identity, engine, arrays.get("best"), position, generators["shuffle"], history, is_text
        )


def training_bytes(
    net: Network, description: Mapping[str, Any], arrays: Mapping[str, _Array]
) -> bytes:
    """Return a checkpoint's content: a model file with the training's state attached."""
    return to_bytes(net, Attachment(_ATTACHMENT, description, arrays))


def read_training(path: str) -> tuple[Network, Mapping[str, Any], Mapping[str, _Array]]:
    """Return what ``training_bytes`` was given for the file at a path.

    Raises
    ------
    ModelFileError
        If it cannot be read, or is no whole file of nnbackend's, or of a model alone.
    """
    return _parse_training(read_file(path), path)


def _parse_training(
    content: bytes, source: str
) -> tuple[Network, Mapping[str, Any], Mapping[str, _Array]]:
    contents = Contents(content, source)
    net = read_network(contents, get_device("cpu"))

    def claim(description: Mapping[str, Any], name: str) -> Claim:
        if name.startswith(_HISTORY):
            count: Any = description.get("n_epochs")
            contents.require(
                type(count) is int and count >= 0, f"its number of epochs is {count!r}"
            )
            return Claim((count,), "float64")
        # An optimizer can continue with an infinite second moment.
        return Claim((net.n_parameters,), net.dtype, is_finite=not name.startswith(_STATE))

    attachment = read_attachment(contents, _ATTACHMENT, claim)
    if attachment is None:
        raise ModelFileError(
            f"{source!r} is not a checkpoint: it holds a model, and no state of a training",
            argument="path",
        )
    return net, attachment.description, attachment.arrays


def read_checkpoint(path: str, net: Network) -> Checkpoint:
    """Return the checkpoint in a file; see ``parse_checkpoint``."""
    return parse_checkpoint(read_file(path), path, net)


def parse_checkpoint(content: bytes, source: str, net: Network) -> Checkpoint:
    """Return the checkpoint of a network with the structure and dtype of ``net``.

    Parameters
    ----------
    content : bytes
        The content of a file.
    source : str
        The name of the content in errors, such as the file's path.
    net : Network
        The network to be trained.

    Raises
    ------
    ModelFileError
        If the content is damaged or not a checkpoint.
    CheckpointError
        If the checkpoint is of another network.
    """
    stored, description, arrays = _parse_training(content, source)
    if (stored.structure, stored.dtype) != (net.structure, net.dtype):
        raise CheckpointError(
            f"expected one of {net!r}, got {source!r} of {stored!r}; choose another folder",
            argument="checkpoint",
        )
    try:
        return Checkpoint.from_parts(stored, description, arrays)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise UnusableModelError(
            f"{source!r} is not a valid checkpoint: {type(error).__name__}: {error}",
            argument="path",
        ) from error
