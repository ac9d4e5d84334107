"""The command ``nnbackend``."""
