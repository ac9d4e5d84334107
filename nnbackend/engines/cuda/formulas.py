"""Record the formulas of a step that the kernels of ``kernels.py`` and ``tiny.py`` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnbackend.core.activations import Activation
from nnbackend.core.regularization import clip_by_global_norm, clip_by_value, penalty_elements
from nnbackend.engines.tracing.expression import Recorder, Symbol
from nnbackend.engines.tracing.formulas import (
    Outputs,
    UnrecordedError,
    depends_on,
    element,
    is_rowwise,
    keeps_zero,
    loss_elements,
    recorded,
    update_elements,
)

if TYPE_CHECKING:
    from nnbackend.engines.base import Problem

__all__ = [
    "activated",
    "derivative_of",
    "loss_outputs",
    "step_count",
    "step_scalars",
    "update_outputs",
]


def activated(xp: Recorder, activation: Activation, Z: Symbol) -> Symbol:
    """Return g(Z) of one unit."""
    what = f"the activation {activation.name!r}"
    A: Symbol = recorded(what, lambda: element(activation.function(xp, Z)))
    return _of_one_unit(activation, A)


def derivative_of(xp: Recorder, activation: Activation, Z: Symbol, A: Symbol) -> Symbol:
    """Return g'(Z) of one unit, where A is g(Z)."""
    what = f"the derivative of {activation.name!r}"
    slope: Symbol = recorded(what, lambda: element(activation.derivative(xp, Z, A)))
    return _of_one_unit(activation, slope)


def _of_one_unit(activation: Activation, value: Symbol) -> Symbol:
    if is_rowwise(value):
        raise UnrecordedError(f"the activation {activation.name!r}: a unit depends on others")
    return value


def loss_outputs(xp: Recorder, problem: Problem, *, labels: bool) -> tuple[Outputs, bool]:
    """Return loss and gradient of output ``k`` of a row, and whether they use ``n_row``.

    The code calls the row's logits ``z``, and its targets ``y_row`` or ``label``.
    """
    objective = problem.objective
    target = "y_row[0]" if objective.structure.output.is_distribution else "y_row[k]"
    elements = recorded(
        "the loss",
        lambda: loss_elements(xp, objective, xp.symbol("z[k]"), target, labels=labels),
    )
    names = ("const real element", "const real slope")
    outputs: Outputs = list(zip(names, elements, strict=True))
    return outputs, any(depends_on(value, "n_row") for _, value in outputs)


def update_outputs(xp: Recorder, problem: Problem, index: str, is_weight: str) -> Outputs:
    """Return the update of an element of the parameters ``p``, and of the penalty.

    The update adds penalties to the gradient ``g`` and then clips it; ``is_weight`` is the code
    that distinguishes weights from biases.
    """
    objective = problem.objective
    p, gradient = xp.symbol(f"p[{index}]"), xp.symbol(f"g[{index}]")
    penalty: Outputs = []
    if objective.is_penalized:
        value, slope = penalty_elements(xp, p, objective.l1, objective.l2)
        condition = xp.symbol(is_weight, kind="bool")
        if objective.penalty_per_sample:
            scale = xp.symbol("penalty_scale", extent="number")
            value, slope = value * scale, slope * scale
        penalty = [("penalty +=", xp.where(condition, value, 0.0))]
        gradient = gradient + xp.where(condition, slope, 0.0)
    if problem.clip_value is not None:
        gradient = clip_by_value(xp, gradient, problem.clip_value)
    if problem.clip_norm is not None:
        gradient = clip_by_global_norm(xp, gradient, problem.clip_norm)
    plain = recorded(
        "the optimizer", lambda: update_elements(xp, problem, p, xp.symbol("g"), index)
    )
    if any(is_rowwise(value) for _, value in plain):
        raise UnrecordedError("the optimizer: it reduces over all parameters")
    if not recorded("the optimizer", lambda: keeps_zero(problem.optimizer)):
        raise UnrecordedError("the optimizer: it changes parameters of 0 with a gradient of 0")
    return [*update_elements(xp, problem, p, gradient, index), *penalty]


def step_scalars(problem: Problem, outputs: Outputs, indent: str) -> str:
    """Return definitions of the step's coefficients that outputs use."""
    count = len(problem.optimizer.coefficients(1.0, 1))
    lines = [
        f"{indent}const real c{i} = coefficients[step * {count} + {i}];"
        for i in range(count)
        if any(depends_on(expression, f"c{i}") for _, expression in outputs)
    ]
    if problem.objective.is_penalized:
        lines.append(f"{indent}real penalty = 0;")
    return "\n".join(lines)


def step_count(problem: Problem) -> str:
    """Return the code of a step's weight in its epoch's loss, from ``rows`` and ``total``."""
    return "(total > 0 ? (double)rows : 0.0)" if problem.loss_by_rows else "total"
