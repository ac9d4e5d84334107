"""The processes of a data-parallel training, on MPI and NCCL. Begin with ``team.py``."""

from __future__ import annotations

from nnbackend.parallel.launch import all_or_none, together, world_of_launcher
from nnbackend.parallel.share import Share
from nnbackend.parallel.team import Team

__all__ = ["Share", "Team", "all_or_none", "together", "world_of_launcher"]
