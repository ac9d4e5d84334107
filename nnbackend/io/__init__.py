"""Files and other libraries' models."""
