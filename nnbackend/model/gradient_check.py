"""Compare analytic gradients with central differences, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnbackend.checks import positive_integer, real
from nnbackend.core import propagation
from nnbackend.core.losses import Loss
from nnbackend.core.objective import Objective
from nnbackend.core.regularization import penalty_elements
from nnbackend.core.types import Array
from nnbackend.device import Device, get_device
from nnbackend.errors import GradientMismatchError, InputError
from nnbackend.floating_point import own_errors
from nnbackend.model.network import Network

__all__ = ["GradientReport", "check_gradients"]

# A longer step has less rounding, but more truncation and more kinks within reach: use the first of
# these steps at which the objective is smooth.
STEPS = (1e-3, 1e-4, 1e-5)

# By rounding, a difference quotient, and the difference of two one-sided ones, change by at most
# this much between a step and its half, in units of the objective's rounding divided by the step.
QUOTIENT_NOISE, BEND_NOISE = 8.0, 40.0

# A kink that these bounds miss moves an extrapolated quotient by at most 20 such units.
HIDDEN_KINK, DERIVATIVE_NOISE = 20.0, 4.0

# A difference that rounding explains counts as this relative error at most.
ROUNDING_ERROR = 1e-6
EPS = float(np.finfo(np.float64).eps)

# Perturbed networks are evaluated as one stack with at most this many activations in memory.
STACK_ELEMENTS = 4_000_000
_Floats = np.ndarray[Any, Any]


@dataclass(frozen=True)
class GradientReport:
    """The comparison of analytic gradients with central differences.

    Attributes
    ----------
    relative_error : float
        The largest of ``errors``.
    errors : dict of str to float
        For each ``weights[l]`` and ``biases[l]``: norm(analytic - numeric) divided by
        norm(analytic) + norm(numeric). The divisor is at least 1e6 times the difference that
        rounding of the objective causes, so that the noise of a vanishing gradient does not count.
    worst : tuple (str, float, float)
        The parameter with the largest absolute difference, its analytic and numeric derivative.
    n_compared : int
        Parameters that were compared.
    n_skipped : int
        Parameters next to a kink (of relu, an absolute value, ...), where the objective has no
        derivative to compare with.
    n_parameters : int
        All parameters of the network, including those that were not drawn.
    """

    relative_error: float
    errors: dict[str, float]
    worst: tuple[str, float, float]
    n_compared: int
    n_skipped: int
    n_parameters: int

    def __str__(self) -> str:
        lines = [f"{name:<12} {error:9.2e}" for name, error in self.errors.items()]
        lines.append(
            f"compared {self.n_compared} of {self.n_parameters} parameters, skipped "
            f"{self.n_skipped} next to kinks; largest relative error {self.relative_error:.2e}"
        )
        return "\n".join(lines)


@own_errors
def check_gradients(
    net: Network,
    X: Any,
    y: Any,
    *,
    loss: str | Loss | None = None,
    sample_weight: Any = None,
    l1: float = 0.0,
    l2: float = 0.0,
    tolerance: float = 1e-6,
    max_parameters: int | None = 1000,
    seed: int = 0,
) -> GradientReport:
    """Compare a network's gradients with central differences of its objective.

    The comparison runs in float64 on the network's device, on a copy of the network. It moves each
    parameter by 1e-3, or by 1e-4 or 1e-5 where the objective is not smooth within a longer step. It
    skips a parameter with a kink within 1e-5: one whose derivatives from a step and from its half
    differ by more than rounding, and by more than the tolerance allows.

    Parameters
    ----------
    net : Network
        The network, of any dtype; it is not changed.
    X, y, loss, sample_weight, l1, l2
        As for ``Network.loss_and_gradients``.
    tolerance : float, default 1e-6
        The largest relative error that passes.
    max_parameters : int or None, default 1000
        Compare at most this many parameters, drawn at random; None compares all.
    seed : int, default 0
        The seed of that draw.

    Returns
    -------
    GradientReport

    Raises
    ------
    GradientMismatchError
        If the relative error exceeds the tolerance, or no parameter could be compared.

    Examples
    --------
    >>> import nnbackend as nb
    >>> net = nb.Network([2, 3, 1], hidden="tanh")
    >>> report = nb.check_gradients(net, [[0.5, -1.0], [1.0, 2.0]], [0, 1])
    >>> report.n_compared, report.relative_error < 1e-8
    (13, True)
    """
    if not isinstance(net, Network):
        raise InputError(f"expected a nnbackend.Network, got {type(net).__name__}", argument="net")
    tolerance = real("tolerance", tolerance, above=0.0)
    seed = positive_integer("seed", seed, minimum=0)
    double = net.astype("float64")
    objective = double.objective(loss, l1, l2)
    data = double.preparation.examples(X, y, objective.loss, sample_weight).arrays
    device = get_device(net.device)
    chosen = np.arange(net.n_parameters)
    if max_parameters is not None:
        count = min(positive_integer("max_parameters", max_parameters), net.n_parameters)
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, count, replace=False))
    arrays = _arrays(net, chosen)
    with device.activate():
        value, gradient = objective.value_and_gradient(device.xp, double.parameters, *data)
        analytic = device.to_numpy(gradient)[chosen]
        increments = _Increments(device, objective, double.parameters, data)
        numeric, smooth, rounding = _central_differences(
            increments, chosen, lambda compared: _room(arrays, analytic, compared, tolerance)
        )
    objective_is_finite = bool(np.isfinite(float(value))) and bool(np.isfinite(numeric).all())
    if not (objective_is_finite and np.isfinite(analytic).all()):
        what = "analytic gradient" if objective_is_finite else "objective"
        raise GradientMismatchError(
            f"the {what} is not finite on this data; check the activations' functions and "
            "derivatives, or scale the data"
        )
    report = _report(net, arrays, chosen, analytic, numeric, smooth, rounding)
    if report.n_compared == 0:
        raise GradientMismatchError(
            f"none of the {len(chosen)} parameters could be compared: all lie next to kinks; use "
            "other data, or another seed for the network"
        )
    if not report.relative_error <= tolerance:
        name, a, n = report.worst
        raise GradientMismatchError(
            f"gradients differ: relative error {report.relative_error:.2e} > tolerance "
            f"{tolerance:g}; worst at {name}: analytic {a:.8g}, central difference {n:.8g}\n"
            f"{report}"
        )
    return report


class _Increments:
    """The increments of an objective when single parameters are moved.

    Subtract example by example and sum afterwards: the result then has the rounding of single
    losses, which averages out over the examples, rather than that of the whole objective.

    Attributes
    ----------
    rounding : float
        The size of a small increment's rounding.
    """

    def __init__(
        self,
        device: Device,
        objective: Objective,
        parameters: Array,
        data: tuple[Array, Array, Array | None],
    ) -> None:
        self._device, self._objective, self._parameters = device, objective, parameters
        self._X, self._y, weight = data
        xp, n_samples = device.xp, data[0].shape[0]
        self._share = 1.0 / n_samples if weight is None else (weight / xp.sum(weight))[:, None]
        per_network = n_samples * sum(objective.structure.layer_sizes) + parameters.shape[0]
        self._size = max(1, STACK_ELEMENTS // per_network)
        with np.errstate(all="ignore"):
            Z, elements, derivatives, self._penalties = self._evaluate(parameters)
            self._elements = elements
            # Count the rounding of each loss and of the logits that it is computed from.
            size = xp.abs(elements) + xp.abs(derivatives * Z)
            if objective.loss.output == "softmax":
                # The loss has the logarithm of a sum whose largest term is 1.
                size = size + 1.0 / Z.shape[1]
            parts = [self._share * xp.sum(size, axis=1, keepdims=True), *self._penalties]
            self.rounding = EPS * _norm([_norm(device.to_numpy(part)) for part in parts])

    def _evaluate(self, parameters: Array) -> tuple[Array, Array, Array, list[Array]]:
        """Return logits, losses and their derivatives by element, and penalties by weight."""
        xp, objective = self._device.xp, self._objective
        structure = objective.structure
        weights, biases = structure.unflatten(xp, parameters)
        Z = propagation.logits(xp, structure, weights, biases, self._X)
        elements = propagation.output_elements(xp, structure.output, objective.loss, Z, self._y)
        penalties = []
        if objective.is_penalized:
            penalties = [penalty_elements(xp, W, objective.l1, objective.l2)[0] for W in weights]
        return Z, *elements, penalties

    def of(self, rows: _Floats, step: float) -> _Floats:
        """Return the increments for moving each of some parameters by a step."""
        xp = self._device.xp
        result = np.empty(len(rows))
        for start in range(0, len(rows), self._size):
            block = rows[start : start + self._size]
            stack = np.zeros((len(block), self._parameters.shape[0]))
            stack[np.arange(len(block)), block] = step
            moved = self._parameters + self._device.place(stack)
            _, elements, _, penalties = self._evaluate(moved)
            increments = xp.sum((elements - self._elements) * self._share, axis=(1, 2))
            for new, old in zip(penalties, self._penalties, strict=True):
                increments = increments + xp.sum(new - old, axis=(1, 2))
            result[start : start + self._size] = self._device.to_numpy(increments)
        return result


def _central_differences(
    increments: _Increments, chosen: _Floats, room: Callable[[_Floats], _Floats]
) -> tuple[_Floats, _Floats, _Floats]:
    """Return extrapolated central differences, where the objective is smooth, and their rounding.

    Across a kink, the difference quotients of a step and of its half disagree. On a kink they
    agree, but the distance of the one-sided quotients stays the same when the step is halved.
    ``room`` returns by how much each derivative may be off, given which ones are compared.
    """
    numeric, rounding = np.empty(len(chosen)), np.empty(len(chosen))
    # By how much quotients disagree beyond rounding.
    excess = np.full(len(chosen), np.inf)
    smooth = np.zeros(len(chosen), bool)
    all_room = room(~smooth)
    with np.errstate(all="ignore"):
        for step in STEPS:
            left = np.flatnonzero(~smooth)
            if len(left) == 0:
                break
            up, down, up_half, down_half = (
                increments.of(chosen[left], h) for h in (step, -step, step / 2, -step / 2)
            )
            wide, narrow = (up - down) / (2 * step), (up_half - down_half) / step
            bend, bend_half = (up + down) / step, (up_half + down_half) / (step / 2)
            unit = (increments.rounding + EPS * np.maximum(np.abs(up), np.abs(down))) / step
            # Richardson's extrapolation removes the quadratic term of the truncation error.
            numeric[left], rounding[left] = (4 * narrow - wide) / 3, unit
            between, bends = np.abs(wide - narrow), np.abs(bend - 2 * bend_half)
            excess[left] = np.maximum(
                np.where(between > QUOTIENT_NOISE * unit, between, 0.0),
                np.where(bends > BEND_NOISE * unit, bends, 0.0),
            )
            smooth[left] = (excess[left] <= all_room[left]) & np.isfinite(numeric[left])
    # Skipping a parameter takes its share of the room away, so check the others again.
    while (crowded := smooth & (excess > room(smooth))).any():
        smooth = smooth & ~crowded
    return numeric, smooth, rounding


def _arrays(net: Network, chosen: _Floats) -> dict[str, tuple[int, _Floats]]:
    """Return, for each array of parameters, its start and the chosen parameters in it."""
    arrays: dict[str, tuple[int, _Floats]] = {}
    start = 0
    for layer, (n_in, n_out) in enumerate(net.structure.weight_shapes):
        for name, size in ((f"weights[{layer}]", n_in * n_out), (f"biases[{layer}]", n_out)):
            arrays[name] = start, (chosen >= start) & (chosen < start + size)
            start += size
    return arrays


def _room(
    arrays: dict[str, tuple[int, _Floats]], analytic: _Floats, compared: _Floats, tolerance: float
) -> _Floats:
    """Return by how much each derivative may be off while the check still passes.

    The check compares the norm of an array's errors with the tolerance times twice the norm of its
    gradient.
    """
    room = np.zeros(len(analytic))
    for _, inside in arrays.values():
        among = inside & compared
        n = max(1, int(among.sum()))
        room[inside] = tolerance * _norm(analytic[among]) / (2 * n**0.5)
    return room


def _norm(x: Any) -> float:
    """Return the Euclidean norm of numbers whose squares may overflow."""
    largest = float(np.max(np.abs(x), initial=0.0))
    if not 0.0 < largest < np.inf:
        return largest
    return largest * float(np.linalg.norm(np.ravel(np.divide(x, largest))))


def _report(
    net: Network,
    arrays: dict[str, tuple[int, _Floats]],
    chosen: _Floats,
    analytic: _Floats,
    numeric: _Floats,
    smooth: _Floats,
    rounding: _Floats,
) -> GradientReport:
    difference = np.where(smooth, np.abs(analytic - numeric), 0.0)
    errors = {}
    for name, (_, inside) in arrays.items():
        compared = smooth & inside
        distance = _norm(difference[compared])
        size = _norm(analytic[compared]) + _norm(numeric[compared])
        unit = rounding[compared]
        noise = DERIVATIVE_NOISE * _norm(unit) + HIDDEN_KINK * float(unit.max(initial=0.0))
        errors[name] = distance / max(size, noise / ROUNDING_ERROR) if distance else 0.0
    at = int(np.argmax(difference))
    array, first = next((name, first) for name, (first, inside) in arrays.items() if inside[at])
    return GradientReport(
        relative_error=max(errors.values()),
        errors=errors,
        worst=(f"{array}.flat[{chosen[at] - first}]", float(analytic[at]), float(numeric[at])),
        n_compared=int(smooth.sum()),
        n_skipped=int((~smooth).sum()),
        n_parameters=net.n_parameters,
    )
