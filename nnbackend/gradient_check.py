"""check_gradients: analytic gradients against central differences, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nnbackend.checks import positive_integer, real
from nnbackend.core.losses import Loss
from nnbackend.core.objective import Objective
from nnbackend.core.types import Array, Namespace
from nnbackend.device import get_device
from nnbackend.errors import GradientMismatchError, InputError
from nnbackend.floating_point import own_errors
from nnbackend.network import Network

__all__ = ["GradientReport", "check_gradients"]

STEP = 1e-5
# Where derivatives at STEP and STEP / 2 disagree by more than this share of the largest, a kink
# lies within reach. Rounding and truncation of a smooth float64 objective stay near 1e-10.
KINK = 1e-8
# A stack of perturbed networks is evaluated at once; this many activations bound its memory.
STACK_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class GradientReport:
    """How analytic gradients compare with central differences.

    Attributes
    ----------
    relative_error : float
        The largest of ``errors``.
    errors : dict of str to float
        For each ``weights[l]`` and ``biases[l]``: norm(analytic - numeric) divided by
        norm(analytic) + norm(numeric). The latter is taken as at least a thousandth of the largest
        among the arrays, and 1e7 times the rounding of a central difference (2e-11 times the
        objective), so that the noise of a vanishing gradient does not count.
    worst : tuple (str, float, float)
        The parameter with the largest absolute difference, its analytic and numeric derivative.
    n_compared : int
        Parameters that were compared.
    n_skipped : int
        Parameters next to a kink (of relu, an absolute value, ...), where the objective has no
        derivative to compare with.
    n_parameters : int
        All parameters of the network; what is neither compared nor skipped was not drawn.
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

    The comparison runs in float64 on the network's device, on a copy of the network. Parameters at
    which the objective has a kink within the step of 1e-5 are recognized and left out.

    Parameters
    ----------
    net : Network
        Of any dtype; it is not changed.
    X, y, loss, sample_weight, l1, l2
        As for ``Network.loss_and_gradients``.
    tolerance : float, default 1e-6
        The largest relative error that passes.
    max_parameters : int or None, default 1000
        Compare at most so many parameters, drawn at random; None compares all.
    seed : int, default 0
        Draws them.

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
        raise InputError(f"net: expected a nnbackend.Network, got {type(net).__name__}")
    tolerance = real("tolerance", tolerance, above=0.0)
    seed = positive_integer("seed", seed, minimum=0)
    double = net.astype("float64")
    objective = double.objective(loss, l1, l2)
    data = double.prepare(X, y, objective.loss, sample_weight)
    device = get_device(net.device)
    chosen = np.arange(net.n_parameters)
    if max_parameters is not None:
        count = min(positive_integer("max_parameters", max_parameters), net.n_parameters)
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, count, replace=False))
    with device.activate():
        _, gradient = objective.value_and_gradient(device.xp, double.parameters, *data)
        analytic = device.to_numpy(gradient)[chosen]
        values = _perturbed(device.xp, objective, double.parameters, data, chosen, device)
    objective_is_finite = np.isfinite(values[0]) and np.isfinite(values[1]).all()
    if not (objective_is_finite and np.isfinite(analytic).all()):
        what = "analytic gradient" if objective_is_finite else "objective"
        raise GradientMismatchError(
            f"the {what} is not finite on this data; check the activations' functions and "
            "derivatives, or scale the data"
        )
    numeric, smooth = _derivatives(*values)
    rounding = np.finfo(np.float64).eps * abs(values[0]) / STEP
    report = _report(net, chosen, analytic, numeric, smooth, rounding)
    if report.n_compared == 0:
        raise GradientMismatchError(
            f"none of the {len(chosen)} parameters could be compared: all lie next to kinks; use "
            "other data, or another seed for the network"
        )
    if report.relative_error > tolerance:
        name, a, n = report.worst
        raise GradientMismatchError(
            f"gradients differ: relative error {report.relative_error:.2e} > tolerance "
            f"{tolerance:g}; worst at {name}: analytic {a:.8g}, central difference {n:.8g}\n"
            f"{report}"
        )
    return report


def _perturbed(
    xp: Namespace,
    objective: Objective,
    parameters: Array,
    data: tuple[Array, Array, Array | None],
    chosen: np.ndarray[Any, Any],
    device: Any,
) -> tuple[float, np.ndarray[Any, Any]]:
    """Return the objective at the parameters, and (4, n) at each one moved by +-STEP, +-STEP/2."""
    centre = float(objective.value(xp, parameters, *data))
    per_network = data[0].shape[0] * sum(objective.structure.layer_sizes) + parameters.shape[0]
    size = max(1, STACK_ELEMENTS // per_network)
    moved = np.empty((4, len(chosen)))
    for row, step in enumerate((STEP, -STEP, STEP / 2, -STEP / 2)):
        for start in range(0, len(chosen), size):
            rows = chosen[start : start + size]
            stack = np.zeros((len(rows), parameters.shape[0]))
            stack[np.arange(len(rows)), rows] = step
            values = objective.value(xp, parameters + device.place(stack), *data)
            moved[row, start : start + size] = device.to_numpy(values)
    return centre, moved


def _derivatives(
    centre: float, moved: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return extrapolated central differences, and where the objective is smooth.

    Across a kink the difference quotients of the two steps disagree; on a kink they agree, but the
    one-sided quotients keep their distance when the step is halved, instead of halving it.
    """
    up, down, up_half, down_half = moved
    wide, narrow = (up - down) / (2 * STEP), (up_half - down_half) / STEP
    bend = (up + down - 2 * centre) / STEP
    bend_half = (up_half + down_half - 2 * centre) / (STEP / 2)
    scale = KINK * max(np.abs(wide).max(), abs(centre))
    smooth = (np.abs(wide - narrow) <= scale) & (np.abs(bend - 2 * bend_half) <= scale)
    # Richardson's extrapolation removes the quadratic term of the truncation error.
    return (4 * narrow - wide) / 3, smooth


def _report(
    net: Network,
    chosen: np.ndarray[Any, Any],
    analytic: np.ndarray[Any, Any],
    numeric: np.ndarray[Any, Any],
    smooth: np.ndarray[Any, Any],
    rounding: float,
) -> GradientReport:
    spans: dict[str, tuple[int, int]] = {}
    start = 0
    for layer, (n_in, n_out) in enumerate(net.structure.weight_shapes):
        spans[f"weights[{layer}]"] = (start, start + n_in * n_out)
        spans[f"biases[{layer}]"] = (start + n_in * n_out, start + n_in * n_out + n_out)
        start += n_in * n_out + n_out
    difference = np.where(smooth, np.abs(analytic - numeric), 0.0)
    distances, sizes = {}, {}
    for name, (first, end) in spans.items():
        inside = smooth & (chosen >= first) & (chosen < end)
        distances[name] = float(np.linalg.norm(difference[inside]))
        sizes[name] = float(np.linalg.norm(analytic[inside]) + np.linalg.norm(numeric[inside]))
    floor = max(*sizes.values(), 1e10 * rounding) / 1000
    errors = {
        name: distance / max(sizes[name], floor) if distance else 0.0
        for name, distance in distances.items()
    }
    at = int(np.argmax(difference))
    array, (first, _) = next(
        (name, span) for name, span in spans.items() if span[0] <= chosen[at] < span[1]
    )
    return GradientReport(
        relative_error=max(errors.values()),
        errors=errors,
        worst=(f"{array}.flat[{chosen[at] - first}]", float(analytic[at]), float(numeric[at])),
        n_compared=int(smooth.sum()),
        n_skipped=int((~smooth).sum()),
        n_parameters=net.n_parameters,
    )
