"""The dense layer equals a layer worked by hand, and torch's."""

from __future__ import annotations

import numpy as np
from backends import assert_close, tensors

from nnbackend.core import dense

A = np.asarray([[1.0, 2.0], [3.0, 4.0]])
W = np.asarray([[1.0, 0.0, -1.0], [2.0, 1.0, 0.0]])
b = np.asarray([0.5, -1.0, 0.0])
GRADIENT = np.asarray([[1.0, 0.0, 2.0], [-1.0, 1.0, 0.0]])


# Small whole and half numbers are exact in every dtype: units=0 demands equality.
def test_forward_is_the_layer_worked_by_hand(backend):
    Z = backend.call(dense.forward, A, W, b)
    assert_close(backend, Z, [[5.5, 1.0, -1.0], [11.5, 3.0, -3.0]], units=0)


def test_backward_is_the_layer_worked_by_hand(backend):
    dW, db, dA = backend.call(dense.backward, GRADIENT, A, W)
    assert_close(backend, dW, [[-2.0, 3.0, 2.0], [-2.0, 4.0, 4.0]], units=0)
    assert_close(backend, db, [0.0, 1.0, 2.0], units=0)
    assert_close(backend, dA, [[-1.0, 2.0], [-1.0, -1.0]], units=0)


def test_without_input_gradient_the_others_are_the_same_and_there_is_none(backend):
    dW, db, dA = backend.call(dense.backward, GRADIENT, A, W, input_gradient=False)
    assert dA is None
    assert_close(backend, dW, [[-2.0, 3.0, 2.0], [-2.0, 4.0, 4.0]], units=0)
    assert_close(backend, db, [0.0, 1.0, 2.0], units=0)


def test_forward_and_backward_equal_torch(backend, torch):
    rng = np.random.default_rng(0)
    A, W, b = rng.normal(size=(9, 5)), rng.normal(size=(5, 4)), rng.normal(size=4)
    dZ = rng.normal(size=(9, 4))
    a, w, c = leaves = tensors(torch, backend.exact([A, W, b]), requires_grad=True)
    z = torch.nn.functional.linear(a, w.T, c)
    expected = torch.autograd.grad(z, leaves, grad_outputs=tensors(torch, backend.exact(dZ)))
    assert_close(backend, backend.call(dense.forward, A, W, b), z.detach().numpy())
    dW, db, dA = backend.call(dense.backward, dZ, A, W)
    for actual, gradient in zip((dA, dW, db), expected, strict=True):
        assert_close(backend, actual, gradient.numpy())


def test_a_layer_of_one_unit_and_one_example_keeps_its_axes(backend):
    A, W, b, dZ = np.ones((1, 1)), 2.0 * np.ones((1, 1)), 3.0 * np.ones(1), np.ones((1, 1))
    assert_close(backend, backend.call(dense.forward, A, W, b), [[5.0]], units=0)
    dW, db, dA = backend.call(dense.backward, dZ, A, W)
    for actual, expected in ((dW, [[1.0]]), (db, [1.0]), (dA, [[2.0]])):
        assert_close(backend, actual, expected, units=0)
