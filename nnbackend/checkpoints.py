"""Checkpoints: where a training stands, written so that it goes on from there bit for bit.

A checkpoint is a model file that holds the state of the training as well, so that ``load`` reads
the network out of it. It is written whole or not at all, and checked when it is read.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any

import numpy as np

from nnbackend.checks import positive_integer, real
from nnbackend.core.optimizers import OptimizerState
from nnbackend.engines import EngineState
from nnbackend.errors import CheckpointError, InputError, ModelFileError, UnusableModelError
from nnbackend.files import (
    checked_path,
    make_folders,
    remove_leftovers,
    require_writable,
    write_atomically,
)
from nnbackend.history import LISTS, History
from nnbackend.locks import FolderLock
from nnbackend.network import Network
from nnbackend.persistence import STATE, read_training, to_bytes

__all__ = [
    "Checkpoint",
    "CheckpointFolder",
    "Keeper",
    "checked_interval",
    "checkpoint_files",
    "options_of",
    "read_checkpoint",
    "require_same_options",
]

_LOGGER = logging.getLogger("nnbackend")
_NAME = re.compile(r"checkpoint-(\d{12})\.safetensors")
_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Checkpoint:
    """Where a training stands between two steps.

    Attributes
    ----------
    options : dict of str to str
        What the training was asked for, with digests of its data; one that goes on has the same.
    engine : EngineState
        Of NumPy arrays.
    best : array (n_parameters,) or None
        The parameters that early stopping would restore.
    position : int
        Steps of the current epoch that are done.
    generators : dict of str to dict
        The states of the generators ``shuffle``, at the beginning of the epoch, and ``dropout``.
    history : History
        The finished epochs.
    """

    options: dict[str, str]
    engine: EngineState
    best: Any
    position: int
    generators: dict[str, Any]
    history: History

    @property
    def is_finite(self) -> bool:
        """Whether loss and parameters are finite; else the epoch ends in a DivergenceError."""
        return all(map(math.isfinite, self.engine.totals or ())) and bool(
            np.isfinite(self.engine.parameters).all()
        )

    def _arrays(self) -> dict[str, _Array]:
        """Return the arrays beside the parameters, by name."""
        state = self.engine.optimizer.arrays
        arrays = {f"{STATE}{number}": array for number, array in enumerate(state)}
        for name in LISTS:
            if entries := getattr(self.history, name):
                arrays[f"history.{name}"] = np.asarray(entries, np.float64)
        if self.position:
            arrays["finite"] = self.engine.finite
        return arrays if self.best is None else {**arrays, "best": self.best}

    def to_bytes(self, net: Network) -> bytes:
        """Return the content of a file: the network with these parameters, and the rest."""
        host = net.to("cpu").copy()
        host.parameters[...] = self.engine.parameters
        description = {
            "options": self.options,
            "optimizer_step": self.engine.optimizer.step,
            "totals": list(self.engine.totals or ()),
            "position": self.position,
            "generators": self.generators,
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
        """Return what ``to_bytes`` was made of.

        Raises
        ------
        ValueError, TypeError, KeyError
            If it is not what ``to_bytes`` writes.
        """
        options = {str(key): str(value) for key, value in description["options"].items()}
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
        engine = EngineState(parameters, finite, OptimizerState(step, state), totals)
        lists = {
            name: arrays[f"history.{name}"].tolist() if f"history.{name}" in arrays else []
            for name in LISTS
        }
        history = History.from_dict({**description["history"], **lists})
        return cls(options, engine, arrays.get("best"), position, generators, history)


class CheckpointFolder:
    """A folder of checkpoints, of which the newest few are kept.

    It is one training's at a time: another that takes the same folder is refused, where the system
    can lock files.

    Parameters
    ----------
    path : path-like
        The folder; it is made.
    keep : int, default 3
        How many checkpoints stay.

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
            raise CheckpointError(f"checkpoint: expected a folder, got the file {self.path!r}")
        try:
            make_folders(self.path)
            self._lock = FolderLock(self.path)
            require_writable(self.path)
            remove_leftovers(self.path)
        except BlockingIOError as error:
            raise CheckpointError(
                f"checkpoint: expected a folder that no other training is using, got "
                f"{self.path!r}; choose another, or wait"
            ) from error
        except (InputError, OSError) as error:
            self.close()
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Let others use the folder."""
        if self._lock is not None:
            self._lock.release()

    def files(self) -> list[str]:
        """Return the paths of the checkpoints, the newest first."""
        return checkpoint_files(self.path)

    def newest(self, net: Network) -> Checkpoint | None:
        """Return the newest checkpoint that is whole; None if there is none at all.

        Parameters
        ----------
        net : Network
            The network to be trained: the checkpoint is of one with the same structure.

        Raises
        ------
        CheckpointError
            If there are checkpoints and none of them is whole, or the newest that is whole cannot
            be used here.

        Those that are damaged are renamed where an older one is whole.
        """
        files = self.files()
        damaged = []
        reason = ""
        for path in files:
            try:
                checkpoint = read_checkpoint(path, net)
            except UnusableModelError as error:
                # Not damaged: it can be gone on from once what it needs is here.
                reason = str(error).removeprefix("path: ")
                raise CheckpointError(
                    f"checkpoint: expected one to go on from: {reason}; the file is kept"
                ) from error
            except ModelFileError as error:
                cause = error.__cause__
                if isinstance(cause, OSError) and not isinstance(cause, IsADirectoryError):
                    # Not damaged: it may be readable later, or for another user.
                    raise CheckpointError(
                        f"checkpoint: cannot read {path!r} ({cause}); make it readable"
                    ) from error
                _LOGGER.warning("nnbackend: passing over a damaged checkpoint: %s", error)
                damaged.append(path)
                reason = reason or str(error).removeprefix("path: ")
                continue
            for other in damaged:
                # No longer counted: those to come are kept in its place.
                with contextlib.suppress(OSError):
                    os.replace(other, f"{other}.damaged")
            return checkpoint
        if files:
            raise CheckpointError(
                f"checkpoint: expected a whole checkpoint in {self.path!r}, got {len(files)} that "
                f"are damaged, the newest because {reason}; delete them to begin anew"
            )
        return None

    def write(self, step: int, content: bytes) -> None:
        """Write a checkpoint, and delete those that are no longer kept.

        Raises
        ------
        CheckpointError
            If it cannot be written; those before it stay. Also if the folder was deleted, or is
            another training's by now.
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
                f"checkpoint: expected {self.path!r} to stay this training's, but it was deleted "
                "or is another's by now; nothing more is written there: choose another folder"
            )

    def _unwritable(self, error: Exception) -> CheckpointError:
        cause = error.__cause__ or error
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
        files = self.files()
        kept = f"; the newest is {files[0]!r}" if files else ""
        return CheckpointError(
            f"checkpoint: cannot write into {self.path!r} ({reason}){kept}; make room, or choose "
            "another folder"
        )


def checkpoint_files(folder: str) -> list[str]:
    """Return the paths of the checkpoints in a folder, the newest first."""
    try:
        names = os.listdir(folder)
    except (OSError, ValueError):  # the latter for a path with a null in it
        return []
    chosen = sorted((name for name in names if _NAME.fullmatch(name)), reverse=True)
    return [os.path.join(folder, name) for name in chosen]


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


class Keeper:
    """Writes the checkpoints of one training when they are due.

    Parameters
    ----------
    folder : CheckpointFolder
        Where they go.
    every : float or timedelta
        Epochs, fractions of them included, or time.
    options : dict of str to str
        What the training was asked for.
    steps_per_epoch : int
        Steps of an epoch.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        every: float | timedelta,
        options: dict[str, str],
        steps_per_epoch: int,
    ) -> None:
        self._folder, self.options = folder, options
        self._seconds = math.inf
        # More steps than any training takes: due by time alone.
        self._steps = 2**62
        if isinstance(every, timedelta):
            self._seconds = every.total_seconds()
        else:
            self._steps = max(1, round(min(every * steps_per_epoch, self._steps)))
        self._last_time, self._next_step = monotonic(), self._steps

    def steps_to_go(self, steps_done: int) -> int:
        """Return how many steps may be run before a checkpoint is due."""
        return max(1, self._next_step - steps_done)

    def is_due(self, steps_done: int) -> bool:
        """Whether a checkpoint is due, after so many steps in all."""
        return monotonic() - self._last_time >= self._seconds or steps_done >= self._next_step

    def start(self, steps_done: int) -> None:
        """Count from here."""
        self._last_time = monotonic()
        self._next_step = (steps_done // self._steps + 1) * self._steps

    def write(self, net: Network, checkpoint: Checkpoint, steps_done: int) -> None:
        """Write a checkpoint, unless its numbers are not finite: the epoch will say so at its end.

        Raises
        ------
        CheckpointError
            If it cannot be written.
        """
        if checkpoint.is_finite:
            self._folder.write(steps_done, checkpoint.to_bytes(net))
        self.start(steps_done)


def checked_interval(every: Any) -> float | timedelta:
    """Return ``checkpoint_every``, or raise what is wrong with it."""
    if isinstance(every, timedelta):
        if every <= timedelta(0):
            raise InputError(f"checkpoint_every: expected a time > 0, got {every}")
        return every
    if isinstance(every, str):
        raise InputError(
            "checkpoint_every: expected a number of epochs or a datetime.timedelta, such as "
            f"timedelta(minutes=1), got {every!r}"
        )
    return real("checkpoint_every", every, above=0.0)


def options_of(**values: Any) -> dict[str, str]:
    """Return options as text that is the same in every process."""
    # The default repr of an object of the user's own holds its address.
    return {name: re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for name, value in values.items()}


def _excerpt(text: str, start: int, length: int = 120) -> str:
    end = start + length
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"


def require_same_options(found: Mapping[str, str], asked: Mapping[str, str]) -> None:
    """Raise a CheckpointError that names what a training that goes on does differently."""
    # Data last: that other standardization makes other data of them, is said by its own name.
    for name in sorted({*found, *asked}, key=lambda name: ("data" in name, name)):
        was, now = (options.get(name, "nothing") for options in (found, asked))
        if was != now and name != "engine":
            # From a little before where they begin to differ.
            pairs = enumerate(zip(was, now, strict=False))
            start = max(0, next((i for i, (a, b) in pairs if a != b), 0) - 40)
            was, now = (_excerpt(text, start) for text in (was, now))
            raise CheckpointError(
                f"checkpoint: expected to go on with the same {name} ({was}), got {now}; only "
                "epochs and engine may change: pass what the training began with, or choose "
                "another folder"
            )
