"""The order of a training step on the CPU: products, and the kernels between them.

For a large network these functions run as they stand, in Python: each product and kernel takes far
longer than its call. For a small one the same text is compiled, together with the kernels, into one
function that runs many epochs (``program.compiled_source``): so everything here is plain enough for
Numba. ``k`` is where the kernels come from; the compiled text calls them by name alone.

Arrays are planned by the engine, one tuple entry per layer: weights ``W`` and biases ``b`` (views
of ``parameters``), their gradients ``gW`` and ``gb`` (views of ``gradient``), pre-activations ``Z``
(after the loss, those of the last layer are dZ), activations ``A``, dropped activations ``H``,
dropout masks ``M`` and gradients ``D``. ``A`` is ``Z`` where the activation works in place, and
``H`` is ``A`` where there is no dropout. ``kinds`` numbers the hidden layers' kernels. ``X0``,
``y0`` and ``w0`` take the rows of a batch; without sample weights ``w0`` stays one throughout.
Labels and weights are columns.
``hyper`` holds the numbers of optimizer, penalties and clipping.
"""

from __future__ import annotations

from typing import Any

__all__ = ["propagate", "run"]


def propagate(
    k: Any, X: Any, n: Any, W: Any, b: Any, Z: Any, A: Any, H: Any, M: Any, kinds: Any
) -> None:
    """Propagate ``n`` rows up to the products of the output layer."""
    k.product(X, W[0], Z[0][:n])
    for layer in range(len(W) - 1):
        k.activate(kinds[layer], n, Z[layer], b[layer], A[layer], H[layer], M[layer])
        k.product(H[layer][:n], W[layer + 1], Z[layer + 1][:n])


def run(
    k: Any, trains: Any, X: Any, y: Any, weight: Any, order: Any, X0: Any, y0: Any, w0: Any,
    coefficients: Any, losses: Any, parameters: Any, gradient: Any, state: Any, finite: Any, W: Any,
    b: Any, gW: Any, gb: Any, Z: Any, A: Any, H: Any, M: Any, D: Any, L: Any, kinds: Any,
    hyper: Any,
) -> Any:  # fmt: skip
    """Run epochs until one of them ends in a loss or parameter that is not finite.

    ``order`` (n_epochs, n_samples) holds each epoch's rows, or is empty for the rows as they are;
    ``coefficients`` one row per step; ``losses`` takes the mean objective of each epoch, and
    ``finite`` the parameters that the last good one ended with. Returns how many epochs were run,
    and whether all of them were good. Unless it ``trains``, an epoch is the mean loss alone.
    """
    n_samples = X.shape[0]
    size = Z[0].shape[0]
    last = len(W) - 1
    step = 0
    for epoch in range(losses.shape[0]):
        loss_sum = 0.0
        weight_sum = 0.0
        for start in range(0, n_samples, size):
            n = size if start + size <= n_samples else n_samples - start
            if order.shape[0] > 0:
                chosen = order[epoch, start : start + n]
                k.take(X, chosen, X0)
                k.take(y, chosen, y0)
                if weight.shape[0] > 0:
                    k.take(weight, chosen, w0)
                rows, targets, share = X0[:n], y0[:n], w0[:n]
            else:
                rows, targets = X[start : start + n], y[start : start + n]
                share = weight[start : start + n] if weight.shape[0] > 0 else w0[:n]
            batch_weight = k.total(share)
            scale = 1.0 / batch_weight if batch_weight > 0.0 else 1.0
            k.drop(trains, n, M)
            k.propagate(rows, n, W, b, Z, A, H, M, kinds)
            loss = k.output_loss(n, Z[last], b[last], targets, share, scale, L, gb[last])
            if trains:
                dZ = Z[last][:n]
                for layer in range(last, 0, -1):
                    below = layer - 1
                    k.product(H[below][:n].T, dZ, gW[layer])
                    k.product(dZ, W[layer].T, D[below][:n])
                    k.pull_back(kinds[below], n, D[below], Z[below], A[below], M[below], gb[below])
                    dZ = D[below][:n]
                k.product(rows.T, dZ, gW[0])
                for layer in range(len(W)):
                    loss += k.penalize(W[layer], gW[layer], hyper)
                k.clip(gradient, hyper)
                k.update(parameters, gradient, state, coefficients[step], hyper)
                step += 1
            loss_sum += loss * batch_weight
            weight_sum += batch_weight
        losses[epoch] = loss_sum / weight_sum if weight_sum > 0.0 else 0.0
        if trains:
            if not (k.is_finite(losses[epoch]) and k.all_finite(parameters)):
                return epoch + 1, False
            k.copy(parameters, finite)
    return losses.shape[0], True
