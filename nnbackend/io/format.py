"""Networks as bytes, and attachments to them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnbackend._version import __version__
from nnbackend.core.activations import ACTIVATIONS, Output
from nnbackend.core.distributions import output
from nnbackend.core.standardization import Standardization
from nnbackend.core.structure import Structure
from nnbackend.data.encoding import TableEncoding
from nnbackend.data.target import Target
from nnbackend.data.validation import DTYPES
from nnbackend.device import Device
from nnbackend.errors import InputError, UnusableModelError
from nnbackend.io.container import Claim, Contents, encode, shortened
from nnbackend.model.network import Network
from nnbackend.model.stack import Stack

__all__ = [
    "STANDARDIZATIONS",
    "Attachment",
    "checked_names",
    "checked_tensors",
    "name_counts",
    "read_attachment",
    "read_model",
    "read_network",
    "to_bytes",
]


STANDARDIZATIONS = ("standardization", "target_standardization")

# The attachment that a stack of networks has, whose arrays of parameters are stacked.
_STACK = "stack"
# A file of many tiny networks would take a thousand times its size in memory.
_MOST_NETWORKS = 10_000
# The dtypes that class labels may have.
_LABELS = ("bool", "str", "object", "float16", "float32", "float64",
           "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")  # fmt: skip


@dataclass(frozen=True)
class Attachment:
    """Data that a model file holds besides the model; ``load`` ignores it.

    Attributes
    ----------
    name : str
        The entry of the file's description; the names of the arrays begin with it.
    description : mapping
        Values that JSON can hold.
    arrays : mapping of str to array
        Contiguous NumPy arrays of float32 or float64.
    """

    name: str
    description: Mapping[str, Any]
    arrays: Mapping[str, Any] = field(default_factory=dict)


def to_bytes(net: Any, attachment: Attachment | None = None) -> bytes:
    """Return the content of a model file, with an attachment if one is given."""
    if not isinstance(net, Network | Stack):
        from nnbackend.io.sklearn import as_model

        net = as_model(net)
    tensors = checked_tensors(net)
    if isinstance(net, Stack):
        attachment = _attachment_of(net)
        net = net.networks[0]
    for entry in net.structure.hidden:
        if ACTIVATIONS.get(entry.name) != entry:  # unpickled, it is equal
            raise InputError(
                f"expected registered activations, got {entry.name!r}, which is not; a model "
                "stores names only: register it with register_activation",
                argument="net",
            )
    names = checked_names(net)
    description: dict[str, Any] = {
        "versions": {"nnbackend": __version__, "numpy": np.__version__},
        "layer_sizes": net.layer_sizes,
        "hidden": net.hidden,
        "output": net.output,
        "dropout": net.dropout,
        "dtype": net.dtype,
        **names,
    }
    if net.target is not None and net.target.class_names == net.class_names:
        description["target"] = net.target.to_json()
    if net.encoding is not None:
        description["encoding"] = net.encoding.to_json()
    if net.quantiles is not None:
        description["quantiles"] = net.quantiles
    if attachment is not None:
        arrays = attachment.arrays
        description[attachment.name] = {**attachment.description, "arrays": sorted(arrays)}
        tensors |= {f"{attachment.name}.{name}": array for name, array in arrays.items()}
    return encode(description, tensors)


def _attachment_of(stack: Stack) -> Attachment:
    """Return what a file says of a stack besides its networks; raise if it cannot be stored."""
    if len(stack.networks) > _MOST_NETWORKS:
        raise InputError(
            f"expected at most {_MOST_NETWORKS} members, got {len(stack.networks)}", argument="net"
        )
    label_dtype = None
    if stack.labels is not None:
        label_dtype = "str" if stack.labels.dtype.kind == "U" else stack.labels.dtype.name
        is_text = all(isinstance(label, str) for label in stack.labels.tolist())
        if label_dtype not in _LABELS or (label_dtype == "object" and not is_text):
            raise InputError(
                f"expected class labels that are numbers or text, got {stack.labels.tolist()!r}",
                argument="net",
            )
    facts = {"n_networks": len(stack.networks), "label_dtype": label_dtype}
    return Attachment(_STACK, facts, {} if stack.noise is None else {"noise": stack.noise})


def read_network(contents: Contents, device: Device) -> Network:
    """Return the network that a file describes, on ``device``.

    Check all claims before allocating memory for the network.

    Raises
    ------
    ModelFileError
        If a claim is wrong.
    """
    if _STACK in contents.description:
        contents.require_whole()
        raise UnusableModelError(
            f"expected a network, got an ensemble of networks in {contents.source!r}",
            argument="path",
        )
    (net,) = _networks(contents, device, None)
    contents.require_whole()
    return net


def read_model(contents: Contents, device: Device) -> Network | Stack:
    """Return the network, or the stack of networks, that a file describes; see ``read_network``."""
    if _STACK not in contents.description:
        return read_network(contents, device)
    facts, require = contents.description[_STACK], contents.require
    require(isinstance(facts, dict), "its stack is not a JSON object")
    count = facts.get("n_networks")
    require(
        type(count) is int and 1 <= count <= _MOST_NETWORKS,
        f"its stack has {shortened(repr(count))} networks, not 1 to {_MOST_NETWORKS}",
    )
    networks = _networks(contents, device, count)
    is_classifier = networks[0].output in ("sigmoid", "softmax")
    require(not networks[0].structure.output.is_distribution, "its stack has distributions")
    label_dtype = facts.get("label_dtype")
    require(is_classifier or label_dtype is None, "it has labels, but its targets are numbers")
    labels = _labels(contents, networks[0], label_dtype) if is_classifier else None
    n_outputs = networks[0].layer_sizes[-1]

    def claims(_facts: Mapping[str, Any], _name: str) -> Claim:
        return Claim((n_outputs,), "float64", is_finite=False)

    attachment = read_attachment(contents, _STACK, claims)
    arrays = {} if attachment is None else attachment.arrays
    require(set(arrays) == (set() if is_classifier else {"noise"}), "its noise is missing, or odd")
    noise = arrays.get("noise")
    # NaN where it is not known.
    require(noise is None or not bool(((noise < 0) | np.isinf(noise)).any()), "its noise is odd")
    contents.require_whole()
    return Stack(tuple(networks), noise, labels)


def _labels(contents: Contents, net: Network, dtype: Any) -> np.ndarray[Any, Any]:
    """Return the class labels whose names a network has, in the dtype that a file says."""
    require, n_classes = contents.require, name_counts(net.structure)["class_names"]
    require(
        isinstance(dtype, str) and dtype in _LABELS,
        f"its labels are of the dtype {shortened(repr(dtype))}",
    )
    names = [str(k) for k in range(n_classes)] if net.class_names is None else net.class_names
    values: Any = None
    with contextlib.suppress(ValueError, OverflowError):
        if dtype in ("str", "object"):
            values = np.asarray(names, dtype=dtype)
        elif dtype == "bool":
            values = np.asarray([{"False": False, "True": True}.get(name, 2) for name in names])
        else:
            kind = float if dtype.startswith("float") else int
            values = np.asarray([kind(name) for name in names], dtype=dtype)
    require(
        values is not None
        and (dtype in ("str", "object") or bool(np.isfinite(values).all()))
        and values.dtype.kind == np.dtype(dtype).kind
        and len(np.unique(values)) == n_classes,
        f"its class names are not labels of the dtype {dtype}",
    )
    labels: np.ndarray[Any, Any] = values
    return labels


def _networks(contents: Contents, device: Device, count: int | None) -> list[Network]:
    """Return the network of a file, or those of a stack of so many, after checking all claims."""
    description, require = contents.description, contents.require
    structure = _structure(contents)
    dtype = description.get("dtype")
    require(isinstance(dtype, str) and dtype in DTYPES, f"its dtype is {shortened(repr(dtype))}")
    stack = () if count is None else (count,)
    claims, standardized = _claims(contents, structure, str(dtype), stack)
    arrays = {name: contents.array(name, claim) for name, claim in claims.items()}
    names: dict[str, Any] = {}
    encoding = _encoding(contents, structure.layer_sizes[0])
    for key, size in name_counts(structure, encoding).items():
        value = description.get(key)
        problem = _problem_of_names(value, size)
        require(problem is None, f"its {key} are {problem}")
        names[key] = None if value is None else tuple(value)
    require(
        encoding is None or names["feature_names"] == encoding.feature_names,
        "its feature_names are not the columns of its encoding",
    )
    layers = range(len(structure.weight_shapes))
    target = _target(contents, names["class_names"])
    networks = []
    # Without a stack, its index is that of the whole array.
    for each in (...,) if count is None else range(count):
        weights = [arrays[f"weights.{layer}"][each] for layer in layers]
        biases = [arrays[f"biases.{layer}"][each] for layer in layers]
        flat = structure.flatten(np, weights, biases)
        net = Network.from_structure(structure, flat, dtype=str(dtype), device=device)
        for name in standardized:
            columns = (device.place(arrays[f"{name}.{part}"]) for part in ("mean", "scale"))
            setattr(net, name, Standardization(*columns))
        net.feature_names, net.class_names = names["feature_names"], names["class_names"]
        net.target, net.encoding = target, encoding
        networks.append(net)
    return networks


def _target(contents: Contents, class_names: tuple[str, ...] | None) -> Target | None:
    """Return what a file says of the target, if it does."""
    facts = contents.description.get("target")
    if facts is None:
        return None
    with contextlib.suppress(ValueError):
        return Target.from_json(facts, class_names)
    contents.require(False, "its target is not what a file's column is read as")
    return None


def _encoding(contents: Contents, n_features: int) -> TableEncoding | None:
    """Return what a file says that columns of a table become, if it does."""
    stored = contents.description.get("encoding")
    if stored is None:
        return None
    problem = ""
    try:
        encoding = TableEncoding.from_json(stored)
        if encoding.n_outputs == n_features:
            return encoding
        problem = f"it has {encoding.n_outputs} outputs for {n_features} inputs"
    except ValueError as error:
        problem = str(error)
    contents.require(False, f"its encoding is odd: {shortened(problem)}")
    return None


def read_attachment(
    contents: Contents, name: str, claims: Callable[[Mapping[str, Any], str], Claim]
) -> Attachment | None:
    """Return the attachment with a name; None if there is none.

    Parameters
    ----------
    contents : Contents
        The content of a file, whose network was read before.
    name : str
        The attachment's name.
    claims : callable
        Called with the attachment's description and the name of an array in it; returns what the
        array must be like.

    Raises
    ------
    ModelFileError
        If an array is not as claimed.
    """
    description = contents.description.get(name)
    if description is None:
        return None
    contents.require(_listed(description) is not None, f"its entry {name!r} has no list of arrays")
    arrays = {
        array: contents.array(f"{name}.{array}", claims(description, array))
        for array in description["arrays"]
    }
    return Attachment(name, description, arrays)


def _listed(value: Any) -> list[str] | None:
    """Return the names of the arrays in an attachment's description; None for other values."""
    names = value.get("arrays") if isinstance(value, dict) else None
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return names
    return None


def name_counts(structure: Structure, encoding: TableEncoding | None = None) -> dict[str, int]:
    """Return how many feature and class names a network has, if it has any."""
    n_outputs = structure.layer_sizes[-1]
    n_classes = max(2, n_outputs) if structure.output.name == "sigmoid" else n_outputs
    n_features = structure.layer_sizes[0] if encoding is None else len(encoding.feature_names)
    return {"feature_names": n_features, "class_names": n_classes}


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
    return None if twice is None else f"not distinct: {shortened(repr(twice))} is there twice"


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
    if net.encoding is not None and tuple(net.feature_names or ()) != net.encoding.feature_names:
        raise InputError(
            f"expected the names of the columns that its encoding takes, "
            f"{list(net.encoding.feature_names)!r}, got {net.feature_names!r}; they are set by "
            "net.encode_with",
            argument="net.feature_names",
        )
    for key, size in name_counts(net.structure, net.encoding).items():
        given = getattr(net, key)
        names[key] = given.tolist() if isinstance(given, np.ndarray) else given
        if problem := _problem_of_names(names[key], size):
            distinct = "distinct " if "distinct" in problem else ""
            raise InputError(
                f"expected None or {size} {distinct}strings, got {given!r}", argument=f"net.{key}"
            )
    return names


def checked_tensors(net: Network | Stack) -> dict[str, Any]:
    """Return a network's arrays by name, finite, contiguous and on the host.

    The weights and biases of a stack have an axis more, the first.
    """
    if isinstance(net, Stack):
        each = [checked_tensors(member) for member in net.networks]
        return {
            name: np.stack([tensors[name] for tensors in each])
            if name.startswith(("weights.", "biases."))
            else array
            for name, array in each[0].items()
        }
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
            raise InputError(
                f"expected finite numbers, got NaN or infinity in its {name}", argument="net"
            )
    return {name: np.ascontiguousarray(x) for name, x in tensors.items()}


def _structure(contents: Contents) -> Structure:
    """Return the structure in a description, checked."""
    require = contents.require
    entries: list[Any] = [
        contents.description.get(key) for key in ("layer_sizes", "hidden", "dropout")
    ]
    sizes, hidden, dropout = entries
    require(
        isinstance(sizes, list)
        and len(sizes) >= 2
        and all(type(size) is int and size > 0 for size in sizes),
        f"its layer_sizes are {shortened(str(sizes))}",
    )
    n_hidden = len(sizes) - 2
    require(
        isinstance(hidden, list)
        and len(hidden) == n_hidden
        and all(isinstance(name, str) for name in hidden),
        f"its hidden activations are not {n_hidden} names",
    )
    for name in hidden:
        require(
            name in ACTIVATIONS,
            f"its activation {shortened(repr(name))} is not known here; "
            "call register_activation first",
        )
    require(
        isinstance(dropout, list)
        and len(dropout) == n_hidden
        and all(type(rate) in (int, float) and 0 <= rate < 1 for rate in dropout),
        f"its dropout rates are not {n_hidden} numbers in [0, 1)",
    )
    return Structure(
        tuple(sizes),
        tuple(ACTIVATIONS[name] for name in hidden),
        _output(contents, sizes[-1]),
        tuple(float(rate) for rate in dropout),
    )


def _output(contents: Contents, n_outputs: int) -> Output:
    """Return the output in a description, checked."""
    name: Any = contents.description.get("output")
    quantiles = contents.description.get("quantiles")
    chosen = None
    with contextlib.suppress(InputError):
        claimed = output("output", name, quantiles)
        claimed.require_size(n_outputs)
        chosen = claimed
    of = "" if quantiles is None else f" of the quantiles {shortened(repr(quantiles))}"
    contents.require(
        chosen is not None, f"its output is {shortened(repr(name))}{of}, for {n_outputs} units"
    )
    assert chosen is not None  # noqa: S101 - or require has raised
    return chosen


def _claims(
    contents: Contents, structure: Structure, dtype: str, stack: tuple[int, ...]
) -> tuple[dict[str, Claim], list[str]]:
    """Return the claims on a network's arrays, and the standardizations that are there.

    Those of parameters begin with the axis of a ``stack``, if it is one.
    """
    names = contents.names
    # Compare counts first: a short description can name a million layers.
    contents.require(
        len(names) >= 2 * len(structure.weight_shapes),
        f"its {len(names)} arrays are too few for its {len(structure.weight_shapes)} layers",
    )
    expected: dict[str, Claim] = {}
    for layer, (n_in, n_out) in enumerate(structure.weight_shapes):
        expected[f"weights.{layer}"] = Claim((*stack, n_in, n_out), dtype)
        expected[f"biases.{layer}"] = Claim((*stack, n_out), dtype)
    standardized = [name for name in STANDARDIZATIONS if f"{name}.mean" in names]
    for name in standardized:
        is_target = name == "target_standardization"
        shape = (structure.n_targets if is_target else structure.layer_sizes[0],)
        expected[f"{name}.mean"] = Claim(shape, "float64")
        expected[f"{name}.scale"] = Claim(shape, "float64", is_positive=True)
    attached = (
        f"{key}.{name}"
        for key, value in contents.description.items()
        for name in _listed(value) or ()
    )
    contents.require_names([*expected, *attached])
    contents.require(
        "target_standardization" not in standardized or structure.output.is_standardizable,
        f"its output {structure.output.name!r} has no target standardization",
    )
    return expected, standardized
