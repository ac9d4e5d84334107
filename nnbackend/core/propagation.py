"""Forward and backward propagation through all layers of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nnbackend.core import dense
from nnbackend.core.activations import Output
from nnbackend.core.losses import Loss, mean
from nnbackend.core.standardization import Standardization
from nnbackend.core.structure import Structure
from nnbackend.core.types import Array, Namespace

__all__ = [
    "CACHED_ELEMENTS",
    "DEVICE_ELEMENTS",
    "Trace",
    "backward",
    "forward",
    "logits",
    "loss_and_gradients",
    "output_elements",
    "output_loss",
    "restored",
]

Masks = Sequence[Array | None]

# Activations that fit a core's second-level cache: half a megabyte in float32.
CACHED_ELEMENTS = 2**17
# Activations to compute at once where only memory limits them: a quarter of a gigabyte.
DEVICE_ELEMENTS = 2**26


class Trace(NamedTuple):
    """The results of forward propagation, layer by layer, which the backward pass needs.

    Attributes
    ----------
    inputs : list of arrays (..., n_samples, n_in)
        The input of each layer: X, then the hidden activations after dropout.
    pre_activations : list of arrays (..., n_samples, n_out)
        Z of each layer; the last are the logits.
    activations : list of arrays (..., n_samples, n_out)
        g(Z) of each hidden layer, before dropout.
    """

    inputs: list[Array]
    pre_activations: list[Array]
    activations: list[Array]

    @property
    def logits(self) -> Array:
        """Z of the output layer."""
        return self.pre_activations[-1]


def forward(
    xp: Namespace,
    structure: Structure,
    weights: Sequence[Array],
    biases: Sequence[Array],
    X: Array,
    masks: Masks | None = None,
) -> Trace:
    """Propagate examples through the network: Z[l] = A[l-1] W[l] + b[l], A[l] = g(Z[l]).

    Parameters
    ----------
    xp : namespace
        The array API namespace of the arrays.
    structure : Structure
        Sizes and activations.
    weights : sequence of arrays (..., n_in, n_out)
        One array per layer.
    biases : sequence of arrays (..., n_out)
        One array per layer.
    X : array (..., n_samples, n_features)
        The examples, one per row. If X lacks the stack axes of the parameters, every network of
        the stack gets the same examples.
    masks : sequence of (array (..., n_samples, n_units) or None), optional
        Dropout masks, one per hidden layer.

    Returns
    -------
    Trace
    """
    trace = Trace([X], [dense.forward(xp, X, weights[0], biases[0])], [])
    for layer, activation in enumerate(structure.hidden):
        A = activation.function(xp, trace.pre_activations[-1])
        trace.activations.append(A)
        mask = masks[layer] if masks else None
        trace.inputs.append(A if mask is None else A * mask)
        Z = dense.forward(xp, trace.inputs[-1], weights[layer + 1], biases[layer + 1])
        trace.pre_activations.append(Z)
    return trace


def logits(
    xp: Namespace,
    structure: Structure,
    weights: Sequence[Array],
    biases: Sequence[Array],
    X: Array,
    rows_per_block: int | None = None,
) -> Array:
    """Return Z of the output layer (..., n_samples, n_outputs), keeping no intermediate result.

    Compute ``rows_per_block`` examples at a time, so that the activations of each layer stay in the
    processor's cache.
    """
    n_samples = X.shape[-2]
    if rows_per_block is not None and n_samples > rows_per_block:
        starts = range(0, n_samples, rows_per_block)
        blocks = (X[..., start : start + rows_per_block, :] for start in starts)
        return xp.concat(
            [logits(xp, structure, weights, biases, block) for block in blocks], axis=-2
        )
    Z = dense.forward(xp, X, weights[0], biases[0])
    for activation, W, b in zip(structure.hidden, weights[1:], biases[1:], strict=True):
        Z = dense.forward(xp, activation.function(xp, Z), W, b)
    return Z


def restored(xp: Namespace, output: Output, A: Array, target: Standardization | None) -> Array:
    """Return outputs in the units of a target that was standardized, if it was.

    They keep their dtype, unless that is too coarse for the target: then they are float64.
    """
    if target is None:
        return A
    result = output.restored(xp, A, target)
    return result if bool(xp.any(target.exceeds(xp, A.dtype))) else xp.astype(result, A.dtype)


def output_elements(
    xp: Namespace, output: Output, loss: Loss, logits: Array, y: Array
) -> tuple[Array, Array]:
    """Return the loss and its derivative with respect to the logits, element by element.

    A loss that is written for this output takes the logits. A loss on ``"identity"`` takes the
    predictions, and its gradient is pulled back through the output activation.

    Parameters
    ----------
    xp : namespace
        The array API namespace of the arrays.
    output : Output
        The output activation.
    loss : Loss
        A loss that fits it.
    logits : array (..., n_samples, n_outputs)
        Z of the output layer.
    y : array
        As in ``Loss.value_and_gradient``.

    Returns
    -------
    l, dl : arrays (..., n_samples, n_outputs)
    """
    if loss.output == output.name:
        return loss.elements(xp, logits, loss.targets(xp, logits, y))
    A = output.function(xp, logits)
    element, dA = loss.elements(xp, A, loss.targets(xp, A, y))
    return element, output.pullback(xp, dA, A)


def output_loss(
    xp: Namespace,
    structure: Structure,
    loss: Loss,
    logits: Array,
    y: Array,
    sample_weight: Array | None = None,
) -> tuple[Array, Array]:
    """Return the loss of logits and its gradient: the mean of ``output_elements``.

    Parameters
    ----------
    xp : namespace
        The array API namespace of the arrays.
    structure : Structure
        The structure of the network.
    loss : Loss
        A loss that fits the output.
    logits : array (..., n_samples, n_outputs)
        Z of the output layer.
    y, sample_weight : array
        As in ``Loss.value_and_gradient``.

    Returns
    -------
    J : array (...)
    dZ : array (..., n_samples, n_outputs)
    """
    return mean(xp, *output_elements(xp, structure.output, loss, logits, y), sample_weight)


def backward(
    xp: Namespace,
    structure: Structure,
    weights: Sequence[Array],
    trace: Trace,
    dZ: Array,
    masks: Masks | None = None,
) -> tuple[list[Array], list[Array]]:
    """Propagate the gradient back: dA[l-1] = dZ[l] W[l]^T, dZ[l] = dA[l] * g'(Z[l]).

    Parameters
    ----------
    xp, structure, weights, masks
        As in ``forward``.
    trace : Trace
        What ``forward`` returned.
    dZ : array (..., n_samples, n_outputs)
        Gradient of the loss with respect to the logits.

    Returns
    -------
    weight_gradients : list of arrays (..., n_in, n_out)
    bias_gradients : list of arrays (..., n_out)
    """
    weight_gradients: list[Array] = []
    bias_gradients: list[Array] = []
    for layer in reversed(range(len(weights))):
        dW, db, dA = dense.backward(
            xp, dZ, trace.inputs[layer], weights[layer], input_gradient=layer > 0
        )
        weight_gradients.insert(0, dW)
        bias_gradients.insert(0, db)
        if dA is not None:
            below = layer - 1
            mask = masks[below] if masks else None
            if mask is not None:
                dA = dA * mask
            Z, A = trace.pre_activations[below], trace.activations[below]
            dZ = dA * structure.hidden[below].derivative(xp, Z, A)
    return weight_gradients, bias_gradients


def loss_and_gradients(
    xp: Namespace,
    structure: Structure,
    loss: Loss,
    weights: Sequence[Array],
    biases: Sequence[Array],
    X: Array,
    y: Array,
    sample_weight: Array | None = None,
    masks: Masks | None = None,
) -> tuple[Array, list[Array], list[Array]]:
    """Return the loss (...) and its gradients with respect to every weight and bias.

    Run ``forward``, ``output_loss`` and ``backward``; see those for the arguments.
    """
    trace = forward(xp, structure, weights, biases, X, masks)
    J, dZ = output_loss(xp, structure, loss, trace.logits, y, sample_weight)
    return J, *backward(xp, structure, weights, trace, dZ, masks)
