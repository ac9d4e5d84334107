"""The mathematics of a training step: pure functions on arrays of any array API namespace.

Nothing here does I/O, names a device or a library, writes into an argument, or keeps state (except
for the table of activations, to which users add their own). Every formula works on arrays with
leading stack axes, so that many networks can be computed as one. Begin with ``objective.py``.
"""
