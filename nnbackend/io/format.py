"""Models on disk: one safetensors file, arrays and a JSON description; loading executes nothing."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from nnbackend._version import __version__
from nnbackend.core.activations import ACTIVATIONS, OUTPUTS
from nnbackend.core.standardization import Standardization
from nnbackend.core.structure import Structure
from nnbackend.data.validation import DTYPES
from nnbackend.device import Device, get_device
from nnbackend.errors import InputError, MissingDependencyError, ModelFileError, UnusableModelError
from nnbackend.io.files import checked_path
from nnbackend.model.network import Network

__all__ = [
    "STANDARDIZATIONS",
    "STATE",
    "checked_names",
    "checked_tensors",
    "name_counts",
    "opened",
    "read_training",
    "to_bytes",
]


FORMAT = 2


_KEY = "nnbackend"


# What the names of a training's arrays begin with.
_TRAINING = "training."


# Of these, the optimizer's, and the lists of the history: one number for each epoch.
STATE = "state"


_HISTORY = "history."


STANDARDIZATIONS = ("standardization", "target_standardization")


def to_bytes(
    net: Any,
    training: dict[str, Any] | None = None,
    arrays: dict[str, Any] | None = None,
) -> bytes:
    """Return the content of the file that ``save`` writes.

    A checkpoint holds a description of the ``training`` as well, and ``arrays`` by name: flat ones
    (n_parameters,) in the network's dtype, and, of names that begin with ``history.``, lists of
    float64, one number for each of the description's ``n_epochs``.
    """
    if not isinstance(net, Network):
        from nnbackend.io.sklearn import as_network

        net = as_network(net)
    for entry in net.structure.hidden:
        if ACTIVATIONS.get(entry.name) != entry:  # unpickled, it is equal
            raise InputError(
                f"net: expected registered activations, got {entry.name!r}, which is not; a model "
                "stores names only: register it with register_activation"
            )
    names, tensors = checked_names(net), checked_tensors(net)
    tensors |= {f"{_TRAINING}{name}": array for name, array in (arrays or {}).items()}
    description: dict[str, Any] = {
        "format": FORMAT,
        "versions": {"nnbackend": __version__, "numpy": np.__version__},
        "layer_sizes": net.layer_sizes,
        "hidden": net.hidden,
        "output": net.output,
        "dropout": net.dropout,
        "dtype": net.dtype,
        **names,
    }
    if training is not None:
        description["training"] = {**training, "arrays": sorted(arrays or {})}
    description["sha256"] = _digest(description, tensors)
    content: bytes = _safetensors().numpy.save(
        tensors, {_KEY: json.dumps(description, allow_nan=False)}
    )
    return content


def read_training(
    path: str | os.PathLike[str],
) -> tuple[Network, dict[str, Any], dict[str, Any]]:
    """Read a checkpoint: its network, and what ``to_bytes`` was given of the training.

    Raises
    ------
    ModelFileError
        If it is no whole file of nnbackend's, or a model alone.
    """
    with opened(path) as reader:
        net = reader.network(get_device("cpu"))
        training = reader.header.get("training")
        if training is None:
            raise ModelFileError(
                f"path: {reader.path!r} is not a checkpoint: it holds a model, and no state of a "
                "training"
            )
        return net, training, reader.training_arrays


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[_Reader]:
    """Yield what reads a file, and turn what may go wrong with it into a ModelFileError."""
    path = checked_path(path)
    safetensors = _safetensors()
    try:
        # safe_open maps a path of bytes or a folder in its own words; a plain open says it in ours.
        with open(path, "rb"):
            pass
        with safetensors.safe_open(path, framework="numpy") as file:
            yield _Reader(path, file)
    except OSError as error:
        raise ModelFileError(
            f"path: expected a readable model file, got {path!r} ({error.strerror or error})"
        ) from error
    except safetensors.SafetensorError as error:
        raise ModelFileError(
            f"path: {path!r} is not a whole safetensors file ({_short(str(error), 200)}); was it "
            "truncated, or is it of another format?"
        ) from error


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise MissingDependencyError(
            "saving and loading models needs safetensors; install it with: pip install safetensors"
        ) from error
    return safetensors


def name_counts(structure: Structure) -> dict[str, int]:
    """Return how many feature and class names a network has, if it has any."""
    n_outputs = structure.layer_sizes[-1]
    n_classes = max(2, n_outputs) if structure.output.name == "sigmoid" else n_outputs
    return {"feature_names": structure.layer_sizes[0], "class_names": n_classes}


def _problem_of_names(value: Any, size: int) -> str | None:
    """Return why a value is neither None nor a list or tuple of ``size`` distinct strings."""
    if value is None:
        return None
    if not (
        isinstance(value, list | tuple)
        and len(value) == size
        and all(isinstance(entry, str) and _is_unicode(entry) for entry in value)
    ):
        return f"not {size} names"
    twice = next((name for name, count in Counter(value).items() if count > 1), None)
    return None if twice is None else f"not distinct: {_short(repr(twice))} is there twice"


def _is_unicode(text: str) -> bool:
    """Whether a text can be written; JSON may spell halves of a pair, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_names(net: Network) -> dict[str, Any]:
    """Return a network's feature and class names: a list or tuple of strings each, or None."""
    names: dict[str, Any] = {}
    for key, size in name_counts(net.structure).items():
        given = getattr(net, key)
        names[key] = given.tolist() if isinstance(given, np.ndarray) else given
        if problem := _problem_of_names(names[key], size):
            distinct = "distinct " if "distinct" in problem else ""
            raise InputError(f"net.{key}: expected None or {size} {distinct}strings, got {given!r}")
    return names


def checked_tensors(net: Network) -> dict[str, Any]:
    """Return a network's arrays by name, finite, contiguous and on the host."""
    # A copy, of one moment: another thread may be training the network.
    host = net.copy().to("cpu")
    tensors = {f"weights.{layer}": W for layer, W in enumerate(host.weights)}
    tensors |= {f"biases.{layer}": b for layer, b in enumerate(host.biases)}
    for name in STANDARDIZATIONS:
        columns = getattr(host, name)
        if columns is not None:
            tensors |= {f"{name}.mean": columns.mean, f"{name}.scale": columns.scale}
    for name, x in tensors.items():
        if not np.all(np.isfinite(x)):
            raise InputError(f"net: expected finite numbers, got NaN or infinity in its {name}")
    return {name: np.ascontiguousarray(x) for name, x in tensors.items()}


def _digest(description: dict[str, Any], tensors: dict[str, Any]) -> str:
    """Return the SHA-256 of a model: of its description, and of its arrays by name."""
    import hashlib

    facts = {key: value for key, value in description.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _short(text: str, most: int = 80) -> str:
    """Return text that comes of a file in one line that is not long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."


class _Reader:
    """Builds a network from an open safetensors file, after checking every claim it makes."""

    def __init__(self, path: str, file: Any) -> None:
        self.path = path
        self.file = file
        self.training_arrays: dict[str, Any] = {}
        self.header: Any = None
        metadata = file.metadata() or {}
        self.require(_KEY in metadata, "it was not written by nnbackend")
        with contextlib.suppress(ValueError, RecursionError):
            self.header = json.loads(metadata[_KEY])
        self.require(isinstance(self.header, dict), "its description is not a JSON object")
        version = self.header.get("format")
        reads = (
            f"its format is {_short(repr(version))}, and this version of nnbackend reads {FORMAT}"
        )
        # Whatever a checksum is there: nothing is known of that, and nothing is taken for damage.
        if type(version) is int and version > FORMAT:
            raise UnusableModelError(
                f"path: cannot read {path!r} yet: {reads}; update nnbackend, which was "
                f"{_short(repr(self._writer()))} where it was written"
            )
        self.require(version == FORMAT, reads)

    def require(self, holds: bool, problem: str) -> None:
        """Raise an error that names the problem unless the condition holds."""
        if not holds:
            kind = UnusableModelError if self.is_whole() else ModelFileError
            raise kind(f"path: {self.path!r} is not a valid model: {problem}")

    def is_whole(self) -> bool:
        """Whether all of the file is as it was written, as its checksum says."""
        # Of an entry that is nested too deeply, and of arrays that NumPy has no dtype for.
        with contextlib.suppress(RecursionError, TypeError, KeyError, ValueError, AttributeError):
            tensors = {name: self.file.get_tensor(name) for name in self.file.keys()}  # noqa: SIM118
            return bool(self.header.get("sha256") == _digest(self.header, tensors))
        return False

    def _writer(self) -> Any:
        versions = self.header.get("versions")
        return versions.get("nnbackend") if isinstance(versions, dict) else None

    def network(self, device: Device) -> Network:
        """Return the network that the file describes, on ``device``."""
        structure = self.structure()
        dtype = self.header.get("dtype")
        self.require(
            isinstance(dtype, str) and dtype in DTYPES, f"its dtype is {_short(repr(dtype))}"
        )
        arrays, standardized = self.arrays(structure, dtype)
        self.training_arrays = {
            name.removeprefix(_TRAINING): array
            for name, array in arrays.items()
            if name.startswith(_TRAINING)
        }
        layers = range(len(structure.weight_shapes))
        weights = [arrays[f"weights.{layer}"] for layer in layers]
        biases = [arrays[f"biases.{layer}"] for layer in layers]
        flat = structure.flatten(np, weights, biases)
        net = Network.from_structure(structure, flat, dtype=dtype, device=device)
        for name in standardized:
            columns = (device.place(arrays[f"{name}.{part}"]) for part in ("mean", "scale"))
            setattr(net, name, Standardization(*columns))
        for key, size in name_counts(structure).items():
            value = self.header.get(key)
            problem = _problem_of_names(value, size)
            self.require(problem is None, f"its {key} are {problem}")
            setattr(net, key, None if value is None else tuple(value))
        # Last: what can be said of a fault more exactly has been said.
        digest = None
        with contextlib.suppress(RecursionError):  # of an entry that nothing else looks at
            digest = _digest(self.header, arrays)
        if digest is None or self.header.get("sha256") != digest:
            raise ModelFileError(
                f"path: {self.path!r} is not a valid model: its content was altered: it does not "
                "have the checksum that it was saved with"
            )
        return net

    def structure(self) -> Structure:
        """Return the checked structure."""
        sizes, hidden, dropout, output = (
            self.header.get(key) for key in ("layer_sizes", "hidden", "dropout", "output")
        )
        self.require(
            isinstance(sizes, list)
            and len(sizes) >= 2
            and all(type(size) is int and size > 0 for size in sizes),
            f"its layer_sizes are {_short(str(sizes))}",
        )
        n_hidden = len(sizes) - 2
        self.require(
            isinstance(hidden, list)
            and len(hidden) == n_hidden
            and all(isinstance(name, str) for name in hidden),
            f"its hidden activations are not {n_hidden} names",
        )
        for name in hidden:
            self.require(
                name in ACTIVATIONS,
                f"its activation {_short(repr(name))} is not known here; "
                "call register_activation first",
            )
        self.require(
            isinstance(dropout, list)
            and len(dropout) == n_hidden
            and all(type(rate) in (int, float) and 0 <= rate < 1 for rate in dropout),
            f"its dropout rates are not {n_hidden} numbers in [0, 1)",
        )
        self.require(
            isinstance(output, str) and output in OUTPUTS, f"its output is {_short(repr(output))}"
        )
        return Structure(
            tuple(sizes),
            tuple(ACTIVATIONS[name] for name in hidden),
            OUTPUTS[output],
            tuple(float(rate) for rate in dropout),
        )

    def arrays(self, structure: Structure, dtype: str) -> tuple[dict[str, Any], list[str]]:
        """Return all arrays, checked before they are read, and which standardizations are there."""
        names = set(self.file.keys())
        # Before anything is made of them: a description of a million layers is short.
        self.require(
            len(names) >= 2 * len(structure.weight_shapes),
            f"its {len(names)} arrays are too few for its {len(structure.weight_shapes)} layers",
        )
        code = {"float32": "F32", "float64": "F64"}[dtype]
        expected: dict[str, tuple[tuple[int, ...], str]] = {}
        for layer, (n_in, n_out) in enumerate(structure.weight_shapes):
            expected[f"weights.{layer}"] = ((n_in, n_out), code)
            expected[f"biases.{layer}"] = ((n_out,), code)
        standardized = [name for name in STANDARDIZATIONS if f"{name}.mean" in names]
        for name in standardized:
            size = structure.layer_sizes[0 if name == "standardization" else -1]
            expected |= {f"{name}.{part}": ((size,), "F64") for part in ("mean", "scale")}
        for name in self.training_names():
            flat = ((structure.n_parameters,), code)
            expected[f"{_TRAINING}{name}"] = self.list_claim(name) or flat
        self.require(
            names == set(expected),
            "its arrays differ from those of its structure in "
            f"{_short(repr(sorted(names ^ set(expected))[:4]), 200)}",
        )
        self.require(
            "target_standardization" not in standardized or structure.output.name == "identity",
            "only an identity output has a target standardization",
        )
        return {name: self.array(name, *claim) for name, claim in expected.items()}, standardized

    def list_claim(self, name: str) -> tuple[tuple[int, ...], str] | None:
        """Return shape and dtype of a list of a training's history; None for another array."""
        count = self.header["training"].get("n_epochs")
        if not name.startswith(_HISTORY):
            return None
        self.require(type(count) is int and count >= 0, f"its number of epochs is {count!r}")
        return (count,), "F64"

    def training_names(self) -> list[str]:
        """Return the names of a training's arrays; none if this is a model alone."""
        training = self.header.get("training", {"arrays": []})
        self.require(
            isinstance(training, dict)
            and isinstance(training.get("arrays"), list)
            and all(isinstance(name, str) for name in training["arrays"]),
            "its state of a training has no list of arrays",
        )
        names: list[str] = training["arrays"]
        return names

    def array(self, name: str, shape: tuple[int, ...], code: str) -> Any:
        """Return one array, whose shape, dtype and values are as they have to be."""
        part = self.file.get_slice(name)
        found = tuple(part.get_shape()), part.get_dtype()
        self.require(found == (shape, code), f"{name} is {found[1]} {found[0]}, not {code} {shape}")
        values = self.file.get_tensor(name)
        # An optimizer may well go on with an infinite second moment.
        self.require(
            name.startswith(f"{_TRAINING}{STATE}") or bool(np.isfinite(values).all()),
            f"{name} holds NaN or infinity",
        )
        self.require(
            not name.endswith(".scale") or bool((values > 0).all()), f"{name} is not positive"
        )
        return values
