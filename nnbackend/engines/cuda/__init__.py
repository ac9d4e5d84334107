"""The engine of the GPU."""
