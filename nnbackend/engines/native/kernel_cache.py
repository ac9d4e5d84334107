"""Generated kernels on disk: one module per source, whose machine code Numba keeps beside it."""

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
    """Return where kernels are kept: in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "nnbackend", "kernels")


def load_kernels(source: str) -> Any:
    """Return a generated module, whose functions are compiled when they are first called.

    Numba caches machine code beside the file a function comes from, so the source is written to a
    file named by its hash: in ``cache_folder()``, or, where that cannot be written, in a temporary
    one that ends with the process. Where there is no machine code yet, a line is logged, since
    compiling takes seconds.
    """
    name = f"nnbackend_kernels_{_hash(source)}"
    # One of several threads imports it; the others wait.
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
    # Numba finds the cached code of a function by the name of its module.
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _hash(source: str) -> str:
    """Return a name for a source and for the functions it calls, which Numba does not watch."""
    from nnbackend.engines.native import elementary

    with open(elementary.__file__, encoding="utf-8") as file:
        called = file.read()
    return hashlib.sha256(f"{source}\n{called}".encode()).hexdigest()[:24]


def _written(path: str, source: str) -> str:
    """Return the path of a file that holds ``source``, written whole if it does not yet."""
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
