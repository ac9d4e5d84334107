"""What a training step computes: pure functions on arrays of any array API namespace.

Nothing here does I/O, keeps state, names a device or a library, or writes into an argument. Every
formula works on arrays with leading stack axes, so that many networks can be computed as one.
"""
