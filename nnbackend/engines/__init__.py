"""Engines, which run training steps: reference, native (CPU), CUDA. Begin with ``base.py``."""
