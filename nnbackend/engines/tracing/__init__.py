"""Record the formulas of ``core`` as expressions and print them. Begin with ``expression.py``."""
