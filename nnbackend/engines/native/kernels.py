"""Generate the kernels of a training step as Numba source, from the core's recorded formulas.

A kernel does all element-wise work between two products: bias and activation; bias, loss and its
gradient; gradient through an activation, and its column sums; penalties; clipping; the update. Its
loops run along flat blocks that fit the first-level cache, or along rows; several rows of a narrow
layer form one loop, so that LLVM can vectorize it.

Each kind of problem (activations, loss, optimizer, options, dtype) has one module; sizes are
arguments.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from nnbackend.core.activations import Activation
from nnbackend.core.regularization import clip_by_global_norm, clip_by_value, penalty_elements
from nnbackend.engines.native import driver
from nnbackend.engines.tracing.expression import Recorder, Symbol
from nnbackend.engines.tracing.formulas import (
    element,
    hidden_kinds,
    is_in_place,
    is_rowwise,
    loss_elements,
    update_elements,
)
from nnbackend.engines.tracing.printer import Printer

if TYPE_CHECKING:
    from nnbackend.engines.base import Problem

__all__ = ["Kernels"]

_HEAD = """\
import math
import numpy as np
from numba import njit
from nnbackend.engines.native import elementary
F = np.{dtype}
"""

_OPTIONS = 'nogil=True, cache=True, error_model="numpy", no_cfunc_wrapper=True'

# For functions that only other kernels call: they compile faster, and are cached with the callers.
_INNER_OPTIONS = 'error_model="numpy", no_cfunc_wrapper=True, no_cpython_wrapper=True'
_INLINE = f'@njit(inline="always", {_INNER_OPTIONS})'
_JIT = f'@njit({_OPTIONS}, fastmath={{"contract"}})'

# Allow sums in any order, so that vector registers can hold several partial sums.
_JIT_SUMS = f'@njit({_OPTIONS}, fastmath={{"contract", "reassoc"}})'
_BLOCK = 2048  # elements, 8 or 16 KiB an array
_GROUP = 64  # elements of a loop that is worth vectorizing

# The column sums of long rows, which are then added to those of the layer's columns.
_NO_SUMS = "np.zeros(group * width, gb.dtype)"

_FOLD_SUMS = (
    "        if part == 0 and group > 1:",
    "            for k in range(shape[1]):",
    "                gb[k % width] += sums[k]",
)

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

{_JIT_SUMS}
def flat_sum(x):
    result = 0.0
    for i in range(x.shape[0]):
        result += x[i]
    return result

{_JIT}
def rows_in_one(n, width):
    # The rows of a narrow layer are taken several at a time, as one long row.
    group = {_GROUP} // (1 + width)
    return group if group > 1 and n >= 2 * group else 1

{_JIT}
def tiled(b, group):
    tile = np.empty(group * b.shape[0], b.dtype)
    for k in range(tile.shape[0]):
        tile[k] = b[k % b.shape[0]]
    return tile
"""


class Kernels:
    """The source of a problem's kernels.

    Parameters
    ----------
    problem : Problem
        The training problem.
    dtype : {"float32", "float64"}
        The dtype of all arrays.
    labels : bool
        Whether ``y`` is a vector of integer labels.

    Attributes
    ----------
    labels : bool
        The argument.
    hyperparameters : list of float
        The numbers of optimizer, penalties and clipping. Kernels take them as an argument, so that
        a search over them does not compile again.
    unrecorded : dict of str to Exception
        The kernels without source, whose formula cannot be recorded (such as a user's activation
        that branches on data), and the reason.
    """

    def __init__(self, problem: Problem, dtype: str, *, labels: bool) -> None:
        self._problem = problem
        self._dtype = dtype
        self._xp = Recorder(dtype)
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
        self._add("update", self._update)
        self._n_kinds = len(kinds)

    def source(self) -> str:
        """Return the source of a module of kernels."""
        head = [_HEAD.format(dtype=self._dtype)]
        names = sorted(self._functions)
        head += [f"{name} = elementary.{self._dtype}.{name}" for name in names]
        for name, value in self._constants.items():
            literal = repr(value) if math.isfinite(value) else f'float("{value!r}")'
            head.append(f"{name} = F({literal})")
        return "\n".join([*head, _FIXED, *self._column_functions(), *self._lines, ""])

    def compiled_source(self) -> str:
        """Return the source of a module that also compiles the driver's functions."""
        lines = [
            "is_finite = np.isfinite",
            "product = np.dot",
            "",
            _INLINE,
            "def drop(trains, n, M):",
            "    pass",
            "",
            _INLINE,
            "def reduce(gradient, loss, weight, n):",
            "    return loss, weight, n",
            "",
            *self._choice("activate", "Z, b, A, H, M"),
            *self._choice("pull_back", "D, Z, A, M, gb"),
        ]
        for decorator, function in ((_INLINE, driver.propagate), (_JIT, driver.run)):
            text = inspect.getsource(function)
            lines += [decorator, re.sub(r"\bk(\.|: Any, )", "", text), ""]
        kernels = self.source().replace(_OPTIONS, _INNER_OPTIONS)
        # The generated module does not import the names in the driver's annotations.
        return "\n".join(["from __future__ import annotations", kernels, *lines])

    def _choice(self, name: str, arguments: str) -> list[str]:
        """Print a function that calls the kernel for a layer's kind."""
        lines = [_INLINE, f"def {name}(kind, {arguments}):"]
        for number in range(self._n_kinds):
            lines += [f"    if kind == {number}:", f"        {name}_{number}({arguments})"]
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
        for _, value in outputs:
            if is_rowwise(value):
                raise NotImplementedError("a reduction over a row of units")
        return self._loop(outputs, length, indent)

    def _loop(self, outputs: Sequence[tuple[str, Symbol]], length: str, indent: int) -> list[str]:
        # Each loop needs a new printer, since a printer remembers its reductions.
        return Printer(self._constants, self._functions).row(outputs, length, " " * indent)

    def _vector(self, outputs: Sequence[tuple[str, Symbol]], length: str) -> list[str]:
        """Print a loop over a flat vector, with constants as arguments."""
        constants: dict[str, float] = {}
        lines = Printer(constants, self._functions).row(outputs, length, "    ")
        first = len(self.hyperparameters)
        self.hyperparameters += constants.values()
        heads = [f"    {name} = hyper[{first + i}]" for i, name in enumerate(constants)]
        return [*heads, *lines]

    @staticmethod
    def _long_rows(main: str, names: str, vector: str, short: str, long: str) -> list[str]:
        """Print a loop over long rows, each several rows of a narrow layer, then one over the rest.

        ``vector`` has an element per column; it is ``short`` for rows, and ``long`` for long ones.
        """
        return [
            f"    n, width = {main}.shape",
            f"    group, {vector} = rows_in_one(n, width), {short}",
            "    first, last = 0, n // group * group",
            "    if group > 1:",
            f"        {vector} = {long}",
            "    for part in range(2):",
            "        if part == 1:",
            f"            first, last, group, {vector} = last, n, 1, {short}",
            "        shape = ((last - first) // group, group * width)",
            *(f"        {name}_rows = {name}[first:last].reshape(shape)" for name in names),
            "        for i in range(shape[0]):",
            *(f"            {name.lower()} = {name}_rows[i]" for name in names),
        ]

    def _column_functions(self) -> list[str]:
        """Print the functions that add a bias to rows, and column sums to a vector."""
        return [
            _JIT,
            "def add_bias(Z, b):",
            *self._long_rows("Z", "Z", "bias", "b", "tiled(b, group)"),
            "            for k in range(shape[1]):",
            "                z[k] += bias[k]",
            "",
            _JIT,
            "def add_rows(Z, gb):",
            *self._long_rows("Z", "Z", "sums", "gb", _NO_SUMS),
            "            for k in range(shape[1]):",
            "                sums[k] += z[k]",
            *_FOLD_SUMS,
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
            f"    n, step = {width_of}.shape[0], 1 + {_BLOCK} // (1 + width)",
            "    for top in range(0, n, step):",
            "        bottom = top + step if top + step < n else n",
            *views,
        ]

    def _activate(self, activation: Activation, drops: bool) -> tuple[str, str, list[str]]:
        """Print bias and activation in one pass.

        In a separate pass, an in-place ReLU would store only where it writes zeros, and LLVM does
        not vectorize a store that depends on the data.
        """
        xp = self._xp
        Z = xp.symbol("z[k]") + xp.symbol("bias[k]")
        A = element(activation.function(xp, Z))
        if is_in_place(activation, self._dtype):
            names, outputs = "Z", [("z[k]", A)]
        else:
            names, outputs = "ZA", [("z[k]", Z), ("a[k]", A)]
        if drops:
            names += "HM"
            outputs.append(("h[k]", A * xp.symbol("m[k]")))
        lines = [
            *self._long_rows("Z", names, "bias", "b", "tiled(b, group)"),
            *self._flat(outputs, "shape[1]", 12),
        ]
        return _JIT, "Z, b, A, H, M", lines

    def _pull_back(self, activation: Activation, drops: bool) -> tuple[str, str, list[str]]:
        xp = self._xp
        dA = xp.symbol("d[k]") * xp.symbol("m[k]") if drops else xp.symbol("d[k]")
        dZ = dA * activation.derivative(xp, xp.symbol("z[k]"), xp.symbol("a[k]"))
        lines = [
            *self._long_rows("D", "DZAM" if drops else "DZA", "sums", "gb", _NO_SUMS),
            *self._flat([("d[k]", dZ)], "shape[1]", 12),
            "                sums[k] += d[k]",
            *_FOLD_SUMS,
        ]
        return _JIT, "D, Z, A, M, gb", lines

    def _output_loss(self) -> tuple[str, str, list[str]]:
        """Print bias, loss and gradient, by rows if the formulas reduce over a row."""
        objective, xp = self._problem.objective, self._xp

        def outputs(z: str, y: str, loss: str) -> list[tuple[str, Symbol]]:
            elements = loss_elements(xp, objective, xp.symbol(z), y, labels=self.labels)
            return list(zip((loss, z), elements, strict=True))

        flat = outputs("z[k]", "y[k]", "l[k]")
        if self.labels or any(is_rowwise(value) for _, value in flat):
            body = [
                "        n_row = F(width)",
                "        for i in range(top, bottom):",
                "            z_row, l_row = Z[i], L[i]",
                "            label = y_rows[i, 0]"
                if self.labels
                else "            y_row = y_rows[i]",
                *self._loop(outputs("z_row[k]", "y_row[k]", "l_row[k]"), "width", 12),
            ]
        else:
            body = [
                "        y = y_rows[top:bottom].reshape((bottom - top) * width)",
                *self._flat(flat, "z.shape[0]", 8),
            ]
        lines = [
            "    total = 0.0",
            *self._blocks("Z", "ZL"),
            "        add_bias(Z[top:bottom], b)",
            *body,
            "        shares = weight[top:bottom]",
            "        if width == 1:",
            "            for i in range(bottom - top):",
            "                share = F(shares[i, 0] / divisor)",
            "                z[i] *= share",
            "                l[i] *= share",
            "        else:",
            "            losses, gradients = L[top:bottom], Z[top:bottom]",
            "            for i in range(bottom - top):",
            "                share = F(shares[i, 0] / divisor)",
            "                for k in range(width):",
            "                    losses[i, k] *= share",
            "                    gradients[i, k] *= share",
            "        total += flat_sum(l)",
            "        add_rows(Z[top:bottom], gb)",
            "    return total",
        ]
        return _JIT, "Z, b, y_rows, weight, divisor, L, gb", lines

    def _penalize(self) -> tuple[str, str, list[str]]:
        objective, xp = self._problem.objective, self._xp
        lines = ["    total = 0.0"]
        if objective.is_penalized:
            value, gradient = penalty_elements(xp, xp.symbol("w[k]"), objective.l1, objective.l2)
            if objective.penalty_per_sample:
                scale = xp.symbol("scale", extent="number")
                value, gradient = value * scale, gradient * scale
            lines += [
                "    scale = F(1.0 / divisor)",
                "    w, g = W.reshape(W.size), gW.reshape(W.size)",
                *self._vector([("total +=", value), ("g[k] +=", gradient)], "w.shape[0]"),
            ]
        return _JIT_SUMS, "W, gW, divisor, hyper", [*lines, "    return total"]

    def _clip(self) -> tuple[str, str, list[str]]:
        lines = []
        for clip, bound in (
            (clip_by_value, self._problem.clip_value),
            (clip_by_global_norm, self._problem.clip_norm),
        ):
            if bound is not None:
                clipped = clip(self._xp, self._xp.symbol("gradient[k]"), bound)
                lines += self._vector([("gradient[k]", clipped)], "gradient.shape[0]")
        return _JIT_SUMS, "gradient, hyper", [*lines, "    pass"]

    def _update(self) -> tuple[str, str, list[str]]:
        xp = self._xp
        outputs = update_elements(xp, self._problem, xp.symbol("p[k]"), xp.symbol("g[k]"), "k")
        numbers = range(len(outputs) - 1)
        count = len(self._problem.optimizer.coefficients(1.0, 1))
        for _, value in outputs:
            if is_rowwise(value):
                raise NotImplementedError("a reduction over all parameters")
        lines = [
            "    p, g = parameters, gradient",
            *(f"    s{i} = state[{i}]" for i in numbers),
            *(f"    c{i} = c[{i}]" for i in range(count)),
            *self._vector(outputs, "p.shape[0]"),
        ]
        return _JIT, "parameters, gradient, state, c, hyper", lines
