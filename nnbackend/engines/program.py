"""The kernels of a training step as Numba source, generated from the core's recorded formulas.

A kernel does everything element-wise between two products: bias and activation; bias, loss and its
gradient; gradient through an activation, and its column sums; penalties; clipping; the update. It
works on blocks of rows small enough for the first-level cache, in which formulas run along flat
vectors, whatever the width of a layer, so that LLVM makes vector code of them.

One module is generated for each kind of problem (activations, loss, optimizer, options, dtype);
sizes are arguments.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from nnbackend.core.activations import Activation
from nnbackend.core.losses import SoftmaxCrossEntropy
from nnbackend.core.propagation import output_elements
from nnbackend.core.regularization import clip_by_global_norm, clip_by_value, penalty_elements
from nnbackend.engines import driver
from nnbackend.engines.expression import RECORDER, Printer, Symbol, symbol

if TYPE_CHECKING:
    from nnbackend.core.objective import Objective
    from nnbackend.engines import Problem

__all__ = ["HiddenKind", "Kernels", "hidden_kinds", "is_in_place", "is_label_target"]

# A hidden layer's kernels: its activation, and whether it drops units.
HiddenKind = tuple[Activation, bool]

_HEAD = """\
import math
import numpy as np
from numba import njit
from nnbackend.engines import elementary
F = np.{dtype}
"""
_OPTIONS = 'nogil=True, cache=True, error_model="numpy", no_cfunc_wrapper=True'
_JIT = f'@njit({_OPTIONS}, fastmath={{"contract"}})'
# Sums may be taken in any order: several partial ones, in vector registers.
_JIT_SUMS = f'@njit({_OPTIONS}, fastmath={{"contract", "reassoc"}})'
_BLOCK = 2048  # elements, 8 or 16 KiB an array

_FIXED = f"""
{_JIT}
def take(x, rows, out):
    for i in range(rows.shape[0]):
        row = rows[i]
        for k in range(x.shape[1]):
            out[i, k] = x[row, k]

{_JIT}
def copy(x, out):
    for i in range(x.shape[0]):
        out[i] = x[i]

{_JIT_SUMS}
def total(x):
    result = 0.0
    for i in range(x.shape[0]):
        result += x[i, 0]
    return result

{_JIT_SUMS}
def all_finite(x):
    result = F(0.0)
    for i in range(x.shape[0]):
        result += x[i] * F(0.0)
    return result == F(0.0)
"""


def hidden_kinds(problem: Problem) -> list[HiddenKind]:
    """Return the distinct kinds of hidden layers, in the order of their first layer."""
    structure = problem.objective.structure
    kinds: list[HiddenKind] = []
    for activation, rate in zip(structure.hidden, structure.dropout, strict=True):
        if (activation, rate > 0.0) not in kinds:
            kinds.append((activation, rate > 0.0))
    return kinds


def is_in_place(activation: Activation) -> bool:
    """Whether g(Z) may replace Z: g' is written without Z.

    A derivative that cannot be recorded may need it.
    """
    try:
        derivative = activation.derivative(RECORDER, symbol("Z"), symbol("A"))
    except Exception:  # noqa: BLE001 - a user's function fails in whatever way it likes
        return False
    return not _mentions(derivative, "Z")


def _mentions(node: object, name: str) -> bool:
    if not isinstance(node, Symbol):
        return False
    if node.operation == "input":
        return bool(node.operands[0] == name)
    return any(_mentions(entry, name) for entry in node.operands)


def is_label_target(objective: Objective, n_dimensions: int) -> bool:
    """Whether the targets are integer labels rather than rows."""
    return isinstance(objective.loss, SoftmaxCrossEntropy) and n_dimensions == 1


class Kernels:
    """The source of a problem's kernels.

    Parameters
    ----------
    problem : Problem
        What is to be trained, and how.
    dtype : {"float32", "float64"}
        Of all arrays.
    labels : bool
        Whether ``y`` is a vector of integer labels.

    Attributes
    ----------
    labels : bool
        As given.
    hyperparameters : list of float
        Numbers of the optimizer, the penalties and the clipping. They are an argument of the
        kernels, so that a search over them compiles nothing anew.
    unrecorded : dict of str to Exception
        Kernels that have no source, since a formula cannot be recorded, such as that of a user's
        activation that branches on data; and why.
    """

    def __init__(self, problem: Problem, dtype: str, *, labels: bool) -> None:
        self._problem = problem
        self._dtype = dtype
        self.labels = labels
        self._constants: dict[str, float] = {}
        self._functions: set[str] = set()
        self.hyperparameters: list[float] = []
        self.unrecorded: dict[str, Exception] = {}
        self._lines: list[str] = []
        kinds = hidden_kinds(problem)
        for number, kind in enumerate(kinds):
            self._add(f"activate_{number}", partial(self._activate, *kind))
            self._add(f"pull_back_{number}", partial(self._pull_back, *kind))
        self._add("output_loss", self._output_loss)
        self._add("penalize", self._penalize)
        self._add("clip", self._clip)
        self._add("update_range", self._update)
        self._n_kinds = len(kinds)

    def source(self) -> str:
        """Return the source of a module of kernels."""
        head = [_HEAD.format(dtype=self._dtype)]
        names = sorted(self._functions)
        head += [f"{name} = elementary.{self._dtype}.{name}" for name in names]
        for name, value in self._constants.items():
            literal = f'float("{value!r}")' if "inf" in repr(value) else repr(value)
            head.append(f"{name} = F({literal})")
        return "\n".join([*head, _FIXED, *self._lines, ""])

    def compiled_source(self) -> str:
        """Return the source of a module that has the driver's functions as well, compiled."""
        lines = [
            "is_finite = np.isfinite",
            "product = np.dot",
            "",
            _JIT,
            "def drop(trains, n, M):",
            "    pass",
            "",
            *self._choice("activate", "Z, b, A, H, M"),
            *self._choice("pull_back", "D, Z, A, M, gb"),
            _JIT,
            "def update(parameters, gradient, state, c, hyper):",
            "    update_range(0, parameters.shape[0], parameters, gradient, state, c, hyper)",
            "",
        ]
        for function in (driver.propagate, driver.run):
            text = inspect.getsource(function)
            lines += [_JIT, re.sub(r"\bk(\.|: Any, )", "", text), ""]
        # The driver's annotations are not the generated module's.
        return "\n".join(["from __future__ import annotations", self.source(), *lines])

    def _choice(self, name: str, arguments: str) -> list[str]:
        """Print the function that calls the kernel of a layer's kind."""
        lines = [_JIT, f"def {name}(kind, n, {arguments}):"]
        for number in range(self._n_kinds):
            lines += [f"    if kind == {number}:", f"        {name}_{number}(0, n, {arguments})"]
        return [*lines, "    pass", ""]

    def _add(self, name: str, body: Callable[[], tuple[str, str, list[str]]]) -> None:
        try:
            decorator, arguments, lines = body()
        except Exception as error:  # noqa: BLE001 - a user's function fails as it likes
            self.unrecorded[name] = error
            return
        self._lines += ["", decorator, f"def {name}({arguments}):", *lines]

    def _flat(self, outputs: Sequence[tuple[str, Symbol]], length: str, indent: int) -> list[str]:
        """Print a loop over all elements of a block."""
        for _, element in outputs:
            if _is_rowwise(element):
                raise NotImplementedError("a reduction over a row of units")
        return self._loop(outputs, length, indent)

    def _loop(self, outputs: Sequence[tuple[str, Symbol]], length: str, indent: int) -> list[str]:
        # A printer's reductions are not another's.
        return Printer(self._constants, self._functions).row(outputs, length, " " * indent)

    def _vector(self, outputs: Sequence[tuple[str, Symbol]], length: str) -> list[str]:
        """Print a loop over a flat vector, with its numbers as arguments."""
        constants: dict[str, float] = {}
        lines = Printer(constants, self._functions).row(outputs, length, "    ")
        first = len(self.hyperparameters)
        self.hyperparameters += constants.values()
        heads = [f"    {name} = hyper[{first + i}]" for i, name in enumerate(constants)]
        return [*heads, *lines]

    @staticmethod
    def _rows(statement: str) -> list[str]:
        """Print a loop over the rows and columns of a block."""
        return [
            "        for i in range(bottom - top):",
            "            for k in range(width):",
            f"                {statement}",
        ]

    @staticmethod
    def _blocks(width_of: str, names: str) -> list[str]:
        """Print a loop over blocks of the rows first to last, and the flat views of each block."""
        views = [
            f"        {name.lower()} = {name}[top:bottom].reshape((bottom - top) * width)"
            for name in names
        ]
        return [
            f"    width = {width_of}.shape[1]",
            f"    step = 1 + {_BLOCK} // (1 + width)",
            "    for top in range(first, last, step):",
            "        bottom = top + step if top + step < last else last",
            *views,
        ]

    def _activate(self, activation: Activation, drops: bool) -> tuple[str, str, list[str]]:
        A = activation.function(RECORDER, symbol("z[k]"))
        names = "Z" if is_in_place(activation) else "ZA"
        outputs = [(f"{names[-1].lower()}[k]", A)]
        if drops:
            outputs.append(("h[k]", A * symbol("m[k]")))
            names += "HM"
        lines = [
            *self._blocks("Z", names),
            "        rows = Z[top:bottom]",
            *self._rows("rows[i, k] += b[k]"),
            *self._flat(outputs, "z.shape[0]", 8),
        ]
        return _JIT, "first, last, Z, b, A, H, M", lines

    def _pull_back(self, activation: Activation, drops: bool) -> tuple[str, str, list[str]]:
        dA = symbol("d[k]") * symbol("m[k]") if drops else symbol("d[k]")
        dZ = dA * activation.derivative(RECORDER, symbol("z[k]"), symbol("a[k]"))
        lines = [
            "    gb[:] = F(0.0)",
            *self._blocks("D", "DZAM" if drops else "DZA"),
            *self._flat([("d[k]", dZ)], "d.shape[0]", 8),
            "        rows = D[top:bottom]",
            *self._rows("gb[k] += rows[i, k]"),
        ]
        return _JIT, "first, last, D, Z, A, M, gb", lines

    def _output_loss(self) -> tuple[str, str, list[str]]:
        """Print bias, loss and gradient; by rows, where the formulas reduce over a row."""
        objective = self._problem.objective
        y = symbol("label", varies=False, dtype="integral") if self.labels else symbol("y[k]")
        elements = output_elements(
            RECORDER, objective.structure.output, objective.loss, symbol("z[k]"), y
        )
        outputs = list(zip(("l[k]", "z[k]"), elements, strict=True))
        if self.labels or any(map(_is_rowwise, elements)):
            body = [
                "        n_row = F(width)",
                "        for i in range(top, bottom):",
                "            z, l = Z[i], L[i]",
                "            label = y_rows[i, 0]" if self.labels else "            y = y_rows[i]",
                *self._loop(outputs, "width", 12),
            ]
        else:
            body = [
                "        y = y_rows[top:bottom].reshape((bottom - top) * width)",
                *self._flat(outputs, "z.shape[0]", 8),
            ]
        lines = [
            "    gb[:] = F(0.0)",
            "    total = 0.0",
            "    first, last = 0, n",
            *self._blocks("Z", "ZL"),
            "        rows = Z[top:bottom]",
            *self._rows("rows[i, k] += b[k]"),
            *body,
            "        losses, shares = L[top:bottom], weight[top:bottom]",
            "        for i in range(bottom - top):",
            "            share = F(scale) * shares[i, 0]",
            "            for k in range(width):",
            "                total += losses[i, k] * share",
            "                rows[i, k] *= share",
            "                gb[k] += rows[i, k]",
            "    return total",
        ]
        return _JIT, "n, Z, b, y_rows, weight, scale, L, gb", lines

    def _penalize(self) -> tuple[str, str, list[str]]:
        objective = self._problem.objective
        lines = ["    total = 0.0"]
        if objective.is_penalized:
            value, gradient = penalty_elements(RECORDER, symbol("w[k]"), objective.l1, objective.l2)
            lines += [
                "    w, g = W.reshape(W.size), gW.reshape(W.size)",
                *self._vector([("total +=", value), ("g[k] +=", gradient)], "w.shape[0]"),
            ]
        return _JIT_SUMS, "W, gW, hyper", [*lines, "    return total"]

    def _clip(self) -> tuple[str, str, list[str]]:
        lines = []
        for clip, bound in (
            (clip_by_value, self._problem.clip_value),
            (clip_by_global_norm, self._problem.clip_norm),
        ):
            if bound is not None:
                clipped = clip(RECORDER, symbol("gradient[k]"), bound)
                lines += self._vector([("gradient[k]", clipped)], "gradient.shape[0]")
        return _JIT_SUMS, "gradient, hyper", [*lines, "    pass"]

    def _update(self) -> tuple[str, str, list[str]]:
        optimizer = self._problem.optimizer
        numbers = range(len(optimizer.state_names))
        count = len(optimizer.coefficients(1.0, 1))
        parameters, state = optimizer.update(
            RECORDER,
            symbol("p[k]"),
            symbol("g[k]"),
            tuple(symbol(f"s{i}[k]") for i in numbers),
            tuple(symbol(f"c{i}", varies=False) for i in range(count)),
        )
        outputs = [("p[k]", parameters)]
        outputs += [(f"s{i}[k]", entry) for i, entry in zip(numbers, state, strict=True)]
        for _, element in outputs:
            if _is_rowwise(element):
                raise NotImplementedError("a reduction over all parameters")
        lines = [
            "    p, g = parameters[first:last], gradient[first:last]",
            *(f"    s{i} = state[{i}][first:last]" for i in numbers),
            *(f"    c{i} = c[{i}]" for i in range(count)),
            *self._vector(outputs, "p.shape[0]"),
        ]
        return _JIT, "first, last, parameters, gradient, state, c, hyper", lines


def _is_rowwise(node: object) -> bool:
    """Whether a value depends on more of a row than its own element."""
    if not isinstance(node, Symbol):
        return False
    if node.operation == "input":
        return node.operands[0] in ("k", "n_row", "n_samples")
    return node.operation in ("max", "sum") or any(map(_is_rowwise, node.operands))
