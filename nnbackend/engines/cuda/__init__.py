"""The CUDA engine: planned steps, generated kernels, cuBLASLt. Begin with ``engine.py``."""
