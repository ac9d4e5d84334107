"""The command ``nnbackend``."""

from __future__ import annotations

from nnbackend.cli.main import main

__all__ = ["main"]
