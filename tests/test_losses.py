"""Losses and their gradients equal torch's and the textbook's, weighted and at any magnitude."""

from __future__ import annotations

import numpy as np
import pytest
from backends import assert_close, tensors
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm

from nnbackend.core import losses
from nnbackend.core.activations import OUTPUTS
from nnbackend.core.distributions import DISTRIBUTIONS
from nnbackend.core.losses import LOSSES, loss_function, one_hot
from nnbackend.errors import InputError

N = 6

TARGETS = {
    "binary": lambda rng, k: rng.integers(0, 2, (N, k)).astype(float),
    "probability": lambda rng, k: rng.random((N, k)),
    "labels": lambda rng, k: rng.integers(0, k, N),
    "one_hot": lambda rng, k: np.eye(k)[rng.integers(0, k, N)],
    "rows": lambda rng, k: rng.dirichlet(np.ones(k), N),
    "real": lambda rng, k: rng.normal(0.0, 2.0, (N, k)),
    "counts": lambda rng, k: rng.poisson(2.0, (N, k)).astype(float),
    "one": lambda rng, _k: rng.normal(0.0, 2.0, (N, 1)),
}
# The number of outputs of a loss on the distribution of one target.
WIDTH = {"gaussian": 2, "quantile": 3}


def _half_squares(torch):
    squares = torch.nn.MSELoss(reduction="none")
    return lambda z, y: 0.5 * squares(z, y)


def _cross_entropy(smoothing):
    return lambda torch: torch.nn.CrossEntropyLoss(reduction="none", label_smoothing=smoothing)


def _poisson(torch):
    return torch.nn.PoissonNLLLoss(log_input=True, full=False, reduction="none")


def _pinball(*levels):
    def of(torch):
        q = torch.tensor(levels, dtype=torch.float64)
        return lambda z, y: torch.maximum(q * (y - z), (q - 1) * (y - z))

    return of


def _gaussian(torch):
    nll = torch.nn.GaussianNLLLoss(full=True, eps=1e-12, reduction="none")
    softplus = torch.nn.functional.softplus
    return lambda z, y: nll(z[:, :1], y, (softplus(z[:, 1:], threshold=700.0) + 1e-4) ** 2)


# our loss, torch's of each example, the kind of targets
CASES = [
    (losses.BinaryCrossEntropy(), lambda t: t.nn.BCEWithLogitsLoss(reduction="none"), "binary"),
    (
        losses.BinaryCrossEntropy(),
        lambda t: t.nn.BCEWithLogitsLoss(reduction="none"),
        "probability",
    ),
    (losses.SoftmaxCrossEntropy(), _cross_entropy(0.0), "labels"),
    (losses.SoftmaxCrossEntropy(), _cross_entropy(0.0), "one_hot"),
    (losses.SoftmaxCrossEntropy(), _cross_entropy(0.0), "rows"),
    (losses.SoftmaxCrossEntropy(label_smoothing=0.1), _cross_entropy(0.1), "labels"),
    (losses.SoftmaxCrossEntropy(label_smoothing=0.3), _cross_entropy(0.3), "rows"),
    (losses.SquaredError(), _half_squares, "real"),
    (losses.AbsoluteError(), lambda t: t.nn.L1Loss(reduction="none"), "real"),
    (losses.Huber(), lambda t: t.nn.HuberLoss(reduction="none"), "real"),
    (losses.Huber(delta=0.7), lambda t: t.nn.HuberLoss(reduction="none", delta=0.7), "real"),
    (losses.Poisson(), _poisson, "counts"),
    (losses.Quantile(), _pinball(0.05, 0.5, 0.95), "one"),
    (losses.Quantile((0.1, 0.2, 0.7)), _pinball(0.1, 0.2, 0.7), "one"),
    (losses.Gaussian(), _gaussian, "one"),
]
IDS = [f"{loss}-{kind}" for loss, _, kind in CASES]


def value_and_gradient(backend, loss, Z, y, weight=None):
    return backend.call(loss.value_and_gradient, Z, y, weight)


def test_every_loss_is_held_to_an_oracle():
    assert {type(loss) for loss, _, _ in CASES} == set(LOSSES.values())


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize(("loss", "oracle", "kind"), CASES, ids=IDS)
def test_value_and_gradient_equal_torch(backend, torch, loss, oracle, kind, n_outputs, weighted):
    rng = np.random.default_rng(0)
    n_outputs = WIDTH.get(loss.name, n_outputs)
    Z, y = rng.normal(0.0, 2.0, (N, n_outputs)), TARGETS[kind](rng, n_outputs)
    if kind == "real":
        Z[0] = y[0]  # the kink of the absolute error, where torch's choice of derivative is ours
    weight = rng.uniform(0.1, 3.0, N) if weighted else None
    z = tensors(torch, backend.exact(Z), requires_grad=True)
    element = oracle(torch)(z, tensors(torch, backend.exact(y)))
    per_example = element.sum(-1) if element.ndim == 2 else element
    w = tensors(torch, backend.exact(np.ones(N) if weight is None else weight))
    J = (w * per_example).sum() / w.sum()
    (gradient,) = torch.autograd.grad(J, z)
    value, dZ = value_and_gradient(backend, loss, Z, y, weight)
    # The largest intermediate is an example's loss, or the product of a logit and a target.
    scale = max(1.0, float(per_example.detach().abs().max()))
    assert_close(backend, value, J.detach().numpy(), scale=scale)
    assert_close(backend, dZ, gradient.numpy(), scale=scale)


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


def deviation(z):
    return np.log(1.0 + np.exp(z)) + 1e-4


def gaussian_gradient(z, y):
    s = deviation(z[:, 1:])
    r = (y - z[:, :1]) / s
    return np.hstack([-r / s, (1 - r**2) / s * sigmoid(z[:, 1:])])


def softmax(z):
    return np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)


# The formulas of the docstrings in the predictions a, as a textbook has them.
TEXTBOOK = {
    "binary_cross_entropy": (
        "binary",
        lambda z, y: -(y * np.log(sigmoid(z)) + (1 - y) * np.log(1 - sigmoid(z))),
        lambda z, y: sigmoid(z) - y,
    ),
    "softmax_cross_entropy": (
        "one_hot",
        lambda z, y: -y * np.log(softmax(z)),
        lambda z, y: softmax(z) - y,
    ),
    "squared_error": ("real", lambda z, y: (z - y) ** 2 / 2, lambda z, y: z - y),
    "absolute_error": ("real", lambda z, y: abs(z - y), lambda z, y: np.sign(z - y)),
    "huber": (
        "real",
        lambda z, y: np.where(abs(z - y) <= 1, (z - y) ** 2 / 2, abs(z - y) - 0.5),
        lambda z, y: np.clip(z - y, -1, 1),
    ),
    "poisson": (
        "counts",
        lambda z, y: np.exp(z) - y * np.log(np.exp(z)),
        lambda z, y: np.exp(z) - y,
    ),
    "quantile": (
        "one",
        lambda z, y: np.where(y > z, LEVELS * (y - z), (1 - LEVELS) * (z - y)),
        lambda z, y: np.where(y > z, -LEVELS, 1 - LEVELS),
    ),
    "gaussian": (
        "one",
        lambda z, y: -norm.logpdf(y, z[:, :1], deviation(z[:, 1:])),
        gaussian_gradient,
    ),
}
LEVELS = np.asarray([0.05, 0.5, 0.95])


@pytest.mark.parametrize("name", LOSSES)
def test_where_the_textbook_formula_is_finite_the_loss_equals_it(backend, name):
    kind, formula, gradient = TEXTBOOK[name]
    rng = np.random.default_rng(1)
    width = WIDTH.get(name, 3)
    Z, y = rng.normal(0.0, 2.0, (N, width)), TARGETS[kind](rng, width)
    z, t = backend.exact([Z, y])
    value, dZ = value_and_gradient(backend, LOSSES[name](), Z, y)
    scale = float(formula(z, t).sum(axis=-1).max())
    assert_close(backend, value, formula(z, t).sum() / N, scale=scale)
    assert_close(backend, dZ, gradient(z, t) / N, scale=scale)


B = 1e4
EXTREME = {  # loss: a row of logits, of targets, its value and its gradient
    "binary_cross_entropy": ([B, B, -B], [0, 1, 1], 2 * B, [1, 0, -1]),
    "softmax_cross_entropy": ([B, -B, 0], [0, 1, 0], 2 * B, [1, -1, 0]),
    "squared_error": ([B, -B, 0], [0, 0, 0], B**2, [B, -B, 0]),
    "absolute_error": ([B, -B, 0], [0, 0, 0], 2 * B, [1, -1, 0]),
    "huber": ([B, -B, 0], [0, 0, 0], 2 * B - 1, [1, -1, 0]),
    # exp(1e4) is not finite in any dtype; exp(-1e4) is.
    "poisson": ([-B, -B, -B], [0, 3, 1], 4 * B, [0, -3, -1]),
    "quantile": ([-B, 0, B], [0], 0.1 * B, [-0.05, 0, 0.05]),
    # The deviation of a large logit is that logit and the least one.
    "gaussian": ([0, B], [0], np.log((B + 1e-4) * np.sqrt(2 * np.pi)), [0, 1 / (B + 1e-4)]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_exact_at_extreme_logits(backend, name):
    Z, y, value, gradient = (np.asarray(row, dtype=float) for row in EXTREME[name])
    Z, y = np.tile(Z, (N, 1)), np.tile(y, (N, 1))
    actual, dZ = value_and_gradient(backend, LOSSES[name](), Z, y)
    assert_close(backend, actual, value, relative=True)
    assert_close(backend, dZ, np.tile(gradient, (N, 1)) / N)


def test_softmax_cross_entropy_of_extreme_logits_with_integer_labels_is_exact(backend):
    Z = np.tile([B, -B, 0.0], (N, 1))
    labels = np.asarray([0, 1] * (N // 2))
    value, dZ = value_and_gradient(backend, losses.SoftmaxCrossEntropy(), Z, labels)
    assert_close(backend, value, B, relative=True)
    assert_close(backend, dZ, np.tile([[0.0, 0.0, 0.0], [1.0, -1.0, 0.0]], (N // 2, 1)) / N)


def test_an_impossible_class_that_is_not_the_target_adds_nothing(backend):
    Z = np.tile([-np.inf, 0.0, 0.0], (N, 1))
    value, dZ = value_and_gradient(backend, losses.SoftmaxCrossEntropy(), Z, np.ones(N, dtype=int))
    assert_close(backend, value, np.log(2.0))
    assert_close(backend, dZ, np.tile([0.0, -0.5, 0.5], (N, 1)) / N)


@pytest.mark.parametrize(("loss", "_oracle", "kind"), CASES, ids=IDS)
def test_integer_weights_equal_repeated_rows(backend, loss, _oracle, kind):
    rng = np.random.default_rng(2)
    width = WIDTH.get(loss.name, 3)
    Z, y = rng.normal(0.0, 2.0, (N, width)), TARGETS[kind](rng, width)
    times = np.asarray([1, 0, 3, 1, 0, 1])
    value, dZ = value_and_gradient(backend, loss, Z, y, times.astype(float))
    repeated, parts = value_and_gradient(
        backend, loss, np.repeat(Z, times, axis=0), np.repeat(y, times, axis=0)
    )
    summed = np.zeros(Z.shape)
    np.add.at(summed, np.repeat(np.arange(N), times), backend.host(parts).astype(float))
    scale = float(np.abs(backend.host(value))) * N
    assert_close(backend, value, backend.host(repeated).astype(float), scale=scale)
    assert_close(backend, dZ, summed, scale=scale)


@pytest.mark.parametrize(("loss", "_oracle", "kind"), CASES, ids=IDS)
def test_all_zero_weights_give_zero_value_and_gradient(backend, loss, _oracle, kind):
    rng = np.random.default_rng(3)
    width = WIDTH.get(loss.name, 3)
    Z, y = rng.normal(0.0, 2.0, (N, width)), TARGETS[kind](rng, width)
    value, dZ = value_and_gradient(backend, loss, Z, y, np.zeros(N))
    assert_close(backend, value, 0.0, units=0)
    assert_close(backend, dZ, np.zeros(Z.shape), units=0)


# Away from the kinks of the absolute error at 0 and of Huber's derivative at +-1.
LOGIT = st.floats(-5.0, 5.0).filter(lambda z: abs(z) > 1e-3 and abs(abs(z) - 1.0) > 1e-3)


@given(
    case=st.sampled_from(CASES),
    Z=arrays(np.float64, (3, 2), elements=LOGIT),
    weight=st.none() | arrays(np.float64, 3, elements=st.floats(0.125, 8.0)),
    seed=st.integers(0, 100),
)
def test_gradient_is_the_central_difference_of_the_value(case, Z, weight, seed):
    loss, _, kind = case
    y = TARGETS[kind](np.random.default_rng(seed), 2)[:3]
    if kind in ("real", "one"):
        y = np.zeros_like(y)
    if isinstance(loss, losses.Gaussian):
        # Far from its mean a narrow distribution bends too much for the step.
        Z = np.abs(Z)
    h = 1e-5
    if isinstance(loss, losses.Huber):
        # Where the slope bends, a central difference is off by a quarter of h.
        assume(np.all(np.abs(np.abs(Z - y) - loss.delta) > h))
    gradient = loss.value_and_gradient(np, Z, y, weight)[1]
    numeric = np.zeros_like(Z)
    for index in np.ndindex(Z.shape):
        step = np.zeros_like(Z)
        step[index] = h
        up, down = (loss.value_and_gradient(np, Z + s, y, weight)[0] for s in (step, -step))
        numeric[index] = (up - down) / (2 * h)
    # Truncation h^2 l''' / 6 < 3e-9 (exp(5) = 148 for Poisson), rounding eps |J| / h < 2e-8 (|J|
    # below 6 * 148).
    np.testing.assert_allclose(gradient, numeric, rtol=0, atol=2.5e-8)


@given(weight=arrays(np.float64, N, elements=st.floats(0.125, 8.0)), factor=st.floats(1e-3, 1e3))
def test_only_the_ratios_of_weights_count(weight, factor):
    rng = np.random.default_rng(4)
    Z, y = rng.normal(size=(N, 3)), rng.normal(size=(N, 3))
    J, dZ = losses.SquaredError().value_and_gradient(np, Z, y, weight)
    J_scaled, dZ_scaled = losses.SquaredError().value_and_gradient(np, Z, y, factor * weight)
    # Products, a sum of six and a quotient: some ten roundings.
    np.testing.assert_allclose(J_scaled, J, rtol=3e-15)
    np.testing.assert_allclose(dZ_scaled, dZ, rtol=3e-15)


def test_one_hot_rows_have_the_dtype_and_the_device_asked_for(backend):
    labels = np.asarray([[2, 0], [1, 1]])
    rows = backend.call(lambda xp, y, z: one_hot(xp, y, 3, z.dtype), labels, np.zeros(1))
    assert_close(backend, rows, np.eye(3)[labels], units=0)


def test_no_loss_means_the_one_that_the_output_implies():
    implied = {name: loss_function(None, output).name for name, output in OUTPUTS.items()}
    assert implied == {
        "identity": "squared_error",
        "sigmoid": "binary_cross_entropy",
        "logistic": "binary_cross_entropy",
        "softmax": "softmax_cross_entropy",
        "exp": "poisson",
    }
    of_distributions = {
        name: loss_function(None, output).name for name, output in DISTRIBUTIONS.items()
    }
    assert of_distributions == {"gaussian": "gaussian", "quantile": "quantile"}


@pytest.mark.parametrize("output", sorted(OUTPUTS))
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_fits_its_own_output_and_one_on_identity_fits_every_output(name, output):
    needed = LOSSES[name].output
    if needed in ("identity", OUTPUTS[output].name):
        assert type(loss_function(name, OUTPUTS[output])) is LOSSES[name]
        own = LOSSES[name]()
        assert loss_function(own, OUTPUTS[output]) is own
    else:
        with pytest.raises(InputError, match=f"{name!r} needs output={needed!r}"):
            loss_function(name, OUTPUTS[output])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: losses.SoftmaxCrossEntropy(label_smoothing=1.0), "label_smoothing: .* < 1, got 1"),
        (lambda: losses.SoftmaxCrossEntropy(-0.1), "label_smoothing: .* >= 0"),
        (lambda: losses.Huber(delta=0.0), "delta: .* > 0, got 0"),
        (lambda: losses.Huber(float("nan")), "delta: expected a finite number"),
        (lambda: losses.Huber("1"), "delta: .* got '1'"),
        (lambda: loss_function("hubr", OUTPUTS["exp"]), "loss: .* did you mean 'huber'"),
        (lambda: loss_function(3, OUTPUTS["exp"]), "loss: expected a name"),
    ],
)
def test_options_out_of_bounds_and_unknown_names_are_errors(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (losses.SoftmaxCrossEntropy(label_smoothing=np.float64(0.1)), "labels"),
        (losses.Huber(delta=np.float64(0.7)), "real"),
    ],
    ids=["label_smoothing", "delta"],
)
def test_options_given_as_numpy_scalars_do_not_change_the_dtype(backend, loss, kind):
    rng = np.random.default_rng(5)
    Z, y = rng.normal(size=(N, 3)), TARGETS[kind](rng, 3)
    value, dZ = value_and_gradient(backend, loss, Z, y)
    assert value.dtype == dZ.dtype == backend.array(Z).dtype
