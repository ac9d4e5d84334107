"""Training: options, loop, early stopping, history, checkpoints. Begin with ``train.py``."""
