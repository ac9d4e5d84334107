"""Activations equal torch's, with their derivatives, and stay finite at any magnitude."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from backends import TORCH_ACTIVATIONS, TORCH_OUTPUTS, assert_close, tensors
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from nnbackend.core import activations, distributions
from nnbackend.core.activations import ACTIVATIONS, OUTPUTS, Activation, register_activation
from nnbackend.errors import InputError

# One shape for all, since JAX compiles every function for every shape.
# Both signs, the kink at zero (where torch's choice of derivative is ours), and a neighbour of it.
Z = np.append(np.linspace(-12.0, 12.0, 41), 1e-3).reshape(2, 3, 7)


def derivative(xp, entry, Z):
    return entry.derivative(xp, Z, entry.function(xp, Z))


def test_every_built_in_activation_and_output_is_held_to_an_oracle():
    assert set(TORCH_ACTIVATIONS) == set(activations._BUILT_IN)
    assert set(TORCH_OUTPUTS) == set(OUTPUTS)


@pytest.mark.parametrize("name", TORCH_ACTIVATIONS)
def test_activation_and_derivative_equal_torch(backend, torch, name):
    entry = ACTIVATIONS[name]
    z = tensors(torch, backend.exact(Z), requires_grad=True)
    a = TORCH_ACTIVATIONS[name](torch, z)
    (slope,) = torch.autograd.grad(a.sum(), z)
    assert_close(backend, backend.call(entry.function, Z), a.detach().numpy())
    assert_close(backend, backend.call(lambda xp, x: derivative(xp, entry, x), Z), slope.numpy())


@pytest.mark.parametrize("name", TORCH_OUTPUTS)
def test_output_and_pullback_equal_torch(backend, torch, name):
    rng = np.random.default_rng(0)
    # exp of up to 3 standard deviations keeps the scale of the result near one.
    logits, dA = rng.normal(0.0, 1.5, Z.shape), rng.normal(size=Z.shape)
    z = tensors(torch, backend.exact(logits), requires_grad=True)
    a = TORCH_OUTPUTS[name](torch, z)
    (dz,) = torch.autograd.grad(a, z, grad_outputs=tensors(torch, backend.exact(dA)))
    entry = OUTPUTS[name]
    assert_close(backend, backend.call(entry.function, logits), a.detach().numpy())
    pulled = backend.call(lambda xp, d, x: entry.pullback(xp, d, entry.function(xp, x)), dA, logits)
    assert_close(backend, pulled, dz.numpy(), scale=float(np.abs(a.detach().numpy()).max()))


# name: the asymptotes (a, b) of g(z) = a + b z towards -infinity and +infinity; b is g'(z) there.
ASYMPTOTES = {
    "identity": ((0, 1), (0, 1)),
    "sigmoid": ((0, 0), (1, 0)),
    "tanh": ((-1, 0), (1, 0)),
    "relu": ((0, 0), (0, 1)),
    "leaky_relu": ((0, 0.01), (0, 1)),
    "elu": ((-1, 0), (0, 1)),
    "softplus": ((0, 0), (0, 1)),
    "silu": ((0, 0), (0, 1)),
    "gelu": ((0, 0), (0, 1)),
}


@pytest.mark.parametrize("name", ASYMPTOTES)
def test_activation_and_derivative_keep_their_asymptotes_at_extreme_inputs(backend, name):
    entry = ACTIVATIONS[name]
    magnitudes = (1e4, 1e30) if backend.dtype == "float32" else (1e4, 1e30, 1e300)
    for magnitude, towards in itertools.product(magnitudes, (0, 1)):
        intercept, slope = ASYMPTOTES[name][towards]
        z = np.full(Z.shape, (-magnitude, magnitude)[towards])
        expected = intercept + slope * backend.exact(z)
        assert_close(backend, backend.call(entry.function, z), expected)
        result = backend.call(lambda xp, x: derivative(xp, entry, x), z)
        assert_close(backend, result, np.full(Z.shape, float(slope)))


# Where a value is tiny, its relative accuracy is claimed: exp(-|z|) and expm1 lose nothing.
SMALL = {
    "sigmoid": (-np.asarray([5.0, 20.0, 80.0]), lambda z: np.exp(z) / (1.0 + np.exp(z))),
    "softplus": (-np.asarray([5.0, 20.0, 80.0]), lambda z: np.log1p(np.exp(z))),
    "silu": (-np.asarray([5.0, 20.0, 80.0]), lambda z: z * np.exp(z) / (1.0 + np.exp(z))),
    "elu": (-np.asarray([1e-9, 1e-6, 1e-3]), np.expm1),
}


@pytest.mark.parametrize("name", SMALL)
def test_tiny_activations_are_relatively_accurate(backend, name):
    values, formula = SMALL[name]
    z = np.resize(values, Z.shape)
    result = backend.call(ACTIVATIONS[name].function, z)
    assert_close(backend, result, formula(backend.exact(z)), relative=True)


def test_softmax_of_extreme_logits_is_one_hot(backend):
    Z = np.asarray([[1e4, -1e4, 0.0], [-1e30, 1e30, 0.0], [1e4, 1e4, -1e4]])
    result = backend.call(OUTPUTS["softmax"].function, Z)
    assert_close(backend, result, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])


@given(
    name=st.sampled_from(sorted(TORCH_ACTIVATIONS)),
    z=arrays(
        np.float64,
        array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        elements=st.floats(-8.0, 8.0).filter(lambda value: abs(value) > 1e-3),
    ),
)
def test_derivative_is_the_central_difference_at_any_shape_away_from_kinks(name, z):
    entry, h = ACTIVATIONS[name], 1e-5
    a = entry.function(np, z)
    slope = entry.derivative(np, z, a)
    assert a.shape == slope.shape == z.shape
    assert a.dtype == slope.dtype == z.dtype
    numeric = (entry.function(np, z + h) - entry.function(np, z - h)) / (2 * h)
    # Truncation h^2 g''' / 6 < 2e-11 (|g'''| < 1 for all), rounding 8 eps / h < 2e-10.
    np.testing.assert_allclose(slope, numeric, rtol=0, atol=1e-9)


@given(
    Z=arrays(np.float64, (3, 4), elements=st.floats(-50.0, 50.0)),
    shift=st.floats(-1e3, 1e3),
)
def test_softmax_rows_sum_to_one_and_ignore_a_common_shift(Z, shift):
    A = OUTPUTS["softmax"].function(np, Z)
    # Four terms of at most one: a few roundings.
    np.testing.assert_allclose(A.sum(axis=-1), 1.0, rtol=0, atol=1e-15)
    # Adding the shift rounds a logit by up to eps * 1050 = 2.3e-13, and a changes by no more.
    np.testing.assert_allclose(OUTPUTS["softmax"].function(np, Z + shift), A, rtol=0, atol=5e-13)


@pytest.fixture
def registry(monkeypatch):
    """Let a test register names that are gone after it."""
    for name in ("softsign", "square"):
        monkeypatch.delitem(ACTIVATIONS, name, raising=False)
    yield ACTIVATIONS
    for name in ("softsign", "square"):
        ACTIVATIONS.pop(name, None)


def softsign(xp, Z):
    return Z / (1.0 + xp.abs(Z))


def softsign_derivative(xp, Z, _A):
    root = 1.0 + xp.abs(Z)
    return 1.0 / (root * root)


def test_registered_activation_is_found_by_its_name_and_computes(backend, torch, registry):
    entry = register_activation("softsign", softsign, softsign_derivative, initializer="normal")
    assert registry["softsign"] is entry
    assert activations.activation("hidden", "softsign") is entry
    assert activations.activation("hidden", entry) is entry
    assert (entry.name, entry.initializer) == ("softsign", "normal")
    z = tensors(torch, backend.exact(Z), requires_grad=True)
    a = torch.nn.functional.softsign(z)
    (slope,) = torch.autograd.grad(a.sum(), z)
    assert_close(backend, backend.call(entry.function, Z), a.detach().numpy())
    assert_close(backend, backend.call(lambda xp, x: derivative(xp, entry, x), Z), slope.numpy())


def test_registering_a_name_again_replaces_its_pair(registry):
    first = register_activation("square", lambda _xp, Z: Z * Z, lambda _xp, Z, _A: 2.0 * Z)
    second = register_activation("square", softsign, softsign_derivative)
    assert first.function is not softsign
    assert registry["square"] is second
    assert second.function is softsign


@pytest.mark.parametrize("name", sorted(TORCH_ACTIVATIONS))
def test_built_in_activations_cannot_be_replaced(name):
    before = ACTIVATIONS[name]
    with pytest.raises(InputError, match=f"{name!r} is a built-in activation"):
        register_activation(name, softsign, softsign_derivative)
    assert ACTIVATIONS[name] is before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", softsign, softsign_derivative), "name: expected a non-empty string"),
        ((3, softsign, softsign_derivative), "name: expected a non-empty string, got 3"),
        (("softsign", None, softsign_derivative), "function: expected a callable, got None"),
        (("softsign", softsign, 1.0), r"derivative: expected a callable, got 1\.0"),
    ],
)
def test_registering_nonsense_is_an_error_and_registers_nothing(registry, arguments, message):
    before = dict(registry)
    with pytest.raises(InputError, match=message):
        register_activation(*arguments)
    assert registry == before


def test_registering_with_an_unknown_initializer_is_an_error_and_registers_nothing(registry):
    with pytest.raises(InputError, match="initializer: unknown name 'he_norml'; did you mean"):
        register_activation("softsign", softsign, softsign_derivative, initializer="he_norml")
    assert "softsign" not in registry


def test_an_unknown_name_is_answered_with_the_nearest_known_one():
    with pytest.raises(InputError, match="unknown name 'rleu'; did you mean 'relu'"):
        activations.activation("hidden", "rleu")
    with pytest.raises(InputError, match="output: unknown name 'softmx'; did you mean 'softmax'"):
        distributions.output("output", "softmx")


def test_an_activation_need_not_be_registered_to_be_used():
    entry = Activation("mine", softsign, softsign_derivative)
    assert activations.activation("hidden", entry) is entry
    assert "mine" not in ACTIVATIONS
