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

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from nnbackend.checks import lookup, real
from nnbackend.core.activations import Output, sigmoid, softmax
from nnbackend.core.elementwise import sign
from nnbackend.core.types import Array, Namespace
from nnbackend.errors import InputError

__all__ = [
    "KINDS",
    "LOSSES",
    "AbsoluteError",
    "BinaryCrossEntropy",
    "Huber",
    "Loss",
    "Poisson",
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
        be used with any output; it then sees the predictions.
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
            Targets in the dtype of ``Z``; classes as one-hot rows.

        Returns
        -------
        l, dl : arrays (..., n_samples, n_outputs)
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
            (..., n_samples).
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


LOSSES: dict[str, type[Loss]] = {
    cls.name: cls
    for cls in (
        BinaryCrossEntropy,
        SoftmaxCrossEntropy,
        SquaredError,
        AbsoluteError,
        Huber,
        Poisson,
    )
}

_IMPLIED: dict[str, type[Loss]] = {
    "sigmoid": BinaryCrossEntropy,
    "softmax": SoftmaxCrossEntropy,
    "identity": SquaredError,
    "exp": Poisson,
}


def implied_loss(output: Output) -> Loss:
    """Return the loss whose gradient with this output activation is a - y."""
    return _IMPLIED[output.name]()


def loss_function(loss: str | Loss | None, output: Output) -> Loss:
    """Return the loss that ``loss`` names or is, or that ``output`` implies; check that they fit.

    Raises
    ------
    InputError
        If the name is unknown, or the loss is written for another output's logits.
    """
    if loss is None:
        return implied_loss(output)
    chosen = loss if isinstance(loss, Loss) else lookup("loss", loss, LOSSES)()
    if chosen.output not in ("identity", output.name):
        raise InputError(
            f"{chosen.name!r} needs output={chosen.output!r}, got a network with "
            f"output={output.name!r}; omit loss for {implied_loss(output).name!r}",
            argument="loss",
        )
    return chosen
