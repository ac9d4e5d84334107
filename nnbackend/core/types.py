"""Names for annotations; no static type spans the array libraries, so these say what is meant."""

from __future__ import annotations

from typing import Any, TypeAlias

__all__ = ["Array", "Namespace"]

Array: TypeAlias = Any
"""An array of any library that implements the Python array API standard (2024.12)."""

Namespace: TypeAlias = Any
"""The array API namespace of an array, conventionally called ``xp``."""
