"""Networks go to scikit-learn and torch and come from there with equal predictions."""

import doctest
import importlib
import pickle
import re
import sys
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import nnbackend as nb

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5))
# Rounding of a few products of float32 or float64 numbers near 1.
TOLERANCE = {"float32": 2e-6, "float64": 1e-14}

TARGETS = {
    "binary": (MLPClassifier, (X[:, 0] > 0).astype(int)),
    "multiclass": (MLPClassifier, np.digitize(X[:, 0], [-0.5, 0.5])),
    "multilabel": (MLPClassifier, (X[:, :3] > 0).astype(int)),
    "regression": (MLPRegressor, X[:, 0] ** 2 - X[:, 1]),
    "outputs": (MLPRegressor, X[:, :2] ** 2),
}


def fitted(estimator, features, y):
    mlp = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    mlp.set_params(random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(features, y)


def assert_equal_predictions(net, estimator, features, tolerance):
    ours, theirs = net.predict(features), estimator.predict(features)
    if not hasattr(estimator, "predict_proba"):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
        return
    if net.class_names is not None:
        ours = np.asarray(net.class_names)[ours]
        theirs = np.asarray(list(map(str, theirs)))
    np.testing.assert_array_equal(ours, theirs)
    order = np.argsort(net.class_names) if net.class_names else slice(None)
    given = estimator.classes_.astype(str) if net.class_names else estimator.classes_
    back = np.argsort(given) if net.class_names else slice(None)
    np.testing.assert_allclose(
        net.predict_proba(features)[:, order],
        estimator.predict_proba(features)[:, back],
        rtol=tolerance,
        atol=tolerance,
    )


def trained(net, y):
    nb.train(net, X, y, optimizer=nb.Adam(0.02), epochs=20, batch_size=None)
    return net


# --- scikit-learn ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", TARGETS)
def test_an_estimator_becomes_a_network_with_equal_predictions_and_comes_back(kind, dtype):
    cls, y = TARGETS[kind]
    features = X.astype(dtype)
    estimator = fitted(cls(hidden_layer_sizes=(7, 4), activation="tanh", max_iter=30), features, y)

    net = nb.from_sklearn(estimator)
    assert (net.dtype, net.layer_sizes[1:-1]) == (dtype, [7, 4])
    assert_equal_predictions(net, estimator, features, TOLERANCE[dtype])

    back = nb.to_sklearn(net)
    np.testing.assert_array_equal(back.predict(features), estimator.predict(features))
    for mine, original in zip(back.coefs_, estimator.coefs_, strict=True):
        assert mine.dtype == original.dtype
        np.testing.assert_array_equal(mine, original)


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
def test_every_hidden_activation_of_scikit_learn_is_read_and_written(activation):
    _, y = TARGETS["multiclass"]
    estimator = fitted(MLPClassifier((6,), activation=activation, max_iter=10), X, y)
    net = nb.from_sklearn(estimator)
    assert_equal_predictions(net, estimator, X, 1e-14)
    assert nb.to_sklearn(net).activation == activation


def test_a_poisson_regression_has_an_exp_output():
    counts = np.random.default_rng(1).poisson(np.exp(X[:, 0]))
    estimator = fitted(MLPRegressor("poisson", (6,), max_iter=20), X, counts)
    net = nb.from_sklearn(estimator)
    assert net.output == "exp"
    assert_equal_predictions(net, estimator, X, 1e-14)
    back = nb.to_sklearn(net)
    assert (back.loss, back.out_activation_) == ("poisson", "exp")
    np.testing.assert_array_equal(back.predict(X), estimator.predict(X))


def test_a_network_without_hidden_layers_is_exchanged():
    _, y = TARGETS["multiclass"]
    estimator = fitted(MLPClassifier((), max_iter=20), X, y)
    net = nb.from_sklearn(estimator)
    assert net.layer_sizes == [5, 3]
    np.testing.assert_array_equal(nb.to_sklearn(net).predict(X), estimator.predict(X))


@pytest.mark.parametrize(
    "labels",
    [
        ["ant", "bee", "cow"],
        [3, 7, 20],
        [-1, 0, 1],
        [1.0, 2.0, 10.0],
        [9, 10],
        ["no", "yes"],
        [False, True],
        [0, 1],
        [0, 1, 2],
    ],
)
def test_labels_become_class_names_and_labels_again(labels):
    labels = np.asarray(labels)
    y = labels[np.digitize(X[:, 0], [-0.5, 0.5][: len(labels) - 1])]
    estimator = fitted(MLPClassifier((6,), max_iter=10), X, y)
    net = nb.from_sklearn(estimator)
    counted = labels.tolist() in ([0, 1], [0, 1, 2]) and labels.dtype.kind == "i"
    assert net.class_names == (None if counted else tuple(map(str, labels.tolist())))
    back = nb.to_sklearn(net)
    assert back.classes_.dtype == estimator.classes_.dtype
    np.testing.assert_array_equal(back.classes_, estimator.classes_)
    np.testing.assert_array_equal(back.predict(X), estimator.predict(X))
    np.testing.assert_array_equal(back.predict_proba(X), estimator.predict_proba(X))


def test_the_names_of_labels_are_saved_with_the_network(tmp_path):
    estimator = fitted(MLPClassifier((6,), max_iter=5), X, np.where(X[:, 0] > 0, 7, 3))
    nb.save(nb.from_sklearn(estimator), tmp_path / "model.safetensors")
    assert nb.load(tmp_path / "model.safetensors").class_names == ("3", "7")


@pytest.mark.parametrize("names", [("0.5", "1.5"), ("01", "2"), ("inf", "1.0"), ("1", "2.0")])
def test_names_that_are_not_whole_numbers_stay_text(names):
    net = nb.Network([2, 1])
    net.class_names = names
    assert nb.to_sklearn(net).classes_.tolist() == sorted(names)


@pytest.mark.parametrize("names", [("cow", "ant", "bee"), ("10", "9", "-1")])
def test_classes_in_another_order_are_sorted_with_their_columns(names):
    net = trained(nb.Network([5, 8, 3], output="softmax"), TARGETS["multiclass"][1])
    net.class_names = names
    estimator = nb.to_sklearn(net)
    assert sorted(estimator.classes_.tolist()) == estimator.classes_.tolist()
    assert_equal_predictions(net, estimator, X, 2e-6)


def test_a_binary_network_whose_names_are_not_sorted_is_turned_round():
    net = trained(nb.Network([5, 8, 1]), TARGETS["binary"][1])
    net.class_names = ("yes", "no")
    estimator = nb.to_sklearn(net)
    assert estimator.classes_.tolist() == ["no", "yes"]
    assert_equal_predictions(net, estimator, X, 2e-6)


def test_two_softmax_outputs_become_one_logistic_output():
    y = TARGETS["binary"][1]
    net = trained(nb.Network([5, 8, 2], output="softmax"), y)
    estimator = nb.to_sklearn(net)
    assert (estimator.out_activation_, estimator.n_outputs_) == ("logistic", 1)
    assert_equal_predictions(net, estimator, X, 2e-6)
    assert estimator.partial_fit(X, y).score(X, y) > 0.5


def test_many_classes_are_no_reason_for_a_warning():
    estimator = nb.to_sklearn(nb.Network([5, 8, 40], output="softmax"))
    assert estimator.classes_.tolist() == list(range(40))


def test_feature_names_are_exchanged():
    pandas = pytest.importorskip("pandas")
    names = ("a", "b", "c", "d", "e")
    frame = pandas.DataFrame(X, columns=list(names))
    estimator = fitted(MLPClassifier((6,), max_iter=5), frame, TARGETS["binary"][1])
    net = nb.from_sklearn(estimator)
    assert net.feature_names == names
    back = nb.to_sklearn(net)
    np.testing.assert_array_equal(back.feature_names_in_, estimator.feature_names_in_)
    np.testing.assert_array_equal(back.predict(frame), estimator.predict(frame))
    in_pipeline = fitted(
        make_pipeline(StandardScaler(), MLPClassifier((6,), max_iter=5)),
        frame,
        TARGETS["binary"][1],
    )
    assert nb.from_sklearn(in_pipeline).feature_names == names


@pytest.mark.parametrize("options", [{}, {"with_mean": False}, {"with_std": False}])
def test_a_scaler_in_a_pipeline_becomes_the_standardization(options):
    features = 3.0 * X + [1.0, 5.0, -2.0, 0.0, 100.0]
    _, y = TARGETS["multiclass"]
    mlp = MLPClassifier((6,), max_iter=20)
    estimator = fitted(make_pipeline(StandardScaler(**options), mlp), features, y)
    net = nb.from_sklearn(estimator)
    assert net.standardization is not None
    assert_equal_predictions(net, estimator, features, 1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_standardization_is_folded_into_the_weights(dtype):
    features, y = load_breast_cancer(return_X_y=True)
    net = nb.Network([30, 8, 1], dtype=dtype).standardize(features)
    nb.train(net, features, y, epochs=3)
    estimator = nb.to_sklearn(net)
    assert {W.dtype.name for W in (*estimator.coefs_, *estimator.intercepts_)} == {dtype}
    np.testing.assert_allclose(
        estimator.predict_proba(features),
        net.predict_proba(features),
        # The features' means are a few of their deviations.
        atol={"float32": 1e-5, "float64": 1e-13}[dtype],
    )


@pytest.mark.parametrize("outputs", [1, 2])
def test_standardization_of_targets_is_folded_into_the_last_layer(outputs):
    y = 50.0 + 10.0 * X[:, :outputs] ** 2
    net = nb.Network([5, 8, outputs], output="identity", dtype="float64").standardize(X, y)
    nb.train(net, X, y, epochs=3)
    estimator = nb.to_sklearn(net)
    np.testing.assert_allclose(estimator.predict(X), net.predict(X), rtol=1e-13)


def test_an_estimator_of_ours_is_read_with_its_activations_and_dropout():
    y = TARGETS["multiclass"][1]
    ours = nb.MLPClassifier((6, 4), activation=["gelu", "tanh"], dropout=[0.2, 0.0], max_iter=5)
    net = nb.from_sklearn(fitted(ours, X, y))
    assert (net.hidden, net.dropout) == (("gelu", "tanh"), (0.2, 0.0))
    assert_equal_predictions(net, ours, X, 1e-14)


def test_dropout_plays_no_part_in_the_estimator():
    net = nb.Network([5, 8, 1], dropout=0.5)
    assert_equal_predictions(net, nb.to_sklearn(net), X, 2e-6)


@pytest.mark.parametrize("kind", TARGETS)
def test_the_estimator_has_every_attribute_that_a_fit_sets(kind):
    cls, y = TARGETS[kind]
    theirs = fitted(cls(hidden_layer_sizes=(6,), max_iter=2), X, y)
    mine = nb.to_sklearn(nb.from_sklearn(theirs))
    # The optimizer is made by the next step, with the parameters that the estimator then has.
    assert set(vars(theirs)) - set(vars(mine)) == {"_optimizer"}
    assert set(vars(mine)) <= set(vars(theirs))
    for name in ("n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(mine, name) == getattr(theirs, name)
    assert (mine.n_iter_, mine.t_, mine.loss_curve_) == (0, 0, [])
    if cls is MLPClassifier:
        assert vars(mine._label_binarizer).keys() == vars(theirs._label_binarizer).keys()
        assert mine._label_binarizer.y_type_ == theirs._label_binarizer.y_type_


@pytest.mark.parametrize("kind", TARGETS)
def test_the_estimator_is_pickled_scored_cloned_and_trained_further(kind):
    cls, y = TARGETS[kind]
    estimator = nb.to_sklearn(
        nb.from_sklearn(fitted(cls(hidden_layer_sizes=(6,), max_iter=5), X, y))
    )
    restored = pickle.loads(pickle.dumps(estimator))  # noqa: S301
    np.testing.assert_array_equal(restored.predict(X), estimator.predict(X))
    assert clone(estimator).get_params() == estimator.get_params()
    before = estimator.score(X, y)
    estimator.set_params(learning_rate_init=0.01, random_state=0)
    for _ in range(60):
        estimator.partial_fit(X, y)
    assert estimator.score(X, y) > before
    assert len(estimator.loss_curve_) == 60
    assert np.isfinite(estimator.loss_)

    restored.set_params(warm_start=True, max_iter=1, learning_rate_init=1e-9)
    weights = [W.copy() for W in restored.coefs_]
    fitted(restored, X, y)
    for W, old in zip(restored.coefs_, weights, strict=True):
        np.testing.assert_allclose(W, old, atol=1e-7)


def test_further_steps_are_those_of_the_estimator_that_the_network_came_from():
    _, y = TARGETS["multiclass"]
    original = fitted(MLPClassifier((6,), solver="sgd", momentum=0.0, max_iter=3), X, y)
    copied = nb.to_sklearn(nb.from_sklearn(original)).set_params(**original.get_params())
    original.partial_fit(X, y)
    copied.partial_fit(X, y)
    for mine, theirs in zip(copied.coefs_, original.coefs_, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_what_the_estimator_learns_leaves_the_network_alone():
    net = nb.Network([5, 6, 1], dtype="float64")
    before = net.parameters.copy()
    nb.to_sklearn(net).partial_fit(X, TARGETS["binary"][1])
    np.testing.assert_array_equal(net.parameters, before)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (LinearRegression(), "got LinearRegression"),
        (make_pipeline(MinMaxScaler(), MLPClassifier()), "of MinMaxScaler, MLPClassifier"),
        (make_pipeline(StandardScaler(), StandardScaler(), MLPClassifier()), "StandardScaler, St"),
        (MLPClassifier(), "MLPClassifier, got one that is not fitted; call fit first"),
        (make_pipeline(StandardScaler(), MLPRegressor()), "expected a fitted Pipeline"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_fitted_network_is_refused(estimator, message):
    with pytest.raises(nb.InputError, match=f"^estimator: .*{re.escape(message)}"):
        nb.from_sklearn(estimator)


@pytest.mark.parametrize("function", [nb.save, nb.export_onnx])
def test_save_and_export_speak_of_their_own_argument(function, tmp_path):
    for estimator, message in (
        (nb.MLPClassifier(), "expected a fitted MLPClassifier, got one that is not fitted"),
        (MLPRegressor(), "expected a fitted MLPRegressor, got one that is not fitted"),
        (make_pipeline(StandardScaler(), MLPRegressor()), "expected a fitted Pipeline, got one"),
        (LinearRegression(), "expected a fitted MLPClassifier or .* got LinearRegression"),
    ):
        with pytest.raises(nb.InputError, match=f"^net: {message}"):
            function(estimator, tmp_path / "model")


def test_text_that_is_written_as_whole_numbers_comes_back_as_numbers():
    y = np.asarray(["0", "1", "2"])[TARGETS["multiclass"][1]]
    estimator = fitted(MLPClassifier((6,), max_iter=10), X, y)
    back = nb.to_sklearn(nb.from_sklearn(estimator))
    assert back.classes_.tolist() == [0, 1, 2]
    # As its docstring says.
    np.testing.assert_array_equal(back.predict(X).astype(str), estimator.predict(X))


def test_a_classifier_of_one_class_is_refused():
    estimator = fitted(MLPClassifier((3,), max_iter=2), X, np.zeros(60, int))
    with pytest.raises(nb.InputError, match="at least two classes, got one"):
        nb.from_sklearn(estimator)


def test_an_estimator_with_a_weight_that_is_not_finite_is_refused():
    estimator = fitted(MLPRegressor(hidden_layer_sizes=(3,), max_iter=2), X, X[:, 0])
    estimator.coefs_[1][0, 0] = np.nan
    with pytest.raises(nb.InputError, match=r"coefs_\[1\]: expected finite numbers, got NaN"):
        nb.from_sklearn(estimator)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": ["relu", "gelu"]}, "got 'gelu' in hidden layer 2"),
        ({"hidden": ["relu", "tanh"]}, "got 'relu' in hidden layer 1 and 'tanh' in hidden layer 2"),
        ({"output": "softmax"}, "expected at least two softmax outputs, got one"),
    ],
)
def test_a_network_that_scikit_learn_does_not_have_is_refused(options, message):
    with pytest.raises(nb.InputError, match=re.escape(message)):
        nb.to_sklearn(nb.Network([5, 4, 3, 1], **options))


def test_an_own_activation_by_a_known_name_is_refused():
    relu = nb.Activation("relu", lambda _xp, Z: Z * Z, lambda _xp, Z, _A: 2.0 * Z)
    with pytest.raises(nb.InputError, match="got 'relu' in hidden layer 1"):
        nb.to_sklearn(nb.Network([5, 4, 1], hidden=relu))


@pytest.mark.parametrize("names", [("a", "b", "b"), ("a", "b")])
def test_class_names_that_do_not_fit_are_refused(names):
    net = nb.Network([5, 3], output="softmax")
    net.class_names = names
    with pytest.raises(nb.InputError, match=r"net.class_names: expected None or 3 different names"):
        nb.to_sklearn(net)


def test_weights_that_overflow_when_folded_are_refused():
    net = nb.Network([1, 1], output="identity").standardize([[0.0], [1e-40]])
    with pytest.raises(nb.InputError, match=r"weights\[0\].*too large for float32"):
        nb.to_sklearn(net)


@pytest.mark.parametrize("function", [nb.to_sklearn, nb.to_torch])
def test_what_is_no_network_is_refused(function):
    with pytest.raises(nb.InputError, match=r"net: expected a nnbackend.Network, got list"):
        function([1])


# --- torch ---

ACTIVATIONS = ["identity", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "softplus", "silu"]


def torch_modules(torch):
    nn = torch.nn
    return {
        "identity": nn.Identity(),
        "sigmoid": nn.Sigmoid(),
        "tanh": nn.Tanh(),
        "relu": nn.ReLU(inplace=True),
        "leaky_relu": nn.LeakyReLU(),
        "elu": nn.ELU(),
        "softplus": nn.Softplus(),
        "silu": nn.SiLU(),
        "gelu": nn.GELU(approximate="tanh"),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", [*ACTIVATIONS, "gelu"])
def test_networks_go_to_torch_and_back_with_equal_predictions(torch, hidden, dtype):
    nn = torch.nn
    # Inputs large enough for softplus to reach torch's threshold, where the two are 2e-9 apart.
    features = (20.0 * X).astype(dtype)
    net = nb.Network([5, 7, 6, 3], hidden=hidden, output="identity", dtype=dtype, seed=3)
    net.parameters[...] = np.random.default_rng(0).normal(size=net.n_parameters)
    state = nb.to_torch(net)
    activation = torch_modules(torch)[hidden]
    module = nn.Sequential(
        nn.Linear(5, 7), activation, nn.Linear(7, 6), activation, nn.Linear(6, 3)
    ).to(getattr(torch, dtype))
    module.load_state_dict(state)
    with torch.no_grad():
        theirs = module(torch.from_numpy(features)).numpy()
    tolerance = {"float32": 1e-5, "float64": 1e-8 if hidden == "softplus" else 1e-13}[dtype]
    np.testing.assert_allclose(net.forward(features), theirs, rtol=tolerance, atol=tolerance * 100)

    for back in (nb.from_torch(module), nb.from_torch(state, hidden=hidden, output="identity")):
        assert (back.hidden, back.output, back.dtype) == ((hidden, hidden), "identity", dtype)
        np.testing.assert_array_equal(back.parameters, net.parameters)


@pytest.mark.parametrize(("output", "n_outputs"), [("sigmoid", 1), ("softmax", 4)])
def test_an_output_activation_is_read_from_a_module_or_said(torch, output, n_outputs):
    nn = torch.nn
    layers = [nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, n_outputs)]
    last = {"sigmoid": nn.Sigmoid(), "softmax": nn.Softmax(dim=1)}[output]
    with torch.no_grad():
        expected = nn.Sequential(*layers, last)(torch.from_numpy(X.astype("float32"))).numpy()
    for net in (
        nb.from_torch(nn.Sequential(*layers, last)),
        nb.from_torch(nn.Sequential(*layers, last), output=output),
        nb.from_torch(nn.Sequential(*layers), output=output),
    ):
        assert net.output == output
        np.testing.assert_allclose(net.forward(X), expected, rtol=2e-6, atol=1e-7)
    assert nb.from_torch(nn.Sequential(*layers)).output == "identity"
    with pytest.raises(nb.InputError, match=f"output: expected None or '{output}'"):
        nb.from_torch(nn.Sequential(*layers, last), output="identity")


def test_dropout_nesting_and_modules_that_change_nothing_are_read(torch):
    nn = torch.nn
    module = nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.25)),
        nn.Sequential(nn.Linear(6, 4), nn.Identity(), nn.Dropout(0.0)),
        nn.Linear(4, 1),
    ).eval()
    net = nb.from_torch(module)
    assert (net.hidden, net.dropout) == (("relu", "identity"), (0.25, 0.0))
    with torch.no_grad():
        expected = module(torch.from_numpy(X.astype("float32"))).numpy()
    np.testing.assert_allclose(net.forward(X), expected, rtol=1e-5, atol=1e-6)


def test_a_single_linear_layer_is_a_network(torch):
    net = nb.from_torch(torch.nn.Linear(3, 2))
    assert (net.layer_sizes, net.hidden) == ([3, 2], ())
    assert nb.from_torch(torch.nn.Linear(3, 2).state_dict(), output="exp").output == "exp"


def test_layers_are_taken_in_the_order_of_their_numbers(torch):
    linear = torch.nn.Linear
    state = torch.nn.Sequential(*(linear(4, 4) for _ in range(12))).state_dict()
    net = nb.from_torch(state, hidden="relu", output="identity")
    by_name = {name: state[name] for name in sorted(state)}
    assert list(by_name).index("10.weight") < list(by_name).index("2.weight")
    again = nb.from_torch(by_name, hidden="relu", output="identity")
    np.testing.assert_array_equal(again.parameters, net.parameters)


def test_layers_with_names_are_taken_as_they_stand(torch):
    first, last = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
    state = {
        "stem.weight": first.weight,
        "stem.bias": first.bias,
        "head.weight": last.weight,
        "head.bias": last.bias,
    }
    assert nb.from_torch(state, hidden="tanh", output="softmax").layer_sizes == [3, 4, 2]


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(torch, half):
    module = torch.nn.Linear(3, 2).to(getattr(torch, half))
    net = nb.from_torch(module)
    assert net.dtype == "float32"
    np.testing.assert_array_equal(net.weights[0].T, module.weight.detach().float().numpy())


@pytest.mark.usefixtures("torch")
def test_standardization_is_folded_into_torchs_weights():
    features = 10.0 * X + 3.0
    y = 50.0 + 10.0 * X[:, 0]
    net = nb.Network([5, 4, 1], hidden="tanh", output="identity", dtype="float64")
    net.standardize(features, y)
    state = nb.to_torch(net)
    back = nb.from_torch(state, hidden="tanh", output="identity")
    assert back.standardization is None
    np.testing.assert_allclose(back.predict(features), net.predict(features), rtol=1e-12)


def test_the_state_dict_can_be_saved_and_shares_no_memory(torch, tmp_path):
    net = nb.Network([3, 4, 1], dtype="float64")
    before = net.parameters.copy()
    state = nb.to_torch(net)
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert {key: tuple(value.shape) for key, value in loaded.items()} == {
        "0.weight": (4, 3), "0.bias": (4,), "2.weight": (1, 4), "2.bias": (1,),
    }  # fmt: skip
    for value in state.values():
        assert value.is_contiguous()
        value.zero_()
    np.testing.assert_array_equal(net.parameters, before)


def refused_modules(torch):
    nn = torch.nn

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

    class Doubled(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    layer, last = nn.Linear(3, 3), nn.Linear(3, 1)
    pruned = importlib.import_module("torch.nn.utils.prune").l1_unstructured(
        nn.Linear(3, 3), "weight", 0.5
    )
    return {
        "expected Linear, Dropout, or an activation that a Network has, too, got Conv2d": (
            nn.Sequential(nn.Conv2d(1, 1, 3), layer)
        ),
        "got BatchNorm1d(3": nn.Sequential(layer, nn.BatchNorm1d(3), last),
        "got PReLU(num_parameters=1) at '1'": nn.Sequential(layer, nn.PReLU(), last),
        "got Own; of a module of your own give the state_dict()": Own(),
        "at '1.0'": nn.Sequential(layer, nn.Sequential(nn.ReLU6(), last)),
        "got Doubled;": Doubled(layer, last),
        "expected GELU(approximate='tanh'), got GELU(approximate='none') at '1'": nn.Sequential(
            layer, nn.GELU(), last
        ),
        "expected LeakyReLU(negative_slope=0.01)": nn.Sequential(layer, nn.LeakyReLU(0.2), last),
        "expected ELU(alpha=1.0)": nn.Sequential(layer, nn.ELU(0.5), last),
        "expected Softplus(beta=1.0, threshold=20.0)": nn.Sequential(layer, nn.Softplus(2), last),
        "expected Softmax(dim=-1)": nn.Sequential(layer, nn.Softmax(dim=0)),
        "expected Softmax at the end only": nn.Sequential(layer, nn.Softmax(dim=1), last),
        "expected a Linear layer first, got Dropout": nn.Sequential(nn.Dropout(0.5), layer),
        "expected a Linear layer first, got ReLU": nn.Sequential(nn.ReLU(), layer),
        "expected one activation after a layer": nn.Sequential(layer, nn.ReLU(), nn.Tanh(), last),
        "expected Dropout after the activation": nn.Sequential(
            layer, nn.Dropout(0.5), nn.Tanh(), last
        ),
        "expected one Dropout": nn.Sequential(layer, nn.Dropout(0.5), nn.Dropout(0.5), last),
        "expected Dropout after hidden layers only": nn.Sequential(layer, nn.Dropout(0.5)),
        "a Linear layer, Sigmoid or Softmax, got 'relu' at the end": nn.Sequential(
            layer, nn.ReLU()
        ),
        "at least one Linear layer, got none": nn.Sequential(),
        "got no 0.bias": nn.Sequential(nn.Linear(3, 2, bias=False)),
        "got an entry '0.weight_orig'": nn.Sequential(pruned),
        "0.weight: expected an initialized layer, got a lazy one": nn.Sequential(nn.LazyLinear(3)),
        "2.weight: expected shape (n_out, 3), to take the outputs of 0.weight, got (1, 4)": (
            nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 1))
        ),
        "dropout: expected a finite number": nn.Sequential(layer, nn.Dropout(1.0), last),
        "0.weight: cannot be read as an array": nn.Sequential(nn.Linear(3, 1, device="meta")),
    }


def test_modules_that_are_no_network_are_refused_in_one_sentence(torch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's lazy modules are "under heavy ..."
        modules = refused_modules(torch)
    for message, module in modules.items():
        with pytest.raises(nb.InputError, match=re.escape(message)) as caught:
            nb.from_torch(module)
        assert "\n" not in str(caught.value)


def test_state_dicts_that_are_no_network_are_refused(torch):
    W, b = torch.zeros(4, 3), torch.zeros(4)
    refused = {
        "source: expected the weight and bias of Linear layers, got an entry '1.running_mean'": {
            "0.weight": W, "0.bias": b, "1.running_mean": b,
        },
        "0.weight: expected the matrix (n_out, n_in) of a Linear layer, got shape (4, 1, 3, 3)": {
            "0.weight": torch.zeros(4, 1, 3, 3), "0.bias": b,
        },
        "got no 0.bias": {"0.weight": W},
        "got no 0.weight": {"0.bias": b},
        "0.bias: expected shape (4,), got (3,)": {"0.weight": W, "0.bias": b[:3]},
        "0.weight: expected a torch tensor, got ndarray": {"0.weight": W.numpy(), "0.bias": b},
        "0.weight: expected a tensor of floats, got torch.int64": {
            "0.weight": W.long(), "0.bias": b,
        },
        "0.bias: expected finite numbers, got NaN or infinity": {
            "0.weight": W, "0.bias": torch.full((4,), torch.inf),
        },
        "at least one Linear layer, got none": {},
        "got an entry 3": {3: W},
    }  # fmt: skip
    for message, state in refused.items():
        with pytest.raises(nb.InputError, match=re.escape(message)):
            nb.from_torch(state, hidden="relu", output="identity")


def test_what_a_state_dict_does_not_say_has_to_be_said(torch):
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)).state_dict()
    with pytest.raises(nb.InputError, match=r"output: expected 'sigmoid'.*got None"):
        nb.from_torch(state, hidden="relu")
    with pytest.raises(nb.InputError, match="hidden: expected one activation for all 1 hidden"):
        nb.from_torch(state, output="sigmoid")
    with pytest.raises(nb.InputError, match="hidden: expected None with a module"):
        nb.from_torch(torch.nn.Linear(3, 1), hidden="relu")
    with pytest.raises(nb.InputError, match=r"source: expected a torch\.nn"):
        nb.from_torch("model.pt", hidden="relu", output="sigmoid")


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("function", ["from_torch", "to_torch"])
def test_the_examples_that_need_torch_run(function):
    text = getattr(nb, function).__doc__.replace("# doctest: +SKIP", "")
    test = doctest.DocTestParser().get_doctest(text, {}, function, None, None)
    assert doctest.DocTestRunner().run(test) == (0, len(test.examples))


def test_without_torch_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for call in (lambda: nb.to_torch(nb.Network([2, 1])), lambda: nb.from_torch({})):
        with pytest.raises(nb.MissingDependencyError, match="pip install torch"):
            call()


@pytest.mark.usefixtures("torch")
def test_real_data_goes_round_all_three():
    features, y = load_digits(return_X_y=True)
    estimator = fitted(
        make_pipeline(StandardScaler(), MLPClassifier((32,), max_iter=20)),
        features,
        y,
    )
    net = nb.from_sklearn(estimator)
    through_torch = nb.from_torch(nb.to_torch(net), hidden="relu", output="softmax")
    back = nb.to_sklearn(through_torch)
    np.testing.assert_array_equal(back.predict(features), estimator.predict(features))
    np.testing.assert_allclose(
        back.predict_proba(features), estimator.predict_proba(features), atol=1e-12
    )
