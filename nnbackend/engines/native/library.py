"""Find the native library that was compiled with the package, and load it.

The folder has one shared library per variant of the processor, and a manifest that names them with
their digests. A file is read before it is loaded: the system's loader crashes on a truncated one.

Environment
-----------
NNBACKEND_VARIANT
    The variant to load, such as ``x86-64-v3``; ``none`` for none. The default is the fastest that
    the processor runs.
NNBACKEND_LIBRARY_FOLDER
    Another folder with libraries, such as those compiled with sanitizers.
"""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

from nnbackend._version import __version__
from nnbackend.engines.native.compiling import FOLDER, MANIFEST, ROOT, SOURCE, sources_digest
from nnbackend.errors import InputError

__all__ = ["libraries", "library", "variant", "why_missing"]


class _UnusableError(Exception):
    """There is no library to use; the text says why and how to mend it."""


class _Choice(NamedTuple):
    """What is used: a variant and its library; or neither, and the reason."""

    variant: str | None
    library: ctypes.CDLL | None
    reason: str


# What has been found, by the environment's wishes and by path. Two threads may find the same at
# once; setdefault keeps the first. A lock could be left locked in a forked process.
_CHOICES: dict[tuple[str | None, str | None], _Choice] = {}
_LOADED: dict[str, ctypes.CDLL] = {}


def library() -> ctypes.CDLL | None:
    """Return the library, loaded when it is first asked for; None if there is none.

    Raises
    ------
    InputError
        If ``NNBACKEND_VARIANT`` names a variant that is not installed or that this processor does
        not run.
    """
    return _choice().library


def variant() -> str | None:
    """Return the variant of the library, such as ``"x86-64-v4"``; None if there is none."""
    return _choice().variant


def why_missing() -> str:
    """Return one line that says why there is no library and how to mend it; empty if there is."""
    return _choice().reason


def libraries() -> dict[str, ctypes.CDLL]:
    """Return all libraries that this processor runs, by variant, the slowest first."""
    folder = _folder()
    try:
        return {name: _load(folder, *file) for name, file in _runnable(folder).items()}
    except _UnusableError:
        return {}


def _choice() -> _Choice:
    wishes = (os.environ.get("NNBACKEND_VARIANT"), os.environ.get("NNBACKEND_LIBRARY_FOLDER"))
    found = _CHOICES.get(wishes)
    return _CHOICES.setdefault(wishes, _choose(wishes[0])) if found is None else found


def _folder() -> str:
    return os.environ.get("NNBACKEND_LIBRARY_FOLDER") or FOLDER


def _choose(wanted: str | None) -> _Choice:
    if wanted == "none":
        return _Choice(None, None, "NNBACKEND_VARIANT is 'none'; unset it to use the library")
    folder = _folder()
    try:
        runnable = _runnable(folder)
        name = wanted or list(runnable)[-1]
        if name in runnable:
            return _Choice(name, _load(folder, *runnable[name]), "")
        there = f"{', '.join(runnable)} or none"
    except _UnusableError as error:
        if not wanted:
            return _Choice(None, None, str(error))
        there = f"none, since {error}"
    raise InputError(
        f"expected a variant that is installed and that this processor runs ({there}), got "
        f"{wanted!r}; unset it for the fastest",
        argument="NNBACKEND_VARIANT",
    )


def _runnable(folder: str) -> dict[str, list[str]]:
    """Return file name and digest of each variant that this processor runs, the slowest first."""
    files = _installed(folder)
    lowest = next(iter(files))
    if not lowest.startswith("x86-64-v"):
        return files
    level = int(_load(folder, *files[lowest]).nnbackend_level())
    found = {name: file for name, file in files.items() if int(name[-1]) <= level}
    if not found:
        raise _UnusableError(
            f"the native library needs a processor of level {lowest} (SSE4.2), and this one has "
            "less"
        )
    return found


def _installed(folder: str) -> dict[str, list[str]]:
    """Return file name and digest of each variant in the manifest."""
    try:
        with open(os.path.join(folder, MANIFEST), encoding="utf-8") as file:
            entries = dict(line.rstrip("\n").split(" ", 1) for line in file)
    except FileNotFoundError:
        raise _UnusableError(f"the native library has not been compiled; {_remedy()}") from None
    except (OSError, ValueError) as error:
        raise _damaged(MANIFEST, error) from error
    if "failed" in entries:
        raise _UnusableError(
            f"the native library could not be compiled when nnbackend was installed "
            f"({entries['failed']}); install gcc or clang, then {_remedy()}"
        )
    facts = {key: entries.pop(key, "") for key in ("version", "sources", "compiler")}
    if facts["version"] != __version__:
        raise _UnusableError(
            f"the native library is of version {facts['version'] or 'unknown'} of nnbackend, and "
            f"this is {__version__}; {_remedy()}"
        )
    if sources_digest() not in (None, facts["sources"]):
        raise _UnusableError(f"the native library is older than its sources; {_remedy()}")
    files = {name: value.split(" ") for name, value in entries.items()}
    if not files or any(len(file) != 2 for file in files.values()):
        raise _damaged(MANIFEST, "it names no libraries")
    return files


def _load(folder: str, file: str, digest: str) -> ctypes.CDLL:
    path = os.path.join(folder, file)
    loaded = _LOADED.get(path)
    if loaded is not None:
        return loaded
    import hashlib

    try:
        with open(path, "rb") as stream:
            content = stream.read()
        if hashlib.sha256(content).hexdigest() != digest:
            raise _damaged(file, "its content is not what was installed")
        return _LOADED.setdefault(path, ctypes.CDLL(path))
    except OSError as error:
        raise _damaged(file, error) from error


def _damaged(file: str, reason: object) -> _UnusableError:
    return _UnusableError(
        f"the native library cannot be loaded from {file} ({' '.join(str(reason).split())}); "
        f"{_remedy()}"
    )


def _remedy() -> str:
    """Return what mends the library: to install this package again, from where it came."""
    if os.environ.get("NNBACKEND_LIBRARY_FOLDER"):
        return "unset NNBACKEND_LIBRARY_FOLDER"
    if os.path.isdir(SOURCE):
        return f"run: pip install --no-deps --editable {_quoted(ROOT)}"
    # Without the cache: pip keeps a wheel that was built without a compiler.
    return f"run: pip install --force-reinstall --no-deps --no-cache-dir {_quoted(_origin())}"


def _origin() -> str:
    """Return the folder or address from which this package was installed, or its name."""
    import json
    from importlib import metadata

    try:
        text = metadata.distribution("nnbackend").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        text = None
    address = json.loads(text)["url"] if text else "nnbackend"
    if address.startswith("file://"):
        from urllib.request import url2pathname

        path = url2pathname(address.removeprefix("file://"))
        return path if os.path.exists(path) else "nnbackend"
    return str(address)


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
