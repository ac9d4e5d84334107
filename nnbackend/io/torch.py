"""From and to torch: modules of linear layers and activations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from nnbackend.core.activations import LEAKY_RELU_SLOPE
from nnbackend.core.types import Array
from nnbackend.device import Device
from nnbackend.errors import InputError
from nnbackend.floating_point import own_errors
from nnbackend.io.convert import folded, import_library, network_of, rounded
from nnbackend.model.network import Network

__all__ = ["from_torch", "to_torch"]


# Modules of torch that compute what ours do, given these attributes (one of several values each).
# Softplus turns linear beyond its threshold: at 20 that is 2e-9 off.
_TORCH_ACTIVATIONS: dict[str, tuple[str, dict[str, tuple[Any, ...]]]] = {
    "Sigmoid": ("sigmoid", {}),
    "Tanh": ("tanh", {}),
    "ReLU": ("relu", {}),
    "LeakyReLU": ("leaky_relu", {"negative_slope": (LEAKY_RELU_SLOPE,)}),
    "ELU": ("elu", {"alpha": (1.0,)}),
    "Softplus": ("softplus", {"beta": (1.0,), "threshold": (20.0,)}),
    "SiLU": ("silu", {}),
    "GELU": ("gelu", {"approximate": ("tanh",)}),
    "Softmax": ("softmax", {"dim": (-1, 1)}),
}


@own_errors
def from_torch(
    source: Any,
    *,
    hidden: Any = None,
    output: str | None = None,
    device: str | Device = "cpu",
    quantiles: Any = None,
) -> Network:
    """Return the network that a torch module, or its state dict, is.

    Outputs are equal to rounding. Objects alone are taken; nothing is unpickled.

    Parameters
    ----------
    source : torch.nn.Sequential, or mapping of str to tensor
        A module may hold Linear, Dropout after an activation, and Identity, Sigmoid, Tanh, ReLU,
        LeakyReLU, ELU, Softplus, SiLU, GELU(approximate="tanh"), with torch's default parameters;
        it may end with Sigmoid or Softmax. Identity and a Flatten of the features are passed over,
        a Sequential may hold others. A state dict has the weight (n_out, n_in) and the bias
        (n_out,) of Linear layers: if their names differ in numbers only, in the order of these
        (which files that sort by name lose), else in the order they stand.
    hidden : str, Activation, or one of these per hidden layer, optional
        The hidden activations; a state dict does not know them, a module does.
    output : {"sigmoid", "softmax", "identity", "exp", "gaussian", "quantile"}, optional
        The output activation, which a state dict does not know. A module that ends with a Linear
        layer gives an identity output, what it computes; if it was trained on logits, with
        CrossEntropyLoss or BCEWithLogitsLoss, say ``"softmax"`` or ``"sigmoid"``.
    device : str, default "cpu"
        The device of the network, whatever the device of the tensors.
    quantiles : sequence of float, optional
        The levels of a quantile output, as for ``Network``.

    Returns
    -------
    Network
        In float64 if a tensor is, else float32.

    Raises
    ------
    InputError
        If there is anything else in it, or numbers that are not finite.
    MissingDependencyError
        If torch is not installed.

    See Also
    --------
    to_torch : The way back.

    Examples
    --------
    >>> import nnbackend as nb
    >>> net = nb.Network([4, 8, 3], hidden="silu", output="softmax")
    >>> state = nb.to_torch(net)  # doctest: +SKIP
    >>> nb.from_torch(state, hidden="silu", output="softmax")  # doctest: +SKIP
    Network([4, 8, 3], hidden='silu', output='softmax', dtype='float32', device='cpu')
    """
    torch = import_library("torch")
    dropout: Any = 0.0
    if isinstance(source, torch.nn.Module):
        if hidden is not None:
            raise InputError(
                f"expected None with a module, which knows its activations, got {hidden!r}",
                argument="hidden",
            )
        read = _ModuleReader(torch, source)
        hidden, dropout = read.hidden, read.dropout
        layers = _torch_layers(torch, read.entries)
        if output is not None and read.output not in (None, output):
            raise InputError(
                f"expected None or {read.output!r}, with which the module ends, got {output!r}",
                argument="output",
            )
        output = read.output or output or "identity"
    elif isinstance(source, Mapping):
        layers = _in_forward_order(_torch_layers(torch, source))
        if output is None:
            raise InputError(
                "expected 'sigmoid', 'softmax', 'identity' or 'exp', for a state dict does "
                "not say it, got None",
                argument="output",
            )
        if hidden is None:
            if len(layers) > 1:
                raise InputError(
                    f"expected one activation for all {len(layers) - 1} hidden layers or "
                    "one for each, for a state dict does not say them, got None",
                    argument="hidden",
                )
            hidden = ()
    else:
        raise InputError(
            f"expected a torch.nn.Sequential or a state dict, got {type(source).__name__}",
            argument="source",
        )
    for below, layer in pairwise(layers):
        if layer.weight.shape[1] != below.weight.shape[0]:
            raise InputError(
                f"expected shape (n_out, {below.weight.shape[0]}), to take "
                f"the outputs of {below.prefix}weight, got {layer.weight.shape}",
                argument=f"{layer.prefix}weight",
            )
    return network_of(
        [(f"{layer.prefix}weight", layer.weight.T) for layer in layers],
        [(f"{layer.prefix}bias", layer.bias) for layer in layers],
        hidden=hidden,
        output=output,
        dropout=dropout,
        device=device,
        quantiles=quantiles,
    )


@own_errors
def to_torch(net: Network) -> dict[str, Any]:
    """Return a network as the state dict of a torch.nn.Sequential.

    It fits ``Sequential(Linear, activation, Linear, activation, ..., Linear)``: the entries are
    ``"0.weight"`` (n_out, n_in), ``"0.bias"``, ``"2.weight"``, ... Activations are not in it;
    those that torch shares are Identity, Sigmoid, Tanh, ReLU, LeakyReLU, ELU, Softplus, SiLU, and
    GELU(approximate="tanh"), and a Sequential with Dropout numbers its layers otherwise. The
    standardization is folded into the weights, as ``to_sklearn`` does it.

    Parameters
    ----------
    net : Network
        A network with any activations.

    Returns
    -------
    dict of str to torch.Tensor
        On the CPU, in the network's dtype: for ``load_state_dict`` and ``torch.save``.

    Raises
    ------
    InputError
        If the network's dtype is too coarse for the standardization, as ``to_sklearn`` says. A
        module that is to take ``to_torch(net.astype("float64"))`` has to be in float64 as well:
        ``module.double()``.
    MissingDependencyError
        If torch is not installed.

    See Also
    --------
    from_torch : The way back.

    Examples
    --------
    >>> import nnbackend as nb
    >>> net = nb.Network([4, 8, 3], hidden="relu", output="softmax")
    >>> from torch import nn  # doctest: +SKIP
    >>> module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))  # doctest: +SKIP
    >>> module.load_state_dict(nb.to_torch(net))  # doctest: +SKIP
    <All keys matched successfully>
    """
    weights, biases = rounded(net, *folded(net))
    torch = import_library("torch")
    state = {}
    for layer, (W, b) in enumerate(zip(weights, biases, strict=True)):
        state[f"{2 * layer}.weight"] = torch.from_numpy(np.ascontiguousarray(W.T))
        state[f"{2 * layer}.bias"] = torch.from_numpy(b)
    return state


class _Layer(NamedTuple):
    """A Linear layer: what its entries' names begin with, weight (n_out, n_in), bias (n_out,)."""

    prefix: str
    weight: Array
    bias: Array


def _torch_layers(torch: Any, entries: Mapping[Any, Any]) -> list[_Layer]:
    """Return the Linear layers of a state dict, in the order they stand."""
    arrays: dict[str, dict[str, Array]] = {}
    for key, value in entries.items():
        match = re.fullmatch(r"(|.*\.)(weight|bias)", str(key), re.DOTALL)
        if match is None:
            raise InputError(
                f"expected the weight and bias of Linear layers, got an entry {key!r}",
                argument="source",
            )
        arrays.setdefault(match[1], {})[match[2]] = _torch_array(torch, key, value)
    if not arrays:
        raise InputError("expected at least one Linear layer, got none", argument="source")
    for prefix, parts in arrays.items():
        if missing := {"weight", "bias"} - parts.keys():
            raise InputError(
                "expected a weight and a bias of each Linear layer, got no "
                f"{prefix}{missing.pop()}",
                argument="source",
            )
        shape, bias_shape = parts["weight"].shape, parts["bias"].shape
        if len(shape) != 2:
            raise InputError(
                f"expected the matrix (n_out, n_in) of a Linear layer, got shape "
                f"{shape}; layers of other kinds are none of a Network's",
                argument=f"{prefix}weight",
            )
        if bias_shape != shape[:1]:
            raise InputError(
                f"expected shape {shape[:1]}, got {bias_shape}", argument=f"{prefix}bias"
            )
    return [_Layer(prefix, parts["weight"], parts["bias"]) for prefix, parts in arrays.items()]


def _in_forward_order(layers: list[_Layer]) -> list[_Layer]:
    """Return layers in the order of the numbers in their names, if these differ in nothing else."""
    if len({re.sub(r"\d+", "#", layer.prefix) for layer in layers}) > 1:
        return layers
    return sorted(layers, key=lambda layer: [int(n) for n in re.findall(r"\d+", layer.prefix)])


def _torch_array(torch: Any, name: str, value: Any) -> Array:
    """Return a tensor as a NumPy array of float32 or float64."""
    if not isinstance(value, torch.Tensor):
        raise InputError(f"expected a torch tensor, got {type(value).__name__}", argument=name)
    if torch.nn.parameter.is_lazy(value):
        raise InputError(
            "expected an initialized layer, got a lazy one; call the module with data first",
            argument=name,
        )
    if not value.is_floating_point():
        raise InputError(f"expected a tensor of floats, got {value.dtype}", argument=name)
    exact = value.dtype in (torch.float32, torch.float64)
    try:
        host = value.detach().cpu()
        return (host if exact else host.float()).numpy()
    except (RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"cannot be read as an array ({reason})", argument=name) from error


class _ModuleReader:
    """Reads the structure of a Sequential, module after module.

    Attributes
    ----------
    entries : dict of str to tensor
        Weights and biases of the Linear layers, in order.
    hidden : list of str
        The activation of each hidden layer.
    dropout : list of float
        The dropout rate of each hidden layer.
    output : {"sigmoid", "softmax"} or None
        The output activation, if the module has one.
    """

    def __init__(self, torch: Any, module: Any) -> None:
        self.entries: dict[str, Any] = {}
        self.hidden: list[str] = []
        self.dropout: list[float] = []
        self._nn = torch.nn
        # Of the layer that is being read.
        self._activation: str | None = None
        self._rate = 0.0
        for name, leaf in self._leaves(module, ""):
            self._take(name, leaf)
        if self._rate:
            raise InputError(
                "expected Dropout after hidden layers only, got one at the end", argument="source"
            )
        if self._activation not in (None, "sigmoid", "softmax"):
            raise InputError(
                "expected a module that ends with a Linear layer, Sigmoid or Softmax, got "
                f"{self._activation!r} at the end",
                argument="source",
            )
        self.output = self._activation

    def _leaves(self, module: Any, name: str) -> Iterator[tuple[str, Any]]:
        is_sequence = isinstance(module, self._nn.Sequential)
        if not is_sequence or type(module).forward is not self._nn.Sequential.forward:
            yield name, module
            return
        # named_children() would leave out a module's second place in the sequence.
        for child, inner in module.named_modules(remove_duplicate=False):
            if child and "." not in child:
                yield from self._leaves(inner, f"{name}.{child}" if name else child)

    def _take(self, name: str, leaf: Any) -> None:
        nn, kind = self._nn, type(leaf)
        if kind in (nn.Linear, nn.LazyLinear):
            self._begin_layer(name, leaf)
        elif kind is nn.Identity or (kind is nn.Flatten and leaf.start_dim == 1):
            return  # no more than that, on rows of features
        elif kind is nn.Dropout:
            self._require(name, leaf, self._rate == 0.0, "one Dropout after a hidden layer")
            self._rate = float(leaf.p)
        else:
            activation = self._activation_of(name, leaf)
            self._require(name, leaf, self._activation is None, "one activation after a layer")
            self._require(name, leaf, self._rate == 0.0, "Dropout after the activation, not before")
            self._activation = activation
        self._require(name, leaf, bool(self.entries), "a Linear layer first")

    def _begin_layer(self, name: str, leaf: Any) -> None:
        if self.entries:
            self._require(name, leaf, self._activation != "softmax", "Softmax at the end only")
            self.hidden.append(self._activation or "identity")
            self.dropout.append(self._rate)
        self._activation, self._rate = None, 0.0
        prefix = f"{name}." if name else ""
        own = leaf.named_parameters(recurse=False)
        self.entries |= {f"{prefix}{key}": value for key, value in own}

    def _activation_of(self, name: str, leaf: Any) -> str:
        """Return our name of an activation module that computes what ours does."""
        kind = type(leaf).__name__
        is_known = kind in _TORCH_ACTIVATIONS and type(leaf) is getattr(self._nn, kind)
        self._require(
            name, leaf, is_known, "Linear, Dropout, or an activation that a Network has, too"
        )
        ours, attributes = _TORCH_ACTIVATIONS[kind]
        expected = ", ".join(f"{key}={values[0]!r}" for key, values in attributes.items())
        is_equal = all(getattr(leaf, key) in values for key, values in attributes.items())
        self._require(name, leaf, is_equal, f"{kind}({expected})")
        return ours

    @staticmethod
    def _require(name: str, leaf: Any, holds: bool, expected: str) -> None:
        if holds:
            return
        is_compound = any(True for _ in leaf.children())
        what = type(leaf).__name__ if is_compound else str(leaf)
        where = f" at {name!r}" if name else ""
        hint = "; of a module of your own give the state_dict()" if is_compound else ""
        raise InputError(f"expected {expected}, got {what}{where}{hint}", argument="source")
