"""Pipelines as ONNX files: what onnxruntime computes of all steps is what scikit-learn does."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
from backends import require
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import VotingClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    StandardScaler,
)

import nnbackend as nb

pytestmark = pytest.mark.usefixtures("skl2onnx")
KINDS = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": object,
    "tensor(int64)": "int64",
}
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
N = 60


@pytest.fixture(scope="module")
def skl2onnx():
    for name in ("ndonnx", "onnx", "onnxruntime", "spox"):
        require(name)
    with warnings.catch_warnings():
        # It imports what scikit-learn will remove.
        warnings.simplefilter("ignore", FutureWarning)
        return require("skl2onnx")


def features(dtype="float64"):
    return np.random.default_rng(0).normal(3.0, 2.0, (N, 4)).astype(dtype)


def targets(kind):
    random = np.random.default_rng(1)
    return {
        "text": random.choice(np.asarray(["low", "middle", "high"]), N),
        "bool": random.random(N) < 0.5,
        "number": random.integers(3, 6, N),
        "labels": random.integers(0, 2, (N, 3)),
        "value": random.normal(size=N),
        "values": random.normal(size=(N, 2)),
        "count": random.integers(0, 4, N),
    }[kind]


def table(n_gaps=0):
    """Return a frame of numbers and text, with gaps in some of both."""
    pandas = require("pandas")
    random = np.random.default_rng(2)
    frame = pandas.DataFrame(
        {
            "age": random.normal(40.0, 9.0, N),
            "city": random.choice(["Ulm", "Graz", "京都"], N),
            "pay": random.lognormal(size=N),
            "kind": random.choice(["a", "b"], N),
            "weights.0 (kg)": random.normal(size=N),
        }
    )
    for column in ("age", "city"):
        frame.loc[random.choice(N, n_gaps, replace=False), column] = np.nan
    return frame


def estimator(kind, activation="relu", *, ensemble=False):
    options = {
        "hidden_layer_sizes": (5,), "activation": activation, "max_iter": 5, "random_state": 0,
    }  # fmt: skip
    if kind in ("value", "values", "count"):
        loss = "poisson" if kind == "count" else "squared_error"
        member = nb.MLPRegressor(loss, **options)
        return nb.EnsembleRegressor(member, 2, random_state=0) if ensemble else member
    member = nb.MLPClassifier(**options)
    return nb.EnsembleClassifier(member, 2, random_state=0) if ensemble else member


def fitted(model, X, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few epochs
        return model.fit(X, y)


def run(model, X):
    """Return the outputs of a file's bytes for an array or a frame."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    fed = {}
    for entry in session.get_inputs():
        values = np.asarray(X) if entry.name == "X" else np.asarray(X[[entry.name]])
        kind = KINDS[entry.type]
        if kind is object:
            values = np.where(values == values, values, "")  # noqa: PLR0124 - a gap is NaN
        fed[entry.name] = values.astype(kind)
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(names, fed), strict=True))


def exported(pipeline, tmp_path):
    import onnx

    path = tmp_path / "model.onnx"
    nb.export_onnx(pipeline, path)
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    opsets = [entry.version for entry in model.opset_import if not entry.domain]
    assert opsets == [21]
    return model, path.read_bytes()


def assert_exported(pipeline, X, tmp_path, tolerance=1e-6):
    """Assert that the file's outputs are those of an export of the network alone."""
    _, data = exported(pipeline, tmp_path)
    found = run(data, X)
    expected = pipeline.predict(X)
    if hasattr(pipeline, "predict_proba"):
        assert list(found) == ["label", "probabilities"]
        assert found["label"].dtype == np.int64
        classes = np.asarray(pipeline.classes_)
        label = found["label"] if expected.ndim == 2 else classes[found["label"]]
        np.testing.assert_array_equal(label, expected)
        values, found = pipeline.predict_proba(X), found["probabilities"]
    else:
        values, found = expected, found["prediction"]
    assert found.shape == values.shape
    np.testing.assert_allclose(found, values, rtol=tolerance, atol=tolerance)


STEPS = {
    "standard": StandardScaler,
    "minmax": MinMaxScaler,
    "pca": lambda: PCA(3),
    "imputer": SimpleImputer,
    "passthrough": lambda: "passthrough",
}


@settings(deadline=None, max_examples=12)
@given(
    steps=st.lists(st.sampled_from(sorted(STEPS)), max_size=3),
    kind=st.sampled_from(["text", "bool", "number", "labels", "value", "values", "count"]),
    activation=st.sampled_from(["relu", "gelu", "silu", "elu", "softplus"]),
    ensemble=st.booleans(),
    dtype=st.sampled_from(sorted(TOLERANCE)),
)
def test_steps_on_numbers_are_exported(tmp_path_factory, steps, kind, activation, ensemble, dtype):
    X = features(dtype)
    parts = [STEPS[name]() for name in steps]
    # One scaler twice.
    model = make_pipeline(MinMaxScaler(), *parts, estimator(kind, activation, ensemble=ensemble))
    assert_exported(
        fitted(model, X, targets(kind)), X, tmp_path_factory.mktemp("steps"), 5 * TOLERANCE[dtype]
    )


@settings(deadline=None, max_examples=8)
@given(
    kind=st.sampled_from(["text", "labels", "value"]),
    strategy=st.sampled_from(["mean", "median", "most_frequent"]),
    n_gaps=st.integers(0, 20),
    by_name=st.booleans(),
    remainder=st.sampled_from(["drop", "passthrough"]),
    after=st.sampled_from(["passthrough", "pca"]),
)
def test_tables_of_numbers_and_text_are_exported_with_a_named_input_per_column(
    tmp_path_factory, kind, strategy, n_gaps, by_name, remainder, after
):
    X = table(n_gaps)
    numbers, text = (["age", "pay"], ["city", "kind"]) if by_name else ([0, 2], [1, 3])
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy=strategy), StandardScaler()), numbers),
            (
                "text",
                make_pipeline(
                    SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")
                ),
                text,
            ),
        ],
        remainder=remainder,
        sparse_threshold=0,
    )
    model = fitted(make_pipeline(columns, STEPS[after](), estimator(kind)), X, targets(kind))
    tmp_path = tmp_path_factory.mktemp("table")
    # Unknown text, and gaps where there were none.
    X.loc[:3, "city"] = "Oslo"
    X.loc[4:8, ["age", "pay", "kind"]] = np.nan
    assert_exported(model, X, tmp_path)
    proto, _ = exported(model, tmp_path)
    read = [name for name in X.columns if remainder == "passthrough" or name != "weights.0 (kg)"]
    assert sorted(entry.name for entry in proto.graph.input) == sorted(read)
    metadata = {entry.key: json.loads(entry.value) for entry in proto.metadata_props
                if entry.key != "nnbackend_version"}  # fmt: skip
    assert metadata["feature_names"] == list(X.columns)


@pytest.mark.parametrize(
    "columns",
    [slice(1, 4, 2), slice("city", "kind"), [False, True, False, True, False], "text", [-4, -2]],
)
def test_columns_are_chosen_in_all_ways_of_scikit_learn(columns, tmp_path):
    X = table().drop(columns="pay") if columns == slice("city", "kind") else table()
    if columns == "text":
        columns = lambda frame: ["city", "kind"]  # noqa: ARG005, E731
    encoder = ColumnTransformer([("text", OrdinalEncoder(), columns)], remainder="passthrough")
    model = fitted(make_pipeline(encoder, estimator("value")), X, targets("value"))
    assert_exported(model, X, tmp_path)


def test_text_alone_is_one_input(tmp_path):
    X = table()[["city", "kind"]]
    model = fitted(make_pipeline(OneHotEncoder(), estimator("text")), X, targets("text"))
    assert_exported(model, X, tmp_path)
    proto, data = exported(model, tmp_path)
    assert [entry.name for entry in proto.graph.input] == ["X"]
    assert run(data, X.to_numpy()[:0])["probabilities"].shape == (0, 3)


def test_columns_without_names_have_numbers(tmp_path):
    X = table()[["age", "city"]].to_numpy(object)
    columns = ColumnTransformer([("n", StandardScaler(), [0]), ("t", OneHotEncoder(), [1])])
    model = fitted(make_pipeline(columns, estimator("text")), X, targets("text"))
    proto, data = exported(model, tmp_path)
    assert [entry.name for entry in proto.graph.input] == ["x0", "x1"]
    found = run(data, _Columns(X))
    np.testing.assert_allclose(found["probabilities"], model.predict_proba(X), atol=1e-6)


class _Columns:
    """An array whose columns are called x0, x1, ..."""

    def __init__(self, X):
        self.X = X

    def __getitem__(self, names):
        return self.X[:, [int(name[1:]) for name in names]]


def test_a_network_of_scikit_learn_may_be_last(tmp_path):
    X = features()
    model = make_pipeline(MinMaxScaler(), PCA(2), MLPClassifier((4,), max_iter=5))
    assert_exported(fitted(model, X, targets("text")), X, tmp_path)


def refused(name):
    """Return a pipeline that cannot be exported, and what the message says."""
    X, y = features(), targets("text")
    if name == "function":
        steps, message = FunctionTransformer(np.abs), "FunctionTransformer .*transform its features"
    elif name == "operator":
        steps, message = PolynomialFeatures(), "onnxruntime cannot run .*, PolynomialFeatures"
    elif name == "indicator":
        X[0, 0] = np.nan
        steps, message = SimpleImputer(add_indicator=True), "SimpleImputer with add_indicator=True"
    elif name == "gap":
        X = table(5)[["city", "kind"]]
        steps, message = OneHotEncoder(), "expected text alone .* got nan .* put a SimpleImputer"
    else:
        X = table().rename(columns={"city": "label"})
        steps = ColumnTransformer(
            [("t", OneHotEncoder(), ["label"]), ("n", "passthrough", ["age"])]
        )
        message = "other names of columns than those of the outputs, got 'label'; rename"
    return fitted(make_pipeline(steps, estimator("text")), X, y), message


@pytest.mark.parametrize("name", ["function", "operator", "indicator", "gap", "name"])
def test_what_cannot_be_exported_is_said(name, tmp_path):
    model, message = refused(name)
    with pytest.raises(nb.InputError, match=f"^net: .*{message}"):
        nb.export_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_is_not_fitted_is_said(tmp_path):
    mlp = fitted(estimator("text"), features(), targets("text"))
    with pytest.raises(nb.InputError, match=r"^net: .* whose PCA is not fitted; call fit first"):
        nb.export_onnx(make_pipeline(PCA(4), mlp), tmp_path / "model.onnx")


def test_text_that_is_counted_is_one_column(tmp_path):
    X = np.asarray(["one two", "two three", "three one one"] * 20)
    model = fitted(
        make_pipeline(CountVectorizer(lowercase=False), estimator("text")), X, targets("text")
    )
    _, data = exported(model, tmp_path)
    found = run(data, X[:, np.newaxis])
    np.testing.assert_allclose(found["probabilities"], model.predict_proba(X), atol=1e-6)


def test_without_skl2onnx_its_name_is_said(tmp_path, monkeypatch):
    model = fitted(make_pipeline(MinMaxScaler(), estimator("text")), features(), targets("text"))
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(nb.MissingDependencyError, match=r"skl2onnx; .*pip install skl2onnx$"):
        nb.export_onnx(model, tmp_path / "model.onnx")
    # A scaler alone is part of a network.
    model = fitted(make_pipeline(StandardScaler(), estimator("text")), features(), targets("text"))
    assert_exported(model, features(), tmp_path)


@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("kind", ["text", "bool", "number", "labels", "value", "values", "count"])
def test_skl2onnx_converts_our_estimators(skl2onnx, kind, ensemble, dtype):
    X = features(dtype)
    model = make_pipeline(MinMaxScaler(), estimator(kind, "gelu", ensemble=ensemble))
    is_classifier = hasattr(fitted(model, X, targets(kind)), "predict_proba")
    options = {"zipmap": False} if is_classifier else None
    alone = model[-1], model[:-1].transform(X)
    for (part, data), opset in (((model, X), None), ((model, X), 19), (alone, None)):  # fmt: skip
        proto = skl2onnx.to_onnx(part, data[:1], options=options, target_opset=opset)
        found = run(proto.SerializeToString(), data)
        expected = part.predict(data)
        if is_classifier:
            np.testing.assert_array_equal(found["label"], expected)
            expected, found = part.predict_proba(data), found["probabilities"]
        else:
            expected, found = expected.reshape(N, -1), found["variable"]
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, atol=5 * TOLERANCE[dtype], rtol=1e-6)


def test_a_network_of_float32_computes_in_the_dtype_of_what_it_is_given(skl2onnx):
    X = features("float32")
    model = fitted(estimator("text"), X, targets("text"))
    for dtype, tolerance in (("float64", 1e-12), ("int64", 1e-6)):
        data = X.astype(dtype)
        proto = skl2onnx.to_onnx(model, data[:1], options={"zipmap": False})
        found = run(proto.SerializeToString(), data)["probabilities"]
        np.testing.assert_allclose(found, model.predict_proba(data), atol=tolerance)


def test_skl2onnx_keeps_its_conventions(skl2onnx):
    X, y = features("float32"), targets("text")
    model = fitted(make_pipeline(StandardScaler(), estimator("text")), X, y)
    found = run(skl2onnx.to_onnx(model, X[:1]).SerializeToString(), X)
    np.testing.assert_array_equal(found["output_label"], model.predict(X))
    assert list(found["output_probability"][0]) == ["high", "low", "middle"]
    for options, names in (
        ({"zipmap": "columns"}, ["output_label", "shigh", "slow", "smiddle"]),
        (
            {"zipmap": False, "output_class_labels": True},
            ["label", "probabilities", "class_labels"],
        ),
    ):
        proto = skl2onnx.to_onnx(model, X[:1], options=options)
        assert [entry.name for entry in proto.graph.output] == names
    found = run(
        skl2onnx.to_onnx(model, X[:1], options={"zipmap": False, "nocl": True})
        .SerializeToString(), X,
    )  # fmt: skip
    np.testing.assert_array_equal(model.classes_[found["label"]], model.predict(X))


def test_members_of_a_vote_are_converted(skl2onnx):
    X, y = features("float32"), targets("text")
    members = [("a", estimator("text")), ("b", estimator("text", "tanh", ensemble=True))]
    vote = fitted(VotingClassifier(members, voting="soft", flatten_transform=False), X, y)
    proto = skl2onnx.to_onnx(vote, X[:1], options={"zipmap": False})
    found = run(proto.SerializeToString(), X)
    np.testing.assert_allclose(found["probabilities"], vote.predict_proba(X), atol=1e-6)


def test_an_opset_that_is_too_early_is_said(skl2onnx):
    X = features("float32")
    model = fitted(make_pipeline(StandardScaler(), estimator("text")), X, targets("text"))
    with pytest.raises(
        nb.InputError, match=r"target_opset: expected an opset of at least 19 .* 18"
    ):
        skl2onnx.to_onnx(model, X[:1], target_opset=18)


CONVERSION = """
import warnings; warnings.simplefilter("ignore")
import sys, numpy as np
{imports}
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
X = np.eye(6, dtype="float32")
model = make_pipeline(StandardScaler(), nb.MLPClassifier((3,), max_iter=2)).fit(X, list("abcabc"))
{later}
model = skl2onnx.to_onnx(model, X[:1], options={{"zipmap": False}})
print([entry.name for entry in model.graph.output])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("imports", "later"),
    [
        ("import skl2onnx, nnbackend as nb", ""),
        ("import nnbackend as nb, skl2onnx", ""),
        ("import nnbackend as nb; nb.MLPClassifier, nb.EnsembleClassifier", "import skl2onnx"),
        (
            # Looking for it is no import.
            "import nnbackend as nb, importlib.util as util; util.find_spec('skl2onnx').loader",
            "assert 'skl2onnx' not in sys.modules; import skl2onnx",
        ),
    ],
)
def test_either_package_may_be_imported_first(imports, later):
    code = CONVERSION.format(imports=imports, later=later)
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "['label', 'probabilities']\n"


@pytest.mark.slow
def test_without_skl2onnx_nothing_changes():
    code = (
        "import sys, nnbackend as nb; nb.EnsembleClassifier\n"
        "sys.meta_path = [finder for finder in sys.meta_path if 'Path' not in str(finder)]\n"
        "try:\n    import skl2onnx\nexcept ModuleNotFoundError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "No module named 'skl2onnx'\n"
