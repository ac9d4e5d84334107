"""Network: structure, parameters, prediction."""
