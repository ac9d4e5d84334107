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
        An error; if it is about an argument, its sentence begins with the name and a colon.
    names : mapping of str to str
        The command's names by the library's; other names stay.
    """
    sentence, argument = str(error), _argument(error)
    if argument not in names or not sentence.startswith(f"{argument}:"):
        return sentence
    return f"{names[argument]}{sentence.removeprefix(argument)}"


def _argument(error: NNBackendError) -> str:
    given = getattr(error, "argument", None)
    return str(error).partition(":")[0] if given is None else str(given)


@contextlib.contextmanager
def naming(**names: str) -> Iterator[None]:
    """Raise the InputErrors of a block again, with the command's names of the arguments."""
    try:
        yield
    except InputError as error:
        raise InputError(renamed(error, names)) from error
