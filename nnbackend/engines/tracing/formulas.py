"""Record a problem's formulas, and answer the questions that the kernels of all engines ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.core.activations import Activation, is_built_in
from nnbackend.core.losses import Loss
from nnbackend.core.optimizers import Optimizer
from nnbackend.core.propagation import output_elements
from nnbackend.device import Device
from nnbackend.engines.tracing.expression import Recorder, Symbol, description, walk

if TYPE_CHECKING:
    from nnbackend.core.objective import Objective
    from nnbackend.engines.base import Problem

__all__ = [
    "HiddenKind",
    "Outputs",
    "UnrecordedError",
    "coefficient_table",
    "depends_on",
    "element",
    "fingerprint",
    "hidden_kinds",
    "is_in_place",
    "is_label_target",
    "is_own",
    "is_rowwise",
    "keeps_zero",
    "loss_elements",
    "recorded",
    "update_elements",
]

# A kind of hidden layer, which has its own kernels: its activation, and whether it drops units.
HiddenKind = tuple[Activation, bool]
Outputs = list[tuple[str, Symbol]]


class UnrecordedError(Exception):
    """A formula cannot become a kernel; the message says which one, and why."""


def recorded(what: str, call: Callable[[], Any]) -> Any:
    """Return the result of recording a formula; turn any error into an ``UnrecordedError``."""
    try:
        return call()
    except Exception as error:
        raise UnrecordedError(f"{what}: {error}") from error


def fingerprint(problem: Problem, dtype: str, *, labels: bool) -> tuple[Any, ...]:
    """Return a value that stays equal while the user's formulas record the same expressions.

    It is empty without such formulas, since the package's own read only arguments and constants. A
    formula that cannot be recorded is called at every step, so its fingerprint need not change.
    """
    xp = Recorder(dtype)
    objective = problem.objective
    Z, A = xp.symbol("z"), xp.symbol("a")
    calls: list[Callable[[], Sequence[Symbol]]] = [
        call
        for entry, _ in hidden_kinds(problem)
        if not is_own(entry)
        for call in (
            lambda entry=entry: [element(entry.function(xp, Z))],
            lambda entry=entry: [element(1.0 * Z * entry.derivative(xp, Z, A))],
        )
    ]
    if not is_own(objective.loss):
        calls.append(lambda: loss_elements(xp, objective, Z, "y", labels=labels))
    if not is_own(problem.optimizer):
        calls.append(lambda: [value for _, value in update_elements(xp, problem, Z, A, "k")])
    return tuple(map(_description, calls))


def is_own(formula: Activation | Loss | Optimizer) -> bool:
    """Whether a formula is one of the package, which reads its arguments and attributes alone."""
    if isinstance(formula, Activation):
        return is_built_in(formula)
    return type(formula).__module__.partition(".")[0] == "nnbackend"


def _description(call: Callable[[], Sequence[Symbol]]) -> tuple[Any, ...] | None:
    try:
        return description(call())
    except Exception:  # noqa: BLE001 - a user's function may raise anything
        return None


def loss_elements(
    xp: Recorder, objective: Objective, Z: Symbol, target: str, *, labels: bool
) -> list[Symbol]:
    """Return the loss and its derivative with respect to the logits of one output.

    The code calls the target ``label`` if ``labels``, else ``target``.
    """
    extent = "column" if objective.structure.output.is_distribution else "row"
    label = xp.symbol("label", kind="int64", extent="labels")
    y = label if labels else xp.symbol(target, extent=extent)
    return [*map(element, output_elements(xp, objective.structure.output, objective.loss, Z, y))]


def keeps_zero(optimizer: Optimizer) -> bool:
    """Whether a step leaves parameters, gradient and state of 0 at 0, as padding requires."""
    zero = np.zeros(1)
    state = tuple(zero for _ in optimizer.state_names)
    with np.errstate(all="ignore"):
        new, new_state = optimizer.update(
            Device("cpu").xp, zero, zero, state, optimizer.coefficients(1.0, 2)
        )
    return all(not np.any(value) for value in (new, *new_state))


def coefficient_table(
    optimizer: Optimizer,
    rates: Sequence[Sequence[float]],
    steps_taken: int,
    dtype: Any = np.float64,
) -> np.ndarray[Any, Any]:
    """Return the coefficients (n_steps, n_coefficients) of the steps of the next epochs."""
    flat = np.asarray(rates[0] if len(rates) == 1 else rates, np.float64).reshape(-1)
    columns = optimizer.coefficients(flat, np.arange(steps_taken + 1, steps_taken + 1 + flat.size))
    table = np.empty((flat.size, len(columns)), dtype)
    # A rate may be too large for the dtype: it becomes infinite.
    with np.errstate(over="ignore"):
        for index, column in enumerate(columns):
            table[:, index] = column
    return table


def hidden_kinds(problem: Problem) -> list[HiddenKind]:
    """Return the distinct kinds of hidden layers, in the order in which they first occur."""
    structure = problem.objective.structure
    kinds: list[HiddenKind] = []
    for activation, rate in zip(structure.hidden, structure.dropout, strict=True):
        if (activation, rate > 0.0) not in kinds:
            kinds.append((activation, rate > 0.0))
    return kinds


def is_in_place(activation: Activation, dtype: str) -> bool:
    """Whether g(Z) may overwrite Z, because g' does not use Z.

    A derivative that cannot be recorded may use Z.
    """
    xp = Recorder(dtype)
    try:
        derivative = activation.derivative(xp, xp.symbol("Z"), xp.symbol("A"))
    except Exception:  # noqa: BLE001 - a user's function may raise anything
        return False
    return not depends_on(derivative, "Z")


def element(value: Any) -> Symbol:
    """Return a formula's value, after checking that it is an array of full rows.

    Raises
    ------
    NotImplementedError
        If it is anything else, since a kernel writes one real number for each element.
    """
    if not (isinstance(value, Symbol) and value.kind == "real" and value.extent == "row"):
        raise NotImplementedError("its value is no array of real numbers of its input's shape")
    return value


def depends_on(value: object, name: str) -> bool:
    """Whether an expression uses the named input."""
    return isinstance(value, Symbol) and any(
        node.operation == "input" and node.operands[0] == name for node in walk([value])
    )


def is_label_target(objective: Objective, n_dimensions: int) -> bool:
    """Whether the targets are integer labels rather than rows."""
    return objective.loss.kind == "classes" and n_dimensions == 1


def is_rowwise(value: object) -> bool:
    """Whether a value depends on more of a row than its own element."""
    return isinstance(value, Symbol) and any(
        node.operation in ("max", "sum")
        or (node.operation == "input" and node.operands[0] in ("k", "n_row"))
        for node in walk([value])
    )


def update_elements(
    xp: Recorder, problem: Problem, parameters: Symbol, gradient: Symbol, index: str
) -> Outputs:
    """Return the optimizer's update of the parameters ``p`` and its state ``s0``, ``s1``, ...

    Parameters
    ----------
    xp : Recorder
        The recorder.
    problem : Problem
        The problem with the optimizer to record.
    parameters, gradient : Symbol
        An element of each.
    index : str
        The index of the element in the code.

    Returns
    -------
    list of (str, Symbol)
        The target and the expression of each result; coefficients are called ``c0``, ``c1``, ...

    Raises
    ------
    NotImplementedError
        If the state has arrays unlike the parameters.
    """
    optimizer = problem.optimizer
    names = [f"s{i}[{index}]" for i in range(len(optimizer.state_names))]
    example = np.zeros(2, xp.name)
    for entry in optimizer.init(Device("cpu").xp, example):
        if (np.shape(entry), entry.dtype) != (example.shape, example.dtype):
            raise NotImplementedError("its state is of another shape or dtype than the parameters")
    coefficients = range(len(optimizer.coefficients(1.0, 1)))
    new, state = optimizer.update(
        xp,
        parameters,
        gradient,
        tuple(map(xp.symbol, names)),
        tuple(xp.symbol(f"c{i}", extent="number") for i in coefficients),
    )
    values = map(element, (new, *state))
    return list(zip((f"p[{index}]", *names), values, strict=True))
