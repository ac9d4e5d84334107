"""What the annotations of ``core`` mean; no static type spans the array libraries."""

from __future__ import annotations

from typing import Any, TypeAlias

__all__ = ["Array", "Namespace"]

Array: TypeAlias = Any
"""An array of any library that implements the Python array API standard (2024.12)."""

Namespace: TypeAlias = Any
"""The array API namespace that an array belongs to, conventionally called ``xp``."""
