"""Print recorded expressions as statements of CUDA C."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnbackend.engines.tracing.expression import Symbol, walk

__all__ = ["CudaPrinter"]

_INFIX = ("+", "-", "*", "/", "<", "<=", ">", ">=", "==", "!=")


class CudaPrinter:
    """Prints expressions as CUDA C, in which ``real`` is the type of real numbers.

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
        self._numbers = numbers
        self._first, self._step, self._reduce = first, step, reduce
        self._names: dict[int, str] = {}
        self._count = 0

    def row(self, outputs: Sequence[tuple[str, Symbol]], length: str, indent: str) -> list[str]:
        """Return the loops that compute outputs along a row of index ``k``.

        Parameters
        ----------
        outputs : sequence of (str, Symbol)
            The target of each expression, such as ``"z[k]"`` or ``"total +="``, and the expression.
        length : str
            The row's length in the code.
        indent : str
            The indentation of every line.
        """
        lines = self._reductions([expression for _, expression in outputs], length, indent)
        return [*lines, *self._loop(length, self.statements(outputs, indent + "    "), indent)]

    def statements(self, outputs: Sequence[tuple[str, Symbol]], indent: str) -> list[str]:
        """Return statements that compute outputs for one element."""
        lines: list[str] = []
        local = dict(self._names)
        self._define([expression for _, expression in outputs], local, indent, lines)
        values = []
        for _, expression in outputs:
            value = local[expression.key]
            if expression.operation == "input" and len(outputs) > 1:
                # Copy the input, since another output may overwrite it first.
                name = self._new()
                lines.append(f"{indent}const {expression.kind} {name} = {value};")
                value = name
            values.append(value)
        for (target, _), value in zip(outputs, values, strict=True):
            assign = target if target.endswith("=") else f"{target} ="
            lines.append(f"{indent}{assign} {value};")
        return lines

    def known(self, node: Symbol, name: str) -> None:
        """Declare that a variable holds the value of a reduction."""
        self._names[node.key] = name

    def _reductions(self, expressions: Sequence[Symbol], length: str, indent: str) -> list[str]:
        """Print the loops of the reductions within expressions, innermost first."""
        lines: list[str] = []
        inner = indent + "    "
        for node in walk(expressions, self._names):
            if node.operation not in ("max", "sum"):
                continue
            name, is_max = self._new(), node.operation == "max"
            start = self._constant(-math.inf if is_max else 0.0)
            body: list[str] = []
            local = dict(self._names)
            self._define(node.operands, local, inner, body)
            value = local[node.operands[0].key]
            largest = f"({value} > {name}) | ({value} != {value})"
            body.append(
                f"{inner}{name} = ({largest}) ? {value} : {name};"
                if is_max
                else f"{inner}{name} += {value};"
            )
            lines.append(f"{indent}real {name} = {start};")
            lines += self._loop(length, body, indent)
            if self._reduce:
                operation = "Max" if is_max else "Sum"
                lines.append(f"{indent}{name} = {self._reduce}<{operation}>({name});")
            self._names[node.key] = name
        return lines

    def _loop(self, length: str, body: Sequence[str], indent: str) -> list[str]:
        """Return a loop over this lane's share of the index ``k``."""
        head = f"for (int k = {self._first}; k < {length}; k += {self._step}) {{"
        return [f"{indent}{head}", *body, f"{indent}}}"]

    def _define(
        self, expressions: Sequence[Symbol], known: dict[int, str], indent: str, lines: list[str]
    ) -> None:
        """Print the computation of expressions, and add each node's name to ``known``."""
        for node in walk(expressions, known):
            if node.operation == "input":
                known[node.key] = str(node.operands[0])
            elif node.operation == "constant":
                known[node.key] = self._constant(node.operands[0])
            else:
                code = _code(node.operation, [known[entry.key] for entry in node.operands])
                known[node.key] = name = self._new()
                lines.append(f"{indent}const {node.kind} {name} = {code};")

    def _constant(self, value: float) -> str:
        """Return the code of a number in the arrays' dtype."""
        if self._numbers is not None:
            for name, known in self._numbers.items():
                if repr(known) == repr(value):
                    return name
            name = f"C{len(self._numbers)}"
            self._numbers[name] = value
            return name
        if math.isinf(value):
            return f"(real){'-' if value < 0 else ''}INFINITY"
        if math.isnan(value):
            return "(real)NAN"
        return f"(real){value!r}"

    def _new(self) -> str:
        self._count += 1
        return f"t{self._count}"


def _code(operation: str, x: Sequence[str]) -> str:
    """Return an operation on operands; functions are overloaded by their arguments' type."""
    if operation in _INFIX:
        return f"{x[0]} {operation} {x[1]}"
    if operation in ("maximum", "minimum"):
        # Return NaN for NaN, as the standard's functions do, without a branch.
        sign = ">" if operation == "maximum" else "<"
        return f"(({x[0]} {sign} {x[1]}) | ({x[0]} != {x[0]})) ? {x[0]} : {x[1]}"
    if operation == "where":
        return f"({x[0]}) ? {x[1]} : {x[2]}"
    if operation == "neg":
        return f"-{x[0]}"
    return f"{'fabs' if operation == 'abs' else operation}({x[0]})"
