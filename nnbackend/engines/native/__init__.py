"""The CPU engine: a C library, compiled before it ships, and what trains with it.

Begin with ``engine.py``, which trains. What lies where:

- ``objective.py`` computes an objective and its gradient for another minimizer, ``forward.py``
  predicts.
- ``source/``: the C code, written once for float32 and float64 on vectors whose size follows the
  processor; ``step.h`` has the loop over epochs and steps.
- ``formulas.py`` records a problem's formulas, ``program.py`` turns them into programs, which the
  library interprets, and ``printing.py`` prints those of the package as C.
- ``compiling.py`` compiles the variants; ``hatch_build.py`` calls it when the package is built.
  ``library.py`` finds the variant for this processor and loads it; ``interface.py`` describes its
  structures and functions to ctypes, and checks what goes into them; ``threads.py`` decides how
  many threads run.
"""
