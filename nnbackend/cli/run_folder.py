"""The folder of a run: its command, its checkpoints and its outcome."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from nnbackend.errors import InputError
from nnbackend.io.files import (
    checked_path,
    make_folders,
    remove_leftovers,
    require_writable,
    write_atomically,
)
from nnbackend.io.locks import LOCK_FILE, FolderLock
from nnbackend.training.checkpoint import read_training
from nnbackend.training.checkpoint_folder import checkpoint_files
from nnbackend.training.errors import CheckpointError

__all__ = ["RunFolder", "model_file", "read_command"]


T = TypeVar("T")


_COMMAND = "command.json"


_CHECKPOINTS = "checkpoints"


_MODEL = "model.safetensors"


_HISTORY = "history.json"


class RunFolder:
    """The folder of a run; no other run can use it until it is closed.

    Parameters
    ----------
    path : Path
        The folder; it exists.
    is_new, is_default : bool
        Whether the folder, and whether its name, was made for this run.
    is_begun : bool
        Whether the run is resumed.

    Raises
    ------
    BlockingIOError
        If another run is using the folder.
    OSError
        If it cannot be written.
    """

    def __init__(
        self, path: Path, *, is_new: bool = False, is_default: bool = False, is_begun: bool = False
    ) -> None:
        self.path, self._is_begun = path, is_begun
        self._is_new, self._is_default = is_new, is_default
        # Lock the folder before looking at it, so that nobody else changes what is there.
        self._lock = FolderLock(str(path))
        remove_leftovers(str(path))

    @classmethod
    def made(cls, path: str | None, name: str) -> RunFolder:
        """Make the folder of a new run: ``path``, or ``runs/NAME-DATE-TIME``.

        Raises
        ------
        InputError
            If it cannot be created or written, is not empty, or another run is using it.
        """
        try:
            if path is None:
                made, is_new = _new_folder(name), True
            else:
                made = Path(checked_path(path, "--out"))
                is_new = not made.exists()
                make_folders(path)
            folder = cls(made, is_new=is_new, is_default=path is None)
            try:
                folder._require_empty()
                require_writable(str(made))
            except BaseException:
                folder.close()
                raise
        except BlockingIOError as error:
            raise InputError(
                f"expected a folder that no other run is using, got {path!r}; choose another",
                argument="--out",
            ) from error
        except OSError as error:
            raise InputError(
                f"cannot create the run folder {path or 'runs'!r} "
                f"({error.strerror or error}); choose another with --out",
                argument="--out",
            ) from error
        return folder

    @classmethod
    def begun(cls, path: str) -> RunFolder:
        """Open the folder of a run to resume.

        Raises
        ------
        InputError
            If there is no such folder, it cannot be written, or another process is using it.
        """
        try:
            return cls(Path(path), is_begun=True)
        except BlockingIOError as error:
            raise InputError(
                f"expected a run that no other process is training, got {path!r}; wait "
                "until it ends",
                argument="--resume",
            ) from error
        except OSError as error:
            raise InputError(
                f"expected the folder of a run, got {path!r}, which cannot be written "
                f"({error.strerror or error})",
                argument="--resume",
            ) from error

    def _require_empty(self) -> None:
        if set(os.listdir(self.path)) - {LOCK_FILE}:
            raise InputError(
                f"expected a new or an empty folder, got {str(self.path)!r}, which holds "
                "files; choose another",
                argument="--out",
            )

    @property
    def checkpoints(self) -> str:
        """The folder of the checkpoints."""
        return str(self.path / _CHECKPOINTS)

    @property
    def is_own(self) -> bool:
        """Whether the folder is still there, and has not been replaced by another."""
        return self._lock.holds

    def write(self, name: str, content: bytes) -> None:
        """Write a file.

        Raises
        ------
        CheckpointError
            If the folder was deleted or replaced.
        InputError
            If the file cannot be written.
        """
        self.require_own()
        write_atomically(self.path / name, content)

    def require_own(self) -> None:
        """Raise a CheckpointError if the folder was deleted or replaced."""
        if not self.is_own:
            raise CheckpointError(
                f"the run folder {str(self.path)!r} was deleted, or is another run's by now: "
                "nothing more is written there; begin anew"
            )

    def write_command(self, fields: Mapping[str, Any], *, has_outcome: bool = False) -> None:
        """Write the fields of a request, and the checkpoint that the outcome belongs to."""
        facts: dict[str, Any] = {"options": dict(fields)}
        if has_outcome:
            facts["outcome"] = os.path.basename((checkpoint_files(self.checkpoints) or [""])[0])
        self.write(_COMMAND, f"{json.dumps(facts)}\n".encode())

    def abandon(self) -> bool:
        """Close the folder of a failed run; return whether the run had learnt nothing.

        Delete a new folder if the run had learnt nothing.
        """
        if not self.is_own:
            self.close()
            return True
        is_useless = not (checkpoint_files(self.checkpoints) or (self.path / _MODEL).exists())
        is_to_go = is_useless and not self._is_begun
        if is_to_go:
            with contextlib.suppress(OSError):
                os.rmdir(self.checkpoints)
            with contextlib.suppress(OSError):
                (self.path / _COMMAND).unlink()
        self.close()
        if is_to_go and self._is_new:
            # This fails, as it should, if anyone has put a file there meanwhile.
            with contextlib.suppress(OSError):
                self.path.rmdir()
                if self._is_default:
                    self.path.parent.rmdir()
        return is_useless

    def close(self) -> None:
        """Release the folder for other runs."""
        self._lock.release()


def read_command(path: str, interpreted: Callable[[Any], T]) -> T:
    """Return what the run in a folder was asked for.

    Parameters
    ----------
    path : str
        The folder.
    interpreted : callable
        Is called with what the folder's ``command.json`` holds; raises ValueError, TypeError or
        KeyError for what it cannot read.

    Raises
    ------
    InputError
        If it is not the folder of a run.
    """
    try:
        with open(os.path.join(path, _COMMAND), "rb") as file:
            # No command is as long as this.
            return interpreted(json.loads(file.read(2**22)))
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"expected the folder of a run, got {path!r}, whose {_COMMAND} cannot be "
            f"read ({type(error).__name__}); begin anew",
            argument="--resume",
        ) from error


def _new_folder(name: str) -> Path:
    """Make a folder ``runs/NAME-DATE-TIME``."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = base = Path("runs") / f"{name}-{stamp}"
    count = 1
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
        count += 1
        folder = base.with_name(f"{base.name}-{count}")


def model_file(path: str) -> str:
    """Return the model file that a path stands for: the path itself, or a file of a run.

    A run stands for its outcome, or for its newest checkpoint if that was written later.
    """
    inside = os.path.join(path, _MODEL)
    checkpoints = checkpoint_files(os.path.join(path, _CHECKPOINTS)) or checkpoint_files(path)
    if os.path.isfile(inside) and not (checkpoints and _is_after_outcome(checkpoints[0], path)):
        return inside
    return checkpoints[0] if checkpoints else path


def _is_after_outcome(checkpoint: str, path: str) -> bool:
    """Whether a checkpoint was written after the outcome of a run.

    Step numbers do not tell: after early stopping, Ctrl-C or divergence, the outcome is of an
    earlier step than the last checkpoint.
    """
    hostile = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
    with contextlib.suppress(OSError, *hostile):
        outcome = _facts(path, _COMMAND).get("outcome")
        if outcome is not None:
            return os.path.basename(checkpoint) > str(outcome)
        # An earlier version wrote no outcome: compare epochs with the run's history.
        epochs = len(_facts(path, _HISTORY)["history"]["loss"])
        return bool(read_training(checkpoint)[1]["n_epochs"] > epochs)
    return False


def _facts(path: str, name: str) -> dict[str, Any]:
    with open(os.path.join(path, name), "rb") as file:
        facts: dict[str, Any] = json.load(file)
    return facts
