"""The command ``nnbackend``."""

from __future__ import annotations

from nnbackend.cli.command import main

__all__ = ["main"]
