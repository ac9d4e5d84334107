"""The network: structure, parameters and prediction. Begin with ``network.py``."""
