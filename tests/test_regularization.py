"""Penalties, dropout masks and clipping equal torch's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from backends import assert_close, tensors
from hypothesis import given
from hypothesis import strategies as st

from nnbackend.core.elementwise import sign
from nnbackend.core.regularization import clip_by_global_norm, clip_by_value, dropout_mask, penalty


@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.7), (0.3, 0.7)])
def test_penalty_and_its_gradients_equal_torch(backend, torch, l1, l2):
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(4, 3)), rng.normal(size=(3, 2))]
    weights[0][0, 0] = 0.0  # the kink of the absolute value, where torch's choice is ours
    leaves = tensors(torch, backend.exact(weights), requires_grad=True)
    J = sum(l1 * w.abs().sum() + l2 / 2 * (w**2).sum() for w in leaves)
    value, gradients = backend.call(penalty, weights, l1, l2)
    assert_close(backend, value, J.detach().numpy())
    for actual, expected in zip(gradients, torch.autograd.grad(J, leaves), strict=True):
        assert_close(backend, actual, expected.numpy())


def test_a_weight_of_nan_makes_value_and_gradient_nan_and_the_sign_of_nan_is_zero(backend):
    W = np.asarray([[np.nan, -0.0, -2.0, 3.0]])
    value, (gradient,) = backend.call(penalty, [W], 0.5, 0.1)
    assert np.isnan(backend.host(value))
    assert np.isnan(backend.host(gradient)[0, 0])
    assert_close(backend, backend.call(sign, W), [[0.0, 0.0, -1.0, 1.0]])


# Zeros of both signs, and numbers whose products are subnormal or overflow.
NUMBERS = st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 1e-20, -1.0, 0.3, -1e20, 3e38])


@given(
    st.lists(st.tuples(NUMBERS, st.floats(width=32, allow_nan=False)), min_size=1),
    st.sampled_from([1e-30, 1e-4, 0.7, 1e3]),
    st.sampled_from(["float32", "float64"]),
)
def test_without_l1_the_penalty_is_that_of_l2_alone_bit_by_bit(pairs, l2, dtype):
    W, g = (np.asarray(column, dtype)[:, None] for column in zip(*pairs, strict=True))
    with np.errstate(all="ignore"):
        value, (gradient,) = penalty(np, [W], 0.0, l2)
        # As with the term of strength 0 added; the sign of a zero shows in a sum with -0.0 alone.
        former = 0.0 * np.sign(W) + l2 * W
        g = g + 0.0
        np.testing.assert_array_equal((g + gradient).view("u1"), (g + former).view("u1"))
        np.testing.assert_array_equal(value, np.sum(0.0 * np.abs(W) + 0.5 * l2 * W * W))


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.9])
def test_dropout_mask_is_zero_below_the_rate_and_the_inverse_share_kept_above(backend, rate):
    uniform = np.random.default_rng(0).random((100, 50))
    uniform[0, :2] = 0.0, rate  # a number equal to the rate is kept; at rate 0 everything is
    mask = backend.call(dropout_mask, uniform, rate)
    kept = backend.cast(uniform) >= np.asarray(rate, dtype=backend.dtype)
    # One division.
    assert_close(backend, mask, kept / (1 - rate), units=1, relative=True)
    host = backend.host(mask)
    np.testing.assert_array_equal(host[~kept], 0.0)
    # Five standard errors of the mean of n masks, each with the variance rate / (1 - rate).
    assert abs(host.mean() - 1) <= 5 * math.sqrt(rate / (1 - rate) / uniform.size) + backend.eps


NORMS = [0.1, 1.0, 5.0, 100.0]


@pytest.mark.parametrize("max_norm", NORMS)
def test_clipping_by_norm_equals_torch(backend, torch, max_norm):
    gradient = np.random.default_rng(0).normal(size=50)
    parameters = tensors(torch, [gradient[:20], gradient[20:]], requires_grad=True)
    exact = backend.exact([gradient[:20], gradient[20:]])
    for parameter, part in zip(parameters, exact, strict=True):
        parameter.grad = torch.tensor(part)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    expected = np.concatenate([parameter.grad.numpy() for parameter in parameters])
    assert_close(backend, backend.call(clip_by_global_norm, gradient, max_norm), expected)


def test_the_clipping_norms_lie_on_both_sides_of_the_gradient():
    norm = np.linalg.norm(np.random.default_rng(0).normal(size=50))
    assert NORMS[-2] < norm < NORMS[-1]


def test_a_zero_gradient_is_clipped_to_zero(backend):
    result = backend.call(clip_by_global_norm, np.zeros(5), 1.0)
    assert_close(backend, result, np.zeros(5), units=0)


def test_a_gradient_within_the_norm_is_not_touched(backend):
    gradient = np.random.default_rng(0).normal(size=50)
    result = backend.call(clip_by_global_norm, gradient, 100.0)
    assert_close(backend, result, backend.exact(gradient), units=0)


def test_a_gradient_whose_squares_overflow_is_clipped_all_the_same(backend):
    largest = 1e30 if backend.dtype == "float32" else 1e200
    gradient = np.asarray([3.0, -4.0, 0.0]) * largest
    result = backend.call(clip_by_global_norm, gradient, 1.0)
    assert_close(backend, result, [0.6, -0.8, 0.0])


@pytest.mark.parametrize("limit", [0.1, 1.0, 10.0])
def test_clipping_by_value_equals_torch(backend, torch, limit):
    gradient = np.random.default_rng(0).normal(size=50)
    (parameter,) = tensors(torch, [gradient], requires_grad=True)
    parameter.grad = torch.tensor(backend.exact(gradient))
    torch.nn.utils.clip_grad_value_([parameter], limit)
    # The limit itself is rounded to the dtype.
    result = backend.call(clip_by_value, gradient, limit)
    assert_close(backend, result, parameter.grad.numpy(), units=1)
