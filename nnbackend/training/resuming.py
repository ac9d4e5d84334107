"""Going on with a training: what is compared, and where it goes on."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np

from nnbackend._version import __version__
from nnbackend.data.examples import Data, Examples, data_digest
from nnbackend.device import Device, get_device
from nnbackend.engines.base import Engine, PartialEngine, Problem
from nnbackend.errors import InputError
from nnbackend.io.files import write_atomically
from nnbackend.io.format import STANDARDIZATIONS, to_bytes
from nnbackend.model.network import Network
from nnbackend.parallel.team import Team
from nnbackend.training.arguments import checked_optimizer_state
from nnbackend.training.checkpoint import (
    Checkpoint,
    options_of,
    read_checkpoint,
    require_same_options,
)
from nnbackend.training.checkpoint_folder import CheckpointFolder, Keeper
from nnbackend.training.errors import CheckpointError
from nnbackend.training.history import EarlyStopping
from nnbackend.training.loop import Loop

__all__ = [
    "check_parts",
    "checkpoint_folder",
    "find_checkpoint",
    "identity_of",
    "keep_and_share",
    "set_optimizer_state",
]

_LOGGER = logging.getLogger("nnbackend")


def checkpoint_folder(
    path: Any, keep: int, resume: bool, team: Team | None
) -> CheckpointFolder | None:
    """Return the folder of the checkpoints, in the one process that writes them."""
    if path is None:
        if resume:
            raise InputError("resume: expected checkpoint, the folder to go on from, got None")
        return None
    if team is not None and team.rank > 0:
        return None
    folder = CheckpointFolder(path, keep)
    if not resume and folder.files():
        folder.close()
        raise CheckpointError(
            f"checkpoint: expected a folder without checkpoints, got {folder.path!r}, which holds "
            "some; pass resume=True to go on from them, or choose another folder"
        )
    return folder


def set_optimizer_state(engine: Engine, given: Any, problem: Problem, device: Device) -> None:
    if given is not None:
        state = checked_optimizer_state(given, problem, device)
        engine.set_state(engine.state._replace(optimizer=state))


def check_parts(engine: PartialEngine | None, problem: Problem, device: Device) -> None:
    """Check that the state of an engine can be kept."""
    if engine is None and problem.objective.structure.has_dropout:
        raise InputError(
            f"checkpoint: expected engine='reference' for a network with dropout on {device}, got "
            "'cuda', which keeps the state of its random numbers on the GPU"
        )


def identity_of(
    net: Network,
    problem: Problem,
    examples: Examples,
    validation: Data | None,
    shuffle: Any,
    seed: Any,
    early_stopping: EarlyStopping | None,
    engine: str,
) -> dict[str, str]:
    """Return as text what decides the outcome: a training that goes on has the same."""
    to_numpy = get_device(net.device).to_numpy
    return options_of(
        layer_sizes=net.layer_sizes,
        hidden=net.hidden,
        output=net.output,
        dropout=net.dropout,
        dtype=net.dtype,
        optimizer=problem.optimizer,
        loss=problem.objective.loss,
        l1=problem.objective.l1,
        l2=problem.objective.l2,
        penalty_per_sample=problem.objective.penalty_per_sample,
        batch_size=problem.batch_size,
        clip_value=problem.clip_value,
        clip_norm=problem.clip_norm,
        precision=problem.precision,
        engine=engine,
        shuffle=shuffle,
        seed=seed,
        early_stopping=early_stopping,
        data=examples.digest(to_numpy),
        validation_data=None if validation is None else data_digest(validation, to_numpy),
        feature_names=net.feature_names,
        # Checkpoints written before there was this option do not have it.
        **({"loss_by_rows": True} if problem.loss_by_rows else {}),
        **{name: _columns_digest(getattr(net, name), to_numpy) for name in STANDARDIZATIONS},
    )


def _columns_digest(columns: Any, to_numpy: Callable[[Any], Any]) -> str:
    if columns is None:
        return "none"
    return hashlib.sha256(b"".join(to_numpy(x).tobytes() for x in columns)).hexdigest()


def find_checkpoint(
    folder: CheckpointFolder | None,
    net: Network,
    team: Team | None,
    *,
    checkpoint: bool,
    resume: bool,
) -> Checkpoint | None:
    """Return the checkpoint to go on from, the same in all processes."""
    found = folder.newest(net) if folder is not None and resume else None
    if team is None:
        return found
    team.agree(options_of(checkpoint=checkpoint, resume=resume))
    content = team.share(lambda: None if found is None else found.to_bytes(net))
    return _checkpoint_of(content, net) if content is not None and team.rank > 0 else found


def keep_and_share(
    loop: Loop,
    folder: CheckpointFolder | None,
    every: float | timedelta,
    options: dict[str, str],
    found: Checkpoint | None,
) -> None:
    """Have a loop write checkpoints, go on from one, and share its steps with other processes."""
    net, team = loop.net, loop.team
    if found is not None:
        require_same_options(found.options, options)
    if team is not None:
        device = get_device(net.device)
        digest = hashlib.sha256(device.to_numpy(net.parameters).tobytes()).hexdigest()
        asked = {**options, **options_of(epochs=loop.epochs), "initial parameters": digest}
        team.agree({**asked, "versions": f"nnbackend {__version__}, numpy {np.__version__}"})
        team.allocate(device, net.n_parameters, net.dtype)
    if folder is not None:
        # A network that cannot be stored is found out before it is trained.
        to_bytes(net)
        loop.keeper = Keeper(folder, every, options, loop.steps)
    if found is not None:
        _LOGGER.info(
            "nnbackend: going on after epoch %d, step %d", found.history.n_epochs, found.position
        )
        loop.resume(found)


def _checkpoint_of(content: bytes, net: Network) -> Checkpoint:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "checkpoint")
        write_atomically(path, content)
        return read_checkpoint(path, net)
