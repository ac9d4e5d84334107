"""Bad input: which error, what its one sentence says, and that nothing was changed."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import (
    FEATURE_CALLS,
    GOOD_TARGETS,
    OUTPUTS,
    N,
    X,
    Y,
    cases,
    check_network_refuses,
    check_refusal,
    label,
    network,
    put,
)

import nnbackend as nb
from nnbackend.errors import InputError

# Networks


BAD_NETWORKS = [
    ({"layer_sizes": None}, ["layer_sizes: expected at least two sizes", "got None"]),
    ({"layer_sizes": 5}, ["layer_sizes: expected at least two sizes", "got 5"]),
    ({"layer_sizes": []}, ["layer_sizes: expected at least two sizes", "got []"]),
    ({"layer_sizes": [3]}, ["layer_sizes: expected at least two sizes", "got [3]"]),
    ({"layer_sizes": np.asarray(5)}, ["layer_sizes: expected at least two sizes", "5"]),
    ({"layer_sizes": iter([2, 1])}, ["layer_sizes: expected at least two sizes"]),
    ({"layer_sizes": [2, 0, 1]}, ["layer_sizes[1]: expected an integer >= 1", "got 0"]),
    ({"layer_sizes": [2, 3, -1]}, ["layer_sizes[2]: expected an integer >= 1", "got -1"]),
    ({"layer_sizes": [True, 1]}, ["layer_sizes[0]: expected an integer >= 1", "got True"]),
    ({"layer_sizes": [2, 3.0, 1]}, ["layer_sizes[1]: expected an integer >= 1", "got 3.0"]),
    ({"layer_sizes": [2, math.nan]}, ["layer_sizes[1]: expected an integer >= 1", "got nan"]),
    ({"layer_sizes": ["2", 1]}, ["layer_sizes[0]: expected an integer >= 1", "got '2'"]),
    ({"layer_sizes": [2, None]}, ["layer_sizes[1]: expected an integer >= 1", "got None"]),
    ({"hidden": "rleu"}, ["hidden: unknown name 'rleu'", "did you mean 'relu'?"]),
    ({"hidden": "LeakyReLU"}, ["hidden: unknown name", "did you mean 'leaky_relu'?"]),
    ({"hidden": "zzz"}, ["hidden: unknown name 'zzz'", "known: elu, gelu, identity"]),
    ({"hidden": ["relu", "relu"]}, ["hidden: expected one entry for each of the 1", "got 2"]),
    ({"hidden": []}, ["hidden: expected one entry for each of the 1", "got 0"]),
    ({"hidden": [5]}, ["hidden: expected a name", "relu", "got int 5"]),
    ({"hidden": None}, ["hidden: expected ", "None"]),
    ({"hidden": 5}, ["hidden: expected ", "5"]),
    ({"hidden": np.tanh}, ["hidden: expected ", "tanh"]),
    ({"output": "sigmod"}, ["output: unknown name 'sigmod'", "did you mean 'sigmoid'?"]),
    ({"output": "relu"}, ["output: unknown name 'relu'", "known: exp, gaussian, identity"]),
    ({"output": None}, ["output: expected a name", "got NoneType None"]),
    ({"initializer": "HeNormal"}, ["initializer: unknown name", "did you mean 'he_normal'?"]),
    ({"initializer": 5}, ["initializer: expected a name", "he_normal", "got int 5"]),
    ({"dropout": 1.0}, ["dropout: expected a finite number >= 0 and < 1", "got 1.0"]),
    ({"dropout": -0.1}, ["dropout: expected a finite number >= 0 and < 1", "got -0.1"]),
    ({"dropout": math.nan}, ["dropout: expected a finite number >= 0 and < 1", "got nan"]),
    ({"dropout": True}, ["dropout: expected a finite number >= 0 and < 1", "got True"]),
    ({"dropout": None}, ["dropout: expected a finite number >= 0 and < 1", "got None"]),
    ({"dropout": "0.5"}, ["dropout: expected ", "got '0.5'"]),
    ({"dropout": [0.5, 0.5]}, ["dropout: expected one entry for each of the 1", "got 2"]),
    ({"dropout": [1.5]}, ["dropout: expected a finite number >= 0 and < 1", "got 1.5"]),
    ({"dropout": np.asarray(1.5)}, ["dropout: expected ", "1.5"]),
    ({"dtype": "float16"}, ["dtype: expected 'float32' or 'float64'", "got 'float16'"]),
    ({"dtype": int}, ["dtype: expected 'float32' or 'float64'", "got <class 'int'>"]),
    ({"dtype": None}, ["dtype: expected 'float32' or 'float64'", "got None"]),
    ({"device": "gpu"}, ["device: expected 'cpu', 'cuda', 'cuda:N' or 'auto'", "got 'gpu'"]),
    ({"seed": -1}, ["seed: expected an integer >= 0", "got -1"]),
    ({"seed": 1.5}, ["seed: expected an integer >= 0", "got 1.5"]),
    ({"seed": "0"}, ["seed: expected an integer >= 0", "got '0'"]),
    ({"seed": True}, ["seed: expected an integer >= 0", "got True"]),
]


@pytest.mark.parametrize(("arguments", "said"), cases(BAD_NETWORKS))
def test_network_refuses(arguments, said):
    check_refusal(lambda: nb.Network(**{"layer_sizes": [2, 3, 1], **arguments}), *said)


@pytest.mark.parametrize(
    "arguments",
    [
        {"dropout": np.asarray(0.5)},
        {"dropout": np.float32(0.5)},
        {"dropout": np.asarray([0.5])},
        {"layer_sizes": np.asarray([2, 3, 1])},
        {"layer_sizes": (2, 3, 1)},
        {"dtype": np.dtype("float32")},
        {"seed": np.uint8(0)},
    ],
    ids=label,
)
def test_network_takes_numpy_numbers(arguments):
    net = nb.Network(**{"layer_sizes": [2, 3, 1], **arguments})
    assert net.layer_sizes == [2, 3, 1]
    assert net.dropout in ((0.0,), (0.5,))


GOOD_WEIGHTS, GOOD_BIASES = [np.ones((2, 3)), np.ones((3, 1))], [np.ones(3), np.ones(1)]


@pytest.mark.parametrize(
    ("weights", "biases", "said"),
    [
        (GOOD_WEIGHTS[:1], GOOD_BIASES, ["weights: expected 2 arrays, one per layer", "got 1"]),
        (GOOD_WEIGHTS, [*GOOD_BIASES, [1.0]], ["biases: expected 2 arrays, one per", "got 3"]),
        (np.ones((2, 2, 3)), GOOD_BIASES, ["weights: expected 2 arrays", "got ndarray"]),
        (None, GOOD_BIASES, ["weights: expected 2 arrays", "got NoneType"]),
        (GOOD_WEIGHTS, [[1.0, 2.0], [1.0]], ["biases[0]: expected shape (3,)", "got (2,)"]),
        (GOOD_WEIGHTS, [np.ones((3, 1)), [1.0]], ["biases[0]: expected shape (3,)", "got (3, 1)"]),
        (GOOD_WEIGHTS[::-1], GOOD_BIASES, ["weights[0]: expected shape (2, 3)", "got (3, 1)"]),
        (
            [GOOD_WEIGHTS[0], put(GOOD_WEIGHTS[1], (2, 0), np.nan)],
            GOOD_BIASES,
            ["weights[1]: expected finite numbers", "got nan at [2, 0]"],
        ),
        (
            GOOD_WEIGHTS,
            [GOOD_BIASES[0], [-math.inf]],
            ["biases[1]: expected finite numbers", "got -inf at [0]"],
        ),
        (
            [put(GOOD_WEIGHTS[0], (1, 2), 1e300), GOOD_WEIGHTS[1]],
            GOOD_BIASES,
            ["weights[0]: 1e+300 at [1, 2] is too large for float32", "dtype='float64'"],
        ),
        (
            [GOOD_WEIGHTS[0] * 1j, GOOD_WEIGHTS[1]],
            GOOD_BIASES,
            ["weights[0]: expected real numbers", "complex128"],
        ),
        ([None, GOOD_WEIGHTS[1]], GOOD_BIASES, ["weights[0]: expected an array", "got None"]),
        (GOOD_WEIGHTS, ["abc", [1.0]], ["biases[0]: expected real numbers", "<U3"]),
    ],
)
def test_set_parameters_refuses_and_changes_nothing(weights, biases, said):
    net = network()
    check_network_refuses(net, lambda: net.set_parameters(weights, biases), *said)


def test_a_network_too_large_for_float32_is_not_converted():
    net = network(dtype="float64")
    net.parameters[4] = 1e300
    check_network_refuses(
        net, lambda: net.astype("float32"), "parameters: ", "1e+300 at [4]", "too large for float32"
    )


# Features


def torch_tensor(**options):
    return pytest.importorskip("torch", reason="the array of another library").tensor(X, **options)


def torch_bfloat16():
    return torch_tensor().bfloat16()


def torch_with_gradient():
    return torch_tensor(requires_grad=True)


def jax_bfloat16():
    jax = pytest.importorskip("jax", reason="the array of another library")
    return jax.numpy.asarray(X, dtype="bfloat16")


def sparse_matrix():
    import scipy.sparse

    return scipy.sparse.csr_matrix(X)


def sparse_array():
    import scipy.sparse

    return scipy.sparse.coo_array(X)


BAD_FEATURES = {
    "None": (None, ["expected an array, got None"]),
    "a number": (5.0, ["expected a 2-D array (n_samples, 2)", "got shape ()"]),
    "one row": (X[0], ["expected a 2-D array (n_samples, 2)", "got shape (2,)", "X[None, :]"]),
    "one column": (X[:, 0], ["expected a 2-D array (n_samples, 2)", "got shape (6,)"]),
    "three axes": (X[None], ["expected a 2-D array (n_samples, 2)", "got shape (1, 6, 2)"]),
    "one feature too few": (X[:, :1], ["expected 2 features", "got shape (6, 1)"]),
    "one feature too many": (np.ones((6, 3)), ["expected 2 features", "got shape (6, 3)"]),
    "no feature": (X[:, :0], ["expected 2 features", "got shape (6, 0)"]),
    "examples in columns": (X.T, ["expected 2 features", "got shape (2, 6)"]),
    "no example": (X[:0], ["expected at least one example", "got shape (0, 2)"]),
    "an empty list": ([], ["expected a 2-D array (n_samples, 2)", "got shape (0,)"]),
    "NaN": (put(X, (3, 1), np.nan), ["expected finite numbers", "got nan at [3, 1]", "impute"]),
    "infinity": (put(X, (0, 0), np.inf), ["expected finite numbers", "got inf at [0, 0]"]),
    "minus infinity": (put(X, (5, 1), -np.inf), ["expected finite numbers", "got -inf at [5, 1]"]),
    "many NaN": (np.full((6, 2), np.nan), ["got nan at [0, 0] (12 such values)"]),
    "NaN in float32": (put(X, (3, 1), np.nan).astype("f4"), ["got nan at [3, 1]"]),
    "None in a list": ([[1.0, None]] * N, ["expected real numbers", "dtype object"]),
    "objects": (X.astype(object), ["expected real numbers", "dtype object", ".astype('float32')"]),
    "strings": (X.astype(str), ["expected real numbers", "got dtype <U"]),
    "a string": ("abc", ["expected real numbers", "got dtype <U3"]),
    "bytes": (X.astype("S8"), ["expected real numbers", "got dtype |S8"]),
    "complex numbers": (X + 0j, ["expected real numbers", "got dtype complex128"]),
    "dates": (np.zeros((N, 2), "M8[s]"), ["expected real numbers", "got dtype datetime64[s]"]),
    "durations": (np.zeros((N, 2), "m8[s]"), ["expected real numbers", "got dtype timedelta64"]),
    "records": (np.zeros((N, 2), [("a", "f4")]), ["expected real numbers", "'a'"]),
    "a dictionary": ({"a": 1}, ["expected real numbers", "dtype object"]),
    "a set": ({1.0, 2.0}, ["expected real numbers", "dtype object"]),
    "ragged lists": ([[1.0, 2.0], [3.0]], ["rows of equal length", "list"]),
    "masked": (
        np.ma.masked_array(X, X > 0),
        ["without missing values", f"{(X > 0).sum()} masked", "fill"],
    ),
    "a sparse matrix": (sparse_matrix, ["a dense array", "sparse scipy.csr_matrix", ".toarray()"]),
    "a sparse array": (sparse_array, ["a dense array", "sparse scipy.coo_array", ".toarray()"]),
    "bfloat16 of torch": (torch_bfloat16, ["expected real numbers", "got dtype torch.bfloat16"]),
    "bfloat16 of JAX": (jax_bfloat16, ["expected real numbers", "got dtype bfloat16"]),
    "a torch tensor with a gradient": (
        torch_with_gradient,
        ["without a gradient", "torch.Tensor that requires grad", ".detach()"],
    ),
}


@pytest.mark.parametrize("call", sorted(FEATURE_CALLS))
@pytest.mark.parametrize("kind", sorted(BAD_FEATURES))
def test_bad_features_are_refused_by_name_at_every_door(kind, call):
    x, said = BAD_FEATURES[kind]
    name, function = FEATURE_CALLS[call]
    given = x() if callable(x) else x
    net = network()
    check_network_refuses(net, lambda: function(net, given), f"{name}: ", *said)


@pytest.mark.parametrize("standardized", [False, True], ids=["", "standardized"])
@pytest.mark.parametrize("call", sorted(set(FEATURE_CALLS) - {"standardize", "check_gradients"}))
def test_a_float64_too_large_for_float32_is_refused_with_its_place(call, standardized):
    name, function = FEATURE_CALLS[call]
    net = network()
    if standardized:
        net.standardize(X)
    x = put(X, (4, 0), 1e300)
    said = [f"{name}: ", "at [4, 0]", "too large for float32", "dtype='float64'"]
    check_network_refuses(net, lambda: function(net, x), *said)


def test_the_largest_float32_is_taken_and_a_float64_beyond_it_by_a_float64_network():
    assert np.isfinite(network(initializer="zeros").forward(np.full((1, 2), 3.4e38))).all()
    x = np.full((1, 2), 1e300)
    assert np.isfinite(network(initializer="zeros", dtype="float64").forward(x)).all()
    with pytest.raises(InputError, match=r"X: 3.5e\+38 at \[0, 0\] .* too large for float32"):
        network().forward(np.full((1, 2), 3.5e38))


def test_no_missing_value_in_a_masked_array_is_no_reason_to_refuse():
    masked = np.ma.masked_array(X, np.zeros_like(X, dtype=bool))
    np.testing.assert_array_equal(network().forward(masked), network().forward(X))


# Targets


BAD_TARGETS = {
    "None": ("binary", None, ["expected an array, got None"]),
    "strings": ("binary", ["a"] * N, ["expected real numbers", "got dtype <U1"]),
    "complex": ("identity", Y + 0j, ["expected real numbers", "got dtype complex128"]),
    "ragged": ("two identities", [[1, 2], [3]], ["rows of equal length"]),
    "masked": (
        "identity",
        np.ma.masked_array(X[:, 0], Y),
        ["without missing", f"{Y.sum()} masked"],
    ),
    "too few": ("binary", Y[:5], ["(6,) or (6, 1)", "6 examples in X", "got shape (5,)"]),
    "too many": ("identity", np.ones(7), ["(6,) or (6, 1)", "6 examples", "got shape (7,)"]),
    "a number": ("binary", 1, ["(6,) or (6, 1)", "got shape ()"]),
    "a row": ("binary", Y[None], ["(6,) or (6, 1)", "got shape (1, 6)"]),
    "two columns for one output": ("binary", X, ["(6,) or (6, 1)", "got shape (6, 2)"]),
    "one column for two outputs": ("multilabel", Y, ["(6, 2)", "2 outputs", "got shape (6,)"]),
    "three columns for two": ("two identities", np.ones((6, 3)), ["(6, 2)", "got shape (6, 3)"]),
    "three axes": ("identity", X[:, :, None], ["(6,) or (6, 1)", "got shape (6, 2, 1)"]),
    "NaN": ("identity", put(X[:, 0], 2, np.nan), ["finite", "got nan at [2]"]),
    "NaN in a matrix": ("two identities", put(X, (2, 1), np.nan), ["got nan at [2, 1]"]),
    "infinity": ("exp", put(X[:, 0], 2, np.inf), ["finite", "got inf at [2]"]),
    "NaN as a label": ("binary", put(Y, 2, np.nan), ["finite", "got nan at [2]"]),
    "NaN as a class": ("softmax", put(Y, 2, np.nan), ["finite", "got nan at [2]"]),
    "too large": ("identity", put(X[:, 0], 2, 1e300), ["1e+300 at [2]", "too large for float32"]),
    "label 2": ("binary", put(Y, 3, 2), ["labels 0 and 1", "sigmoid", "got 2 in row 3"]),
    "label -1": ("binary", 2 * Y - 1, ["labels 0 and 1", "sigmoid", "got -1 in row 0"]),
    "a probability": ("binary", put(Y, 1, 0.5), ["labels 0 and 1", "got 0.5 in row 1"]),
    "label 2 of two": (
        "multilabel",
        put(np.stack([Y, Y], 1), (4, 1), 2),
        ["labels 0 and 1", "got 2 in row 4"],
    ),
    "class without a column": ("softmax", [0, 1, 2, 3, 0, 1], ["0 to 2", "3 outputs", "got 3"]),
    "negative class": ("softmax", [0, 1, 2, -1, 0, 1], ["0 to 2", "3 outputs", "got -1"]),
    "fraction as a class": ("softmax", put(Y, 1, 0.5), ["integer class labels", "such as 0.5"]),
    "too few classes": ("softmax", Y[:5], ["6 labels", "each example in X", "got 5"]),
    "classes in a row": ("softmax", Y[None], ["(6,) or rows (6, 3)", "got shape (1, 6)"]),
    "two columns for three classes": ("softmax", X, ["(6,) or rows (6, 3)", "got shape (6, 2)"]),
    "rows that sum to two": (
        "softmax",
        put(np.eye(3)[np.arange(N) % 3], (4, 0), 1),
        ["rows of class probabilities", ">= 0", "sum to 1", "row 4"],
    ),
    "rows with a negative entry": (
        "softmax",
        put(put(np.eye(3)[np.zeros(N, int)], (2, 0), 1.5), (2, 1), -0.5),
        ["rows of class probabilities", ">= 0", "sum to 1", "row 2"],
    ),
    "rows of zeros": ("softmax", np.zeros((N, 3)), ["sum to 1", "row 0"]),
    "negative count": ("exp", [0, 1, 2, -3, 0, 1], ["counts >= 0", "Poisson", "got -3 in row 3"]),
    "a torch tensor with a gradient": ("two identities", torch_with_gradient, ["requires grad"]),
    "a sparse matrix": ("multilabel", sparse_matrix, ["dense array", ".toarray()"]),
}

TARGET_CALLS = {
    "train": ("y", lambda net, y, _good: nb.train(net, X, y, epochs=1)),
    "validation_data": (
        "validation_data[1]",
        lambda net, y, good: nb.train(net, X, good, epochs=1, validation_data=(X, y)),
    ),
    "loss_and_gradients": ("y", lambda net, y, _good: net.loss_and_gradients(X, y)),
}


@pytest.mark.parametrize("call", sorted(TARGET_CALLS))
@pytest.mark.parametrize("kind", sorted(BAD_TARGETS))
def test_bad_targets_are_refused_by_name_at_every_door(kind, call):
    output, y, said = BAD_TARGETS[kind]
    name, function = TARGET_CALLS[call]
    y = y() if callable(y) else y
    net = network(output)
    check_network_refuses(net, lambda: function(net, y, GOOD_TARGETS[output]), f"{name}: ", *said)


@pytest.mark.parametrize(
    ("output", "y"),
    [
        *GOOD_TARGETS.items(),
        ("binary", Y.astype(bool)),
        ("binary", Y[:, None]),
        ("binary", Y.tolist()),
        ("binary", Y.astype("u1")),
        ("multilabel", np.stack([Y, Y], 1).tolist()),
        ("softmax", (np.arange(N) % 3).astype(float)),
        ("softmax", (np.arange(N) % 3).astype("u8")),
        ("softmax", (np.arange(N) % 3)[:, None]),
        ("softmax", np.eye(3)[np.arange(N) % 3]),
        ("softmax", np.full((N, 3), np.float32(1 / 3))),
        ("softmax", Y.astype(bool)),
        ("identity", X[:, :1]),
        ("exp", np.linspace(0, 2, N)),
    ],
)
def test_every_documented_form_of_targets_is_taken(output, y):
    assert nb.train(network(output), X, y, epochs=1).n_epochs == 1


def test_a_target_that_overflows_when_it_is_standardized_is_refused():
    net = network("identity").standardize(X, X[:, 0])
    y = put(X[:, 0], 2, 1e300)
    check_network_refuses(net, lambda: nb.train(net, X, y), "y: ", "too large for float32")


# Weights of examples


BAD_SAMPLE_WEIGHTS = {
    "too few": (np.ones(5), ["expected shape (6,)", "each example in X", "got (5,)"]),
    "a column": (np.ones((6, 1)), ["expected shape (6,)", "got (6, 1)"]),
    "a number": (1.0, ["expected shape (6,)", "got ()"]),
    "negative": (put(np.ones(6), 2, -1), ["weights >= 0", "smallest of -1"]),
    "all zero": (np.zeros(6), ["not all zero", "largest of 0"]),
    "NaN": (put(np.ones(6), 2, np.nan), ["finite", "got nan at [2]"]),
    "infinite": (put(np.ones(6), 2, np.inf), ["finite", "got inf at [2]"]),
    "too large": (put(np.ones(6), 2, 1e300), ["1e+300 at [2]", "too large for float32"]),
    "too large together": (np.full(6, 3e38), ["too large", "float32"]),
    "strings": (["balanced"] * 6, ["expected real numbers", "<U8"]),
    "a string": ("balanced", ["expected real numbers", "<U8"]),
}

WEIGHT_CALLS = {
    "train": ("sample_weight", lambda net, w: nb.train(net, X, Y, epochs=1, sample_weight=w)),
    "validation_data": (
        "validation_data[2]",
        lambda net, w: nb.train(net, X, Y, epochs=1, validation_data=(X, Y, w)),
    ),
    "loss_and_gradients": (
        "sample_weight",
        lambda net, w: net.loss_and_gradients(X, Y, sample_weight=w),
    ),
}


@pytest.mark.parametrize("call", sorted(WEIGHT_CALLS))
@pytest.mark.parametrize("kind", sorted(BAD_SAMPLE_WEIGHTS))
def test_bad_sample_weights_are_refused_by_name_at_every_door(kind, call):
    weight, said = BAD_SAMPLE_WEIGHTS[kind]
    name, function = WEIGHT_CALLS[call]
    net = network()
    check_network_refuses(net, lambda: function(net, weight), f"{name}: ", *said)


# Training options


BAD_OPTIONS = [
    ({"epochs": 0}, ["epochs: expected an integer >= 1", "got 0"]),
    ({"epochs": -5}, ["epochs: expected an integer >= 1", "got -5"]),
    ({"epochs": True}, ["epochs: expected an integer >= 1", "got True"]),
    ({"epochs": 2.0}, ["epochs: expected an integer >= 1", "got 2.0"]),
    ({"epochs": math.nan}, ["epochs: expected an integer >= 1", "got nan"]),
    ({"epochs": None}, ["epochs: expected an integer >= 1", "got None"]),
    ({"batch_size": 0}, ["batch_size: expected an integer >= 1", "got 0"]),
    ({"batch_size": True}, ["batch_size: expected an integer >= 1", "got True"]),
    ({"batch_size": 2.5}, ["batch_size: expected an integer >= 1", "got 2.5"]),
    ({"batch_size": math.nan}, ["batch_size: expected an integer >= 1", "got nan"]),
    ({"batch_size": "auto"}, ["batch_size: expected an integer >= 1", "got 'auto'"]),
    ({"seed": -1}, ["seed: expected an integer >= 0", "got -1"]),
    ({"seed": np.random.default_rng(0)}, ["seed: expected an integer >= 0", "Generator"]),
    ({"optimizer": "adm"}, ["optimizer: unknown name 'adm'", "did you mean 'adam'?"]),
    ({"optimizer": "RMSProp"}, ["optimizer: unknown name", "did you mean 'rmsprop'?"]),
    ({"optimizer": 0.1}, ["optimizer: expected a name", "adam", "got float 0.1"]),
    ({"optimizer": nb.SGD}, ["optimizer: expected ", "SGD"]),
    ({"loss": "squared_eror"}, ["loss: unknown name", "did you mean 'squared_error'?"]),
    ({"loss": "zzz"}, ["loss: unknown name 'zzz'", "known: absolute_error, binary_cross"]),
    ({"loss": 1}, ["loss: expected a name", "huber", "got int 1"]),
    (
        {"loss": "softmax_cross_entropy"},
        ["loss: 'softmax_cross_entropy' needs output='softmax'", "output='sigmoid'"],
    ),
    ({"loss": "poisson"}, ["loss: 'poisson' needs output='exp'", "'binary_cross_entropy'"]),
    ({"l1": -1}, ["l1: expected a finite number >= 0", "got -1"]),
    ({"l1": math.inf}, ["l1: expected a finite number >= 0", "got inf"]),
    ({"l2": math.nan}, ["l2: expected a finite number >= 0", "got nan"]),
    ({"l2": "0"}, ["l2: expected a finite number >= 0", "got '0'"]),
    ({"l2": None}, ["l2: expected a finite number >= 0", "got None"]),
    ({"clip_value": 0}, ["clip_value: expected a finite number > 0", "got 0"]),
    ({"clip_value": True}, ["clip_value: expected a finite number > 0", "got True"]),
    ({"clip_norm": -1.0}, ["clip_norm: expected a finite number > 0", "got -1.0"]),
    ({"clip_norm": math.nan}, ["clip_norm: expected a finite number > 0", "got nan"]),
    ({"engine": "refrence"}, ["engine: unknown name", "did you mean 'reference'?"]),
    ({"engine": None}, ["engine: expected a name", "auto", "reference", "got NoneType None"]),
    ({"precision": "half"}, ["precision: expected one of 'float32'", "got 'half'"]),
    ({"precision": None}, ["precision: expected one of 'float32'", "got None"]),
    ({"precision": "tf32"}, ["precision: 'tf32'", "engine='cuda'", "on cpu", "or 'float32'"]),
    ({"early_stopping": True}, ["early_stopping: expected an EarlyStopping", "got True"]),
    ({"early_stopping": 10}, ["early_stopping: expected an EarlyStopping", "got 10"]),
    (
        {"early_stopping": nb.EarlyStopping()},
        ["early_stopping: expected validation_data", "got None", "monitor='loss'"],
    ),
    ({"callbacks": 5}, ["callbacks: expected a callable or several", "got 5"]),
    ({"callbacks": None}, ["callbacks: expected a callable or several", "got None"]),
    ({"callbacks": [print, 5]}, ["callbacks: expected a callable or several", "got 5"]),
    ({"callbacks": "print"}, ["callbacks: expected a callable or several", "got 'p"]),
    ({"validation_data": (X,)}, ["validation_data: expected a tuple (X, y)", "1"]),
    ({"validation_data": (X, Y, Y, Y)}, ["validation_data: expected a tuple (X, y)", "4"]),
    ({"validation_data": X}, ["validation_data: expected a tuple (X, y)", "got ndarray"]),
    ({"validation_data": 0.2}, ["validation_data: expected a tuple (X, y)", "got float"]),
    ({"validation_data": {"X": X, "y": Y}}, ["validation_data: expected a tuple", "got dict"]),
]


@pytest.mark.parametrize(("options", "said"), cases(BAD_OPTIONS))
def test_train_refuses(options, said):
    net = network()
    check_network_refuses(net, lambda: nb.train(net, X, Y, **{"epochs": 1, **options}), *said)


@pytest.mark.parametrize("net", [None, "net", X, nb.Network], ids=lambda net: type(net).__name__)
@pytest.mark.parametrize("call", [nb.train, nb.check_gradients])
def test_what_is_no_network_is_refused(call, net):
    got = type(net).__name__
    check_refusal(lambda: call(net, X, Y), "net: expected a nnbackend.Network", f"got {got}")


@pytest.mark.parametrize("output", sorted(OUTPUTS))
@pytest.mark.parametrize("loss", ["binary_cross_entropy", "softmax_cross_entropy", "poisson"])
def test_a_loss_of_another_output_is_refused(loss, output):
    net = network(output)
    needed = {"binary_cross_entropy": "sigmoid", "softmax_cross_entropy": "softmax"}.get(
        loss, "exp"
    )
    if net.output == needed:
        assert nb.train(net, X, GOOD_TARGETS[output], loss=loss, epochs=1).n_epochs == 1
    else:
        said = [f"loss: {loss!r} needs output={needed!r}", f"output={net.output!r}", "omit loss"]
        check_network_refuses(net, lambda: nb.train(net, X, GOOD_TARGETS[output], loss=loss), *said)


# Optimizers, schedules, losses, and the check of gradients


BAD_HYPERPARAMETERS = [
    (nb.SGD, {"learning_rate": 0}, ["expected a finite number > 0", "got 0"]),
    (nb.SGD, {"learning_rate": -0.1}, ["expected a finite number > 0", "got -0.1"]),
    (nb.Adam, {"learning_rate": math.nan}, ["expected a finite number > 0", "got nan"]),
    (nb.Adam, {"learning_rate": math.inf}, ["expected a finite number > 0", "got inf"]),
    (nb.Adam, {"learning_rate": True}, ["expected a finite number > 0", "got True"]),
    (nb.Adam, {"learning_rate": "fast"}, ["expected a finite number > 0", "got 'fast'"]),
    (nb.Adam, {"learning_rate": None}, ["expected a finite number > 0", "got None"]),
    (nb.schedules.Constant, {"learning_rate": None}, ["expected a finite number > 0", "got None"]),
    (nb.schedules.Cosine, {"learning_rate": None}, ["expected a finite number > 0", "got None"]),
    (nb.Adam, {"beta1": 1.0}, ["expected a finite number >= 0 and < 1", "got 1.0"]),
    (nb.Adam, {"beta2": -0.1}, ["expected a finite number >= 0 and < 1", "got -0.1"]),
    (nb.Adam, {"epsilon": 0}, ["expected a finite number > 0", "got 0"]),
    (nb.AdamW, {"weight_decay": -1}, ["expected a finite number >= 0", "got -1"]),
    (nb.SGD, {"momentum": 1}, ["expected a finite number >= 0 and < 1", "got 1"]),
    (nb.SGD, {"nesterov": True}, ["expected momentum > 0", "momentum=0.0"]),
    (nb.RMSprop, {"decay": 2}, ["expected a finite number >= 0 and < 1", "got 2"]),
    (nb.Adagrad, {"decay": -1}, ["expected a finite number >= 0", "got -1"]),
    (nb.schedules.Cosine, {"learning_rate": 0}, ["expected a finite number > 0", "got 0"]),
    (
        nb.schedules.StepDecay,
        {"every": 0, "learning_rate": 0.1},
        ["expected a finite number > 0", "got 0"],
    ),
    (
        nb.schedules.ReduceOnPlateau,
        {"patience": 1.5, "learning_rate": 0.1},
        ["expected an integer >= 0", "got 1.5"],
    ),
    (
        nb.schedules.ReduceOnPlateau,
        {"factor": 1, "learning_rate": 0.1},
        ["expected a finite number > 0 and < 1", "got 1"],
    ),
    (nb.losses.Huber, {"delta": 0}, ["expected a finite number > 0", "got 0"]),
    (
        nb.losses.SoftmaxCrossEntropy,
        {"label_smoothing": 1},
        ["expected a finite number >= 0 and < 1", "got 1"],
    ),
]


@pytest.mark.parametrize(
    ("make", "arguments", "said"),
    [
        pytest.param(*case, id=f"{case[0].__name__}({label(case[1])})")
        for case in BAD_HYPERPARAMETERS
    ],
)
def test_a_hyperparameter_out_of_its_bounds_is_refused(make, arguments, said):
    name = next(iter(arguments))
    check_refusal(lambda: make(**arguments), f"{name}: ", *said)


BAD_CHECKS = [
    ({"tolerance": 0}, ["tolerance: expected a finite number > 0", "got 0"]),
    ({"tolerance": math.nan}, ["tolerance: expected a finite number > 0", "got nan"]),
    ({"tolerance": "1e-6"}, ["tolerance: expected a finite number > 0", "got '1e-6'"]),
    ({"max_parameters": 0}, ["max_parameters: expected an integer >= 1", "got 0"]),
    ({"max_parameters": 1.5}, ["max_parameters: expected an integer >= 1", "got 1.5"]),
    ({"seed": -1}, ["seed: expected an integer >= 0", "got -1"]),
    ({"seed": "0"}, ["seed: expected an integer >= 0", "got '0'"]),
    ({"loss": "hubr"}, ["loss: unknown name", "did you mean 'huber'?"]),
    ({"l2": -1}, ["l2: expected a finite number >= 0", "got -1"]),
    ({"sample_weight": np.zeros(N)}, ["sample_weight: expected weights >= 0", "0"]),
]


@pytest.mark.parametrize(("options", "said"), cases(BAD_CHECKS))
def test_check_gradients_refuses(options, said):
    net = network()
    check_network_refuses(net, lambda: nb.check_gradients(net, X, Y, **options), *said)


@pytest.mark.slow
@given(
    x=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=2),
        lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
        max_leaves=8,
    )
)
def test_whatever_is_given_is_predicted_or_refused_as_bad_input(x):
    net = network(dtype="float64", initializer="zeros")
    try:
        result = net.forward(x)
    except InputError as error:
        assert str(error).startswith("X: ")  # noqa: PT017
    else:
        np.testing.assert_array_equal(result, np.full((len(x), 1), 0.5))


def test_an_error_carries_its_argument_and_crosses_processes_with_it():
    with pytest.raises(nb.InputError) as caught:
        nb.train(nb.Network([2, 1]), [[0.0, 1.0]], [1], epochs=0)
    assert caught.value.argument == "epochs"
    assert str(caught.value) == f"epochs: {caught.value.message}"
    copied = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert type(copied) is nb.InputError
    assert (str(copied), copied.argument) == (str(caught.value), "epochs")
