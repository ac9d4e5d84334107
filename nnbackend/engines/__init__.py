"""How a training step runs."""
