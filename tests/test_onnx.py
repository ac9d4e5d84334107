"""ONNX files: what onnxruntime computes of them is what the network does."""

import doctest
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from backends import TORCH_ACTIVATIONS, require
from devices import on_each_device
from hypothesis import given
from hypothesis import strategies as st

import nnbackend as nb
from nnbackend.cli import command as cli
from nnbackend.core.activations import Activation
from nnbackend.errors import InputError, MissingDependencyError
from nnbackend.io import onnx as onnx_export

PACKAGES = ("ndonnx", "onnx", "onnxruntime", "spox")
OUTPUTS = [
    ("identity", 1), ("identity", 3), ("sigmoid", 1), ("sigmoid", 3), ("softmax", 4), ("exp", 2),
    ("gaussian", 2), ("quantile", 3),
]  # fmt: skip
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}

needs_onnx = pytest.mark.usefixtures("onnx")
both_dtypes = pytest.mark.parametrize("dtype", sorted(TOLERANCE))
# "logistic" is but another name.
# The built-in ones: other tests register theirs.
NAMES = sorted(TORCH_ACTIVATIONS)
each_activation = pytest.mark.parametrize("hidden", sorted(set(NAMES) - {"logistic"}))


@pytest.fixture(scope="module")
def onnx():
    for name in PACKAGES:
        require(name)
    return require("onnx")


@pytest.fixture
def serve(onnx, tmp_path):
    """Export a network; return the checked model, and a function of X that gives its outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1

    def export(net):
        path = tmp_path / "served.onnx"
        nb.export_onnx(net, path)
        onnx.checker.check_model(path, full_check=True)
        model = onnx.load(path, load_external_data=False)
        assert [path.name for path in tmp_path.glob("*.onnx*")] == ["served.onnx"]
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return model, lambda X: dict(zip(names, session.run(names, feeds(session, X)), strict=True))

    return export


def feeds(session, X):
    """Return the input of a session: X in the dtype that the file says."""
    (given,) = session.get_inputs()
    return {"X": X.astype({"tensor(float)": "float32", "tensor(double)": "float64"}[given.type])}


def network(output, n_outputs, **options):
    return nb.Network([5, 8, 7, n_outputs], output=output, seed=1, **options)


def data(n_samples, dtype, mean=0.0, n_features=5):
    """Return examples; the same numbers whatever the number of rows."""
    X = np.random.default_rng(2).normal(mean, 1.5, (100, n_features))
    return X[:n_samples].astype(dtype)


def assert_same(net, found, X, tolerance=None):
    """Assert that outputs are what the network's own methods return: names, shapes and dtypes too.

    Values may differ by the tolerance at the size of 1, or of the targets' deviation; those of exp
    by the tolerance at their own size.
    """
    if net.output in ("sigmoid", "softmax"):
        expected = {"label": net.predict(X), "probabilities": net.predict_proba(X)}
    else:
        expected = {"prediction": net.predict(X)}
    if net.output == "gaussian":
        expected["std"] = net.forward(X)[:, 1]
    if net.output == "quantile":
        expected["quantiles"] = net.forward(X)
    assert list(found) == list(expected)
    tolerance = tolerance or TOLERANCE[net.dtype]
    target = net.target_standardization
    scale = 1.0 if target is None else float(target.scale.max())
    rtol = tolerance if net.output == "exp" else 2 * np.finfo(net.dtype).eps
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert found[name].shape == values.shape
        np.testing.assert_allclose(found[name], values, rtol=rtol, atol=tolerance * scale)


@both_dtypes
@each_activation
@pytest.mark.parametrize(("output", "n_outputs"), OUTPUTS)
def test_onnxruntime_computes_what_the_network_does(serve, hidden, output, n_outputs, dtype):
    for mean in (None, 1e6):
        net = network(output, n_outputs, hidden=hidden, dtype=dtype)
        if mean is not None:
            n_targets = {"identity": n_outputs, "gaussian": 1, "quantile": 1}.get(output)
            targets = n_targets and data(100, dtype, mean / 100, n_targets)
            net.standardize(data(100, dtype, mean), targets)
        _, run = serve(net)
        for n_samples in (1, 2, 100):
            X = data(n_samples, dtype, mean or 0.0)
            assert_same(net, run(X), X)


@both_dtypes
@pytest.mark.parametrize(("output", "n_outputs"), OUTPUTS)
def test_the_graph_is_plain(onnx, serve, output, n_outputs, dtype):
    net = network(output, n_outputs, hidden=["gelu", "elu"], dtype=dtype, dropout=0.5)
    model, _ = serve(net)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]
    assert model.ir_version <= 10
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    # None has a graph within it, as If, Loop and Scan have, and a float32 network no float64.
    assert not [node for node in graph.node for entry in node.attribute if entry.HasField("g")]
    kinds = {value.type.tensor_type.elem_type for value in graph.value_info}
    Kind = onnx.TensorProto
    own, other = Kind.FLOAT, Kind.DOUBLE
    if dtype == "float64":
        own, other = other, own
    assert own in kinds
    assert other not in kinds
    constants = {tensor.name: tensor for tensor in graph.initializer}
    assert sorted(constants) == [f"{kind}.{k}" for kind in ("biases", "weights") for k in range(3)]
    for layer, (W, b) in enumerate(zip(net.weights, net.biases, strict=True)):
        for kind, expected in (("weights", W), ("biases", b)):
            tensor = constants[f"{kind}.{layer}"]
            assert tensor.data_location == Kind.DEFAULT
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), expected)


@pytest.mark.parametrize(("output", "n_outputs"), OUTPUTS)
def test_the_number_of_examples_is_a_symbol(serve, output, n_outputs):
    model, run = serve(network(output, n_outputs, hidden="elu").standardize(data(9, "float32")))
    (X,) = model.graph.input
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (X, *model.graph.output)
    }
    columns = [] if n_outputs == 1 else [n_outputs]
    if output in ("sigmoid", "softmax"):
        expected = {
            "label": ["n_samples", *(columns if output == "sigmoid" else [])],
            "probabilities": ["n_samples", *(columns or [2])],
        }
    elif output == "gaussian":
        expected = {"prediction": ["n_samples"], "std": ["n_samples"]}
    elif output == "quantile":
        expected = {"prediction": ["n_samples"], "quantiles": ["n_samples", 3]}
    else:
        expected = {"prediction": ["n_samples", *columns]}
    assert shapes == {"X": ["n_samples", 5], **expected}
    for name, values in run(np.empty((0, 5), "float32")).items():
        assert values.shape == (0, *expected[name][1:])


@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    names=st.lists(st.sampled_from(NAMES), min_size=3, max_size=3),
    output=st.sampled_from(["identity", "sigmoid", "softmax", "exp"]),
    dtype=st.sampled_from(sorted(TOLERANCE)),
    seed=st.integers(0, 2**32),
    mean=st.sampled_from([None, 0.0, -3e5]),
    n_samples=st.integers(1, 40),
)
def test_any_structure_computes_what_the_network_does(
    onnx, tmp_path_factory, sizes, names, output, dtype, seed, mean, n_samples
):
    import onnxruntime

    net = nb.Network(
        sizes, hidden=names[: len(sizes) - 2], output=output, dropout=0.3, dtype=dtype, seed=seed
    )
    X = data(n_samples, dtype, mean or 0.0, sizes[0])
    if mean is not None:
        targets = data(100, dtype, mean, sizes[-1]) if output == "identity" else None
        net.standardize(data(100, dtype, mean, sizes[0]), targets)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    nb.export_onnx(net, path)
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, feeds(session, X))
    assert_same(net, dict(zip((x.name for x in session.get_outputs()), found, strict=True)), X)


def one_unit(hidden, output, dtype):
    """Return the function of one number that an activation and an output are."""
    net = nb.Network([1, *(1 for _ in hidden), 1], hidden=hidden, output=output, dtype=dtype)
    net.set_parameters([[[1.0]]] * (len(hidden) + 1), [[0.0]] * (len(hidden) + 1))
    return net


@both_dtypes
@each_activation
def test_an_activation_is_ours_from_the_smallest_numbers_to_the_largest(serve, hidden, dtype):
    limit = np.finfo(dtype)
    X = np.asarray([0, limit.tiny, 1e-20, 1e-8, 1e-4, 0.3, 1, 5, 20, 80, 200, 1e4, 1e20, limit.max])
    X = np.concat([-X[::-1], X]).astype(dtype)[:, None]
    net = one_unit([hidden], "identity", dtype)
    found = serve(net)[1](X)["prediction"]
    # The exponent's rounding is what a tail has of it: 80 roundings in exp(-80).
    np.testing.assert_allclose(found, net.predict(X), rtol=100 * limit.eps, atol=limit.tiny)


@both_dtypes
def test_probabilities_are_ours_into_their_tails(serve, dtype):
    limit = np.finfo(dtype)
    X = np.asarray([0, 1e-8, 0.3, 1, 5, 20, 80, 200, 700, 1e4, limit.max])
    X = np.concat([-X[::-1], X]).astype(dtype)[:, None]
    found = {}
    for output in ("sigmoid", "exp"):
        net = one_unit([], output, dtype)
        with np.errstate(over="ignore"):
            expected = net.predict_proba(X) if output == "sigmoid" else net.predict(X)
        found[output] = list(serve(net)[1](X).values())[-1]
        np.testing.assert_allclose(found[output], expected, rtol=1000 * limit.eps, atol=limit.tiny)
    net = nb.Network([2, 2], output="softmax", dtype=dtype)
    net.set_parameters([np.eye(2)], [[0.0, 0.0]])
    pairs = np.concat([X, -X], axis=1) / 2
    found["softmax"] = serve(net)[1](pairs)["probabilities"]
    expected = net.predict_proba(pairs)
    np.testing.assert_allclose(found["softmax"], expected, rtol=1000 * limit.eps, atol=limit.tiny)
    for output in ("sigmoid", "softmax"):
        assert np.all(np.isfinite(found[output]))
        np.testing.assert_allclose(found[output].sum(axis=1), 1, rtol=2 * limit.eps)


@each_activation
def test_nan_does_not_pass_for_a_prediction(serve, hidden):
    X = np.asarray([[np.nan, 0.0, 0.0, 0.0, 0.0]], "float32")
    for output in ("sigmoid", "softmax", "identity"):
        found = serve(network(output, 2, hidden=hidden).standardize(data(9, "float32")))[1](X)
        assert np.all(np.isnan(list(found.values())[-1]))


@both_dtypes
def test_an_activation_of_ones_own_is_traced(serve, dtype):
    def mish(xp, Z):
        return Z * xp.tanh(xp.log1p(xp.exp(-xp.abs(Z))) + xp.maximum(Z, xp.zeros_like(Z)))

    def hard(xp, Z):
        return xp.clip(Z, -1, 1) + 0.1 * xp.astype(Z > 0, Z.dtype) * xp.sin(Z) ** 2

    def shifted(xp, Z):
        largest = xp.expand_dims(xp.max(Z, axis=-1), axis=-1)
        return Z - largest * xp.max(Z) + xp.max(Z, axis=(0, 1), keepdims=True)

    def derivative(xp, Z, _A):
        return xp.ones_like(Z)

    own = [
        Activation(function.__name__, function, derivative) for function in (mish, hard, shifted)
    ]
    net = nb.Network([5, 6, 6, 6, 2], hidden=own, output="softmax", dtype=dtype)
    _, run = serve(net)
    X = data(20, dtype)
    assert_same(net, run(X), X)


UNTRACEABLE = {
    "branch": lambda xp, Z: Z if xp.sum(Z) > 0 else 2.0 * Z,
    "loop": lambda xp, Z: xp.stack([row * 2.0 for row in Z]),
    "number": lambda xp, Z: Z * float(xp.max(Z)),
    "numpy": lambda _xp, Z: np.tanh(Z),
    "selection": lambda _xp, Z: Z[Z > 0],
    "dtype": lambda _xp, Z: Z * np.float64(2.0),
    "constant": lambda _xp, _Z: 1.0,
    "unknown": lambda xp, Z: xp.erf(Z),
    "mistake": lambda _xp, _Z: {}["mistake"],
}


@needs_onnx
@pytest.mark.parametrize("kind", UNTRACEABLE)
def test_an_activation_that_cannot_be_traced_is_named(kind, tmp_path):
    own = Activation("mine", UNTRACEABLE[kind], UNTRACEABLE[kind])
    net = nb.Network([2, 3, 1], hidden=own)
    with pytest.raises(
        InputError, match=r"^net: the activation 'mine' cannot be traced for ONNX"
    ) as caught:
        nb.export_onnx(net, tmp_path / "model.onnx")
    assert "xp.where" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_metadata_hold_version_and_names(serve):
    net = network("softmax", 3)
    model, _ = serve(net)
    assert (model.producer_name, model.producer_version) == ("nnbackend", nb.__version__)
    names = {entry.key: entry.value for entry in model.metadata_props}
    assert names == {"nnbackend_version": nb.__version__}
    net.feature_names = ("length", "Breite", "幅", "\u2028", '"')
    net.class_names = np.asarray(["low", "middle", "high"])
    model, _ = serve(net)
    names = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(names["feature_names"]) == list(net.feature_names)
    assert json.loads(names["class_names"]) == ["low", "middle", "high"]


def test_a_pipeline_of_scikit_learn_is_the_network_that_it_is(serve):
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X = data(60, "float64", 1e3)
    names = np.asarray(["red", "green", "blue"])
    mlp = nb.MLPClassifier((6,), solver="lbfgs", alpha=1.0, random_state=0)
    pipeline = make_pipeline(StandardScaler(), mlp).fit(X, names[np.arange(60) % 3])
    model, run = serve(pipeline)
    found = run(X)
    classes = json.loads({entry.key: entry.value for entry in model.metadata_props}["class_names"])
    np.testing.assert_array_equal(np.asarray(classes)[found["label"]], pipeline.predict(X))
    np.testing.assert_allclose(found["probabilities"], pipeline.predict_proba(X), atol=1e-12)


@needs_onnx
@on_each_device
def test_a_file_says_nothing_about_the_device(device, tmp_path):
    net = network("identity", 2).standardize(data(9, "float32"), data(9, "float32", n_features=2))
    nb.export_onnx(net, tmp_path / "host")
    nb.export_onnx(net.to(device), tmp_path / "device")
    assert (tmp_path / "host").read_bytes() == (tmp_path / "device").read_bytes()


def test_a_network_of_tens_of_megabytes_is_one_file(serve):
    net = nb.Network([784, 2048, 2048, 10], output="softmax", seed=3)
    _, run = serve(net)
    X = data(3, "float32", n_features=784)
    # Two sums of 2048 products differ by sqrt(2048) roundings of 6e-8 of their size, which is 1.
    assert_same(net, run(X), X, tolerance=2048**0.5 * 6e-8 * 4)


@pytest.mark.parametrize("given", [None, "model.safetensors", nb.Network])
def test_what_is_not_a_network_is_refused(given, tmp_path):
    with pytest.raises(InputError, match=r"^net: expected a nnbackend\.Network, got "):
        nb.export_onnx(given, tmp_path / "model.onnx")


@needs_onnx
@pytest.mark.parametrize("path", ["", 1, None, "nul\0", "no/such/folder/model.onnx", "."])
def test_a_path_that_cannot_be_written_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^path: ") as caught:
        nb.export_onnx(network("exp", 1), path)
    assert repr(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@needs_onnx
def test_a_folder_is_named_as_one(tmp_path):
    for name in ("run", "model.onnx"):
        (tmp_path / name).mkdir()
        with pytest.raises(InputError, match=r"^path: expected the path of a file.* is a folder$"):
            nb.export_onnx(network("exp", 1), tmp_path / name)
        assert list((tmp_path / name).iterdir()) == []


@needs_onnx
def test_only_onnx_files_are_replaced(tmp_path):
    for name in ("model.safetensors", "notes", "data.csv", "model.onnx.txt"):
        path = tmp_path / name
        path.write_text("kept")
        with pytest.raises(InputError, match=r"^path: expected a new file, or one to replace"):
            nb.export_onnx(network("exp", 1), path)
        assert path.read_text() == "kept"
    for name in ("model.onnx", "model.ONNX"):
        path = tmp_path / name
        path.write_text("replaced")
        nb.export_onnx(network("exp", 1), path)
        assert path.stat().st_size > 100


@needs_onnx
def test_numbers_that_are_not_finite_are_refused(tmp_path):
    net = network("sigmoid", 1)
    net.biases[1][2] = np.nan
    with pytest.raises(InputError, match=r"^net: expected finite .* in its biases\.1$"):
        nb.export_onnx(net, tmp_path / "model.onnx")


@needs_onnx
@pytest.mark.parametrize("names", [("a", "b", "c"), "ab", (1, 2)])
def test_names_that_do_not_fit_are_refused(names, tmp_path):
    net = network("sigmoid", 1)
    net.class_names = names
    with pytest.raises(InputError, match=r"^net\.class_names: expected None or 2 strings, got "):
        nb.export_onnx(net, tmp_path / "model.onnx")


@needs_onnx
def test_parameters_that_one_file_cannot_hold_are_refused(tmp_path, monkeypatch):
    net = network("sigmoid", 1)
    monkeypatch.setattr(onnx_export, "_LARGEST", net.parameters.nbytes)
    nb.export_onnx(net, tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"^net: expected parameters of less than 2 GiB"):
        nb.export_onnx(net.astype("float64"), tmp_path / "model.onnx")


@needs_onnx
@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named_with_the_extra(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=rf"{name}.* the extra 'onnx'.*pip install"):
        nb.export_onnx(network("sigmoid", 1), tmp_path / "model.onnx")


@needs_onnx
def test_the_example_of_the_docstring_is_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder().find(nb.export_onnx, "export_onnx", globs={})
    for line in example.examples:
        del line.options[doctest.SKIP]
    assert doctest.DocTestRunner().run(example) == (0, 4)


@needs_onnx
def test_the_program_of_the_readme_prints_what_its_comment_says(tmp_path, monkeypatch, capsys):
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    (program,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
        if "InferenceSession" in block
    )
    (claimed,) = re.findall(r"print\(.*\)  # (.+)", program)
    exec(program, {})  # noqa: S102
    assert capsys.readouterr().out.strip() == claimed


@needs_onnx
@pytest.mark.parametrize("output", ["softmax", "identity"])
def test_the_command_exports_a_saved_model(output, tmp_path, monkeypatch, capsys):
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    net = network(output, 3)
    Path("run").mkdir()
    nb.save(net, "run/model.safetensors")
    assert cli.main(["export", "run/model.safetensors", "model.onnx", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    session = onnxruntime.InferenceSession("model.onnx")
    assert said == {
        "file": "model.onnx",
        "inputs": [entry.name for entry in session.get_inputs()],
        "outputs": [entry.name for entry in session.get_outputs()],
    }
    X = data(3, "float32")
    assert_same(net, dict(zip(said["outputs"], session.run(None, {"X": X}), strict=True)), X)
    # A run folder is as good as the file in it.
    assert cli.main(["export", "run", "other.onnx"]) == 0
    assert Path("other.onnx").read_bytes() == Path("model.onnx").read_bytes()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["file", "other.onnx"]
    assert "X (n_samples, 5) float32" in lines[1]
    assert lines[2].endswith(", ".join(said["outputs"]))


@needs_onnx
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "model.onnx"], "MODEL: expected a readable model file"),
        (["model.safetensors", "nowhere/model.onnx"], "OUT: cannot write"),
        (
            ["model.safetensors", "."],
            "OUT: expected the path of a file, got '.', which is a folder",
        ),
    ],
)
def test_the_command_says_which_path_is_wrong(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    nb.save(network("sigmoid", 1), "model.safetensors")
    assert cli.main(["export", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"nnbackend export: {message}")


@needs_onnx
@pytest.mark.parametrize(
    ("model", "out", "message"),
    [
        ("run", "run/model.safetensors", "which is the model"),
        ("run/model.safetensors", "./run/model.safetensors", "which is the model"),
        ("linked.onnx", "linked.onnx", "which is the model"),
        ("run", "linked.onnx", "which is the model"),
        ("run", "run/history.json", "expected a new file, or one to replace that ends in .onnx"),
        ("run/model.safetensors", "run/history.json", "which exists"),
    ],
)
def test_the_command_replaces_nothing_of_a_run(model, out, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    nb.save(network("sigmoid", 1), "run/model.safetensors")
    Path("run/history.json").write_text("{}")
    os.link("run/model.safetensors", "linked.onnx")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert cli.main(["export", model, out]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("nnbackend export: OUT: expected ")
    assert message in err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    # An earlier export is no part of the run.
    for _ in range(2):
        assert cli.main(["export", "run", "run/model.onnx"]) == 0


@needs_onnx
@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="needs /dev/stdout")
def test_what_is_exported_to_standard_output_is_the_file_alone(tmp_path):
    net = nb.Network([2, 3, 1])
    nb.save(net, tmp_path / "model.safetensors")
    command = [sys.executable, "-m", "nnbackend", "export", "model.safetensors", "/dev/stdout"]
    with (tmp_path / "model.onnx").open("wb") as out:
        done = subprocess.run(
            command, cwd=tmp_path, stdout=out, stderr=subprocess.PIPE, text=True, check=True
        )
    assert "X (n_samples, 2) float32" in done.stderr
    nb.export_onnx(net, tmp_path / "expected.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == (tmp_path / "expected.onnx").read_bytes()
