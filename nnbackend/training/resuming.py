"""Resume a training: find its checkpoint, compare what was asked for, and set the state."""

from __future__ import annotations

import hashlib
import logging
from datetime import timedelta
from typing import Any

import numpy as np

from nnbackend._version import __version__
from nnbackend.core.optimizers import OptimizerState
from nnbackend.device import Device, get_device
from nnbackend.engines import Engine, Problem
from nnbackend.io.format import to_bytes
from nnbackend.model.network import Network
from nnbackend.parallel import Team
from nnbackend.training.arguments import placed_optimizer_state
from nnbackend.training.checkpoint import Checkpoint, parse_checkpoint
from nnbackend.training.checkpoint_folder import CheckpointFolder, Keeper
from nnbackend.training.errors import CheckpointError
from nnbackend.training.identity import as_json, as_text, require_same
from nnbackend.training.loop import Loop
from nnbackend.training.options import TrainingOptions

__all__ = [
    "checkpoint_folder",
    "find_checkpoint",
    "keep_and_share",
    "set_optimizer_state",
]

_LOGGER = logging.getLogger("nnbackend")


def checkpoint_folder(options: TrainingOptions, team: Team | None) -> CheckpointFolder | None:
    """Return the folder of the checkpoints in the process that writes them; None in others."""
    if options.checkpoint is None or (team is not None and team.rank > 0):
        return None
    folder = CheckpointFolder(options.checkpoint, options.checkpoints_kept)
    if not options.resume and folder.files():
        folder.close()
        raise CheckpointError(
            f"expected a folder without checkpoints, got {folder.path!r}, which holds "
            "some; pass resume=True to continue from them, or choose another folder",
            argument="checkpoint",
        )
    return folder


def set_optimizer_state(
    engine: Engine, given: OptimizerState | None, problem: Problem, device: Device
) -> None:
    """Give an engine the state of an optimizer, if there is one."""
    if given is not None:
        state = placed_optimizer_state(given, problem, device)
        engine.set_state(engine.state._replace(optimizer=state))


def find_checkpoint(
    folder: CheckpointFolder | None, net: Network, options: TrainingOptions, team: Team | None
) -> Checkpoint | None:
    """Return the checkpoint to resume from, the same in all processes; None without any."""
    found = folder.newest(net) if folder is not None and options.resume else None
    if team is None:
        return found
    keeps = options.checkpoint is not None
    team.agree(as_text({"checkpoint": keeps, "resume": options.resume}))
    content = team.share(lambda: None if found is None else found.to_bytes(net))
    if content is None or team.rank == 0:
        return found
    return parse_checkpoint(content, "the checkpoint of rank 0", net)


def keep_and_share(
    loop: Loop,
    folder: CheckpointFolder | None,
    every: float | timedelta,
    identity: dict[str, Any],
    found: Checkpoint | None,
) -> None:
    """Make a loop write checkpoints, resume from one, and share its steps with other processes."""
    net, team = loop.net, loop.team
    if found is not None:
        require_same(found.identity, identity, is_text=found.is_text)
    if team is not None:
        device = get_device(net.device)
        digest = hashlib.sha256(device.to_numpy(net.parameters).tobytes()).hexdigest()
        versions = f"nnbackend {__version__}, numpy {np.__version__}"
        asked = as_text({**identity, "epochs": loop.epochs})
        team.agree({**asked, "initial parameters": digest, "versions": versions})
        team.allocate(device, net.n_parameters, net.dtype)
    if folder is not None:
        # Fail before training if the network cannot be stored.
        to_bytes(net)
        loop.keep(Keeper(folder, every, as_json(identity), loop.steps))
    if found is not None:
        _LOGGER.info(
            "nnbackend: going on after epoch %d, step %d", found.history.n_epochs, found.position
        )
        loop.resume(found)
