"""Generate the kernels of a training step as CUDA C, from the core's recorded formulas.

They do the work between two products: the gather of a batch; bias and activation; bias, loss and
its gradient; gradient through an activation, and its column sums; penalties, clipping and update
over the flat parameter vector; and the losses and checks of an epoch. They read everything that
changes from step to step (rates, rows of a batch, position) from device memory, so that a captured
step can be replayed. The block that finishes last completes a sum over blocks, always in the same
order, so that results have the same bits every time, without atomic additions.

The text uses barriers and shared memory, but no warp instructions, so that it also compiles as C++,
where tests run it. Sizes are arguments; one module serves a kind of problem (activations, loss,
optimizer, options, dtype).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nnbackend.core.activations import Activation
from nnbackend.core.regularization import dropout_mask
from nnbackend.engines.cuda.formulas import (
    activated,
    derivative_of,
    loss_outputs,
    step_count,
    step_scalars,
    update_outputs,
)
from nnbackend.engines.cuda.printer import CudaPrinter
from nnbackend.engines.cuda.source import (
    ACTIVATE,
    BIASES,
    DRAWS_PER_THREAD,
    KERNELS,
    OUTPUT_LOSS,
    PENALTY,
    PULL_BACK,
    RANDOM,
    REDUCE,
    UNIFORM,
    UPDATE,
    fill,
    prelude,
)
from nnbackend.engines.tracing.expression import Recorder, Symbol, walk
from nnbackend.engines.tracing.formulas import Outputs, depends_on, hidden_kinds, is_in_place

if TYPE_CHECKING:
    from nnbackend.engines.base import Problem

__all__ = ["CudaKernels"]


class CudaKernels:
    """The source of a problem's kernels.

    Parameters
    ----------
    problem : Problem
        The training problem.
    dtype : {"float32", "float64"}
        The dtype of all arrays except the operands of products.
    precision : {"float32", "tf32", "bfloat16", "float64"}
        The precision of the products; with ``"bfloat16"`` their operands are stored in it.
    labels : bool
        Whether ``y`` is a vector of integer labels.

    Attributes
    ----------
    dtype, precision, labels
        The arguments.
    hyperparameters : list of float
        The numbers of optimizer, penalties and clipping. Kernels take them as an argument, so that
        a search over them does not compile again.
    reductions : list of str
        The kernels whose results the update needs, in their order.
    source : str
        The module's text.

    Raises
    ------
    UnrecordedError
        If a formula cannot be recorded, such as a user's activation that branches on data.
    """

    def __init__(self, problem: Problem, dtype: str, precision: str, *, labels: bool) -> None:
        self._problem = problem
        self.dtype, self.precision, self.labels = dtype, precision, labels
        self._real = {"float32": "float", "float64": "double"}[dtype]
        self._xp = Recorder(dtype)
        self.hyperparameters: list[float] = []
        self.reductions: list[str] = []
        self._is_bfloat16 = precision == "bfloat16"
        parts = [prelude(dtype, precision, labels=labels), fill(KERNELS)]
        for number, (activation, drops) in enumerate(hidden_kinds(problem)):
            parts.append(self._activate(number, activation, drops=drops))
            parts.append(self._pull_back(number, activation, drops=drops))
        if problem.objective.structure.has_dropout:
            parts.append(self._draw_mask())
        parts += [self._output_loss(), *self._update()]
        self.source = "\n".join(parts)

    def _activate(self, number: int, activation: Activation, *, drops: bool) -> str:
        xp = self._xp
        Z = xp.symbol("Z[i]") + xp.symbol("bias[k]")
        A = activated(xp, activation, Z)
        is_alone = is_in_place(activation, self.dtype)
        outputs = [("Z[i]", A)] if is_alone else [("Z[i]", Z), ("A[i]", A)]
        stores = []
        if drops or self._is_bfloat16:
            outputs.append(("const real active", A * xp.symbol("M[i]") if drops else A))
            stores.append("            H[i] = to_operand(active);")
        lines = [*CudaPrinter().statements(outputs, " " * 12), *stores]
        return fill(ACTIVATE, NUMBER=number, FORMULA="\n".join(lines))

    def _pull_back(self, number: int, activation: Activation, *, drops: bool) -> str:
        xp = self._xp
        D = xp.symbol("D[i]") * xp.symbol("M[i]") if drops else xp.symbol("D[i]")
        gradient = D * derivative_of(xp, activation, xp.symbol("Z[i]"), xp.symbol("A[i]"))
        lines = CudaPrinter().statements([("const real gradient", gradient)], " " * 12)
        store = "E[i] = to_operand(gradient);" if self._is_bfloat16 else "D[i] = gradient;"
        lines.append(" " * 12 + store)
        return fill(PULL_BACK, NUMBER=number, FORMULA="\n".join(lines))

    def _draw_mask(self) -> str:
        rate: Any = self._xp.symbol("rate", extent="number")
        formula = dropout_mask(self._xp, self._xp.symbol("uniform"), rate)
        lines = CudaPrinter().statements([("mask[i]", formula)], " " * 8)
        per_draw, code = UNIFORM[self._real]
        return fill(
            RANDOM,
            FORMULA="\n".join(lines),
            PER_DRAW=per_draw,
            DRAWS=DRAWS_PER_THREAD,
            UNIFORM=code,
        )

    def _output_loss(self) -> str:
        """Print bias, loss and its gradient, with several lanes for the outputs of a row."""
        outputs, needs_row = loss_outputs(self._xp, self._problem, labels=self.labels)
        if self.labels:
            head = "        const int64 label = is_row ? y[row] : 0;"
        else:
            head = "        const target* y_row = y + (int64)row * y_columns;"
        if needs_row:
            head += "\n        const real n_row = (real)columns;"
        printer = CudaPrinter(first="threadIdx.x", step="blockDim.x", reduce="row_reduce")
        lines = printer.row(outputs, "length", " " * 8)
        stores = ["z[k] = slope * share;", "loss += element * share;"]
        if self._is_bfloat16:
            stores.append("E[(int64)row * ld + k] = to_operand(slope * share);")
        lines[-1:] = [*(" " * 12 + store for store in stores), lines[-1]]
        count = step_count(self._problem)
        return fill(OUTPUT_LOSS, TARGET=head, FORMULA="\n".join(lines), COUNT=count)

    def _update(self) -> list[str]:
        """Print penalties, clipping and the optimizer's step over the flat parameter vector."""
        problem = self._problem
        outputs = update_outputs(self._xp, problem, "i", "is_weight")
        nodes = walk([expression for _, expression in outputs])
        known = [node for node in nodes if node.operation in ("max", "sum")]
        parts = [BIASES]
        for number, node in enumerate(known):
            self.reductions.append(f"reduce_{number}")
            value = [("const real element", node.operands[0])]
            numbers, formula = self._elementwise(value, known[:number])
            part = fill(
                REDUCE,
                NUMBER=number,
                OPERATION="Max" if node.operation == "max" else "Sum",
                START="(real)-INFINITY" if node.operation == "max" else "(real)0",
                SCALE=_penalty_scale(problem),
                NUMBERS=numbers,
                FORMULA=formula,
            )
            parts.append(part)
        names = problem.optimizer.state_names
        numbers, formula = self._elementwise(outputs, known)
        if self._is_bfloat16:
            formula += "\n        operands[i] = to_operand(p[i]);"
        is_penalized = problem.objective.is_penalized
        part = fill(
            UPDATE,
            STATES="".join(f" real* s{i}," for i in range(len(names))),
            COEFFICIENTS=step_scalars(problem, outputs, " " * 4),
            SCALE=_penalty_scale(problem),
            NUMBERS=numbers,
            FORMULA=formula,
            PENALTY=fill(PENALTY, COUNT=step_count(problem)) if is_penalized else "",
        )
        return [*parts, part]

    def _elementwise(self, outputs: Outputs, known: Sequence[Symbol]) -> tuple[str, str]:
        """Print the numbers and known reductions that outputs use, and outputs for one element."""
        numbers: dict[str, float] = {}
        printer = CudaPrinter(numbers)
        for number, node in enumerate(known):
            printer.known(node, f"r{number}")
        lines = printer.statements(outputs, " " * 8)
        first = len(self.hyperparameters)
        self.hyperparameters += numbers.values()
        heads = [f"    const real {name} = hyper[{first + i}];" for i, name in enumerate(numbers)]
        heads += [f"    const real r{number} = scalars[{number}];" for number in range(len(known))]
        if any(depends_on(expression, "is_weight") for _, expression in outputs):
            lines.insert(0, "        const bool is_weight = !is_bias(i, biases, n_layers);")
        return "\n".join(heads), "\n".join(lines)


def _penalty_scale(problem: Problem) -> str:
    """Return the definition of the factor of penalties, unless it is 1."""
    if not (problem.objective.is_penalized and problem.objective.penalty_per_sample):
        return ""
    return (
        "    const double weights = is_weighted ? *batch_weight : (double)rows;\n"
        "    const real penalty_scale = (real)(1.0 / (weights > 0 ? weights : 1.0));"
    )
