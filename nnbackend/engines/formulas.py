"""What the printed kernels of all engines ask of a problem's formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.core.activations import Activation
from nnbackend.core.losses import SoftmaxCrossEntropy
from nnbackend.core.optimizers import Optimizer
from nnbackend.device import Device
from nnbackend.engines.expression import RECORDER, Symbol, symbol

if TYPE_CHECKING:
    from nnbackend.core.objective import Objective
    from nnbackend.engines import Problem

__all__ = [
    "HiddenKind",
    "Outputs",
    "UnrecordedError",
    "coefficient_table",
    "depends_on",
    "hidden_kinds",
    "is_in_place",
    "is_label_target",
    "is_rowwise",
    "keeps_zero",
    "recorded",
    "update_elements",
]

# A hidden layer's kernels: its activation, and whether it drops units.
HiddenKind = tuple[Activation, bool]
Outputs = list[tuple[str, Symbol]]


class UnrecordedError(Exception):
    """A formula cannot be made a kernel; the message says which, and why."""


def recorded(what: str, call: Callable[[], Any]) -> Any:
    """Return what recording a formula gives; whatever it raises becomes an ``UnrecordedError``."""
    try:
        return call()
    except Exception as error:
        raise UnrecordedError(f"{what}: {error}") from error


def keeps_zero(optimizer: Optimizer) -> bool:
    """Whether a parameter, gradient and state of 0 stay 0: padding may then take part in steps."""
    zero = np.zeros(1)
    state = tuple(zero for _ in optimizer.state_names)
    with np.errstate(all="ignore"):
        new, new_state = optimizer.update(
            Device("cpu").xp, zero, zero, state, optimizer.coefficients(1.0, 2)
        )
    return all(not np.any(value) for value in (new, *new_state))


def coefficient_table(
    optimizer: Optimizer, rates: Sequence[Sequence[float]], steps_taken: int
) -> np.ndarray[Any, Any]:
    """Return the coefficients (n_steps, n_coefficients) of the steps of epochs to come."""
    flat = np.asarray(rates, np.float64).reshape(-1)
    columns = optimizer.coefficients(flat, np.arange(steps_taken + 1, steps_taken + 1 + flat.size))
    table = np.empty((flat.size, len(columns)))
    for index, column in enumerate(columns):
        table[:, index] = column
    return table


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
    return not depends_on(derivative, "Z")


def depends_on(node: object, name: str) -> bool:
    """Whether an expression uses the input of that name."""
    if not isinstance(node, Symbol):
        return False
    if node.operation == "input":
        return bool(node.operands[0] == name)
    return any(depends_on(entry, name) for entry in node.operands)


def is_label_target(objective: Objective, n_dimensions: int) -> bool:
    """Whether the targets are integer labels rather than rows."""
    return isinstance(objective.loss, SoftmaxCrossEntropy) and n_dimensions == 1


def is_rowwise(node: object) -> bool:
    """Whether a value depends on more of a row than its own element."""
    if not isinstance(node, Symbol):
        return False
    if node.operation == "input":
        return node.operands[0] in ("k", "n_row", "n_samples")
    return node.operation in ("max", "sum") or any(map(is_rowwise, node.operands))


def update_elements(problem: Problem, parameters: Symbol, gradient: Symbol, index: str) -> Outputs:
    """Return what the optimizer makes of the parameters ``p`` and its state ``s0``, ``s1``, ...

    Parameters
    ----------
    problem : Problem
        Its optimizer is recorded.
    parameters, gradient : Symbol
        An element of each.
    index : str
        The index of the element in the code.

    Returns
    -------
    list of (str, Symbol)
        Where each result goes, and what it is; coefficients are called ``c0``, ``c1``, ...
    """
    optimizer = problem.optimizer
    names = [f"s{i}[{index}]" for i in range(len(optimizer.state_names))]
    coefficients = range(len(optimizer.coefficients(1.0, 1)))
    new, state = optimizer.update(
        RECORDER,
        parameters,
        gradient,
        tuple(map(symbol, names)),
        tuple(symbol(f"c{i}", varies=False) for i in coefficients),
    )
    return [(f"p[{index}]", new), *zip(names, state, strict=True)]
