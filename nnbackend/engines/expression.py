"""Recording core functions as expressions, to be printed as loops of another language.

The element-wise functions of ``core`` use arithmetic, comparisons and few functions of the
namespace they are given. Called with the namespace ``RECORDER`` and ``Symbol`` arguments they do
not compute but record; equal sub-expressions become one node. ``Printer`` turns the nodes into
statements. A reduction over the last axis (softmax's maximum and sum, a norm) is a node that is
constant within a row: it is printed as a loop of its own ahead of those that use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["RECORDER", "Printer", "Symbol", "symbol"]


class Symbol:
    """A node: an operation on other nodes, or a named input.

    Attributes
    ----------
    operation : str
        ``"input"``, ``"constant"``, an operator, or a function's name.
    operands : tuple
        Symbols; for an input or a constant its name or value.
    varies : bool
        Whether it differs along the row; a reduction, a scalar input or a constant does not.
    dtype : str
        ``"real"``, ``"integral"`` or ``"bool"``.
    """

    __slots__ = ("dtype", "key", "operands", "operation", "varies")
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self, operation: str, operands: tuple[Any, ...], *, varies: bool, dtype: str = "real"
    ) -> None:
        self.operation = operation
        self.operands = operands
        self.varies = varies
        self.dtype = dtype
        self.key: tuple[Any, ...] = (
            operation,
            *(entry.key if isinstance(entry, Symbol) else repr(entry) for entry in operands),
        )

    @property
    def shape(self) -> tuple[Symbol, Symbol]:
        """The sizes of the batch and of the row, as symbols."""
        return symbol("n_samples", varies=False), symbol("n_row", varies=False)

    def __add__(self, other: Any) -> Symbol:
        return _apply("+", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return _apply("+", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return _apply("-", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return _apply("-", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return _apply("*", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return _apply("*", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return _apply("/", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return _apply("/", other, self)

    def __pow__(self, exponent: int) -> Symbol:
        if exponent != 2:
            raise NotImplementedError(f"power {exponent!r}")
        return self * self

    def __neg__(self) -> Symbol:
        return _apply("neg", self)

    def __lt__(self, other: Any) -> Symbol:
        return _apply("<", self, other, dtype="bool")

    def __le__(self, other: Any) -> Symbol:
        return _apply("<=", self, other, dtype="bool")

    def __gt__(self, other: Any) -> Symbol:
        return _apply(">", self, other, dtype="bool")

    def __ge__(self, other: Any) -> Symbol:
        return _apply(">=", self, other, dtype="bool")

    def __eq__(self, other: object) -> Symbol:  # type: ignore[override]
        return _apply("==", self, other, dtype="bool")

    def __ne__(self, other: object) -> Symbol:  # type: ignore[override]
        return _apply("!=", self, other, dtype="bool")

    def __bool__(self) -> bool:
        raise NotImplementedError("a branch on data cannot be recorded")


def symbol(name: str, *, varies: bool = True, dtype: str = "real") -> Symbol:
    """Return the input that the printed code knows by ``name``."""
    return Symbol("input", (name,), varies=varies, dtype=dtype)


def _lift(value: Any) -> Symbol:
    if isinstance(value, Symbol):
        return value
    if isinstance(value, int | float):
        return Symbol("constant", (float(value),), varies=False)
    raise NotImplementedError(f"{type(value).__name__} in a recorded expression")


def _apply(operation: str, *operands: Any, dtype: str = "real") -> Symbol:
    lifted = tuple(map(_lift, operands))
    return Symbol(operation, lifted, varies=any(entry.varies for entry in lifted), dtype=dtype)


class _Recorder:
    """The namespace: functions of the array API standard that record."""

    float32 = float64 = "real"
    int64 = "integral"

    def __getattr__(self, name: str) -> Callable[..., Symbol]:
        if name in ("exp", "expm1", "log", "log1p", "tanh", "sqrt", "abs", "sign"):
            return lambda x: _apply(name, x)
        if name in ("maximum", "minimum"):
            return lambda first, second: _apply(name, first, second)
        raise AttributeError(f"the function {name!r} cannot be recorded")

    @staticmethod
    def where(condition: Symbol, yes: Any, no: Any) -> Symbol:
        return _apply("where", condition, yes, no)

    @staticmethod
    def ones_like(_x: Symbol) -> Symbol:
        return _lift(1.0)

    @staticmethod
    def zeros_like(_x: Symbol) -> Symbol:
        return _lift(0.0)

    @staticmethod
    def astype(x: Symbol, _dtype: Any) -> Symbol:
        return _apply("where", x, 1.0, 0.0) if x.dtype == "bool" else x

    @staticmethod
    def isdtype(dtype: str, kind: str) -> bool:
        return dtype == kind

    @staticmethod
    def expand_dims(x: Symbol, *, axis: int) -> Symbol:
        del axis
        return x

    @staticmethod
    def arange(_n: Symbol, *, dtype: Any, device: Any) -> Symbol:
        del dtype, device
        return symbol("k", dtype="integral")

    @staticmethod
    def max(x: Symbol, *, axis: int, keepdims: bool) -> Symbol:
        return _reduction("max", x, axis, keepdims)

    @staticmethod
    def sum(x: Symbol, *, axis: int, keepdims: bool) -> Symbol:
        return _reduction("sum", x, axis, keepdims)


def _reduction(operation: str, x: Symbol, axis: int, keepdims: Any) -> Symbol:
    if axis != -1 or not keepdims:
        raise NotImplementedError(f"{operation} over axis {axis!r} with keepdims={keepdims!r}")
    return Symbol(operation, (x,), varies=False)


RECORDER: Any = _Recorder()


class Printer:
    """Prints expressions as Python statements that Numba compiles.

    The methods ``loop`` to ``constant`` are what another language says otherwise.

    Parameters
    ----------
    constants : dict
        Collects the constants, by the name that the code uses; the caller defines them in the dtype
        of the data, since in Numba a Python float would widen float32 arithmetic to float64.
    functions : set of str
        Collects the names of the functions that are called, which the caller defines.
    """

    def __init__(self, constants: dict[str, float], functions: set[str]) -> None:
        self.constants = constants
        self.functions = functions
        self._names: dict[tuple[Any, ...], str] = {}
        self._count = 0

    def row(
        self, outputs: Sequence[tuple[str, Symbol]], length: str, indent: str, extra: str = ""
    ) -> list[str]:
        """Return the loops that compute outputs along a row of index ``k``.

        Parameters
        ----------
        outputs : sequence of (str, Symbol)
            Where each expression goes: a target such as ``"dZ[i, k]"``, or ``"total +="``.
        length : str
            The row's length in the code.
        indent : str
            What every line begins with.
        extra : str
            A statement at the end of the last loop's body.
        """
        lines: list[str] = []
        for _, expression in outputs:
            self._reductions(expression, length, indent, lines)
        body = self.statements(outputs, indent + "    ")
        if extra:
            body.append(f"{indent}    {extra}")
        return [*lines, *self.loop(length, body, indent)]

    def statements(self, outputs: Sequence[tuple[str, Symbol]], indent: str) -> list[str]:
        """Return statements that compute outputs for one element."""
        lines: list[str] = []
        local = dict(self._names)
        values = []
        for _, expression in outputs:
            value = self._value(expression, local, indent, lines)
            if expression.operation == "input" and len(outputs) > 1:
                # Another output may overwrite it first.
                name = self._new()
                lines.append(indent + self.definition(name, value, expression.dtype))
                value = name
            values.append(value)
        for (target, _), value in zip(outputs, values, strict=True):
            assign = target if target.endswith("=") else f"{target} ="
            lines.append(indent + self.statement(f"{assign} {value}"))
        return lines

    def _reductions(self, node: Symbol, length: str, indent: str, lines: list[str]) -> None:
        """Print the loops of the reductions below a node, innermost first."""
        for operand in node.operands:
            if isinstance(operand, Symbol):
                self._reductions(operand, length, indent, lines)
        if node.operation not in ("max", "sum") or node.key in self._names:
            return
        name = self._new()
        inner = indent + "    "
        start = self.constant(-math.inf if node.operation == "max" else 0.0)
        lines.append(indent + self.accumulator(name, start))
        body: list[str] = []
        value = self._value(node.operands[0], dict(self._names), inner, body)
        body.append(inner + self.statement(self.accumulation(node.operation, name, value)))
        lines += self.loop(length, body, indent)
        lines += [indent + line for line in self.reduced(node.operation, name)]
        self._names[node.key] = name

    def _value(
        self, node: Symbol, known: dict[tuple[Any, ...], str], indent: str, lines: list[str]
    ) -> str:
        """Return the name of a node's value, after printing what computes it."""
        if node.operation == "input":
            return str(node.operands[0])
        if node.operation == "constant":
            return self.constant(node.operands[0])
        if node.key not in known:
            operands = [self._value(entry, known, indent, lines) for entry in node.operands]
            name = self._new()
            code = self._code(node.operation, operands)
            lines.append(indent + self.definition(name, code, node.dtype))
            known[node.key] = name
        return known[node.key]

    def _code(self, operation: str, x: list[str]) -> str:
        if operation in ("+", "-", "*", "/", "<", "<=", ">", ">=", "==", "!="):
            return f"{x[0]} {operation} {x[1]}"
        if operation == "sign":
            one, minus, zero = map(self.constant, (1.0, -1.0, 0.0))
            negative = self.choice(f"{x[0]} < {zero}", minus, x[0])
            return self.choice(f"{x[0]} > {zero}", one, f"({negative})")
        if operation in ("maximum", "minimum"):
            # NaN is handed on, as by the standard's functions; without a branch.
            sign = ">" if operation == "maximum" else "<"
            return self.choice(f"({x[0]} {sign} {x[1]}) | ({x[0]} != {x[0]})", x[0], x[1])
        if operation == "where":
            return self.choice(*x)
        if operation == "neg":
            return f"-{x[0]}"
        return self.call(operation, x[0])

    def accumulation(self, operation: str, name: str, value: str) -> str:
        """Return what adds a value to a reduction."""
        if operation == "sum":
            return f"{name} += {value}"
        larger = self.choice(f"({value} > {name}) | ({value} != {value})", value, name)
        return f"{name} = {larger}"

    def loop(self, length: str, body: Sequence[str], indent: str) -> list[str]:
        """Return a loop of the index ``k``."""
        return [f"{indent}for k in range({length}):", *body]

    def statement(self, code: str) -> str:
        """Return an assignment as a statement."""
        return code

    def definition(self, name: str, code: str, dtype: str) -> str:
        """Return the statement that gives a value its name."""
        del dtype
        return f"{name} = {code}"

    def accumulator(self, name: str, start: str) -> str:
        """Return the statement that begins a reduction."""
        return f"{name} = {start}"

    def reduced(self, operation: str, name: str) -> list[str]:
        """Return what completes a reduction after its loop."""
        del operation, name
        return []

    def choice(self, condition: str, yes: str, no: str) -> str:
        """Return a conditional expression."""
        return f"{yes} if {condition} else {no}"

    def call(self, function: str, x: str) -> str:
        """Return a function's call."""
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
