"""Turn recorded formulas into programs: lists of vector operations, which the library runs.

A program works on a block of numbers with (units, rows) elements, rows contiguous: for formulas
that work element by element any flat array is such a block with one unit; for a loss, a block
holds the outputs of some examples, one example per column. Its registers are arrays of three
extents: full (units, rows); a column, one number per example, (rows,); a number, the same for all.
The library executes one operation after another, each over the whole block, which stays in the
first-level cache; ``printing.py`` prints the same operations as one loop of C for the formulas of
the package.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from nnbackend.engines.tracing.expression import Symbol, walk

__all__ = ["OPERATIONS", "Instruction", "Program"]

# In the order of the library's enumeration: see program.h.
OPERATIONS = (
    "/", "+", "-", "*", "neg", "<", "<=", ">", ">=", "==", "!=", "where", "maximum", "minimum",
    "multiply_add", "multiply_subtract", "subtract_product", "exp", "expm1", "log", "log1p", "tanh",
    "sqrt", "abs", "copy", "index", "max", "sum",
)  # fmt: skip

_CODES = {name: code for code, name in enumerate(OPERATIONS)}
_FULL, _COLUMN, _NUMBER = range(3)
_EXTENTS = {"row": _FULL, "column": _COLUMN}

# As many as program.h takes.
_MAX_REGISTERS = 256

# An operand: a register's number, or ~i for number i.
Instruction = tuple[str, int, int, tuple[int, ...]]


class Program:
    """A program of recorded expressions.

    Parameters
    ----------
    outputs : sequence of (str, Symbol)
        The array into which each value goes, and its expression.
    arrays : dict of str to {"row", "column"}
        The arrays that the caller binds, in this order, with their extents. An output may be an
        input, too.
    numbers : sequence of str
        The numbers that the caller sets, in this order.
    known : dict of int to str
        The keys of expressions that the caller has computed, and the numbers that hold them.
    is_flat : bool
        Whether the block is a flat array, of which every formula computes one element.

    Raises
    ------
    NotImplementedError
        If an expression uses another input, a flat program depends on more than one element, or
        more values are needed at once than there are registers.

    Attributes
    ----------
    arrays : tuple of str
        The names of the arrays.
    numbers : tuple of str
        The names of the numbers.
    constants : list of float
        The constants, which follow the caller's numbers.
    literals : dict of int to float
        The constants that belong to the formula whatever its parameters are, by their number: the
        0 and 1 of arrays of zeros and ones, and of truth values.
    is_flat : bool
        Whether the block is a flat array.
    n_registers : int
        The number of registers, arrays included.
    """

    def __init__(
        self,
        outputs: Sequence[tuple[str, Symbol]],
        arrays: Mapping[str, str],
        numbers: Sequence[str] = (),
        *,
        known: Mapping[int, str] | None = None,
        is_flat: bool = True,
    ) -> None:
        self.arrays, self.numbers = tuple(arrays), tuple(numbers)
        self._known, self.is_flat = known or {}, is_flat
        self.constants: list[float] = []
        self.literals: dict[int, float] = {}
        self._extents = [_EXTENTS[extent] for extent in arrays.values()]
        self._instructions: list[Instruction] = []
        self._free: list[list[int]] = [[], [], []]
        self._outputs = list(outputs)
        self._emit()
        if self.n_registers > _MAX_REGISTERS:
            raise NotImplementedError(f"a formula of {self.n_registers} registers")

    @property
    def instructions(self) -> tuple[Instruction, ...]:
        """The instructions: operation, extents (two bits each), target, operands."""
        return tuple(self._instructions)

    @property
    def array_extents(self) -> list[int]:
        """The extents of the arrays."""
        return self._extents[: len(self.arrays)]

    @property
    def n_registers(self) -> int:
        """The number of registers, arrays included."""
        return len(self._extents)

    @cached_property
    def code(self) -> np.ndarray[Any, Any]:
        """The instructions (n, 6) as the library reads them."""
        table = np.zeros((len(self._instructions), 6), np.int32)
        for row, (operation, extents, target, operands) in zip(
            table, self._instructions, strict=True
        ):
            row[:3] = _CODES[operation], extents, target
            row[3 : 3 + len(operands)] = operands
        return table

    @cached_property
    def key(self) -> int:
        """A number that identifies the instructions, whatever the constants are but literals."""
        described = len(self.arrays), len(self.numbers), self.instructions, self.literals
        text = repr((*described, self.is_flat)).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")

    def _emit(self) -> None:
        """Write the instructions of all outputs, reusing registers that are not read again."""
        expressions = [expression for _, expression in self._outputs]
        nodes = list(walk(expressions, self._known))
        self._note_extents(nodes)
        if self.is_flat and any(node.operation in ("max", "sum") for node in nodes):
            raise NotImplementedError("a reduction over a row of units")
        uses = Counter(
            entry.key for node in nodes for entry in node.operands if isinstance(entry, Symbol)
        )
        uses.update(expression.key for expression in expressions)
        products = self._fused(nodes, uses)
        order = [node for node in nodes if node.key not in products]
        last = self._last_uses(order, products)
        targets = self._targets(order, products)
        places = {key: ~self.numbers.index(name) for key, name in self._known.items()}
        last.update(dict.fromkeys(places, len(order)))
        for position, node in enumerate(order):
            operands = self._operands(node, products)
            if node.operation == "input" and (place := self._input(node)) is not None:
                places[node.key] = place
                continue
            if node.operation == "constant":
                continue
            used = [self._place(entry, places) for entry in operands]
            # Operations read an element before they write it, so a target may be an operand.
            for entry in {operand.key: operand for operand in operands}.values():
                if last[entry.key] == position and entry.key in places:
                    self._release(places[entry.key])
            extent = self._extent_of[node.key]
            name = targets.get(node.key)
            register = self._register(extent) if name is None else self.arrays.index(name)
            places[node.key] = register
            self._append(self._operation(node, products), register, used, extent)
        self._copy_rest(places, targets)

    def _copy_rest(self, places: Mapping[int, int], targets: Mapping[int, str]) -> None:
        """Copy the outputs that no operation has written to their array."""
        rest = [
            (self.arrays.index(name), self._place(expression, places))
            for name, expression in self._outputs
            if targets.get(expression.key) != name
        ]
        written = {target for target, _ in rest}
        moved = []
        for target, source in rest:
            # Save an array that another copy overwrites.
            if len(rest) > 1 and source in written and source != target:
                saved = self._register(self._extents[source])
                self._append("copy", saved, [source], self._extents[source])
                moved.append((target, saved))
            else:
                moved.append((target, source))
        for target, source in moved:
            if target != source:
                self._append("copy", target, [source], self._extents[target])

    def _append(self, operation: str, target: int, operands: Sequence[int], extent: int) -> None:
        extents = extent
        for number, operand in enumerate(operands):
            of_operand = _NUMBER if operand < 0 else self._extents[operand]
            extents |= of_operand << 2 * (number + 1)
        self._instructions.append((operation, extents, target, tuple(operands)))

    def _targets(self, order: Sequence[Symbol], products: Mapping[int, Symbol]) -> dict[int, str]:
        """Return the outputs that their operation can write to the array at once.

        That is so if no later operation reads what the array held before.
        """
        positions = {node.key: position for position, node in enumerate(order)}
        read: dict[str, int] = {}
        for position, node in enumerate(order):
            for entry in self._operands(node, products):
                if entry.operation == "input":
                    read[str(entry.operands[0])] = position
        for _, expression in self._outputs:
            # An output that is an input is copied last.
            if expression.operation == "input":
                read[str(expression.operands[0])] = len(order)
        targets: dict[int, str] = {}
        for name, expression in self._outputs:
            is_computed = expression.operation not in ("input", "constant")
            is_full = self._extent_of[expression.key] == self._extents[self.arrays.index(name)]
            is_free = read.get(name, -1) <= positions.get(expression.key, -1)
            if is_computed and is_full and is_free and expression.key not in targets:
                targets[expression.key] = name
        return targets

    @staticmethod
    def _fused(nodes: Sequence[Symbol], uses: Mapping[int, int]) -> dict[int, Symbol]:
        """Return the products that become part of the sum which alone uses them."""
        products: dict[int, Symbol] = {}
        for node in nodes:
            if node.operation not in ("+", "-"):
                continue
            for entry in node.operands:
                if entry.operation == "*" and uses[entry.key] == 1:
                    products[entry.key] = entry
                    break
        return products

    @staticmethod
    def _split(
        node: Symbol, products: Mapping[int, Symbol]
    ) -> tuple[Symbol, Symbol, Symbol, bool] | None:
        """Return the factors and the term of a sum with a product, and whether it comes first."""
        if node.operation not in ("+", "-"):
            return None
        first, second = node.operands
        if first.key in products:
            return *first.operands, second, True
        if second.key in products:
            return *second.operands, first, False
        return None

    def _operands(self, node: Symbol, products: Mapping[int, Symbol]) -> list[Symbol]:
        if split := self._split(node, products):
            return list(split[:3])
        return [entry for entry in node.operands if isinstance(entry, Symbol)]

    def _operation(self, node: Symbol, products: Mapping[int, Symbol]) -> str:
        if split := self._split(node, products):
            if node.operation == "+":
                return "multiply_add"
            return "multiply_subtract" if split[3] else "subtract_product"
        return "index" if node.operation == "input" else node.operation

    def _last_uses(self, order: Sequence[Symbol], products: Mapping[int, Symbol]) -> dict[int, int]:
        last = {node.key: position for position, node in enumerate(order)}
        for position, node in enumerate(order):
            for entry in self._operands(node, products):
                last[entry.key] = position
        for _, expression in self._outputs:
            last[expression.key] = len(order)
        return last

    def _input(self, node: Symbol) -> int | None:
        """Return the place of an input; None if an operation computes it."""
        name = node.operands[0]
        if name in self.arrays:
            return self.arrays.index(name)
        if name in self.numbers:
            return ~self.numbers.index(name)
        if name == "k" and not self.is_flat:
            return None
        raise NotImplementedError(f"the input {name!r}")

    def _note_extents(self, nodes: Sequence[Symbol]) -> None:
        """Note the extent of each node's value: the broadest of its operands'."""
        self._extent_of = dict.fromkeys(self._known, _NUMBER)
        for node in nodes:
            extent = _NUMBER
            if node.operation == "input":
                name = str(node.operands[0])
                if name in self.arrays:
                    extent = self._extents[self.arrays.index(name)]
                elif name not in self.numbers:
                    extent = _FULL
            elif node.operation in ("max", "sum"):
                extent = _COLUMN
            elif node.operation != "constant":
                extent = min(self._extent_of[entry.key] for entry in node.operands)
            self._extent_of[node.key] = extent

    def _place(self, node: Symbol, places: Mapping[int, int]) -> int:
        """Return where an operand is.

        Each use of a constant has a place of its own, so that formulas with equal parameters have
        the instructions of those with different ones.
        """
        if node.operation != "constant" or node.key in places:
            return places[node.key]
        value, is_literal = float(node.operands[0]), node.extent != "number"
        if is_literal:
            for number, known in self.literals.items():
                if repr(known) == repr(value):
                    return ~number
        number = len(self.numbers) + len(self.constants)
        self.constants.append(value)
        if is_literal:
            self.literals[number] = value
        return ~number

    def _register(self, extent: int) -> int:
        if self._free[extent]:
            return self._free[extent].pop()
        self._extents.append(extent)
        return len(self._extents) - 1

    def _release(self, place: int) -> None:
        if place >= len(self.arrays):
            self._free[self._extents[place]].append(place)
