"""Replace the library's names of arguments in errors by the command's options."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from nnbackend.errors import InputError, NNBackendError

__all__ = ["naming", "option_name", "renamed"]


def option_name(name: str) -> str:
    """Return the option of a field, such as ``--batch-size`` for ``batch_size``."""
    return f"--{name.replace('_', '-')}"


def renamed(error: NNBackendError, names: Mapping[str, str]) -> str:
    """Return an error's sentence with the command's name of the argument.

    Parameters
    ----------
    error : NNBackendError
        An error, which may be about an argument.
    names : mapping of str to str
        The command's names by the library's; other names stay.
    """
    if error.argument is None or error.argument not in names:
        return str(error)
    return f"{names[error.argument]}: {error.message}"


@contextlib.contextmanager
def naming(**names: str) -> Iterator[None]:
    """Raise the InputErrors of a block again, with the command's names of the arguments."""
    try:
        yield
    except InputError as error:
        argument = None if error.argument is None else names.get(error.argument, error.argument)
        raise InputError(error.message, argument) from error
