"""Describe what a measurement or a bug depends on: versions, libraries, processors."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from nnbackend._version import __version__
from nnbackend.device import devices, get_device
from nnbackend.engines.native.library import variant, why_missing
from nnbackend.errors import MissingDependencyError, NNBackendError

__all__ = ["environment"]

PACKAGES = ("numpy", "array-api-compat", "cupy-cuda12x", "cupy-cuda13x", "scikit-learn")


def environment() -> dict[str, Any]:
    """Return versions, devices and libraries as a dictionary of JSON values."""
    import platform
    from importlib import metadata

    facts: dict[str, Any] = {
        "nnbackend": __version__,
        "Python": platform.python_version(),
        "platform": platform.platform(),
    }
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            facts[package] = metadata.version(package)
    facts["native library"] = variant() or why_missing()
    facts["BLAS"] = _blas()
    facts["cores"] = _cores()
    facts["devices"] = [
        {
            "name": info.name,
            "processor": info.description,
            "memory": "unknown"
            if info.memory_bytes is None
            else f"{info.memory_bytes / 2**30:.1f} GiB",
        }
        for info in devices()
    ]
    if len(facts["devices"]) == 1:
        try:
            get_device("cuda")
        except NNBackendError as error:
            facts["CUDA"] = str(error)
    return facts


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _blas() -> list[dict[str, Any]]:
    try:
        from threadpoolctl import threadpool_info
    except ImportError as error:
        raise MissingDependencyError(
            "the BLAS library is found by threadpoolctl; install it with: pip install threadpoolctl"
        ) from error
    return [
        {
            "library": f"{entry['internal_api']} {entry.get('version')}",
            "architecture": str(entry.get("architecture")),
            "threads": f"{entry['num_threads']} threads",
        }
        for entry in threadpool_info()
        if entry["user_api"] == "blas"
    ]
