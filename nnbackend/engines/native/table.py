"""The programs of a problem in the form that the library takes, made once for many networks."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nnbackend.engines.native.interface import (
    REDUCTIONS,
    Functions,
    PassSpec,
    ProgramSpec,
    program_spec,
)

if TYPE_CHECKING:
    from nnbackend.core.activations import Activation
    from nnbackend.engines.native.formulas import Formulas
    from nnbackend.engines.native.program import Program

__all__ = ["ProgramTable", "program_table"]


class ProgramTable:
    """The programs of a problem; a network copies the table, but not what the programs refer to.

    Parameters
    ----------
    formulas : Formulas
        The programs.
    functions : Functions
        The library's functions for the dtype.
    dtype : dtype
        The dtype of the network.

    Attributes
    ----------
    specs : ctypes array of ProgramSpec
        The programs.
    hidden : dict
        For each kind of hidden layer, the places of its activation and of its derivative, and
        whether the activations overwrite the pre-activations.
    loss, penalize, update : int
        The places of these programs; -1 for none.
    clips : ctypes array of PassSpec
        The passes that clip the gradient.
    """

    def __init__(self, formulas: Formulas, functions: Functions, dtype: Any) -> None:
        specs: list[ProgramSpec] = []
        self._kept: list[Any] = []

        def place(program: Program | None) -> int:
            if program is None:
                return -1
            spec, arrays = program_spec(program, functions, dtype)
            specs.append(spec)
            self._kept.append(arrays)
            return len(specs) - 1

        self.hidden: dict[tuple[Activation, bool], tuple[int, int, bool]] = {
            kind: (place(activate), place(pull_back), formulas.in_place[kind])
            for kind, (activate, pull_back) in formulas.hidden.items()
        }
        self.clips: Any = (PassSpec * max(len(formulas.clips), 1))()
        for index, (program, reduction) in enumerate(formulas.clips):
            self.clips[index].program = place(program)
            self.clips[index].reduction = REDUCTIONS[reduction]
        self.loss, self.penalize, self.update = map(
            place, (formulas.loss, formulas.penalize, formulas.update)
        )
        self.specs: Any = (ProgramSpec * len(specs))(*specs)


# The formulas of the package are recorded once for each kind of problem, and identify the table.
program_table = lru_cache(maxsize=64)(ProgramTable)
