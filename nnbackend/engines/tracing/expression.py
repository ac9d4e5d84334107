"""Record core functions as expressions, which engines print as code or run as programs.

The element-wise functions of ``core`` use arithmetic, comparisons and few functions of their
namespace. Called with a ``Recorder`` as namespace and ``Symbol`` arguments, they record expressions
instead of computing; equal sub-expressions become one node. A reduction over the last axis
(softmax's maximum and sum, a norm) is a node that is constant within a row; it takes a separate
loop before the loops that use it.

An expression means the same as the formula on NumPy arrays, including promotion of dtypes and
broadcasting. Operations that are not modelled here raise ``NotImplementedError``; the formula then
runs without being recorded.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

__all__ = ["Recorder", "Symbol", "description", "walk"]

_FUNCTIONS = ("exp", "expm1", "log", "log1p", "tanh", "sqrt", "abs")

_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float32", "float64", "complex64", "complex128"),
)


def _refusal(what: str) -> NotImplementedError:
    return NotImplementedError(f"{what} cannot be recorded")


class _DType:
    """A data type, as an array's ``dtype`` and as an attribute of the namespace."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _DType):
            raise _refusal(f"a dtype compared with {other!r}")
        return self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        raise _refusal("the text of a dtype")

    def __getattr__(self, name: str) -> NoReturn:
        raise _refusal(f"the dtype's {name!r}")


class _Shape:
    """The shape of an array with full rows; only the length of a row can be recorded."""

    __slots__ = ("_recorder",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __getitem__(self, axis: Any) -> Symbol:
        if not (isinstance(axis, int) and axis == -1):
            raise _refusal(f"the size of axis {axis!r}")
        return self._recorder.symbol("n_row", extent="number")

    def __eq__(self, other: object) -> NoReturn:
        raise _refusal("a shape that is compared")


class Symbol:
    """A node: an operation on other nodes, or a named input.

    Attributes
    ----------
    operation : str
        ``"input"``, ``"constant"``, an operator, or a function's name.
    operands : tuple
        The operands as symbols; for an input its name, for a constant its value.
    kind : {"real", "int64", "bool"}
        The type of its elements; ``"real"`` is the recorder's dtype.
    extent : {"row", "column", "labels", "number"}
        An array of full rows, an array with one element per row (n_samples, 1), an array of one
        axis (n_samples,), or a Python number that is not known yet.
    key : int
        A number that is equal for equal nodes of one recorder.
    """

    __slots__ = ("_recorder", "extent", "key", "kind", "operands", "operation")
    __hash__ = None  # type: ignore[assignment]
    # NumPy's scalars then use the methods of this class, and NumPy's functions fail.
    __array_ufunc__ = None

    def __init__(
        self,
        recorder: Recorder,
        operation: str,
        operands: tuple[Any, ...],
        kind: str,
        extent: str,
        key: int,
    ) -> None:
        self._recorder = recorder
        self.operation, self.operands = operation, operands
        self.kind, self.extent, self.key = kind, extent, key

    @property
    def is_array(self) -> bool:
        """Whether the value is an array rather than a Python number."""
        return self.extent != "number"

    @property
    def dtype(self) -> _DType:
        """The data type of an array."""
        if not self.is_array:
            raise _refusal("the dtype of a number")
        return _DType(self._recorder.name if self.kind == "real" else self.kind)

    @property
    def shape(self) -> _Shape:
        """The shape of an array with full rows."""
        if self.extent != "row":
            raise _refusal("the shape of what is no array of full rows")
        return _Shape(self._recorder)

    @property
    def device(self) -> None:
        """None, since a symbol is on no device, as under JAX's tracing."""

    def __getattr__(self, name: str) -> NoReturn:
        # Do not raise an AttributeError, which getattr and hasattr would hide.
        raise _refusal(f"an array's {name!r}")

    def __array__(self, *_arguments: Any, **_options: Any) -> NoReturn:
        raise _refusal("a conversion to a NumPy array")

    def __getitem__(self, place: Any) -> Symbol:
        """Return one column of full rows, asked for as ``Z[..., k : k + 1]``."""
        axes, columns = place if isinstance(place, tuple) and len(place) == 2 else (None, None)
        if axes is not Ellipsis or not isinstance(columns, slice):
            raise _refusal(f"the part {place!r} of an array")
        first = columns.start
        if type(first) is not int or first < 0 or columns != slice(first, first + 1):
            raise _refusal(f"the columns {columns!r} of an array")
        return self._recorder.column(self, first)

    def __add__(self, other: Any) -> Symbol:
        return self._recorder.arithmetic("+", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return self._recorder.arithmetic("+", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return self._recorder.arithmetic("-", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return self._recorder.arithmetic("-", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return self._recorder.arithmetic("*", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return self._recorder.arithmetic("*", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return self._recorder.arithmetic("/", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return self._recorder.arithmetic("/", other, self)

    def __pow__(self, exponent: Any) -> Symbol:
        if type(exponent) not in (int, float) or exponent != 2:
            raise _refusal(f"power {exponent!r}")
        return self * self

    def __neg__(self) -> Symbol:
        return self._recorder.arithmetic("neg", self)

    def _in_place(self, _other: Any) -> Any:
        """Refuse to write into an array; for a number, let the name get another value."""
        if self.is_array:
            raise _refusal("an augmented assignment, which writes into an array")
        return NotImplemented

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = _in_place

    def __lt__(self, other: Any) -> Symbol:
        return self._recorder.comparison("<", self, other)

    def __le__(self, other: Any) -> Symbol:
        return self._recorder.comparison("<=", self, other)

    def __gt__(self, other: Any) -> Symbol:
        return self._recorder.comparison(">", self, other)

    def __ge__(self, other: Any) -> Symbol:
        return self._recorder.comparison(">=", self, other)

    def __eq__(self, other: object) -> Symbol:  # type: ignore[override]
        return self._recorder.comparison("==", self, other)

    def __ne__(self, other: object) -> Symbol:  # type: ignore[override]
        return self._recorder.comparison("!=", self, other)

    def __bool__(self) -> bool:
        raise _refusal("a branch on data")


class Recorder:
    """A namespace whose functions record.

    Parameters
    ----------
    dtype : {"float32", "float64"}
        The dtype of real arrays.
    narrows : bool, default False
        Whether what a formula computes in float64 may be computed in ``dtype``. That rounds more,
        and overflows earlier, so it is for formulas that are known.

    Attributes
    ----------
    name : str
        The dtype, as given.
    """

    pi, e, inf, nan = math.pi, math.e, math.inf, math.nan

    def __init__(self, dtype: str, *, narrows: bool = False) -> None:
        self.name = dtype
        self._narrows = narrows
        self._nodes: dict[tuple[Any, ...], Symbol] = {}

    def __getattr__(self, name: str) -> Any:
        if name in _FUNCTIONS:
            return lambda x: self._function(name, x)
        if name in ("maximum", "minimum"):
            return lambda first, second: self._function(name, first, second)
        if name in _DTYPES:
            return _DType(name)
        # Do not raise an AttributeError, which getattr and hasattr would hide.
        raise _refusal(f"the namespace's {name!r}")

    def symbol(self, name: str, *, kind: str = "real", extent: str = "row") -> Symbol:
        """Return the input that the printed code calls ``name``."""
        return self._node("input", (name,), kind, extent)

    def _node(self, operation: str, operands: tuple[Any, ...], kind: str, extent: str) -> Symbol:
        """Return the node of an operation, the same one for equal operations."""
        parts = (part.key if isinstance(part, Symbol) else repr(part) for part in operands)
        key = (operation, kind, extent, *parts)
        if key not in self._nodes:
            number = len(self._nodes)
            self._nodes[key] = Symbol(self, operation, operands, kind, extent, number)
        return self._nodes[key]

    def _constant(self, value: Any, extent: str = "number") -> Symbol:
        """Return a number in the arrays' dtype, to which a Python number adapts."""
        if isinstance(value, np.generic):
            # A NumPy number does not adapt: a float64 beside float32 arrays gives float64.
            if np.result_type(value.dtype, self.name) != np.dtype(self.name):
                raise _refusal(f"a NumPy {value.dtype} beside {self.name}")
            value = value.item()
        if type(value) not in (bool, int, float):
            raise _refusal(f"a {type(value).__name__} in an expression")
        number = float(value)
        with np.errstate(over="ignore"):
            is_finite = bool(np.isfinite(np.dtype(self.name).type(number)))
        if (number != value and not math.isnan(number)) or is_finite != math.isfinite(number):
            raise _refusal(f"the number {value!r} in {self.name}")
        return self._node("constant", (number,), "real", extent)

    @staticmethod
    def _has_reals(values: Sequence[Any]) -> bool:
        """Whether any value is an array of real numbers, to whose dtype others adapt."""
        return any(isinstance(x, Symbol) and x.is_array and x.kind == "real" for x in values)

    def _real(self, value: Any) -> Symbol:
        """Return an operand as real numbers."""
        if not isinstance(value, Symbol):
            return self._constant(value)
        if value.kind == "bool":
            one, zero = (self._constant(number, value.extent) for number in (1.0, 0.0))
            return self._node("where", (value, one, zero), "real", value.extent)
        if value.kind != "real":
            raise _refusal(f"an array of {value.kind} among real numbers")
        return value

    def _elementwise(self, operation: str, operands: Sequence[Symbol], kind: str) -> Symbol:
        """Return an element-wise operation that broadcasts its operands."""
        extents = {operand.extent for operand in operands} - {"number"}
        if "labels" in extents and len(extents) > 1:
            raise _refusal("arrays of one and two axes together")
        extent = "row" if "row" in extents else next(iter(extents), "number")
        return self._node(operation, tuple(operands), kind, extent)

    def arithmetic(self, operation: str, *operands: Any) -> Symbol:
        """Return an operation on real numbers; truth values adapt to arrays beside them."""
        are_numbers = all(not isinstance(entry, Symbol) or not entry.is_array for entry in operands)
        if not (are_numbers or self._has_reals(operands)):
            raise _refusal(f"{operation!r} without an array of real numbers")
        symbols = [self._real(entry) for entry in operands]
        if operation == "*":
            for one, other in (symbols, symbols[::-1]):
                is_one = one.operation == "constant" and one.operands[0] == 1.0
                if is_one and one.is_array and other.extent == "row":
                    return other
        return self._elementwise(operation, symbols, "real")

    def comparison(self, operation: str, first: Any, second: Any) -> Symbol:
        """Return a comparison, which has an array on at least one side."""
        symbols = [entry for entry in (first, second) if isinstance(entry, Symbol)]
        kinds = {entry.kind for entry in symbols}
        if kinds == {"int64"} and len(symbols) == 1:
            # Small integers are exact as real numbers.
            operands = [
                self._constant(entry) if type(entry) is int else entry for entry in (first, second)
            ]
            if all(isinstance(entry, Symbol) for entry in operands):
                return self._elementwise(operation, operands, "bool")
        if len(symbols) == 2 and kinds in ({"int64"}, {"bool"}):
            if kinds == {"bool"} and operation not in ("==", "!="):
                raise _refusal("the order of truth values")
            return self._elementwise(operation, symbols, "bool")
        if not self._has_reals(symbols):
            raise _refusal("a comparison without an array of real numbers")
        return self._elementwise(operation, [self._real(first), self._real(second)], "bool")

    def _function(self, name: str, *operands: Any) -> Symbol:
        """Return a function of arrays; a function of only Python numbers would not adapt."""
        if not self._has_reals(operands):
            raise _refusal(f"{name} without an array of real numbers")
        return self.arithmetic(name, *operands)

    def sign(self, x: Any) -> Symbol:
        """Record 1, -1 or 0, and NaN for NaN."""
        if not self._has_reals([x]):
            raise _refusal("sign without an array of real numbers")
        nonpositive = self.where(x < 0.0, -1.0, self.where(x == 0.0, 0.0, x))
        return self.where(x > 0.0, 1.0, nonpositive)

    def where(self, condition: Any, yes: Any, no: Any) -> Symbol:
        """Record a choice of real numbers or of truth values."""
        if not (isinstance(condition, Symbol) and condition.kind == "bool"):
            raise _refusal("a choice by what is no array of truth values")
        if all(isinstance(entry, Symbol) and entry.kind == "bool" for entry in (yes, no)):
            return self._elementwise("where", [condition, yes, no], "bool")
        if not self._has_reals([yes, no]):
            raise _refusal("a choice without an array of real numbers")
        return self._elementwise("where", [condition, self._real(yes), self._real(no)], "real")

    def ones_like(self, x: Any) -> Symbol:
        """Record ones."""
        return self._full_like(x, 1.0)

    def zeros_like(self, x: Any) -> Symbol:
        """Record zeros."""
        return self._full_like(x, 0.0)

    def _full_like(self, x: Any, value: float) -> Symbol:
        if not self._has_reals([x]):
            raise _refusal("an array like one that is not of real numbers")
        return self._constant(value, x.extent)

    def astype(self, x: Any, dtype: Any) -> Symbol:
        """Record a conversion to the same type, or of truth values to real numbers."""
        if not isinstance(x, Symbol):
            raise _refusal("the conversion of what is no array")
        if x.dtype == dtype or (self._narrows and dtype == _DType("float64") and x.kind == "real"):
            return x
        if x.kind != "bool" or dtype != _DType(self.name):
            raise _refusal(f"a conversion from {x.kind} to another dtype")
        return self._real(x)

    @staticmethod
    def isdtype(dtype: Any, kind: Any) -> bool:
        """Return whether a dtype is of a kind."""
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not all(isinstance(entry, str | _DType) for entry in kinds):
            raise _refusal(f"the kind {kind!r} of a dtype")
        known = tuple(np.dtype(k.name) if isinstance(k, _DType) else k for k in kinds)
        return bool(np.isdtype(np.dtype(dtype.name), known))

    def expand_dims(self, x: Any, *, axis: int) -> Symbol:
        """Record labels (n_samples,) as a column (n_samples, 1)."""
        if not isinstance(x, Symbol) or x.extent != "labels" or axis != -1:
            raise _refusal(f"another axis at {axis!r}")
        return self._node(x.operation, x.operands, x.kind, "column")

    def arange(self, n: Any, *, dtype: Any, device: Any) -> Symbol:
        """Record the index along a row."""
        is_row = isinstance(n, Symbol) and n.key == self.symbol("n_row", extent="number").key
        if not is_row or dtype != _DType("int64") or device is not None:
            raise _refusal("a range that is not that of a row")
        return self.symbol("k", kind="int64")

    def column(self, x: Symbol, number: int) -> Symbol:
        """Record a column of full rows: the largest of a row whose other elements are -inf."""
        if not (x.extent == "row" and x.kind == "real"):
            raise _refusal("a column of what is no array of rows of real numbers")
        index = self.symbol("k", kind="int64")
        return self.max(self.where(index == number, x, -math.inf), axis=-1, keepdims=True)

    def max(self, x: Any, *, axis: int, keepdims: bool) -> Symbol:
        """Record the largest number of a row."""
        return self._reduction("max", x, axis, keepdims)

    def sum(self, x: Any, *, axis: int, keepdims: bool) -> Symbol:
        """Record the sum of a row."""
        return self._reduction("sum", x, axis, keepdims)

    def _reduction(self, operation: str, x: Any, axis: Any, keepdims: Any) -> Symbol:
        if axis != -1 or not keepdims:
            raise _refusal(f"{operation} over axis {axis!r} with keepdims={keepdims!r}")
        if not (isinstance(x, Symbol) and x.extent == "row" and x.kind == "real"):
            raise _refusal(f"{operation} of what is no row of real numbers")
        return self._node(operation, (x,), "real", "column")


def walk(expressions: Sequence[Symbol], known: Collection[int] = ()) -> Iterator[Symbol]:
    """Yield each node of expressions once, operands first, except nodes whose keys are known."""
    seen = set(known)
    stack = [(expression, False) for expression in reversed(expressions)]
    while stack:
        node, is_complete = stack.pop()
        if is_complete:
            yield node
        elif node.key not in seen:
            seen.add(node.key)
            stack.append((node, True))
            operands = [entry for entry in node.operands if isinstance(entry, Symbol)]
            stack += [(entry, False) for entry in reversed(operands)]


def description(expressions: Sequence[Symbol]) -> tuple[Any, ...]:
    """Return a description that is equal for equal expressions, also of other recorders."""
    numbers: dict[int, int] = {}
    nodes = []
    for number, node in enumerate(walk(expressions)):
        numbers[node.key] = number
        operands = (numbers[x.key] if isinstance(x, Symbol) else repr(x) for x in node.operands)
        nodes.append((node.operation, node.kind, node.extent, *operands))
    return (*nodes, *(numbers[expression.key] for expression in expressions))
