"""The folder of a run of the command: what was asked for, the checkpoints, and the outcome."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from nnbackend.checkpoints import checkpoint_files
from nnbackend.errors import InputError
from nnbackend.persistence import write_atomically

__all__ = ["RunFolder", "make_run_folder", "model_file", "remove_if_empty"]

_COMMAND = "command.json"
_CHECKPOINTS = "checkpoints"
_MODEL = "model.safetensors"


class RunFolder:
    """The folder of a training.

    Parameters
    ----------
    path : Path
        Where it is.
    is_new, is_default : bool
        Whether it was made for this run, and whether its name was, too.
    is_begun : bool
        Whether it is of a run that goes on.
    """

    def __init__(
        self, path: Path, *, is_new: bool = False, is_default: bool = False, is_begun: bool = False
    ) -> None:
        self.path, self._is_begun = path, is_begun
        self._is_new, self._is_default = is_new, is_default

    @classmethod
    def made(cls, path: str | None, name: str) -> RunFolder:
        """Return the folder of a new run: ``path``, or a new ``runs/NAME-DATE-TIME``."""
        folder, is_new = make_run_folder(path, name)
        return cls(folder, is_new=is_new, is_default=path is None)

    @classmethod
    def begun(cls, path: str) -> RunFolder:
        """Return the folder of a run that was begun."""
        return cls(Path(path), is_begun=True)

    @property
    def checkpoints(self) -> str:
        """The folder of the checkpoints."""
        return str(self.path / _CHECKPOINTS)

    def write_command(self, arguments: Sequence[str]) -> None:
        """Note what was asked for."""
        content = f"{json.dumps({'arguments': list(arguments)})}\n"
        write_atomically(self.path / _COMMAND, content.encode())

    def read_command(self) -> list[str]:
        """Return what was asked for.

        Raises
        ------
        InputError
            If this is not the folder of a run.
        """
        try:
            with open(self.path / _COMMAND, "rb") as file:
                # More than any command line holds.
                arguments = [str(text) for text in json.loads(file.read(2**22))["arguments"]]
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(
                f"--resume: expected the folder of a run, got {str(self.path)!r}, whose {_COMMAND} "
                f"cannot be read ({type(error).__name__}); begin anew"
            ) from error
        return arguments

    def remove_if_useless(self) -> bool:
        """Leave nothing behind of a new run that has learnt nothing; return whether one has."""
        if checkpoint_files(self.checkpoints) or (self.path / _MODEL).exists():
            return False
        if self._is_begun:
            return True
        with contextlib.suppress(OSError):
            os.rmdir(self.checkpoints)
        with contextlib.suppress(OSError):
            (self.path / _COMMAND).unlink()
        remove_if_empty(self.path, is_new=self._is_new, is_default=self._is_default)
        return True


def remove_if_empty(folder: Path, *, is_new: bool, is_default: bool) -> None:
    """Leave no empty run folder behind, if it was made for this run."""
    if is_new:
        with contextlib.suppress(OSError):
            folder.rmdir()
            if is_default:
                folder.parent.rmdir()


def model_file(path: str) -> str:
    """Return the model file that a path names: itself, or a run's model or newest checkpoint."""
    inside = os.path.join(path, _MODEL)
    if os.path.isfile(inside):
        return inside
    checkpoints = checkpoint_files(os.path.join(path, _CHECKPOINTS)) or checkpoint_files(path)
    return checkpoints[0] if checkpoints else path


def make_run_folder(path: str | None, name: str) -> tuple[Path, bool]:
    """Create the folder of a run: ``path``, new or empty, or a new ``runs/NAME-DATE-TIME``.

    Returns
    -------
    folder : Path
    is_new : bool
        Whether it did not exist before.

    Raises
    ------
    InputError
        If it cannot be created or written, or is not empty.
    """
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    try:
        if path is not None:
            folder = Path(path)
            is_new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise InputError(
                    f"--out: expected a new or an empty folder, got {path!r}, which holds files; "
                    "choose another"
                )
        else:
            is_new = True
            base, count = Path("runs") / f"{name}-{stamp}", 1
            folder = base
            while True:
                with contextlib.suppress(FileExistsError):
                    folder.mkdir(parents=True)
                    break
                count += 1
                folder = base.with_name(f"{base.name}-{count}")
        write_atomically(folder / ".writable", b"")
        (folder / ".writable").unlink()
    except OSError as error:
        raise InputError(
            f"--out: cannot create the run folder {path or str(Path('runs'))!r} "
            f"({error.strerror or error}); choose another with --out"
        ) from error
    return folder, is_new
