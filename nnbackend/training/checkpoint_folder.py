"""Write checkpoints into a folder when they are due, and find the newest undamaged one.

A checkpoint is a model file that also holds the state of the training, so ``load`` can read the
network from it. It is written completely or not at all, and checked when it is read.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from datetime import timedelta
from time import monotonic
from typing import Any

from nnbackend.checks import positive_integer
from nnbackend.errors import InputError, ModelFileError, UnusableModelError
from nnbackend.io.files import (
    checked_path,
    make_folders,
    remove_leftovers,
    require_writable,
    write_atomically,
)
from nnbackend.io.locks import FolderLock
from nnbackend.model.network import Network
from nnbackend.training.checkpoint import Checkpoint, read_checkpoint
from nnbackend.training.errors import CheckpointError

__all__ = ["CheckpointFolder", "Keeper", "checkpoint_files"]

_LOGGER = logging.getLogger("nnbackend")
_NAME = re.compile(r"checkpoint-(\d{12})\.safetensors")


class CheckpointFolder:
    """A folder of checkpoints that keeps the newest few.

    Only one training can use it at a time: a second one is refused, if the system can lock files.

    Parameters
    ----------
    path : path-like
        The folder; it is created if needed.
    keep : int, default 3
        The number of checkpoints to keep.

    Raises
    ------
    CheckpointError
        If the folder cannot be made or written, or another training is using it.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 3) -> None:
        self.path = checked_path(path, "checkpoint")
        self._keep = positive_integer("checkpoints_kept", keep)
        self._lock: FolderLock | None = None
        if os.path.isfile(self.path):
            raise CheckpointError(
                f"expected a folder, got the file {self.path!r}", argument="checkpoint"
            )
        try:
            make_folders(self.path)
            self._lock = FolderLock(self.path)
            require_writable(self.path)
            remove_leftovers(self.path)
        except BlockingIOError as error:
            raise CheckpointError(
                f"expected a folder that no other training is using, got "
                f"{self.path!r}; choose another, or wait",
                argument="checkpoint",
            ) from error
        except (InputError, OSError) as error:
            self.close()
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Let other trainings use the folder."""
        if self._lock is not None:
            self._lock.release()

    def files(self) -> list[str]:
        """Return the paths of the checkpoints, the newest first."""
        return checkpoint_files(self.path)

    def newest(self, net: Network) -> Checkpoint | None:
        """Return the newest undamaged checkpoint; None if the folder has no checkpoints.

        If an older checkpoint is undamaged, rename the damaged ones.

        Parameters
        ----------
        net : Network
            The network to be trained. The checkpoint has to have the same structure.

        Raises
        ------
        CheckpointError
            If all checkpoints are damaged, or the newest undamaged one cannot be used here.
        """
        files = self.files()
        damaged = []
        reason = ""
        for path in files:
            try:
                checkpoint = read_checkpoint(path, net)
            except UnusableModelError as error:
                # The file is undamaged: it can be used once the missing package is installed.
                reason = error.message
                raise CheckpointError(
                    f"expected one that can be resumed from: {reason}; the file is kept",
                    argument="checkpoint",
                ) from error
            except ModelFileError as error:
                cause = error.__cause__
                if isinstance(cause, OSError) and not isinstance(cause, IsADirectoryError):
                    # The file may be undamaged, and readable later or for another user.
                    raise CheckpointError(
                        f"cannot read {path!r} ({cause}); make it readable", argument="checkpoint"
                    ) from error
                _LOGGER.warning("nnbackend: passing over a damaged checkpoint: %s", error)
                damaged.append(path)
                reason = reason or error.message
                continue
            for other in damaged:
                # Under this name it no longer counts among the checkpoints to keep.
                with contextlib.suppress(OSError):
                    os.replace(other, f"{other}.damaged")
            return checkpoint
        if files:
            raise CheckpointError(
                f"expected a whole checkpoint in {self.path!r}, got {len(files)} that "
                f"are damaged, the newest because {reason}; delete them to begin anew",
                argument="checkpoint",
            )
        return None

    def write(self, step: int, content: bytes) -> None:
        """Write a checkpoint, and delete the oldest ones beyond the number to keep.

        Raises
        ------
        CheckpointError
            If it cannot be written, or if the folder was deleted or taken by another training. The
            earlier checkpoints stay.
        """
        path = os.path.join(self.path, f"checkpoint-{step:012d}.safetensors")
        try:
            self._require_own()
            write_atomically(path, content)
            self._require_own()
        except (InputError, OSError) as error:
            raise self._unwritable(error) from error
        for old in self.files()[self._keep :]:
            with contextlib.suppress(OSError):
                os.unlink(old)

    def _require_own(self) -> None:
        if self._lock is not None and not self._lock.holds:
            raise CheckpointError(
                f"expected {self.path!r} to stay this training's, but it was deleted "
                "or is another's by now; nothing more is written there: choose another folder",
                argument="checkpoint",
            )

    def _unwritable(self, error: Exception) -> CheckpointError:
        cause = error.__cause__ or error
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
        files = self.files()
        kept = f"; the newest is {files[0]!r}" if files else ""
        return CheckpointError(
            f"cannot write into {self.path!r} ({reason}){kept}; make room, or choose "
            "another folder",
            argument="checkpoint",
        )


def checkpoint_files(folder: str) -> list[str]:
    """Return the paths of the checkpoints in a folder, the newest first."""
    try:
        names = os.listdir(folder)
    except (OSError, ValueError):  # a null character in the path raises a ValueError
        return []
    chosen = sorted((name for name in names if _NAME.fullmatch(name)), reverse=True)
    return [os.path.join(folder, name) for name in chosen]


class Keeper:
    """Writes the checkpoints of one training when they are due.

    Parameters
    ----------
    folder : CheckpointFolder
        The folder to write to.
    every : float or timedelta
        The interval, in epochs (fractions are allowed) or as a time.
    identity : dict
        All that decides the outcome, as JSON values.
    steps_per_epoch : int
        The number of steps of an epoch.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        every: float | timedelta,
        identity: dict[str, Any],
        steps_per_epoch: int,
    ) -> None:
        self._folder, self.identity = folder, identity
        self._seconds = math.inf
        # No training takes so many steps, so checkpoints are due by time only.
        self._steps = 2**62
        if isinstance(every, timedelta):
            self._seconds = every.total_seconds()
        else:
            self._steps = max(1, round(min(every * steps_per_epoch, self._steps)))
        self._last_time, self._next_step = monotonic(), self._steps

    def steps_to_go(self, steps_done: int) -> int:
        """Return how many steps may run before the next checkpoint is due."""
        return max(1, self._next_step - steps_done)

    def is_due(self, steps_done: int) -> bool:
        """Whether a checkpoint is due after ``steps_done`` steps in all."""
        return monotonic() - self._last_time >= self._seconds or steps_done >= self._next_step

    def start(self, steps_done: int) -> None:
        """Count steps and time from now on."""
        self._last_time = monotonic()
        self._next_step = (steps_done // self._steps + 1) * self._steps

    def write(self, net: Network, checkpoint: Checkpoint, steps_done: int) -> None:
        """Write a checkpoint, unless its numbers are not finite, which the epoch's end reports.

        Raises
        ------
        CheckpointError
            If it cannot be written.
        """
        if checkpoint.is_finite:
            self._folder.write(steps_done, checkpoint.to_bytes(net))
        self.start(steps_done)
