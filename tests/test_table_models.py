"""Networks that take tables: trained, saved, pickled, resumed, and read by name."""

import json
import pickle
import warnings

import numpy as np
import pyarrow as pa
import pytest
from backends import require
from devices import on_each_device
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import nnbackend as nb
from nnbackend.data.door import look

pd, pl = require("pandas"), require("polars")

TARGET = "big"


def table_of(n=120, seed=0):
    """A table of every kind of column, with gaps, an identifier and a constant."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "size": rng.normal(10, 3, n),
            "colour": rng.choice(["red", "blue", "green"], n),
            "ok": rng.random(n) > 0.5,
            "when": np.datetime64("2020-01-01", "s") + rng.integers(0, 9 * 10**7, n),
            "id": [f"u{i:03}" for i in range(n)],
            "one": 1,
        }
    )
    table.loc[::7, "size"] = np.nan
    table.loc[::5, "colour"] = None
    table.loc[::11, "when"] = None
    return table


TABLE = table_of()
CLASSES = ((TABLE["size"].fillna(5) > 9) & (TABLE["colour"] != "red")).to_numpy().astype(int)
VALUES = TABLE["size"].fillna(5).to_numpy() + 3 * CLASSES
# Other rows, with gaps and a category that is new.
LATER = table_of(40, seed=1).assign(colour=["mauve", "red", None, "blue"] * 10)


def encoder_of(table=TABLE, **options):
    return nb.TableEncoder(**options).fit(table)


def network_of(encoder, **options):
    n_inputs = len(encoder.get_feature_names_out())
    options = {"output": "sigmoid", **options}
    return nb.Network([n_inputs, 8, 1], **options).encode_with(encoder)


@pytest.fixture(scope="module")
def trained():
    net = network_of(encoder_of())
    nb.train(net, TABLE, CLASSES, epochs=3, batch_size=16)
    return net


def test_a_network_with_an_encoder_takes_the_table_as_the_encoder_and_the_network_would():
    encoder = encoder_of()
    net = network_of(encoder, dtype="float64")
    plain = net.copy().encode_with(None)
    assert plain.encoding is None
    assert plain.feature_names is None
    inputs = encoder.transform(TABLE)
    parts = {"validation_data": (LATER, CLASSES[:40])}
    encoded = {"validation_data": (encoder.transform(LATER), CLASSES[:40])}
    history = nb.train(net, TABLE, CLASSES, epochs=3, batch_size=16, **parts)
    assert history.loss == nb.train(plain, inputs, CLASSES, epochs=3, batch_size=16, **encoded).loss
    assert np.array_equal(net.parameters, plain.parameters)
    assert np.array_equal(net.predict_proba(LATER), plain.predict_proba(encoder.transform(LATER)))
    loss, gradients = net.loss_and_gradients(TABLE, CLASSES)
    expected, others = plain.loss_and_gradients(inputs, CLASSES)
    assert loss == expected
    assert np.array_equal(gradients.weights[0], others.weights[0])
    assert nb.check_gradients(net, TABLE, CLASSES).relative_error < 1e-6


@on_each_device
def test_the_table_is_encoded_on_the_host_for_every_device(device):
    encoder = encoder_of()
    net = network_of(encoder, device=device)
    expected = network_of(encoder)
    for each in (net, expected):
        each.standardize(TABLE)
        nb.train(each, TABLE, CLASSES, epochs=2, batch_size=16, shuffle=False)
    assert isinstance(net.predict_proba(LATER), np.ndarray)
    np.testing.assert_allclose(
        net.predict_proba(LATER), expected.predict_proba(LATER), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_standardize_goes_on_from_what_the_encoder_makes(dtype):
    encoder = encoder_of(squash=False)
    net = network_of(encoder, output="identity", dtype=dtype).standardize(TABLE, VALUES)
    inputs = encoder.transform(TABLE)
    np.testing.assert_allclose(net.standardization.mean, inputs.mean(axis=0), atol=1e-12)
    assert net.feature_names == ("size", "colour", "ok", "when")
    plain = net.copy().encode_with(None)
    assert np.array_equal(net.predict(TABLE), plain.predict(inputs))


def test_frames_are_read_by_name_and_arrays_by_position(trained):
    expected = trained.predict_proba(LATER)
    shuffled = LATER[LATER.columns[::-1]].assign(unread=[[1]] * len(LATER))
    used = LATER[["ok", "when", "colour", "size"]]
    for frame in (
        shuffled,
        used,
        pl.from_pandas(used),
        pa.Table.from_pandas(used),
        LATER.to_numpy(dtype=object),
    ):
        assert np.array_equal(trained.predict_proba(frame), expected)


def test_a_table_whose_names_are_those_of_an_array_is_read_by_name():
    table = pd.DataFrame({"x0": [1.0, 2.0, 4.0] * 10, "x1": 1, "x2": [True, False, True] * 10})
    net = network_of(encoder_of(table))
    expected = net.predict_proba(table)
    assert net.feature_names == ("x0", "x2")
    renamed = table.rename(columns={"x0": "a"})
    for same in (table[["x2", "x0"]], table.to_numpy(dtype=object), renamed):
        assert np.array_equal(net.predict_proba(same), expected)


def test_a_source_is_trained_on_as_its_table(tmp_path):
    TABLE.assign(big=CLASSES).to_parquet(tmp_path / "1.parquet", row_group_size=50)
    source = nb.sources.Parquet(tmp_path, target="big")
    encoder = nb.TableEncoder().fit(source)
    assert encoder.encoding_ == encoder_of().encoding_
    from_source, in_memory = network_of(encoder), network_of(encoder)
    for net, data in ((from_source, (source,)), (in_memory, (TABLE, CLASSES))):
        net.standardize(data[0])
        nb.train(net, *data, epochs=3, batch_size=16, shuffle=False)
    assert from_source.feature_names == ("size", "colour", "ok", "when")
    mean = from_source.standardization.mean
    np.testing.assert_allclose(mean, in_memory.standardization.mean, atol=1e-12)
    np.testing.assert_allclose(from_source.parameters, in_memory.parameters, atol=1e-6)
    fewer = nb.sources.Parquet(tmp_path, target="big", features=["size", "ok"])
    with pytest.raises(nb.InputError, match="colour"):
        nb.train(from_source, fewer, epochs=1, batch_size=16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="colour"), "got none named 'colour'"),
        (lambda t: t.assign(size="tall"), "expected numbers in column 'size', got text"),
        (lambda t: t.assign(when=3.0), "expected dates in column 'when', got numbers"),
        (lambda t: t.assign(size=np.inf), "expected finite numbers or gaps in column 'size'"),
        (lambda t: t.to_numpy(dtype=object)[:, :3], "expected the 6 columns of the training data"),
        (lambda t: t["size"], "shape"),
        (lambda t: t[:0], "expected at least one example"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(trained, change, message):
    odd = change(LATER)
    for call in (trained.predict, trained.predict_proba, trained.forward, trained.standardize):
        with pytest.raises(nb.InputError, match=message):
            call(odd)
    before = trained.parameters.copy()
    with pytest.raises(nb.InputError, match=message):
        nb.train(trained, odd, CLASSES[: len(odd)])
    with pytest.raises(nb.InputError, match=message):
        nb.train(trained, TABLE, CLASSES, validation_data=(odd, CLASSES[: len(odd)]))
    assert np.array_equal(trained.parameters, before)


def test_encoders_that_do_not_fit_are_refused():
    net = nb.Network([3, 1])
    for encoder, message in (
        (nb.TableEncoder(), "call its fit first"),
        (StandardScaler(), "expected a fitted TableEncoder, got StandardScaler"),
        ("table", "expected a fitted TableEncoder, got str"),
        (encoder_of(), "expected an encoder that makes 3 inputs"),
    ):
        with pytest.raises(nb.InputError, match=message):
            net.encode_with(encoder)
    assert net.encoding is None
    require("torch")
    for convert in (nb.to_sklearn, nb.to_torch):
        with pytest.raises(nb.InputError, match="expected a network without an encoder"):
            convert(network_of(encoder_of()))


def test_numbers_that_float32_cannot_hold_are_named():
    table = pd.DataFrame({"a": [1.0, 2.0, 4.0] * 10})
    net = network_of(encoder_of(table, squash=False))
    with pytest.raises(nb.InputError, match=r"row 1 of column 'a' is too large for float32"):
        net.predict(pd.DataFrame({"a": [1.0, 1e300]}))
    assert np.isfinite(encoder_of(table).transform(pd.DataFrame({"a": [1.0, 1e308, -1e308]}))).all()
    assert np.isfinite(net.astype("float64").predict(pd.DataFrame({"a": [1.0, 1e300]}))).all()


def test_copies_have_the_encoding(trained):
    for net in (
        trained.copy(),
        trained.astype("float64"),
        pickle.loads(pickle.dumps(trained)),  # noqa: S301
    ):
        assert net.encoding == trained.encoding
        np.testing.assert_allclose(net.forward(LATER), trained.forward(LATER), atol=1e-6)
    assert "takes tables of 4 columns" in str(trained.summary())


def test_many_networks_share_data_only_where_their_encodings_are_equal():
    one, other = encoder_of(), encoder_of(TABLE.drop(columns="ok").assign(ok="x"))
    networks = [network_of(encoder) for encoder in (one, one, other)]
    alone = [net.copy() for net in networks]
    nb.train_many(networks, TABLE, CLASSES, epochs=2, batch_size=16)
    for net, expected in zip(networks, alone, strict=True):
        nb.train(expected, TABLE, CLASSES, epochs=2, batch_size=16)
        np.testing.assert_allclose(net.parameters, expected.parameters, atol=1e-6)


def test_the_rate_finder_takes_tables():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = nb.find_learning_rate(network_of(encoder_of()), TABLE, CLASSES, steps=5)
    assert len(found.losses)


def test_a_training_is_resumed_with_the_same_encoding_alone(tmp_path):
    whole, parts = network_of(encoder_of()), network_of(encoder_of())
    options = {"batch_size": 16, "seed": 3}
    nb.train(whole, TABLE, CLASSES, epochs=4, **options)
    nb.train(parts, TABLE, CLASSES, epochs=2, checkpoint=tmp_path, **options)
    again = network_of(encoder_of())
    nb.train(again, TABLE, CLASSES, epochs=4, checkpoint=tmp_path, resume=True, **options)
    assert np.array_equal(again.parameters, whole.parameters)
    other = network_of(encoder_of(TABLE.assign(size=TABLE["size"] + 1)))
    plain = other.copy().encode_with(None)
    with pytest.raises(nb.CheckpointError, match="the same data_encoding"):
        nb.train(other, TABLE, CLASSES, epochs=4, checkpoint=tmp_path, resume=True, **options)
    inputs = encoder_of().transform(TABLE)
    with pytest.raises(nb.CheckpointError, match="the same data_encoding"):
        nb.train(plain, inputs, CLASSES, epochs=4, checkpoint=tmp_path, resume=True, **options)
    checkpoint = max(tmp_path.glob("*.safetensors"))
    assert nb.load(checkpoint).encoding == whole.encoding


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize(
    "last",
    [
        nb.MLPClassifier((4,), max_iter=3),
        nb.MLPRegressor(hidden_layer_sizes=(4,), max_iter=3),
        nb.EnsembleClassifier(nb.MLPClassifier((4,), max_iter=3), 2),
        nb.EnsembleRegressor(nb.MLPRegressor(hidden_layer_sizes=(4,), max_iter=3), 2),
    ],
    ids=lambda last: type(last).__name__,
)
def test_pipelines_are_saved_with_their_encoder(tmp_path, last, is_scaled, is_named):
    table, later = (t if is_named else t.to_numpy(dtype=object) for t in (TABLE, LATER))
    between = [StandardScaler()] if is_scaled else []
    y = CLASSES if hasattr(last, "classes_") or "Classifier" in type(last).__name__ else VALUES
    pipeline = make_pipeline(nb.TableEncoder(), *between, last).fit(table, y)
    nb.save(pipeline, tmp_path / "model.safetensors")
    loaded = nb.load(tmp_path / "model.safetensors")
    name = "predict_proba" if hasattr(pipeline, "predict_proba") else "predict"
    expected = getattr(pipeline, name)(later)
    if is_named:
        later = later[later.columns[::-1]]
    found = getattr(loaded, name)(later)
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-6)
    if isinstance(loaded, nb.Network):
        assert loaded.encoding == pipeline[0].encoding_
    else:
        assert [type(step) for step in loaded] == [type(step) for step in pipeline]
        assert hasattr(loaded[0], "feature_names_in_") == is_named
        assert loaded[0].summary() == pipeline[0].summary()
    assert nb.from_sklearn(pipeline).encoding if isinstance(loaded, nb.Network) else True


def test_pipelines_in_another_order_are_refused():
    encoder, scaler = encoder_of(), StandardScaler()
    inputs = scaler.fit_transform(encoder.transform(TABLE))
    mlp = nb.MLPClassifier((4,), solver="lbfgs", max_iter=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlp.fit(inputs, CLASSES)
    for steps in ((scaler, encoder, mlp), (encoder, encoder, mlp), (encoder, scaler, scaler, mlp)):
        with pytest.raises(nb.InputError, match="a Pipeline of TableEncoder, StandardScaler, or"):
            nb.from_sklearn(make_pipeline(*steps))
    with pytest.raises(nb.InputError, match="call fit first"):
        nb.from_sklearn(make_pipeline(nb.TableEncoder(), mlp))


# Names and words that a format could take for something of its own.
NAMES = st.text(max_size=6) | st.sampled_from(["a b", "", "a=b", "label", "x0", "é", "weights.0"])
WORDS = st.sampled_from(["red", "blue", "NA", "a b", "é"]) | st.text(max_size=4)
COLUMNS = {
    "number": st.none() | st.just(np.nan) | st.floats(-1e30, 1e30),
    "boolean": st.none() | st.booleans(),
    "text": st.none() | WORDS,
    "date": st.none()
    | st.datetimes(min_value=pd.Timestamp("1800-01-01"), max_value=pd.Timestamp("2200-01-01")),
}


@st.composite
def tables(draw):
    """Two tables of the same columns: one to fit to, and one with other gaps and values."""
    n_rows = draw(st.integers(4, 12))
    kinds = draw(st.dictionaries(NAMES, st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=4))
    parts = []
    for length in (n_rows, draw(st.integers(1, 6))):
        columns = {}
        for name, kind in kinds.items():
            values = draw(st.lists(COLUMNS[kind], min_size=length, max_size=length))
            arrow = {"number": "double", "boolean": "bool", "text": "string"}
            typed = pa.timestamp("us") if kind == "date" else arrow[kind]
            columns[name] = pa.array(values, typed, from_pandas=True)
        parts.append(pa.table(columns))
    told = {
        name: draw(st.sampled_from(["category", kind if kind != "text" else "category"]))
        for name, kind in kinds.items()
        if kind != "date" and draw(st.booleans())
    }
    return (*parts, told)


def fitted(drawn):
    """An encoder of a drawn table, and rows that it takes."""
    table, later, told = drawn
    try:
        encoder = nb.TableEncoder(told).fit(table)
        encoder.transform(later)
    except nb.InputError:  # a column cannot be what was told, or is of another kind in other rows
        reject()
    assume(len(encoder.get_feature_names_out()))
    return encoder, later


@settings(deadline=None, max_examples=60)
@given(drawn=tables(), dtype=st.sampled_from(["float32", "float64"]), seed=st.integers(0, 99))
def test_round_trips_are_equal(drawn, dtype, seed, tmp_path_factory):
    encoder, later = fitted(drawn)
    net = network_of(encoder, output="identity", dtype=dtype, seed=seed)
    expected = net.predict(later)
    path = tmp_path_factory.mktemp("models") / "model.safetensors"
    nb.save(net, path)
    for again in (nb.load(path), pickle.loads(pickle.dumps(net))):  # noqa: S301
        assert again.encoding == net.encoding
        assert np.array_equal(again.predict(later), expected)
    stored = json.loads(json.dumps(net.encoding.to_json()))
    assert type(net.encoding).from_json(stored) == net.encoding


def altered(path, change):
    """Write a model file again after a change of its encoding, with a checksum that is right."""
    from nnbackend.io.container import Contents, encode, read_file

    contents = Contents(read_file(path), str(path))
    description = json.loads(json.dumps(contents.description))
    change(description)
    net = nb.load(path)
    tensors = {f"weights.{i}": W for i, W in enumerate(net.weights)}
    tensors |= {f"biases.{i}": b for i, b in enumerate(net.biases)}
    path.write_bytes(encode(description, tensors))


def column_of(description, name):
    return next(column for column in description["encoding"] if column["name"] == name)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(encoding="none"),
        lambda d: d.update(encoding={}),
        lambda d: d.update(encoding=[1]),
        lambda d: d["encoding"].pop(0),
        lambda d: d["encoding"].append(d["encoding"][0]),
        lambda d: d["encoding"].reverse(),
        lambda d: column_of(d, "size").update(name="length"),
        lambda d: column_of(d, "size").update(name=None),
        lambda d: column_of(d, "size").update(kind="complex"),
        lambda d: column_of(d, "size").update(kind=["number"]),
        lambda d: column_of(d, "size").update(becomes="os.system"),
        lambda d: column_of(d, "size").update(scale=0.0),
        lambda d: column_of(d, "size").update(fill=True),
        lambda d: column_of(d, "size").update(fill="1"),
        lambda d: column_of(d, "size").update(fill=10**400),
        lambda d: column_of(d, "id").update(name="\ud800"),
        lambda d: column_of(d, "colour").update(values=["\ud800", "blue", "green"]),
        lambda d: column_of(d, "colour").update(values=[]),
        lambda d: column_of(d, "size").update(marks_gaps=1),
        lambda d: column_of(d, "colour").update(values=["red", "red"]),
        lambda d: column_of(d, "colour").update(values=[{"a": 1}]),
        lambda d: column_of(d, "colour").update(rare=5),
        lambda d: column_of(d, "when").update(parts=["trend", "year"]),
        lambda d: column_of(d, "when").update(parts=None),
        lambda d: column_of(d, "when").update(year=None),
        lambda d: column_of(d, "id").update(reason=None),
        lambda d: d.update(feature_names=None),
        lambda d: d.update(feature_names=["size", "colour", "ok", "day"]),
    ],
)
def test_an_encoding_that_was_altered_is_refused(trained, tmp_path, change):
    path = tmp_path / "model.safetensors"
    nb.save(trained, path)
    altered(path, lambda _: None)
    assert nb.load(path).encoding == trained.encoding
    altered(path, change)
    with pytest.raises(nb.ModelFileError):
        nb.load(path)


def test_names_that_are_not_the_encodings_are_not_saved(trained, tmp_path):
    net = trained.copy()
    net.feature_names = ("a", "b", "c", "d")
    with pytest.raises(nb.InputError, match="expected the names of the columns that its encoding"):
        nb.save(net, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def onnx():
    for name in ("ndonnx", "onnx", "onnxruntime", "spox"):
        require(name)
    return require("onnx")


def fed(encoding, table):
    """The inputs of an ONNX file that a table is, as the documentation says."""
    typed = encoding.chosen(look("X", table).table(), is_named=True)
    kinds = {column.name: column.kind for column in encoding.columns}
    feed = {}
    for name, column in typed.columns.items():
        is_gap = column.is_missing
        if kinds[name] == "text":
            words = np.asarray([*column.words, ""], object)
            feed[name] = words[np.where(is_gap, -1, column.values).astype(np.int64)]
        elif kinds[name] == "date":
            gap = np.iinfo(np.int64).min
            feed[name] = np.where(is_gap, gap, np.where(is_gap, 0, column.values).astype(np.int64))
        else:
            feed[name] = column.values
    return {name: values[:, np.newaxis] for name, values in feed.items()}


def session_of(onnx, exported, path):
    import onnxruntime

    nb.export_onnx(exported, path)
    onnx.checker.check_model(path, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])


def test_the_columns_of_a_table_are_the_inputs_of_an_onnx_file(trained, onnx, tmp_path):
    session = session_of(onnx, trained, tmp_path / "model.onnx")
    feed = {
        "size": LATER["size"].to_numpy(float)[:, None],
        "colour": LATER["colour"].fillna("").to_numpy(object)[:, None],
        "ok": LATER["ok"].to_numpy(float)[:, None],
        "when": LATER["when"].to_numpy("M8[us]").astype("int64")[:, None],
    }
    assert [entry.name for entry in session.get_inputs()] == list(feed)
    assert all(entry.shape == ["n_samples", 1] for entry in session.get_inputs())
    label, probabilities = session.run(["label", "probabilities"], feed)
    np.testing.assert_allclose(probabilities, trained.predict_proba(LATER), atol=1e-6)
    assert np.array_equal(label, trained.predict(LATER))
    metadata = session.get_modelmeta().custom_metadata_map
    kinds = {"size": "number", "colour": "text", "ok": "boolean", "when": "date"}
    assert json.loads(metadata["columns"]) == kinds
    assert json.loads(metadata["feature_names"]) == list(kinds)


@settings(deadline=None, max_examples=40)
@given(drawn=tables(), dtype=st.sampled_from(["float32", "float64"]), is_standardized=st.booleans())
def test_onnx_files_are_equal(onnx, drawn, dtype, is_standardized, tmp_path_factory):
    encoder, later = fitted(drawn)
    net = network_of(encoder, output="identity", dtype=dtype)
    if is_standardized:
        net.standardize(drawn[0])
    path = tmp_path_factory.mktemp("models") / "model.onnx"
    odd = {"", "prediction"}.intersection(net.feature_names)
    if odd:
        with pytest.raises(nb.InputError, match="expected other names of columns"):
            nb.export_onnx(net, path)
        assert not path.exists()
        return
    session = session_of(onnx, net, path)
    assert tuple(entry.name for entry in session.get_inputs()) == net.feature_names
    (prediction,) = session.run(None, fed(net.encoding, later))
    expected = net.predict(later)
    np.testing.assert_allclose(prediction, expected, atol=1e-6, rtol=1e-6)
    assert prediction.dtype == expected.dtype


@pytest.mark.parametrize(
    ("output", "n_outputs"),
    [("gaussian", 2), ("quantile", 3), ("exp", 1), ("softmax", 3), ("identity", 2)],
)
def test_networks_of_every_output_are_saved_and_exported(onnx, tmp_path, output, n_outputs):
    encoder = encoder_of()
    quantiles = {"quantiles": (0.1, 0.5, 0.9)} if output == "quantile" else {}
    sizes = [len(encoder.get_feature_names_out()), 8, n_outputs]
    net = nb.Network(sizes, output=output, **quantiles).encode_with(encoder)
    expected = net.predict(LATER)
    nb.save(net, tmp_path / "model.safetensors")
    assert np.array_equal(nb.load(tmp_path / "model.safetensors").predict(LATER), expected)
    session = session_of(onnx, net, tmp_path / "model.onnx")
    found = session.run(None, fed(net.encoding, LATER))[0]
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize(
    "last",
    [
        nb.MLPClassifier((4,), max_iter=3),
        nb.EnsembleClassifier(nb.MLPClassifier((4,), max_iter=3), 2),
        nb.EnsembleRegressor(nb.MLPRegressor(hidden_layer_sizes=(4,), max_iter=3), 2),
    ],
    ids=lambda last: type(last).__name__,
)
def test_pipelines_are_exported_with_their_encoder(onnx, tmp_path, last, is_scaled):
    between = [StandardScaler()] if is_scaled else []
    is_classifier = "Classifier" in type(last).__name__
    pipeline = make_pipeline(nb.TableEncoder(), *between, last)
    pipeline.fit(TABLE, CLASSES if is_classifier else VALUES)
    session = session_of(onnx, pipeline, tmp_path / "model.onnx")
    outputs = session.run(None, fed(pipeline[0].encoding_, LATER))
    if is_classifier:
        expected = [pipeline.predict(LATER), pipeline.predict_proba(LATER)]
    else:
        expected = pipeline.predict(LATER, return_std=True)
    for output, values in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, values, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["a b", "a=b", "é\n", "weights.0", "X", "column 0", "network/weights.0", "MatMul_0_Y"]
)
def test_columns_may_have_odd_names_in_an_onnx_file(onnx, tmp_path, name):
    table = TABLE[["size", "colour"]].rename(columns={"size": name})
    net = network_of(encoder_of(table))
    session = session_of(onnx, net, tmp_path / "model.onnx")
    assert [entry.name for entry in session.get_inputs()] == [name, "colour"]
    _, probabilities = session.run(None, fed(net.encoding, table))
    np.testing.assert_allclose(probabilities, net.predict_proba(table), atol=1e-6)


@pytest.mark.parametrize("name", ["", "label", "probabilities"])
@pytest.mark.usefixtures("onnx")
def test_columns_that_cannot_be_inputs_are_named(tmp_path, name):
    net = network_of(encoder_of(TABLE[["size"]].rename(columns={"size": name})))
    with pytest.raises(nb.InputError, match=f"expected other names of columns, got '{name}'"):
        nb.export_onnx(net, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_zero_has_one_category_whatever_its_sign(onnx, tmp_path):
    table = pd.DataFrame({"a": [0.0, 1.0, 2.5, np.nan] * 10})
    net = network_of(encoder_of(table, columns={"a": "category"}), dtype="float64")
    session = session_of(onnx, net, tmp_path / "model.onnx")
    later = pd.DataFrame({"a": [-0.0, 0.0, 1.0, np.nan, 7.0, 1 + 1e-12]})
    _, probabilities = session.run(None, {"a": later.to_numpy()})
    np.testing.assert_allclose(probabilities, net.predict_proba(later), atol=1e-12)
    assert np.array_equal(probabilities[0], probabilities[1])
    assert not np.array_equal(probabilities[2], probabilities[5])


@pytest.mark.usefixtures("onnx")
def test_skl2onnx_says_what_writes_a_table_encoder(tmp_path):
    skl2onnx = require("skl2onnx")
    from sklearn.decomposition import PCA

    encoder = nb.TableEncoder()
    mlp = nb.MLPClassifier((4,), solver="lbfgs", max_iter=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = make_pipeline(encoder, mlp).fit(TABLE[["size"]], CLASSES)
        longer = make_pipeline(encoder, PCA(1), mlp).fit(TABLE[["size"]], CLASSES)
    with pytest.raises(nb.InputError, match=r"with nb[.]export_onnx"):
        skl2onnx.to_onnx(pipeline, TABLE[["size"]].to_numpy())
    with pytest.raises(nb.InputError, match="steps before the network, TableEncoder, PCA"):
        nb.export_onnx(longer, tmp_path / "model.onnx")


def test_the_command_exports_a_model_with_its_table(onnx, run, tmp_path):
    TABLE.assign(big=np.where(CLASSES, "yes", "no")).to_csv("data.csv", index=False)
    quick = ("--epochs", "2", "--hidden", "4", "--out", "run")
    assert run("train", "data.csv", "--target", "big", *quick)[::2] == (0, "")
    code, out, err = run("export", "run", "model.onnx")
    assert (code, err) == (0, "")
    assert "size, colour, ok, when, each (n_samples, 1)" in out
    out = run("export", "run", "model.onnx", "--json")[1]
    assert json.loads(out)["inputs"] == ["size", "colour", "ok", "when"]
    net = nb.load("run/model.safetensors")
    session = session_of(onnx, net, tmp_path / "again.onnx")
    _, probabilities = session.run(None, fed(net.encoding, LATER))
    np.testing.assert_allclose(probabilities, net.predict_proba(LATER), atol=1e-6)
