"""Print the package's formulas as C, so that the library has them compiled.

Run as a program, it writes ``kernels.h`` into a folder, where the compiler looks for it. The
formulas are those of ``core`` and of the modules named after the folder::

    python -m nnbackend.engines.native.printing FOLDER nnbackend.estimators.formulas

A kernel does what the interpreter in ``program.h`` does with a program, but one vector after
another rather than one operation after another: its values stay in registers.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from nnbackend.core import losses, optimizers
from nnbackend.core.activations import ACTIVATIONS, OUTPUTS, Output, is_built_in
from nnbackend.core.distributions import DISTRIBUTIONS
from nnbackend.core.losses import Loss
from nnbackend.core.objective import Objective
from nnbackend.core.optimizers import SGD, Optimizer
from nnbackend.core.structure import Structure
from nnbackend.engines.base import Problem
from nnbackend.engines.native.formulas import record
from nnbackend.engines.native.program import Program
from nnbackend.errors import InputError

__all__ = ["kernels", "problems", "programs"]

# Values of parameters. Formulas ask only whether one is zero, and those with equal parameters may
# share expressions; the program is the same for any other values.
_VALUES: dict[str, tuple[Any, ...]] = {
    "float": (0.0, 0.375, 0.25),
    "bool": (False, True),
    "int": (2,),
    "float | Schedule": (0.375,),
    # Levels of quantiles: other numbers of them than these are interpreted.
    "tuple[float, ...]": tuple(
        tuple((k + 1) / (n + 1) for k in range(n)) for n in (1, 2, 3, 4, 5, 7, 9)
    ),
}


def problems(modules: Sequence[ModuleType] = ()) -> Iterator[Problem]:
    """Yield problems that have all formulas of ``core``, and the losses and optimizers of modules.

    Each formula is there with all options that change its program.
    """
    output, plain = OUTPUTS["identity"], losses.SquaredError()
    hidden = tuple(filter(is_built_in, dict.fromkeys(ACTIVATIONS.values())))
    for rate in (0.0, 0.5):
        dropout = (rate,) * len(hidden)
        structure = Structure((1,) * (len(hidden) + 2), hidden, output, dropout)
        yield Problem(Objective(structure, plain), SGD(), 1)
    for loss in _variants(Loss, [losses, *modules]):
        for fitting in dict.fromkeys([*OUTPUTS.values(), *DISTRIBUTIONS.values()]):
            if loss.fits(fitting):
                yield Problem(Objective(_linear(fitting), loss), SGD(), 1)
    for optimizer in _variants(Optimizer, [optimizers, *modules]):
        yield Problem(Objective(_linear(output), plain), optimizer, 1)
    for l1, l2 in itertools.product(_VALUES["float"], repeat=2):
        yield Problem(Objective(_linear(output), plain, l1, l2), SGD(), 1)
    for value, norm in ((0.375, None), (None, 0.375), (0.375, 0.375)):
        yield Problem(Objective(_linear(output), plain), SGD(), 1, value, norm)


def _linear(output: Output) -> Structure:
    return Structure((1, 2), (), output, ())


def _variants(base: Any, modules: Sequence[ModuleType]) -> Iterator[Any]:
    """Yield instances of the classes of modules, with each valid combination of parameters."""
    for cls in itertools.chain.from_iterable(vars(module).values() for module in modules):
        if not (isinstance(cls, type) and issubclass(cls, base) and cls is not base):
            continue
        fields = dataclasses.fields(cls)
        for values in itertools.product(*(_VALUES[str(field.type)] for field in fields)):
            try:
                yield cls(**{field.name: v for field, v in zip(fields, values, strict=True)})
            except InputError:
                continue


def programs(problem: Problem, dtype: str) -> list[Program]:
    """Return the programs of a problem's formulas, for both forms of its targets."""
    found: list[Program | None] = []
    for labels in {False, problem.objective.loss.kind == "classes"}:
        formulas = record(problem, dtype, labels=labels)
        found += itertools.chain.from_iterable(formulas.hidden.values())
        found += [formulas.loss, formulas.penalize, formulas.update]
        found += [entry.program for entry in formulas.clips]
    return [program for program in found if program is not None]


def kernels(modules: Sequence[ModuleType] = ()) -> dict[int, Program]:
    """Return the distinct programs of all formulas by their keys."""
    return {
        program.key: program
        for problem in problems(modules)
        for dtype in ("float32", "float64")
        for program in programs(problem, dtype)
    }


_FULL, _COLUMN, _NUMBER = range(3)
_NAMES = {
    "+": "ADD", "-": "SUBTRACT", "*": "MULTIPLY", "/": "DIVIDE", "neg": "NEGATE", "<": "LESS",
    "<=": "LESS_EQUAL", ">": "GREATER", ">=": "GREATER_EQUAL", "==": "EQUAL", "!=": "NOT_EQUAL",
    "where": "CHOOSE",
}  # fmt: skip
_REDUCTIONS = {"max": ("-INFINITY", "larger({0}, {1})"), "sum": ("-0.0", "{0} + {1}")}
# A value of other operations is computed again rather than kept until the next loop over units.
_EXPENSIVE = {"/", "exp", "expm1", "log", "log1p", "tanh", "sqrt"}


_UNITS = "for (intptr_t unit = 0; unit < units; unit++) {"


class _Value(NamedTuple):
    """An instruction; its operands are arrays ``x0``, numbers ``n0`` and other values ``v0``."""

    operation: str
    extent: int
    operands: tuple[str, ...]


class _Plan(NamedTuple):
    """What a loop over units loads: arrays, and values of earlier loops; and what it computes."""

    arrays: list[str]
    kept: list[str]
    computed: list[str]


class _Kernel:
    """Prints a program as a function.

    Full values are computed in loops over units, within a loop over vectors of rows. A value that
    depends on a reduction over units belongs to a later loop than the reduction.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._values: dict[str, _Value] = {}
        held = [f"x{k}" for k in range(program.n_registers)]
        self._extents = dict(zip(held, program.array_extents, strict=False))
        for operation, extents, target, operands in program.instructions:
            names = tuple(f"n{~entry}" if entry < 0 else held[entry] for entry in operands)
            if operation == "copy":
                held[target] = names[0]
                continue
            held[target] = f"v{len(self._values)}"
            self._values[held[target]] = _Value(operation, extents & 3, names)
        arrays = range(len(program.arrays))
        self._outputs = {f"x{k}": held[k] for k in arrays if held[k] != f"x{k}"}
        self._loops: dict[str, int] = {}
        for name, value in self._values.items():
            loop = max((self._loops.get(entry, 0) for entry in value.operands), default=0)
            # The loop that reduces comes before those that read the result.
            self._loops[name] = loop + (value.operation in _REDUCTIONS)

    def text(self, name: str) -> str:
        """Return the function."""
        stores = {x: v for x, v in self._outputs.items() if self._extents[x] == _FULL}
        plans = self._plans(list(stores.values()))
        kept = list(dict.fromkeys(entry for plan in plans for entry in plan.kept))
        if len(kept) > self._program.n_registers - len(self._program.arrays):
            raise NotImplementedError("more values to keep than registers")
        places = {entry: f"scratch + ({k} * units + unit) * LANES" for k, entry in enumerate(kept)}
        lines = [
            f"static void {name}(REAL *const *arrays, const REAL *numbers, intptr_t units,",
            "    intptr_t rows, REAL *scratch) {",
            "(void)arrays, (void)numbers, (void)units, (void)rows, (void)scratch;",
            *(f"REAL *const p{k} = arrays[{k}]; (void)p{k};" for k in range(len(self._extents))),
            *map(self._number, self._used("n")),
            *self._of(_NUMBER),
            "for (intptr_t i = 0; i < rows; i += LANES) {",
            *(self._load(x) for x in self._used("x") if self._extents[x] == _COLUMN),
        ]
        for number, plan in enumerate(plans):
            lines += self._of(_COLUMN, number)
            reductions = [v for v in self._of_loop(number + 1) if self._reduces(v)]
            lines += [
                f"V {v} = all_of((REAL){_REDUCTIONS[self._values[v].operation][0]});"
                for v in reductions
            ]
            lines += ["{" if self._program.is_flat else _UNITS]
            lines += map(self._load, plan.arrays)
            lines += [f"const V {v} = load({places[v]});" for v in plan.kept]
            for v in plan.computed:
                lines.append(self._compute(v))
                if v in places:
                    lines.append(f"store({places[v]}, {v});")
            for v in reductions:
                operation, _, operands = self._values[v]
                lines.append(f"{v} = {_REDUCTIONS[operation][1].format(v, operands[0])};")
            if number == len(plans) - 1:
                lines += [f"store({self._address(x)}, {v});" for x, v in stores.items()]
            lines.append("}")
        lines += self._of(_COLUMN, len(plans))
        columns = self._outputs.keys() - stores.keys()
        lines += [f"store({self._address(x)}, {self._outputs[x]});" for x in sorted(columns)]
        return "\n".join([*lines, "}", "}"])

    def _plans(self, outputs: list[str]) -> list[_Plan]:
        """Return what each loop over units loads and computes; the last one stores the outputs."""
        reductions = list(filter(self._reduces, self._values))
        loops = [self._loops[v] for v in reductions]
        n_loops = max([1, *loops, *(self._loops.get(v, 0) + 1 for v in outputs)])
        plans: list[_Plan] = []
        for number in range(n_loops):
            reduced = [v for v in reductions if self._loops[v] == number + 1]
            roots = [self._values[v].operands[0] for v in reduced]
            plan = _Plan([], [], [])
            before = {v for earlier in plans for v in earlier.computed}
            self._need([*roots, *(outputs if number == n_loops - 1 else [])], before, plan)
            plan.computed.sort(key=lambda v: int(v[1:]))
            plans.append(plan)
        return plans

    def _need(self, names: Sequence[str], before: set[str], plan: _Plan) -> None:
        for name in names:
            if name in self._extents:
                if self._extents[name] == _FULL and name not in plan.arrays:
                    plan.arrays.append(name)
            elif name in self._values and self._values[name].extent == _FULL:
                if name in before and not self._is_cheap(name):
                    plan.kept.extend([name] if name not in plan.kept else [])
                elif name not in plan.computed:
                    plan.computed.append(name)
                    self._need(self._values[name].operands, before, plan)

    def _is_cheap(self, name: str) -> bool:
        value = self._values.get(name)
        if value is None or value.extent != _FULL:
            return True
        return value.operation not in _EXPENSIVE and all(map(self._is_cheap, value.operands))

    def _reduces(self, name: str) -> bool:
        return self._values[name].operation in _REDUCTIONS

    def _of_loop(self, number: int) -> list[str]:
        return [name for name in self._values if self._loops[name] == number]

    def _of(self, extent: int, loop: int = 0) -> list[str]:
        """Return the statements of numbers, or of columns that a loop is the first to read."""
        return [
            self._compute(name)
            for name in self._of_loop(loop)
            if self._values[name].extent == extent and not self._reduces(name)
        ]

    def _used(self, letter: str) -> list[str]:
        """Return the arrays or numbers that the function reads."""
        used = [entry for value in self._values.values() for entry in value.operands]
        return [x for x in dict.fromkeys([*used, *self._outputs.values()]) if x[0] == letter]

    def _number(self, name: str) -> str:
        index = int(name[1:])
        literal = self._program.literals.get(index)
        if literal is not None:
            return f"const V {name} = all_of((REAL){literal!r});"
        return f"const V {name} = load(numbers + {index} * LANES);"

    def _address(self, array: str) -> str:
        per_unit = self._extents[array] == _FULL and not self._program.is_flat
        return f"p{array[1:]} + i" + " + unit * rows" * per_unit

    def _load(self, array: str) -> str:
        return f"const V {array} = load({self._address(array)});"

    def _compute(self, name: str) -> str:
        operation, _, operands = self._values[name]
        if operation == "index":
            return f"const V {name} = all_of((REAL)unit);"
        three = ", ".join((operands * 3)[:3])
        return f"const V {name} = apply_{_NAMES.get(operation, operation.upper())}({three});"


def print_kernels(modules: Sequence[ModuleType] = ()) -> str:
    """Return the text of ``kernels.h``."""
    found = sorted(kernels(modules).items())
    return "\n".join(
        [
            "/* Printed by printing.py. */",
            '#include "program.h"',
            *(_Kernel(program).text(f"kernel_{key:016x}") for key, program in found),
            "static const struct { uint64_t key; Kernel kernel; } KERNELS[] = {",
            *(f"{{0x{key:016x}u, kernel_{key:016x}}}," for key, _ in found),
            "};",
            "EXPORT Kernel NAME(nnbackend_kernel)(uint64_t key) {",
            "for (size_t k = 0; k < sizeof KERNELS / sizeof *KERNELS; k++)",
            "if (KERNELS[k].key == key) return KERNELS[k].kernel;",
            "return NULL;",
            "}\n",
        ]
    )


def main(folder: str, *names: str) -> None:
    """Write ``kernels.h`` into a folder."""
    with open(os.path.join(folder, "kernels.h"), "w", encoding="utf-8") as file:
        file.write(print_kernels([import_module(name) for name in names]))


if __name__ == "__main__":
    main(*sys.argv[1:])
