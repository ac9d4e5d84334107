"""The processes of a data-parallel training, on MPI and NCCL. Begin with ``team.py``."""
