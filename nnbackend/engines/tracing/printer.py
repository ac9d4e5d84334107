"""Print recorded expressions as statements of Python, or of another language by a subclass."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnbackend.engines.tracing.expression import Symbol, walk

__all__ = ["Printer"]


class Printer:
    """Prints expressions as Python statements that Numba compiles.

    Printers for other languages override the methods ``loop`` to ``constant``.

    Parameters
    ----------
    constants : dict
        Receives the constants by their names in the code. The caller defines them in the dtype of
        the data, since in Numba a Python float would widen float32 arithmetic to float64.
    functions : set of str
        Receives the names of the functions that the code calls, which the caller defines.
    """

    def __init__(self, constants: dict[str, float], functions: set[str]) -> None:
        self.constants = constants
        self.functions = functions
        self._names: dict[int, str] = {}
        self._count = 0

    def row(
        self, outputs: Sequence[tuple[str, Symbol]], length: str, indent: str, extra: str = ""
    ) -> list[str]:
        """Return the loops that compute outputs along a row of index ``k``.

        Parameters
        ----------
        outputs : sequence of (str, Symbol)
            The target of each expression, such as ``"dZ[i, k]"`` or ``"total +="``, and the
            expression.
        length : str
            The row's length in the code.
        indent : str
            The indentation of every line.
        extra : str
            A statement at the end of the last loop's body.
        """
        lines = self._reductions([expression for _, expression in outputs], length, indent)
        body = self.statements(outputs, indent + "    ")
        if extra:
            body.append(f"{indent}    {extra}")
        return [*lines, *self.loop(length, body, indent)]

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
                lines.append(indent + self.definition(name, value, expression.kind))
                value = name
            values.append(value)
        for (target, _), value in zip(outputs, values, strict=True):
            assign = target if target.endswith("=") else f"{target} ="
            lines.append(indent + self.statement(f"{assign} {value}"))
        return lines

    def _reductions(self, expressions: Sequence[Symbol], length: str, indent: str) -> list[str]:
        """Print the loops of the reductions within expressions, innermost first."""
        lines: list[str] = []
        inner = indent + "    "
        for node in walk(expressions, self._names):
            if node.operation not in ("max", "sum"):
                continue
            name = self._new()
            start = self.constant(-math.inf if node.operation == "max" else 0.0)
            lines.append(indent + self.accumulator(name, start))
            body: list[str] = []
            local = dict(self._names)
            self._define(node.operands, local, inner, body)
            value = local[node.operands[0].key]
            body.append(inner + self.statement(self.accumulation(node.operation, name, value)))
            lines += self.loop(length, body, indent)
            lines += [indent + line for line in self.reduced(node.operation, name)]
            self._names[node.key] = name
        return lines

    def _define(
        self, expressions: Sequence[Symbol], known: dict[int, str], indent: str, lines: list[str]
    ) -> None:
        """Print the computation of expressions, and add each node's name to ``known``."""
        for node in walk(expressions, known):
            if node.operation == "input":
                known[node.key] = str(node.operands[0])
            elif node.operation == "constant":
                known[node.key] = self.constant(node.operands[0])
            else:
                code = self._code(node.operation, [known[entry.key] for entry in node.operands])
                known[node.key] = name = self._new()
                lines.append(indent + self.definition(name, code, node.kind))

    def _code(self, operation: str, x: list[str]) -> str:
        if operation in ("+", "-", "*", "/", "<", "<=", ">", ">=", "==", "!="):
            return f"{x[0]} {operation} {x[1]}"
        if operation in ("maximum", "minimum"):
            # Return NaN for NaN, as the standard's functions do, without a branch.
            sign = ">" if operation == "maximum" else "<"
            return self.choice(f"({x[0]} {sign} {x[1]}) | ({x[0]} != {x[0]})", x[0], x[1])
        if operation == "where":
            return self.choice(*x)
        if operation == "neg":
            return f"-{x[0]}"
        return self.call(operation, x[0])

    def accumulation(self, operation: str, name: str, value: str) -> str:
        """Return the code that adds a value to a reduction."""
        if operation == "sum":
            return f"{name} += {value}"
        larger = self.choice(f"({value} > {name}) | ({value} != {value})", value, name)
        return f"{name} = {larger}"

    def loop(self, length: str, body: Sequence[str], indent: str) -> list[str]:
        """Return a loop over the index ``k``."""
        return [f"{indent}for k in range({length}):", *body]

    def statement(self, code: str) -> str:
        """Return an assignment as a statement."""
        return code

    def definition(self, name: str, code: str, kind: str) -> str:
        """Return the statement that assigns a value to a name."""
        del kind
        return f"{name} = {code}"

    def accumulator(self, name: str, start: str) -> str:
        """Return the statement that begins a reduction."""
        return f"{name} = {start}"

    def reduced(self, operation: str, name: str) -> list[str]:
        """Return the statements that complete a reduction after its loop."""
        del operation, name
        return []

    def choice(self, condition: str, yes: str, no: str) -> str:
        """Return a conditional expression."""
        return f"{yes} if {condition} else {no}"

    def call(self, function: str, x: str) -> str:
        """Return a call of a function."""
        if function in ("abs", "sqrt"):
            return f"{'math.' if function == 'sqrt' else ''}{function}({x})"
        self.functions.add(function)
        return f"{function}({x})"

    def constant(self, value: float) -> str:
        """Return the code of a number."""
        for name, known in self.constants.items():
            if repr(known) == repr(value):
                return name
        name = f"C{len(self.constants)}"
        self.constants[name] = value
        return name

    def _new(self) -> str:
        self._count += 1
        return f"t{self._count}"
