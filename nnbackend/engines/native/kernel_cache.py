"""Keep generated kernels on disk, one module per source, with Numba's machine code beside it."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import sys
import threading
from functools import cache
from glob import escape, glob
from importlib.machinery import SourceFileLoader
from typing import Any

__all__ = ["cache_folder", "load_kernels"]

_LOGGER = logging.getLogger("nnbackend")
_LOCK = threading.Lock()


def cache_folder() -> str:
    """Return the folder of the kernels, which is in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "nnbackend", "kernels")


def load_kernels(source: str) -> Any:
    """Return a generated module, whose functions are compiled when they are first called.

    Numba caches machine code beside the file of a function. So write the source to a file named by
    its hash, in ``cache_folder()``, or in a temporary folder until the process ends if that cannot
    be written. If there is no machine code yet, log a line, since compiling takes seconds.
    """
    name = f"nnbackend_kernels_{_hash(source)}"
    # One of several threads imports the module; the others wait.
    with _LOCK:
        if name not in sys.modules:
            _import(name, source)
        return sys.modules[name]


def _import(name: str, source: str) -> None:
    try:
        path = _written(os.path.join(cache_folder(), f"{name}.py"), source)
        if not os.access(os.path.dirname(path), os.W_OK):
            raise PermissionError(path)
    except OSError:
        path = _written(os.path.join(_temporary_folder(), f"{name}.py"), source)
    folder = os.path.dirname(path)
    if not glob(os.path.join(escape(folder), "__pycache__", f"{name}.*.nbi")):
        _LOGGER.warning(
            "nnbackend: compiling kernels for this kind of network, once; they are kept in %s",
            folder,
        )
    loader = SourceFileLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None:
        raise ImportError(f"cannot import the generated {path}")
    module = importlib.util.module_from_spec(spec)
    # Numba finds cached code by the name of the function's module.
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _hash(source: str) -> str:
    """Return a hash of a source and of the functions that it calls, which Numba does not check."""
    from nnbackend.engines.native import elementary

    with open(elementary.__file__, encoding="utf-8") as file:
        called = file.read()
    return hashlib.sha256(f"{source}\n{called}".encode()).hexdigest()[:24]


def _written(path: str, source: str) -> str:
    """Return the path of a file with the content ``source``; write it if it differs."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    try:
        with open(path, encoding="utf-8") as file:
            is_there = file.read() == source
    except (OSError, UnicodeDecodeError):
        is_there = False
    if not is_there:
        temporary = f"{path}.{os.urandom(8).hex()}.tmp"
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(source)
        os.replace(temporary, path)
    return path


@cache
def _temporary_folder() -> str:
    import atexit
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="nnbackend-kernels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
