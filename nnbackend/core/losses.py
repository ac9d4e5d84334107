"""Losses: the value and its gradient with respect to the logits, from one function.

The reduction is one for all of them: with l[i, k] the loss of output k on example i,

    J = sum_i w[i] sum_k l[i, k] / sum_i w[i]

the weighted mean over examples of the sum over outputs; without weights, w = 1. A batch whose
weights are all zero has value and gradient zero.

Each loss is written for the logits Z of one output activation (``Loss.output``), where it is stable
at any magnitude and, for the pairs sigmoid + binary cross-entropy, softmax + cross-entropy,
identity + squared error and exp + Poisson, its gradient is w (a - y) / sum(w).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

from nnbackend.checks import lookup, real
from nnbackend.core.activations import Output, sigmoid, softmax
from nnbackend.core.distributions import LEVELS, deviation, levels
from nnbackend.core.elementwise import sign
from nnbackend.core.types import Array, Namespace
from nnbackend.errors import InputError

__all__ = [
    "KINDS",
    "LOSSES",
    "AbsoluteError",
    "BinaryCrossEntropy",
    "Gaussian",
    "Huber",
    "Loss",
    "Poisson",
    "Quantile",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "implied_loss",
    "loss_function",
    "mean",
    "one_hot",
]


KINDS = ("values", "binary", "classes", "counts")


def one_hot(xp: Namespace, labels: Array, n_classes: int, dtype: object) -> Array:
    """Return integer labels (..., n_samples) as one-hot rows (..., n_samples, n_classes).

    Examples
    --------
    >>> import numpy as np
    >>> one_hot(np, np.asarray([2, 0]), 3, np.float32)
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """
    # Under JAX's tracing an array has no device.
    device = getattr(labels, "device", None)
    classes = xp.arange(n_classes, dtype=labels.dtype, device=device)
    return xp.astype(xp.expand_dims(labels, axis=-1) == classes, dtype)


class Loss(ABC):
    """A loss on logits. Subclasses say what one element of it is; the reduction is common.

    Attributes
    ----------
    name : str
        The name by which ``train(loss=...)`` knows it.
    output : str
        The output activation on whose logits ``elements`` is written. A loss on ``"identity"`` may
        be used with any output that is no distribution; it then sees the predictions.
    kind : {"values", "binary", "classes", "counts"}
        The targets that it takes: any numbers; 0 and 1; integer labels (n_samples,) or rows that
        sum to one; numbers >= 0. By default ``"binary"`` on the logits of a sigmoid, else
        ``"values"``. For a range that none of these is, override ``wrong_targets`` and
        ``expected_targets``.

    Examples
    --------
    >>> class Perceptron(Loss):  # of classes; it sees one-hot rows
    ...     name, output, kind = "perceptron", "softmax", "classes"
    ...     def elements(self, xp, Z, Y):
    ...         gap = Z - xp.sum(Y * Z, axis=-1, keepdims=True)
    ...         is_wrong = xp.astype(gap > 0, Z.dtype)
    ...         slope = is_wrong - Y * xp.sum(is_wrong, axis=-1, keepdims=True)
    ...         return is_wrong * gap, slope
    >>> import numpy as np
    >>> from array_api_compat import numpy as xp
    >>> J, dZ = Perceptron().value_and_gradient(xp, np.asarray([[1.0, 3.0]]), np.asarray([0]))
    >>> float(J), dZ.tolist()
    (2.0, [[-1.0, 1.0]])
    """

    name: ClassVar[str]
    output: ClassVar[str]
    kind: ClassVar[str]

    def __init_subclass__(cls, **options: object) -> None:
        """Set the default of ``kind``, and check one that is declared."""
        super().__init_subclass__(**options)
        if not hasattr(cls, "kind"):
            cls.kind = "binary" if getattr(cls, "output", "") == "sigmoid" else "values"
        if cls.kind not in KINDS:
            raise InputError(
                f"expected one of {', '.join(map(repr, KINDS))}, got {cls.kind!r}",
                argument=f"{cls.__name__}.kind",
            )

    @property
    def expected_targets(self) -> str:
        """The targets that the loss takes, in the words of an error."""
        if self.kind == "binary":
            hint = " (for other values use output='identity')" if self.output == "sigmoid" else ""
            return f"labels 0 and 1 for a {self.output} output{hint}"
        if self.kind == "classes":
            return "rows of class probabilities that are >= 0 and sum to 1"
        if self.kind == "counts":
            return f"counts >= 0 for the {type(self).__name__} loss"
        return "numbers"

    def wrong_targets(self, xp: Namespace, Y: Array) -> Array | None:
        """Return a mask of the targets that the loss does not take; None where it takes all.

        Parameters
        ----------
        xp : namespace
            The array API namespace of the array.
        Y : array (n_samples, n_outputs)
            Finite targets; rows of class probabilities, not labels, for kind ``"classes"``.

        Returns
        -------
        array of bool (n_samples, n_outputs), or None
        """
        if self.kind == "binary":
            return (Y != 0) & (Y != 1)
        if self.kind == "classes":
            return (Y < 0) | (xp.abs(xp.sum(Y, axis=-1, keepdims=True) - 1) > 1e-3)
        return Y < 0 if self.kind == "counts" else None

    @classmethod
    def of_output(cls, output: Output) -> Self:
        """Return the loss with the options that an output implies, by default its own."""
        del output
        return cls()

    def fits(self, output: Output) -> bool:
        """Whether the loss is written for an output's logits, or for predictions as it gives."""
        return self.output == output.name or (
            self.output == "identity" and not output.is_distribution
        )

    def require_output(self, output: Output) -> None:
        """Raise an InputError unless the loss can be used with an output."""
        if self.fits(output):
            return
        raise InputError(
            f"{self.name!r} needs output={self.output!r}, got a network with "
            f"output={output.name!r}; omit loss for {implied_loss(output).name!r}",
            argument="loss",
        )

    @abstractmethod
    def elements(self, xp: Namespace, Z: Array, Y: Array) -> tuple[Array, Array]:
        """Return l and dl/dZ, element by element.

        Parameters
        ----------
        xp : namespace
            The array API namespace of the arrays.
        Z : array (..., n_samples, n_outputs)
            Logits.
        Y : array (..., n_samples, n_outputs)
            Targets in the dtype of ``Z``; classes as one-hot rows. For outputs that are the
            distribution of one target, (..., n_samples, 1).

        Returns
        -------
        l, dl : arrays (..., n_samples, n_outputs)
            The losses of a row are summed, so they may be divided among its outputs in any way.
        """

    def targets(self, xp: Namespace, Z: Array, y: Array) -> Array:
        """Return targets in the form ``elements`` takes: class labels as one-hot rows."""
        if self.kind == "classes" and xp.isdtype(y.dtype, "integral"):
            return one_hot(xp, y, Z.shape[-1], Z.dtype)
        return y

    def value_and_gradient(
        self, xp: Namespace, Z: Array, y: Array, sample_weight: Array | None = None
    ) -> tuple[Array, Array]:
        """Return the loss J and dJ/dZ.

        Parameters
        ----------
        xp : namespace
            The array API namespace of the arrays.
        Z : array (..., n_samples, n_outputs)
            Logits.
        y : array (..., n_samples, n_outputs)
            Targets in the dtype of ``Z``; for losses of kind ``"classes"`` also integer labels
            (..., n_samples), for the distribution of one target (..., n_samples, 1).
        sample_weight : array (..., n_samples), optional
            Non-negative weights in the dtype of ``Z``.

        Returns
        -------
        J : array (...)
            One value per network of the stack.
        dZ : array (..., n_samples, n_outputs)

        Examples
        --------
        >>> import numpy as np
        >>> J, dZ = SquaredError().value_and_gradient(
        ...     np, np.asarray([[3.0], [1.0]]), np.asarray([[1.0], [1.0]])
        ... )
        >>> float(J), dZ.tolist()
        (1.0, [[1.0], [0.0]])
        """
        return mean(xp, *self.elements(xp, Z, self.targets(xp, Z, y)), sample_weight)


def mean(
    xp: Namespace, element: Array, derivative: Array, sample_weight: Array | None = None
) -> tuple[Array, Array]:
    """Return the one reduction of all losses, of l and of its derivative, element by element.

    Parameters
    ----------
    xp : namespace
        The array API namespace of the arrays.
    element, derivative : array (..., n_samples, n_outputs)
        l, and dl/dZ.
    sample_weight : array (..., n_samples), optional
        Non-negative weights.

    Returns
    -------
    J : array (...)
        sum_i w[i] sum_k l[i, k] / sum_i w[i].
    dZ : array (..., n_samples, n_outputs)
        w[i] dl/dZ[i, k] / sum_i w[i].
    """
    if sample_weight is None:
        n_samples = element.shape[-2]
        return xp.sum(element, axis=(-2, -1)) / n_samples, derivative / n_samples
    total = xp.sum(sample_weight, axis=-1, keepdims=True)
    share = sample_weight / xp.where(total > 0, total, xp.ones_like(total))
    share = xp.expand_dims(share, axis=-1)
    return xp.sum(element * share, axis=(-2, -1)), derivative * share


@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """Binary cross-entropy of sigmoid outputs; with several outputs, of independent labels.

    l = -(y log a + (1 - y) log(1 - a)) with a = sigmoid(z), computed as softplus(z) - y z;
    dl/dz = a - y.
    """

    name: ClassVar[str] = "binary_cross_entropy"
    output: ClassVar[str] = "sigmoid"
    kind: ClassVar[str] = "binary"

    def elements(self, xp: Namespace, Z: Array, Y: Array) -> tuple[Array, Array]:
        """Return softplus(Z) - Y Z and sigmoid(Z) - Y."""
        # Not softplus(Z) - Y * Z: for large Z the two would cancel.
        element = xp.maximum(Z, xp.zeros_like(Z)) - Y * Z + xp.log1p(xp.exp(-xp.abs(Z)))
        return element, sigmoid(xp, Z) - Y


@dataclass(frozen=True)
class SoftmaxCrossEntropy(Loss):
    """Cross-entropy of softmax outputs, for labels as integers or as rows that sum to one.

    l_k = -t_k log p_k with p = softmax(z) and t = (1 - s) y + s / n_classes for the label smoothing
    s (Szegedy et al. 2016, arXiv:1512.00567); dl/dz = p - t.

    Parameters
    ----------
    label_smoothing : float in [0, 1), default 0.0
        The share of every target that is spread evenly over the classes.
    """

    name: ClassVar[str] = "softmax_cross_entropy"
    output: ClassVar[str] = "softmax"
    kind: ClassVar[str] = "classes"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        smoothing = real("label_smoothing", self.label_smoothing, minimum=0.0, below=1.0)
        object.__setattr__(self, "label_smoothing", smoothing)

    def targets(self, xp: Namespace, Z: Array, y: Array) -> Array:
        """Return one-hot rows, smoothed, for integer labels or rows."""
        rows = super().targets(xp, Z, y)
        if self.label_smoothing:
            rows = (1.0 - self.label_smoothing) * rows + self.label_smoothing / Z.shape[-1]
        return rows

    def elements(self, xp: Namespace, Z: Array, Y: Array) -> tuple[Array, Array]:
        """Return -Y log softmax(Z) and softmax(Z) - Y, for rows of Y that sum to one."""
        shifted = Z - xp.max(Z, axis=-1, keepdims=True)
        log_sum = xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))
        # A class of target 0 adds nothing, however far below the largest its logit lies.
        distance = xp.where(Y != 0, log_sum - shifted, xp.zeros_like(Z))
        return Y * distance, softmax(xp, Z) - Y


@dataclass(frozen=True)
class SquaredError(Loss):
    """Half the squared error: l = (a - y)^2 / 2, dl/da = a - y, as in scikit-learn.

    torch's ``MSELoss`` has no factor one half and averages over outputs, too.
    """

    name: ClassVar[str] = "squared_error"
    output: ClassVar[str] = "identity"

    def elements(self, xp: Namespace, Z: Array, Y: Array) -> tuple[Array, Array]:
        """Return (Z - Y)^2 / 2 and Z - Y."""
        del xp
        residual = Z - Y
        return 0.5 * residual * residual, residual


@dataclass(frozen=True)
class AbsoluteError(Loss):
    """The absolute error: l = |a - y|, dl/da = sign(a - y), which is 0 for NaN as in torch."""

    name: ClassVar[str] = "absolute_error"
    output: ClassVar[str] = "identity"

    def elements(self, xp: Namespace, Z: Array, Y: Array) -> tuple[Array, Array]:
        """Return abs(Z - Y) and sign(Z - Y)."""
        residual = Z - Y
        return xp.abs(residual), sign(xp, residual)


@dataclass(frozen=True)
class Huber(Loss):
    """Huber's loss: r^2 / 2 for residuals |r| <= delta, delta (|r| - delta / 2) beyond.

    Parameters
    ----------
    delta : float > 0, default 1.0
        The residual at which the loss turns from quadratic to linear, in units of the target.
    """

    name: ClassVar[str] = "huber"
    output: ClassVar[str] = "identity"
    delta: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", real("delta", self.delta, above=0.0))

    def elements(self, xp: Namespace, Z: Array, Y: Array) -> tuple[Array, Array]:
        """Return c (r - c / 2) and c, with c the residual r clipped to [-delta, delta]."""
        residual = Z - Y
        limit = self.delta * xp.ones_like(residual)
        clipped = xp.maximum(xp.minimum(residual, limit), -limit)
        return clipped * (residual - 0.5 * clipped), clipped


@dataclass(frozen=True)
class Poisson(Loss):
    """Poisson's negative log-likelihood for counts y >= 0, without its constant log(y!).

    l = a - y log a with a = exp(z), computed as exp(z) - y z; dl/dz = a - y. Equal to torch's
    ``PoissonNLLLoss(log_input=True)``.
    """

    name: ClassVar[str] = "poisson"
    output: ClassVar[str] = "exp"
    kind: ClassVar[str] = "counts"

    def elements(self, xp: Namespace, Z: Array, Y: Array) -> tuple[Array, Array]:
        """Return exp(Z) - Y Z and exp(Z) - Y."""
        A = xp.exp(Z)
        return A - Y * Z, A - Y


@dataclass(frozen=True)
class Quantile(Loss):
    """The sum of the pinball losses of quantiles of one target.

    l_k = max(q_k r, (q_k - 1) r) with r = y - z_k for the level q_k (Koenker, Bassett, "Regression
    Quantiles", Econometrica 1978): its expectation is least where z_k is the q_k-quantile of y.

    Parameters
    ----------
    quantiles : sequence of float in (0, 1), default (0.05, 0.5, 0.95)
        The levels, which increase: those of the network's output.
    """

    name: ClassVar[str] = "quantile"
    output: ClassVar[str] = "quantile"
    quantiles: tuple[float, ...] = LEVELS

    def __post_init__(self) -> None:
        object.__setattr__(self, "quantiles", levels("quantiles", self.quantiles))

    @classmethod
    def of_output(cls, output: Output) -> Self:
        """Return the loss with the levels of the output."""
        return cls(getattr(output, "quantiles", LEVELS))

    def require_output(self, output: Output) -> None:
        """Raise an InputError unless the output has these levels."""
        super().require_output(output)
        own = getattr(output, "quantiles", None)
        if own != self.quantiles:
            raise InputError(
                f"expected the quantiles of the network, {own}, got {self.quantiles}; omit loss",
                argument="loss",
            )

    def elements(self, xp: Namespace, Z: Array, Y: Array) -> tuple[Array, Array]:
        """Return max(Q R, (Q - 1) R) and (R < 0) - Q, or 0 where R = Y - Z is 0."""
        index = _index(xp, Z)
        level = sum(q * xp.astype(index == k, Z.dtype) for k, q in enumerate(self.quantiles))
        residual = Y - Z
        element = xp.maximum(level * residual, (level - 1.0) * residual)
        slope = xp.astype(residual < 0, Z.dtype) - level * xp.astype(residual != 0, Z.dtype)
        return element, slope


@dataclass(frozen=True)
class Gaussian(Loss):
    """The negative log-likelihood of a normal distribution, whose two parameters are the outputs.

    l = log(s) + (y - m)^2 / (2 s^2) + log(2 pi) / 2 with the mean m = z_1 and the deviation
    s = softplus(z_2) + 1e-4. Equal to torch's ``GaussianNLLLoss(full=True)`` of m, y and s^2.
    """

    name: ClassVar[str] = "gaussian"
    output: ClassVar[str] = "gaussian"

    def elements(self, xp: Namespace, Z: Array, Y: Array) -> tuple[Array, Array]:
        """Return l in the column of the mean, and the derivatives by both logits."""
        spread = Z[..., 1:2]
        scale = deviation(xp, spread)
        distance = (Y - Z[..., 0:1]) / scale
        value = xp.log(scale) + 0.5 * distance * distance + 0.5 * math.log(2.0 * math.pi)
        by_spread = (1.0 - distance * distance) / scale * sigmoid(xp, spread)
        is_mean = _index(xp, Z) == 0
        return (
            xp.where(is_mean, value, xp.zeros_like(value)),
            xp.where(is_mean, -distance / scale, by_spread),
        )


def _index(xp: Namespace, Z: Array) -> Array:
    """Return the numbers of the outputs (n_outputs,)."""
    return xp.arange(Z.shape[-1], dtype=xp.int64, device=getattr(Z, "device", None))


LOSSES: dict[str, type[Loss]] = {
    cls.name: cls
    for cls in (
        BinaryCrossEntropy,
        SoftmaxCrossEntropy,
        SquaredError,
        AbsoluteError,
        Huber,
        Poisson,
        Quantile,
        Gaussian,
    )
}

_IMPLIED: dict[str, type[Loss]] = {
    "sigmoid": BinaryCrossEntropy,
    "softmax": SoftmaxCrossEntropy,
    "identity": SquaredError,
    "exp": Poisson,
    "quantile": Quantile,
    "gaussian": Gaussian,
}


def implied_loss(output: Output) -> Loss:
    """Return the loss whose gradient with this output activation is a - y."""
    return _IMPLIED[output.name].of_output(output)


def loss_function(loss: str | Loss | None, output: Output) -> Loss:
    """Return the loss that ``loss`` names or is, or that ``output`` implies; check that they fit.

    Raises
    ------
    InputError
        If the name is unknown, or the loss is written for another output's logits.
    """
    if loss is None:
        return implied_loss(output)
    chosen = loss if isinstance(loss, Loss) else lookup("loss", loss, LOSSES).of_output(output)
    chosen.require_output(output)
    return chosen
