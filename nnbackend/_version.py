"""The version of nnbackend."""

__version__ = "0.1.0"
