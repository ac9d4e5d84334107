"""Record a problem's formulas as the programs of its training steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from nnbackend.core.activations import Activation
from nnbackend.core.regularization import clip_by_global_norm, clip_by_value, penalty_elements
from nnbackend.engines.native.program import Program
from nnbackend.engines.tracing.expression import Recorder, Symbol, walk
from nnbackend.engines.tracing.formulas import (
    UnrecordedError,
    element,
    hidden_kinds,
    is_in_place,
    is_own,
    is_rowwise,
    loss_elements,
    recorded,
    update_elements,
)

if TYPE_CHECKING:
    from nnbackend.engines.base import Problem

__all__ = ["Formulas", "Pass", "activation_program", "record"]

_ROW, _COLUMN = "row", "column"


class Pass(NamedTuple):
    """A pass over the gradient.

    Attributes
    ----------
    program : Program
        Changes ``g``, or computes ``value``.
    reduction : {"nothing", "sum", "max"}
        What becomes of the values of all parameters: number k of the passes after pass k.
    """

    program: Program
    reduction: str


@dataclass(frozen=True, eq=False)
class Formulas:
    """The programs of a problem; None stands for a formula that cannot be recorded.

    Attributes
    ----------
    hidden : dict
        For each kind of hidden layer, the programs of its activation and of its derivative.
    in_place : dict
        Whether the activations of a kind overwrite the pre-activations.
    loss, update : Program or None
        Loss and gradient of the logits; the optimizer's update.
    penalize : Program or None
        Adds the gradient of the penalties, and computes their value; None without penalties.
    clips : list of Pass
        The passes that clip the gradient.
    unrecorded : list of str
        Why formulas are not recorded.
    """

    hidden: dict[tuple[Activation, bool], tuple[Program | None, Program | None]]
    in_place: dict[tuple[Activation, bool], bool]
    loss: Program | None
    penalize: Program | None
    clips: list[Pass]
    update: Program | None
    unrecorded: list[str]


# The programs of the package's own formulas, since recording them takes longer than a short
# training: as many kinds of problems as a search goes through at a time.
_MOST_KNOWN = 64
_KNOWN: dict[Any, Formulas] = {}


def record(problem: Problem, dtype: str, *, labels: bool) -> Formulas:
    """Return the programs of a problem whose targets are labels or rows."""
    objective, optimizer, kinds = problem.objective, problem.optimizer, hidden_kinds(problem)
    activations = [activation for activation, _ in kinds]
    entries: list[Any] = [*activations, objective.loss, optimizer]
    if not all(map(is_own, entries)):
        return _record(problem, dtype, labels=labels)
    # The learning rate, which may be a schedule, is no number of the update.
    numbers = [(k, v) for k, v in vars(optimizer).items() if k != "learning_rate"]
    key = (
        *kinds, dtype, labels, objective.structure.output, objective.loss, objective.l1,
        objective.l2, type(optimizer), *numbers, problem.clip_value, problem.clip_norm,
    )  # fmt: skip
    known = _KNOWN.get(key)
    if known is None:
        if len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.clear()
        known = _KNOWN[key] = _record(problem, dtype, labels=labels)
    return known


def _record(problem: Problem, dtype: str, *, labels: bool) -> Formulas:
    unrecorded: list[str] = []

    def program(what: str, make: Callable[[], Program]) -> Program | None:
        try:
            return recorded(what, make)  # type: ignore[no-any-return]
        except UnrecordedError as error:
            unrecorded.append(str(error))
            return None

    hidden, in_place = {}, {}
    for kind in hidden_kinds(problem):
        activation, drops = kind
        in_place[kind] = is_in_place(activation, dtype)
        hidden[kind] = (
            program(
                f"the activation {activation.name!r}",
                partial(_activate, dtype, activation, drops, in_place[kind]),
            ),
            program(
                f"the derivative of {activation.name!r}",
                partial(_pull_back, dtype, activation, drops),
            ),
        )
    loss = program("the loss", lambda: _loss(problem, dtype, labels))
    update = program("the optimizer's update", lambda: _update(problem, dtype))
    is_penalized = problem.objective.is_penalized
    penalize = _penalize(problem, dtype) if is_penalized else None
    return Formulas(hidden, in_place, loss, penalize, _clips(problem, dtype), update, unrecorded)


@cache
def activation_program(activation: Activation, dtype: str) -> Program:
    """Return the program of an activation of the package, which overwrites the pre-activations."""
    return _activate(dtype, activation, drops=False, in_place=True)


def _elementwise(value: object) -> Symbol:
    symbol = element(value)
    if is_rowwise(symbol):
        raise NotImplementedError("it depends on more than one element")
    return symbol


def _activate(dtype: str, activation: Activation, drops: bool, in_place: bool) -> Program:
    xp = Recorder(dtype)
    A = _elementwise(activation.function(xp, xp.symbol("z")))
    outputs = [("z" if in_place else "a", A)]
    if drops:
        outputs.append(("h", A * xp.symbol("m")))
    return Program(outputs, dict.fromkeys("zahm", _ROW))


def _pull_back(dtype: str, activation: Activation, drops: bool) -> Program:
    xp = Recorder(dtype)
    dA = xp.symbol("d") * xp.symbol("m") if drops else xp.symbol("d")
    derivative = activation.derivative(xp, xp.symbol("z"), xp.symbol("a"))
    return Program([("d", _elementwise(dA * derivative))], dict.fromkeys("dzam", _ROW))


def _loss(problem: Problem, dtype: str, labels: bool) -> Program:
    xp = Recorder(dtype, narrows=is_own(problem.objective.loss))
    share = xp.symbol("share", extent=_COLUMN)
    loss, dZ = loss_elements(xp, problem.objective, xp.symbol("z"), "label", labels=labels)
    outputs = [
        ("loss", xp.sum(loss * share, axis=-1, keepdims=True)),
        ("z", element(dZ * share)),
    ]
    has_one_target = labels or problem.objective.structure.output.is_distribution
    target = _COLUMN if has_one_target else _ROW
    arrays = {"z": _ROW, "label": target, "share": _COLUMN, "loss": _COLUMN}
    return Program(outputs, arrays, ["n_row"], is_flat=False)


def _penalize(problem: Problem, dtype: str) -> Program:
    xp, objective = Recorder(dtype), problem.objective
    scale = xp.symbol("scale", extent="number")
    value, gradient = penalty_elements(xp, xp.symbol("w"), objective.l1, objective.l2)
    outputs = [("g", xp.symbol("g") + gradient * scale), ("value", value * scale)]
    return Program(outputs, dict.fromkeys(("w", "g", "value"), _ROW), ["scale"])


def _clips(problem: Problem, dtype: str) -> list[Pass]:
    """Return the passes of clipping; each reduction over all parameters is a pass of its own."""
    chosen = [
        (clip, bound)
        for clip, bound in (
            (clip_by_value, problem.clip_value),
            (clip_by_global_norm, problem.clip_norm),
        )
        if bound is not None
    ]
    planned: list[tuple[str, Symbol, str, dict[int, str]]] = []
    for clip, bound in chosen:
        xp = Recorder(dtype)
        clipped = clip(xp, xp.symbol("g"), bound)
        known: dict[int, str] = {}
        for node in walk([clipped]):
            if node.operation in ("max", "sum"):
                planned.append(("value", node.operands[0], node.operation, dict(known)))
                known[node.key] = f"r{len(planned) - 1}"
        planned.append(("g", clipped, "nothing", known))
    numbers = [f"r{k}" for k in range(len(planned))]
    arrays = dict.fromkeys(("g", "value"), _ROW)
    return [
        Pass(Program([(target, value)], arrays, numbers, known=known), reduction)
        for target, value, reduction, known in planned
    ]


def _update(problem: Problem, dtype: str) -> Program:
    xp = Recorder(dtype)
    outputs = update_elements(xp, problem, xp.symbol("p[k]"), xp.symbol("g[k]"), "k")
    for _, value in outputs:
        _elementwise(value)
    state = [name for name, _ in outputs[1:]]
    numbers = [f"c{i}" for i in range(len(problem.optimizer.coefficients(1.0, 1)))]
    return Program(outputs, dict.fromkeys(["p[k]", "g[k]", *state], _ROW), numbers)
