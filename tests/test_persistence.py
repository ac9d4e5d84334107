"""Models on disk: what comes back, and what happens to files that are not whole or not models."""

import errno
import hashlib
import io
import json
import os
import pickle
import random
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from devices import on_each_device, to_host
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import nnbackend as nb
from nnbackend.core.activations import ACTIVATIONS
from nnbackend.errors import InputError, ModelFileError, UnusableModelError


def features(n_samples=50, n_features=3):
    return 5 + 3 * np.random.default_rng(0).normal(size=(n_samples, n_features))


def full_network(**options):
    """Return a trained network that uses everything a file can hold."""
    net = nb.Network(
        [3, 5, 4, 2],
        **{
            "hidden": ["tanh", "gelu"],
            "output": "identity",
            "dropout": [0.25, 0.1],
            "seed": 3,
            **options,
        },
    )
    X = features()
    if net.output == "identity":
        net.standardize(X, 1000 + X[:, :2] ** 2)
        nb.train(net, X, 1000 + X[:, :2] ** 2, epochs=2)
    net.feature_names = ("length", "Breite", "幅")
    net.class_names = ("low", "high")
    return net


def little_network():
    net = nb.Network([2, 2, 1], hidden="tanh").standardize([[0.0, 10.0], [1.0, 30.0]])
    net.feature_names = ("a", "b")
    return net


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Return the bytes of a saved little network."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    nb.save(little_network(), path)
    return path.read_bytes()


def parts(content):
    """Return the arrays and the description in a model file."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    return safetensors.numpy.load(content), json.loads(metadata["nnbackend"])


def written(path, arrays, description):
    """Write a model file of given parts; the description may be any text as well."""
    text = description if isinstance(description, str) else json.dumps(description)
    path.write_bytes(safetensors.numpy.save(arrays, {"nnbackend": text}))
    return path


def sealed(path, arrays, description):
    """Write a model file with the checksum of what it holds, whatever that is."""
    facts = {key: value for key, value in description.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return written(path, arrays, {**facts, "sha256": digest.hexdigest()})


def refused(path):
    """Return the message with which loading a file is refused, after checking its form."""
    with pytest.raises(ModelFileError) as caught:
        nb.load(path)
    message = str(caught.value)
    assert message.startswith("path: ")
    assert os.fspath(path) in message
    assert "\n" not in message
    return message


# What comes back


NETWORKS = {
    "everything": full_network,
    "everything, float64": lambda **options: full_network(dtype="float64", **options),
    "no hidden layer": lambda **options: nb.Network([3, 2], **options),
    "binary": lambda **options: nb.Network([3, 4, 1], hidden="elu", **options),
    "softmax": lambda **options: nb.Network([3, 4, 3], output="softmax", **options),
    "counts": lambda **options: nb.Network([3, 4, 1], output="exp", dtype="float64", **options),
    "scikit-learn's names": lambda **options: nb.Network(
        [3, 4, 1], hidden="logistic", output="logistic", **options
    ),
    "all activations": lambda **options: nb.Network(
        [3, *[4] * len(ACTIVATIONS), 1], hidden=sorted(ACTIVATIONS), **options
    ),
}


@on_each_device
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_loaded_network_is_the_saved_one_bit_for_bit(name, device, tmp_path):
    net = NETWORKS[name](device=device)
    nb.save(net, tmp_path / "model.safetensors")
    back = nb.load(tmp_path / "model.safetensors", device=device)
    assert repr(back) == repr(net)
    assert back.dropout == net.dropout
    assert (back.feature_names, back.class_names) == (net.feature_names, net.class_names)
    np.testing.assert_array_equal(to_host(back.parameters), to_host(net.parameters))
    for kind in ("standardization", "target_standardization"):
        mine, other = getattr(net, kind), getattr(back, kind)
        assert (mine is None) == (other is None)
        for x, twin in zip(mine or (), other or (), strict=True):
            assert twin.dtype == np.float64
            np.testing.assert_array_equal(to_host(x), to_host(twin))
    np.testing.assert_array_equal(back.predict(features()), net.predict(features()))
    np.testing.assert_array_equal(back.forward(features()), net.forward(features()))


@on_each_device
def test_a_file_says_nothing_about_the_device(device, tmp_path):
    net = nb.Network([3, 4, 1])
    nb.save(net, tmp_path / "host")
    nb.save(net.to(device), tmp_path / "device")
    assert (tmp_path / "host").read_bytes() == (tmp_path / "device").read_bytes()
    assert nb.load(tmp_path / "device").device == "cpu"


@on_each_device
def test_a_loaded_network_can_be_changed_and_trained(device, tmp_path):
    net = full_network(device=device)
    nb.save(net, tmp_path / "model")
    back = nb.load(tmp_path / "model", device)
    for network in (net, back):
        nb.train(network, features(), 1000 + features()[:, :2] ** 2, epochs=2, seed=4)
    np.testing.assert_array_equal(to_host(back.parameters), to_host(net.parameters))
    back.weights[0][...] = 0
    assert float(abs(back.parameters[:15]).max()) == 0


class PathLike:
    """A path of some other library."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


@pytest.mark.parametrize("kind", [str, Path, PathLike])
def test_a_path_may_be_a_string_or_path_like(kind, tmp_path):
    path = kind(tmp_path / "models of mine, größer.safetensors")
    nb.save(little_network(), path)
    assert repr(nb.load(path)) == repr(little_network())


def test_the_file_is_an_ordinary_safetensors_file_of_arrays_and_json(content):
    arrays, description = parts(content)
    net = little_network()
    np.testing.assert_array_equal(arrays["weights.1"], net.weights[1])
    assert description["layer_sizes"] == [2, 2, 1]
    assert description["format"] == 2
    assert description["versions"] == {"nnbackend": nb.__version__, "numpy": np.__version__}
    assert all(array.dtype in (np.float32, np.float64) for array in arrays.values())


def test_loading_never_unpickles(tmp_path, monkeypatch):
    path = tmp_path / "model"
    nb.save(full_network(), path)

    def forbidden(*_arguments, **_options):
        message = "loading a model went through pickle"
        raise AssertionError(message)

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    assert nb.load(path).layer_sizes == [3, 5, 4, 2]


class MakesFolder:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_with_an_effect_is_refused_without_the_effect(tmp_path):
    path, folder = tmp_path / "model", tmp_path / "effect"
    path.write_bytes(pickle.dumps(MakesFolder(folder)))
    refused(path)
    assert not folder.exists()
    pickle.loads(path.read_bytes())  # noqa: S301
    assert folder.exists(), "the file has to be one that would have had it"


# Activations are stored by name


def test_a_registered_activation_is_found_by_its_name_and_asked_for_where_it_is_missing(tmp_path):
    nb.register_activation("cubic", lambda _xp, Z: Z * Z * Z, lambda _xp, Z, _A: 3 * Z * Z)
    try:
        net = nb.Network([3, 4, 1], hidden="cubic")
        nb.save(net, tmp_path / "model")
        back = nb.load(tmp_path / "model")
        np.testing.assert_array_equal(back.forward(features()), net.forward(features()))
    finally:
        del ACTIVATIONS["cubic"]
    message = refused(tmp_path / "model")
    assert "'cubic'" in message
    assert "register_activation" in message
    with pytest.raises(InputError, match=r"net: .*'cubic'.*register_activation"):
        nb.save(net, tmp_path / "other")
    assert not (tmp_path / "other").exists()


# Saving


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_network_that_is_not_finite_is_not_saved(bad, tmp_path):
    net = little_network()
    net.parameters[3] = bad
    with pytest.raises(InputError, match=r"net: expected finite numbers, got NaN or infinity"):
        nb.save(net, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [None, "net", {}, nb.Network], ids=repr)
def test_what_is_no_network_is_not_saved(given, tmp_path):
    with pytest.raises(InputError, match=r"net: expected a nnbackend.Network, got "):
        nb.save(given, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("feature_names", ("a",)),
        ("feature_names", ("a", "b", "c")),
        ("feature_names", (1, 2)),
        ("feature_names", "ab"),
        ("class_names", ("a", "b", "c")),
        ("class_names", (0, 1)),
    ],
)
def test_names_that_loading_would_refuse_are_not_saved(name, names, tmp_path):
    net = little_network()
    setattr(net, name, names)
    with pytest.raises(InputError, match=name):
        nb.save(net, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_names_may_be_any_sequence_of_strings(tmp_path):
    net = little_network()
    net.feature_names, net.class_names = np.asarray(["a", "b"]), ["no", "yes"]
    nb.save(net, tmp_path / "model")
    back = nb.load(tmp_path / "model")
    assert (back.feature_names, back.class_names) == (("a", "b"), ("no", "yes"))


def no_space(*_arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(*_arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("existing", [False, True], ids=["new file", "existing file"])
@pytest.mark.parametrize(
    ("failure", "error"), [(no_space, InputError), (interrupted, KeyboardInterrupt)]
)
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    function, existing, failure, error, tmp_path, monkeypatch
):
    path = tmp_path / "model"
    if existing:
        path.write_bytes(b"old")
    monkeypatch.setattr(os, function, failure)
    with pytest.raises(error) as caught:
        nb.save(little_network(), path)
    if error is InputError:
        assert str(caught.value).startswith(f"path: cannot write {str(path)!r} (No space left")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"] * existing
    assert not existing or path.read_bytes() == b"old"


def test_saving_again_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "model"
    nb.save(full_network(), path)
    nb.save(little_network(), path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert nb.load(path).layer_sizes == [2, 2, 1]


def test_a_file_that_was_replaced_whole_is_not_reported_as_failed(tmp_path, monkeypatch):
    # Folders that can be written but not read, and file systems that cannot fsync a folder.
    open_file = os.open

    def refuse_folders(path, flags, *arguments, **options):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return open_file(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse_folders)
    nb.save(little_network(), tmp_path / "model")
    assert nb.load(tmp_path / "model").layer_sizes == [2, 2, 1]


def test_a_name_as_long_as_the_file_system_takes_can_be_saved(tmp_path):
    path = tmp_path / ("m" * 255)
    path.touch()  # it is a name that this file system takes
    nb.save(little_network(), path)
    assert nb.load(path).layer_sizes == [2, 2, 1]


@pytest.mark.parametrize(
    "call", [nb.load, lambda path: nb.save(little_network(), path)], ids=["load", "save"]
)
@pytest.mark.parametrize(
    "path",
    [
        "{folder}/missing/model",
        "{folder}/file/model",
        "{folder}",
        "/proc/nnbackend-model",
        "",
        "/",
        "{folder}/a\0b",
        "{folder}/" + "m" * 300,
        None,
        5.5,
        ["model"],
        987654,
    ],
    ids=repr,
)
def test_a_path_that_cannot_be_used_is_refused_with_the_path(path, call, tmp_path):
    (tmp_path / "file").touch()
    path = path.format(folder=tmp_path) if isinstance(path, str) else path
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as caught:
        call(path)
    assert str(caught.value).startswith("path: ")
    assert repr(path) in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_loading_does_not_take_a_number_for_an_open_file(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with path.open("rb") as file:
        with pytest.raises(InputError, match="path: "):
            nb.load(file.fileno())
        assert os.fstat(file.fileno()).st_size == 0, "the caller's file is still open"


# Files that are no models


def png():
    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0\0")
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def npz():
    file = io.BytesIO()
    np.savez(file, weights=np.zeros((2, 2)))
    return file.getvalue()


OTHER_FILES = {
    "empty": b"",
    "eight zero bytes": bytes(8),
    "text": b"layer_sizes: [2, 2, 1]\n",
    "JSON": json.dumps({"layer_sizes": [2, 2, 1]}).encode(),
    "pickle": pickle.dumps({"weights": [1.0]}),
    "NPZ": npz(),
    "PNG": png(),
    "header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "header of 2^30 bytes": struct.pack("<Q", 2**30) + b"{}",
    "header that is no JSON": struct.pack("<Q", 2) + b"{[",
    "safetensors without metadata": safetensors.numpy.save({"weights.0": np.zeros((2, 1))}),
    "safetensors of others": safetensors.numpy.save({"w": np.zeros(2)}, {"format": "pt"}),
    "safetensors with nothing in it": safetensors.numpy.save({}),
}


@pytest.mark.parametrize("kind", sorted(OTHER_FILES))
def test_a_file_of_another_format_is_refused(kind, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(OTHER_FILES[kind])
    message = refused(path)
    assert "not a whole safetensors file" in message or "not written by nnbackend" in message


def test_a_missing_file_is_named(tmp_path):
    assert "No such file" in refused(tmp_path / "nowhere")


@pytest.mark.slow
def test_a_file_cut_off_anywhere_is_refused(content, tmp_path):
    path = tmp_path / "model"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert "not a whole safetensors file" in refused(path), length


@pytest.mark.parametrize("extra", [b"\0", b"more", bytes(1000)], ids=len)
def test_a_file_with_something_behind_it_is_refused(extra, content, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(content + extra)
    refused(path)


def loads_or_is_refused(path):
    """Return a network that was checked to be whole, or None for a file that was refused."""
    try:
        net = nb.load(path)
    except ModelFileError:
        return None
    assert net.n_parameters == net.parameters.size
    assert np.isfinite(net.parameters).all()
    assert [W.shape for W in net.weights] == list(
        zip(net.layer_sizes, net.layer_sizes[1:], strict=False)
    )
    for columns in (net.standardization, net.target_standardization):
        assert columns is None or all(np.isfinite(x).all() for x in columns)
    assert repr(net)
    return net


@pytest.mark.slow
def test_every_flipped_bit_is_refused(content, tmp_path):
    path = tmp_path / "model"
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            assert loads_or_is_refused(path) is None


@pytest.mark.slow
def test_many_changed_bytes_give_a_valid_network_or_are_refused(content, tmp_path):
    path = tmp_path / "model"
    rng = random.Random(0)  # noqa: S311
    for _ in range(1500):
        damaged = bytearray(content)
        for _ in range(rng.randint(2, 12)):
            damaged[rng.randrange(len(damaged))] = rng.choice(b'09aZ[]{}":,- \\\0\xff')
        path.write_bytes(damaged)
        loads_or_is_refused(path)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(garbage=st.binary(max_size=400))
def test_random_bytes_are_refused(garbage, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "random"
    for start in (b"", struct.pack("<Q", len(garbage))):
        path.write_bytes(start + garbage)
        assert loads_or_is_refused(path) is None


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**70)
    | st.floats()
    | st.sampled_from(["relu", "sigmoid", "float32", "float64", ""]),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=3), values),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    key=st.sampled_from(
        ["format", "layer_sizes", "hidden", "output", "dropout", "dtype", "feature_names",
         "class_names"]
    ),
    value=JSON_VALUES,
)  # fmt: skip
@example(key="dtype", value=[])
@example(key="dtype", value={})
@example(key="output", value=[])
@example(key="format", value=[])
@example(key="layer_sizes", value=[2, True, 1])
@example(key="dropout", value=[float("nan")])
def test_any_value_in_the_description_gives_a_valid_network_or_is_refused(
    key, value, content, tmp_path_factory
):
    arrays, description = parts(content)
    path = written(
        tmp_path_factory.getbasetemp() / "described", arrays, {**description, key: value}
    )
    loads_or_is_refused(path)


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "1", '"text"', "{", "{}", "[" * 100_000, "9" * 10_000,
        '{"format": 2, "layer_sizes": [' + "9" * 10_000 + ", 1]}",
    ],
    ids=lambda text: text[:12] or "empty",
)  # fmt: skip
def test_a_description_that_is_none_is_refused(text, content, tmp_path):
    refused(written(tmp_path / "model", parts(content)[0], text))


def with_nan(array):
    array = array.copy()
    array.flat[0] = np.nan
    return array


ALTERED_ARRAYS = {
    "NaN in weights": ("weights.0", with_nan, "weights.0 holds NaN or infinity"),
    "infinity in biases": ("biases.1", lambda b: b + np.inf, "biases.1 holds NaN or infinity"),
    "transposed weights": ("weights.1", lambda W: W.T, r"weights.1 .*\(1, 2\), not .*\(2, 1\)"),
    "float64 weights": ("weights.0", np.float64, r"weights.0 is F64 .*not F32"),
    "integer weights": ("weights.0", np.int32, r"weights.0 is I32 .*not F32"),
    "half-precision biases": ("biases.0", np.float16, r"biases.0 is F16 .*not F32"),
    "biases as a column": ("biases.0", lambda b: b[:, None], r"biases.0 .*\(2, 1\), not .*\(2,\)"),
    "empty weights": ("weights.0", lambda W: W[:0], r"weights.0 .*\(0, 2\), not .*\(2, 2\)"),
    "float32 mean": ("standardization.mean", np.float32, "standardization.mean is F32 .*not F64"),
    "NaN in mean": ("standardization.mean", with_nan, "standardization.mean holds NaN"),
    "zero scale": ("standardization.scale", lambda x: 0 * x, "scale is not positive"),
    "negative scale": ("standardization.scale", lambda x: -x, "scale is not positive"),
    "no weights": ("weights.1", None, "its arrays .*weights.1"),
    "no scale": ("standardization.scale", None, "its arrays .*standardization.scale"),
    "one more layer": ("weights.2", lambda _: np.ones((1, 1)), "its arrays .*weights.2"),
    "a stranger": ("optimizer", lambda _: np.ones(3), "its arrays .*optimizer"),
    "a target scale for labels": (
        "target_standardization",
        lambda _: np.ones(1),
        "its output '[a-z]+' has no target standardization",
    ),
}


@pytest.mark.parametrize("change", sorted(ALTERED_ARRAYS))
def test_arrays_that_do_not_fit_the_description_are_refused(change, content, tmp_path):
    name, alter, message = ALTERED_ARRAYS[change]
    arrays, description = parts(content)
    if name == "target_standardization":
        arrays |= {f"{name}.{part}": alter(None) for part in ("mean", "scale")}
    elif alter is None:
        del arrays[name]
    else:
        arrays[name] = np.ascontiguousarray(alter(arrays.get(name)))
    path = written(tmp_path / "model", arrays, description)
    with pytest.raises(ModelFileError, match=message):
        nb.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 1}, "its format is 1, .*this version of nnbackend reads 2"),
        ({"format": "1"}, "its format is '1', .*this version of nnbackend reads 2"),
        ({"format": None}, "its format is None"),
        ({"layer_sizes": [2]}, r"its layer_sizes are \[2\]"),
        ({"layer_sizes": [2, 0, 1]}, r"its layer_sizes are \[2, 0, 1\]"),
        ({"layer_sizes": [2, 2.0, 1]}, r"its layer_sizes are \[2, 2.0, 1\]"),
        ({"layer_sizes": "221"}, "its layer_sizes are 221"),
        ({"layer_sizes": [2, 3, 1]}, r"weights.0 is F32 \(2, 2\), not F32 \(2, 3\)"),
        ({"hidden": ["tanhh"]}, "its activation 'tanhh' is not known here"),
        ({"hidden": ["tanh", "tanh"]}, "its hidden activations are not 1 names"),
        ({"hidden": "tanh"}, "its hidden activations are not 1 names"),
        ({"hidden": [["tanh"]]}, "its hidden activations are not 1 names"),
        ({"output": "relu"}, "its output is 'relu'"),
        ({"output": None}, "its output is None"),
        ({"dropout": [1.0]}, "its dropout rates are not 1 numbers"),
        ({"dropout": ["0"]}, "its dropout rates are not 1 numbers"),
        ({"dropout": [0.1, 0.1]}, "its dropout rates are not 1 numbers"),
        ({"dtype": "float16"}, "its dtype is 'float16'"),
        ({"dtype": ["float32"]}, r"its dtype is \['float32'\]"),
        ({"dtype": "float64"}, r"weights.0 is F32 \(2, 2\), not F64 \(2, 2\)"),
        ({"feature_names": ["a"]}, "its feature_names are not 2 names"),
        ({"feature_names": [1, 2]}, "its feature_names are not 2 names"),
        ({"class_names": ["a"]}, "its class_names are not 2 names"),
        ({"class_names": ["a", "a"]}, "its class_names are not distinct: 'a' is there twice"),
        ({"feature_names": ["b", "b"]}, "its feature_names are not distinct: 'b' is there twice"),
        ({"dropout": [-0.1]}, "its dropout rates are not 1 numbers"),
        ({"dropout": [float("nan")]}, "its dropout rates are not 1 numbers"),
        ({"layer_sizes": [2, 10**12, 1]}, r"weights.0 is F32 \(2, 2\), not F32"),
    ],
    ids=str,
)
@pytest.mark.parametrize("seal", [written, sealed], ids=["altered", "forged"])
def test_a_description_that_says_something_else_is_refused(
    seal, changes, message, content, tmp_path
):
    arrays, description = parts(content)
    path = seal(tmp_path / "model", arrays, {**description, **changes})
    with pytest.raises(ModelFileError, match=message) as caught:
        nb.load(path)
    assert "\n" not in str(caught.value)
    # The checksum tells what was written so from what was damaged since.
    assert (type(caught.value) is UnusableModelError) == (seal is sealed)


@pytest.mark.parametrize("seal", [written, sealed], ids=["altered", "forged"])
def test_a_file_of_a_newer_version_is_told_from_a_damaged_one(seal, content, tmp_path):
    arrays, description = parts(content)
    newer = {**description, "format": 3, "versions": {"nnbackend": "9.9"}}
    path = seal(tmp_path / "model", arrays, newer)
    with pytest.raises(UnusableModelError, match=r"its format is 3, .*; update nnbackend.*'9.9'"):
        nb.load(path)


@pytest.mark.parametrize("key", ["feature_names", "class_names"])
def test_names_that_are_not_distinct_are_not_saved(key, tmp_path):
    net = little_network()
    setattr(net, key, ("a", "a"))
    with pytest.raises(InputError, match=f"net.{key}: expected None or 2 distinct strings"):
        nb.save(net, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    key=st.sampled_from(
        ["format", "layer_sizes", "hidden", "output", "dropout", "dtype", "feature_names",
         "class_names", "training", "versions"]
    ),
    value=JSON_VALUES,
)  # fmt: skip
@example(key="training", value={"arrays": ["history.loss"]})
@example(key="training", value={"arrays": ["history.loss"], "n_epochs": 10**400})
@example(key="training", value=[])
def test_any_value_with_its_checksum_gives_a_valid_network_or_is_refused(
    key, value, content, tmp_path_factory
):
    arrays, description = parts(content)
    path = tmp_path_factory.getbasetemp() / "forged"
    loads_or_is_refused(sealed(path, arrays, {**description, key: value}))


@pytest.mark.parametrize("change", sorted(ALTERED_ARRAYS))
def test_forged_arrays_are_refused_in_the_same_words(change, content, tmp_path):
    name, alter, message = ALTERED_ARRAYS[change]
    arrays, description = parts(content)
    if name == "target_standardization":
        arrays |= {f"{name}.{part}": alter(None) for part in ("mean", "scale")}
    elif alter is None:
        del arrays[name]
    else:
        arrays[name] = np.ascontiguousarray(alter(arrays.get(name)))
    with pytest.raises(UnusableModelError, match=message):
        nb.load(sealed(tmp_path / "model", arrays, description))


@pytest.mark.parametrize(
    "sizes",
    [
        [2, 10**9, 10**9, 1],
        [10**18, 10**18],
        [2, 10**400, 1],
        [2, *[10**6] * 20_000, 1],
    ],
    ids=["large layers", "larger ones", "absurd ones", "many layers"],
)
def test_huge_claims_are_refused_without_reserving_memory(sizes, content, tmp_path):
    arrays, description = parts(content)
    n_hidden = len(sizes) - 2
    changes = {"layer_sizes": sizes, "hidden": ["tanh"] * n_hidden, "dropout": [0] * n_hidden}
    path = written(tmp_path / "model", arrays, {**description, **changes})
    tracemalloc.start()
    try:
        refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The description itself has up to 0.5 MB; what it claims would take gigabytes.
    assert peak < 50e6


def test_a_huge_array_in_the_header_is_refused_without_reserving_memory(content, tmp_path):
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["weights.0"]["shape"] = [2**30, 2**30]
    header["weights.0"]["data_offsets"][1] = 2**62
    text = json.dumps(header).encode()
    path = tmp_path / "model"
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    assert "not a whole safetensors file" in refused(path)


def head(arrays, metadata):
    """Return a safetensors file without its data."""
    content = safetensors.numpy.save(arrays, metadata)
    return content[: 8 + int.from_bytes(content[:8], "little")]


@pytest.mark.parametrize(
    ("start", "size"),
    [
        (b"", 2**34),
        (struct.pack("<Q", 2**33), 2**34),
        (head({"w": np.zeros(2**20)}, {"format": "pt"}), None),
        (head({"w": np.zeros(2)}, {"nnbackend": "{}"}), 2**34),
    ],
    ids=["zeros", "a long header", "another library's", "more than its header says"],
)
def test_a_huge_file_of_another_format_is_not_read_whole(start, size, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(start)
    os.truncate(path, size or len(start) + 2**23)  # sparse
    tracemalloc.start()
    try:
        refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1e6


def test_an_unpickled_network_can_be_saved(tmp_path):
    net = pickle.loads(pickle.dumps(nb.Network([3, 4, 1], hidden="relu")))  # noqa: S301
    nb.save(net, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(
        nb.load(tmp_path / "model.safetensors").parameters, net.parameters
    )


def test_a_fitted_estimator_is_saved_as_its_network(tmp_path):
    X = np.random.default_rng(0).standard_normal((60, 3))
    y = np.where(X[:, 0] > 0, "b", "a")
    model = make_pipeline(StandardScaler(), nb.MLPClassifier((4,), solver="lbfgs", random_state=0))
    model.fit(X, y)
    nb.save(model, tmp_path / "model.safetensors")
    net = nb.load(tmp_path / "model.safetensors")
    assert net.class_names == ("a", "b")
    np.testing.assert_allclose(net.predict_proba(X), model.predict_proba(X), rtol=1e-10)
