"""Record the formulas of ``core`` as expressions. Begin with ``expression.py``."""
