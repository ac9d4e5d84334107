"""The CPU engine: NumPy's products, and kernels compiled by Numba. Begin with ``engine.py``."""
