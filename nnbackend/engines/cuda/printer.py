"""Print expressions as CUDA C."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnbackend.engines.tracing.expression import Symbol
from nnbackend.engines.tracing.printer import Printer

__all__ = ["CudaPrinter"]


class CudaPrinter(Printer):
    """Prints expressions as CUDA C.

    Parameters
    ----------
    numbers : dict, optional
        Receives constants by the names of variables, which the caller defines. Without it,
        constants are printed in place.
    first, step : str
        The first index and the increment of the loop over a row, which several lanes share.
    reduce : str
        The function that combines the lanes' reductions; empty for one lane.
    """

    def __init__(
        self,
        numbers: dict[str, float] | None = None,
        *,
        first: str = "0",
        step: str = "1",
        reduce: str = "",
    ) -> None:
        super().__init__({} if numbers is None else numbers, set())
        self._is_literal = numbers is None
        self._first, self._step, self._reduce = first, step, reduce

    def loop(self, length: str, body: Sequence[str], indent: str) -> list[str]:
        """Return a loop over this lane's share of the index ``k``."""
        head = f"for (int k = {self._first}; k < {length}; k += {self._step}) {{"
        return [f"{indent}{head}", *body, f"{indent}}}"]

    def statement(self, code: str) -> str:
        """Return an assignment as a statement."""
        return f"{code};"

    def definition(self, name: str, code: str, kind: str) -> str:
        """Return the definition of a constant variable."""
        return f"const {kind} {name} = {code};"

    def accumulator(self, name: str, start: str) -> str:
        """Return the definition of a reduction's variable."""
        return f"real {name} = {start};"

    def reduced(self, operation: str, name: str) -> list[str]:
        """Return the statements that combine the lanes."""
        if not self._reduce:
            return []
        return [f"{name} = {self._reduce}<{'Max' if operation == 'max' else 'Sum'}>({name});"]

    def choice(self, condition: str, yes: str, no: str) -> str:
        """Return a conditional expression."""
        return f"({condition}) ? {yes} : {no}"

    def call(self, function: str, x: str) -> str:
        """Return a call of a function, which is overloaded by the argument's type."""
        return f"{'fabs' if function == 'abs' else function}({x})"

    def constant(self, value: float) -> str:
        """Return the code of a number in the arrays' dtype."""
        if not self._is_literal:
            return super().constant(value)
        if math.isinf(value):
            return f"(real){'-' if value < 0 else ''}INFINITY"
        if math.isnan(value):
            return "(real)NAN"
        return f"(real){value!r}"

    def known(self, node: Symbol, name: str) -> None:
        """Declare that a variable holds the value of a reduction."""
        self._names[node.key] = name
