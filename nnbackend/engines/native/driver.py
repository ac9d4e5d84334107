"""Run a training step on the CPU: products, and the kernels between them, in their order.

For a large network these functions run in Python, since each product and kernel takes far longer
than its call. For a small one the same text is compiled, together with the kernels, into one
function that runs many epochs (``Kernels.compiled_source``), so everything here is plain enough for
Numba. ``k`` provides the kernels; the compiled text calls them by name alone.

The engine allocates the arrays, with one tuple entry per layer: weights ``W`` and biases ``b``
(views of ``parameters``), their gradients ``gW`` and ``gb`` (views of ``gradient``),
pre-activations ``Z`` (after the loss, the last layer's ``Z`` holds dZ), activations ``A``, dropped
activations ``H``, dropout masks ``M`` and gradients ``D``. ``A`` is ``Z`` if the activation works
in place, and ``H`` is ``A`` without dropout. ``kinds`` numbers the hidden layers' kernels. ``X0``,
``y0`` and ``w0`` take the rows of a batch; without sample weights ``w0`` stays one throughout.
Labels and weights are columns. ``hyper`` holds the numbers of optimizer, penalties and clipping.
"""

from __future__ import annotations

from typing import Any

__all__ = ["propagate", "run"]


def propagate(
    k: Any, X: Any, top: Any, bottom: Any, W: Any, b: Any, Z: Any, A: Any, H: Any, M: Any,
    kinds: Any,
) -> None:  # fmt: skip
    """Propagate the rows ``top`` to ``bottom`` up to the products of the output layer."""
    k.product(X[top:bottom], W[0], Z[0][top:bottom])
    for layer in range(len(W) - 1):
        below = H[layer][top:bottom]
        k.activate(
            kinds[layer], Z[layer][top:bottom], b[layer], A[layer][top:bottom], below,
            M[layer][top:bottom],
        )  # fmt: skip
        k.product(below, W[layer + 1], Z[layer + 1][top:bottom])


def run(  # noqa: C901, PLR0912, PLR0915 - Numba compiles this as one function
    k: Any, trains: Any, X: Any, y: Any, weight: Any, order: Any, X0: Any, y0: Any, w0: Any,
    by_rows: Any, coefficients: Any, losses: Any, totals: Any, ends: Any, parameters: Any,
    gradient: Any, state: Any, finite: Any, W: Any, b: Any, gW: Any, gb: Any, Z: Any, A: Any,
    H: Any, M: Any, D: Any, L: Any, kinds: Any, hyper: Any, block: Any,
) -> Any:  # fmt: skip
    """Run epochs until one of them ends in a loss or parameter that is not finite.

    Return how many epochs were run, and whether all of them were finite. ``order`` (n_epochs,
    n_samples) holds each epoch's rows, or is empty to take the rows in their order;
    ``coefficients`` has one row per step. Write the mean objective of each epoch to ``losses``, and
    the parameters after the last finite epoch to ``finite``. Propagate a batch forward and back in
    blocks of rows. Unless ``trains``, only compute the mean loss. In that mean, a step counts by
    the sum of its weights, or with ``by_rows`` by its rows if any weight is positive. Unless
    ``ends``, run a part of an epoch; ``totals`` are the sums of losses and counts over its parts,
    including this one.
    """
    n_samples = order.shape[1] if order.shape[0] > 0 else X.shape[0]
    size = Z[0].shape[0]
    last = len(W) - 1
    step = 0
    for epoch in range(losses.shape[0]):
        loss_sum = totals[0]
        count_sum = totals[1]
        for start in range(0, n_samples, size):
            n = min(size, n_samples - start)
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
            batch_weight, batch_rows = k.total(share), n
            divisor = batch_weight if batch_weight > 0.0 else 1.0
            k.drop(trains, n, M)
            loss = 0.0
            for layer in range(len(W)):
                gb[layer][:] = 0.0
            for top in range(0, n, block):
                bottom = min(top + block, n)
                k.propagate(rows, top, bottom, W, b, Z, A, H, M, kinds)
                dZ = Z[last][top:bottom]
                loss += k.output_loss(
                    dZ, b[last], targets[top:bottom], share[top:bottom], divisor, L[top:bottom],
                    gb[last],
                )  # fmt: skip
                if trains:
                    for layer in range(last, 0, -1):
                        below = layer - 1
                        dA = D[below][top:bottom]
                        k.product(dZ, W[layer].T, dA)
                        k.pull_back(
                            kinds[below], dA, Z[below][top:bottom], A[below][top:bottom],
                            M[below][top:bottom], gb[below],
                        )  # fmt: skip
                        dZ = dA
            if trains:
                k.product(rows.T, Z[last][:n] if last == 0 else D[0][:n], gW[0])
                for layer in range(1, len(W)):
                    dZ = Z[last][:n] if layer == last else D[layer][:n]
                    k.product(H[layer - 1][:n].T, dZ, gW[layer])
                loss, batch_weight, batch_rows = k.reduce(gradient, loss, batch_weight, n)
                divisor = batch_weight if batch_weight > 0.0 else 1.0
                for layer in range(len(W)):
                    loss += k.penalize(W[layer], gW[layer], divisor, hyper)
                k.clip(gradient, hyper)
                k.update(parameters, gradient, state, coefficients[step], hyper)
                step += 1
            count = batch_rows if by_rows and batch_weight > 0.0 else batch_weight
            loss_sum += loss * count
            count_sum += count
        totals[0] = 0.0 if ends else loss_sum
        totals[1] = 0.0 if ends else count_sum
        losses[epoch] = loss_sum / count_sum if count_sum > 0.0 else 0.0
        if trains and ends:
            if not (k.is_finite(losses[epoch]) and k.all_finite(parameters)):
                return epoch + 1, False
            k.copy(parameters, finite)
    return losses.shape[0], True
