"""Network: a structure, one flat parameter vector, and per-layer views of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np

from nnbackend.checks import real
from nnbackend.core import propagation
from nnbackend.core.activations import Activation
from nnbackend.core.losses import Loss, loss_function
from nnbackend.core.objective import Objective
from nnbackend.core.propagation import CACHED_ELEMENTS, DEVICE_ELEMENTS
from nnbackend.core.standardization import Standardization
from nnbackend.core.structure import Structure
from nnbackend.core.types import Array
from nnbackend.data.door import look, to_array
from nnbackend.data.encoding import TableEncoding
from nnbackend.data.given import Given
from nnbackend.data.preparation import Preparation
from nnbackend.data.source import Source
from nnbackend.data.sources import as_source
from nnbackend.data.target import Target
from nnbackend.data.validation import (
    DTYPES,
    dtype_name,
    place,
)
from nnbackend.device import Device, get_device
from nnbackend.errors import DeviceError, InputError
from nnbackend.floating_point import own_errors
from nnbackend.model.build import generator, initial_parameters, make_structure
from nnbackend.model.parameters import ParameterVector

if TYPE_CHECKING:
    from nnbackend.model.summary import Summary

__all__ = ["Gradients", "Network"]


P = ParamSpec("P")
R = TypeVar("R")


def _on_device(
    method: Callable[Concatenate[Network, P], R],
) -> Callable[Concatenate[Network, P], R]:
    """Run a method on the network's device, whichever GPU is current, in our own error state.

    See ``own_errors`` for the latter.
    """

    @own_errors
    @wraps(method)
    def wrapped(self: Network, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._device.activate():
            return method(self, *args, **kwargs)

    return wrapped


class Gradients(NamedTuple):
    """Gradients of a loss: one array per layer, shaped as ``Network.weights`` and ``.biases``."""

    weights: list[Array]
    biases: list[Array]


class Network:
    """A fully connected network: affine layers with activations between them.

    Parameters
    ----------
    layer_sizes : sequence of int
        Units of the input, each hidden and the output layer: ``[30, 16, 8, 1]``.
    hidden : str, Activation, or one of these per hidden layer, default "relu"
        ``identity``, ``sigmoid`` (or ``logistic``), ``tanh``, ``relu``, ``leaky_relu``, ``elu``,
        ``softplus``, ``silu``, ``gelu`` (in its tanh form), or one that was registered.
    output : {"sigmoid", "softmax", "identity", "exp", "gaussian", "quantile"}, default "sigmoid"
        The output activation, for binary or multilabel, multiclass, real, and count targets. The
        last two describe the distribution of one real target, for ``predict_interval``:
        ``gaussian`` by two outputs, its mean and deviation; ``quantile`` by its quantiles, sorted
        so that they never cross.
    initializer : str, optional
        ``zeros``, ``normal`` (standard deviation 0.01), ``glorot_``, ``he_`` or ``lecun_`` followed
        by ``normal`` or ``uniform``, or ``orthogonal``. By default, hidden layers of the ReLU
        family use He's, all other layers Glorot's. Biases start at zero.
    dropout : float or one per hidden layer, default 0.0
        The probability in [0, 1) with which training drops a unit of a hidden layer.
    dtype : {"float32", "float64"}, default "float32"
        The dtype of parameters and results. If float32 is too coarse for a standardized target,
        predictions are float64; see ``standardize``.
    device : str, default "cpu"
        The device of the parameters and of all computation: ``"cpu"``, ``"cuda"``, ``"cuda:N"``,
        or ``"auto"`` for the first GPU if there is one.
    seed : int, numpy.random.Generator or None, default 0
        The seed of the initial weights, which are drawn on the host and so are equal on every
        device. None draws new weights each time.
    quantiles : sequence of float in (0, 1), optional
        The levels of a quantile output, which increase, one for each unit of the last layer. By
        default 0.05, 0.5, 0.95.

    Attributes
    ----------
    parameters : array (n_parameters,)
        W[1], b[1], W[2], b[2], ... in one vector; changing it in place changes the network.
    weights, biases : lists of arrays (n_in, n_out) and (n_out,)
        Views of ``parameters``, one per layer.
    standardization : Standardization or None
        Applied to every input; set by ``standardize``.
    target_standardization : Standardization or None
        Undone on every prediction; set by ``standardize``.
    feature_names, class_names : tuple of str or None
        Names of the columns of X and of the classes; saved with the network. ``standardize`` and
        ``train`` set ``feature_names`` from a data frame whose column names are strings, all
        different. A later frame is then read by name: its columns may be in any order, further ones
        are ignored, and a missing one is an error. Arrays go by position, and so does a frame that
        is given to a network without names.
    encoding : TableEncoding or None
        Makes the inputs of a table, X, which is data as it comes; set by ``encode_with``. It is
        saved with the network, and ``feature_names`` are the columns that it takes.
    target : Target or None
        What the command learnt, and how it reads a file's column of it; saved with the network.

    Raises
    ------
    InputError
        If an argument is invalid.
    DeviceError
        If the device does not exist.

    Examples
    --------
    >>> import nnbackend as nb
    >>> net = nb.Network([2, 4, 1], hidden="tanh", output="sigmoid", seed=0)
    >>> net
    Network([2, 4, 1], hidden='tanh', output='sigmoid', dtype='float32', device='cpu')
    >>> net.n_parameters, net.weights[0].shape, net.biases[1].shape
    (17, (2, 4), (1,))
    >>> net.forward([[0.0, 0.0]])
    array([[0.5]], dtype=float32)
    """

    def __init__(
        self,
        layer_sizes: Sequence[int],
        *,
        hidden: str | Activation | Sequence[str | Activation] = "relu",
        output: str = "sigmoid",
        initializer: str | None = None,
        dropout: float | Sequence[float] = 0.0,
        dtype: str = "float32",
        device: str | Device = "cpu",
        seed: int | np.random.Generator | None = 0,
        quantiles: Sequence[float] | None = None,
    ) -> None:
        structure = make_structure(layer_sizes, hidden, output, dropout, quantiles)
        flat = initial_parameters(structure, initializer, generator(seed))
        self._build(structure, flat, dtype_name(dtype), get_device(device))

    @own_errors
    def _build(self, structure: Structure, parameters: Array, dtype: str, device: Device) -> None:
        """Set every attribute, copying the parameters."""
        self._structure = structure
        self._device = device
        self._dtype = dtype
        flat = device.place(parameters, DTYPES[dtype], copy=True)
        self._parameters = ParameterVector(device.xp, flat)
        self._trainer = threading.Lock()
        self._weights, self._biases = structure.unflatten(device.xp, flat)
        self.standardization: Standardization | None = None
        self.target_standardization: Standardization | None = None
        self.feature_names: tuple[str, ...] | None = None
        self.class_names: tuple[str, ...] | None = None
        self.encoding: TableEncoding | None = None
        self.target: Target | None = None

    @classmethod
    def from_structure(
        cls, structure: Structure, parameters: Array, *, dtype: str, device: str | Device
    ) -> Network:
        """Return a network with a copy of the flat ``parameters``, without drawing any."""
        net = cls.__new__(cls)
        net._build(structure, parameters, dtype_name(dtype), get_device(device))  # noqa: SLF001
        return net

    @property
    def structure(self) -> Structure:
        """Sizes, activations and dropout rates, as ``core`` takes them."""
        return self._structure

    @property
    def layer_sizes(self) -> list[int]:
        """Units of the input, each hidden and the output layer."""
        return list(self._structure.layer_sizes)

    @property
    def hidden(self) -> tuple[str, ...]:
        """The name of each hidden layer's activation."""
        return tuple(entry.name for entry in self._structure.hidden)

    @property
    def output(self) -> str:
        """The name of the output activation."""
        return self._structure.output.name

    @property
    def quantiles(self) -> tuple[float, ...] | None:
        """The levels of a quantile output; None for other outputs."""
        return getattr(self._structure.output, "quantiles", None)

    @property
    def dropout(self) -> tuple[float, ...]:
        """The dropout rate of each hidden layer."""
        return self._structure.dropout

    @property
    def dtype(self) -> str:
        """``"float32"`` or ``"float64"``."""
        return self._dtype

    @property
    def device(self) -> str:
        """``"cpu"`` or ``"cuda:N"``."""
        return self._device.name

    @property
    def n_parameters(self) -> int:
        """The number of weights and biases."""
        return self._structure.n_parameters

    @property
    def parameters(self) -> Array:
        """All weights and biases in one vector (n_parameters,), on the network's device."""
        return self._parameters.array

    @property
    def weights(self) -> list[Array]:
        """Weights of each layer (n_in, n_out): views of ``parameters``."""
        return list(self._weights)

    @property
    def biases(self) -> list[Array]:
        """Biases of each layer (n_out,): views of ``parameters``."""
        return list(self._biases)

    def __repr__(self) -> str:
        hidden: Any = self.hidden
        if len(set(hidden)) == 1:
            hidden = hidden[0]
        shown = f"hidden={hidden!r}, " if hidden else ""
        dropout = f"dropout={self.dropout!r}, " if self._structure.has_dropout else ""
        quantiles = "" if self.quantiles is None else f"quantiles={self.quantiles!r}, "
        return (
            f"Network({self.layer_sizes}, {shown}output={self.output!r}, {quantiles}{dropout}"
            f"dtype={self.dtype!r}, device={self.device!r})"
        )

    def _repr_html_(self) -> str:
        """Return the summary as a table for notebooks."""
        return self.summary()._repr_html_()

    def summary(self) -> Summary:
        """Return a table of the layers: shapes, activations, dropout and numbers of parameters.

        Returns
        -------
        Summary
            Shown as a table by ``print``, by rich, and in notebooks.

        Examples
        --------
        >>> import nnbackend as nb
        >>> net = nb.Network([30, 16, 8, 1], dropout=[0.2, 0.0])
        >>> print(net.summary())
        layer     shape     activation  dropout  parameters
        ---------------------------------------------------
        hidden 1  30 -> 16  relu            0.2         496
        hidden 2  16 -> 8   relu                        136
        output    8 -> 1    sigmoid                       9
        ---------------------------------------------------
        total                                           641
        float32 on cpu, 2.504 KiB; standardizes nothing
        """
        from nnbackend.model.summary import Summary

        return Summary.of(self._structure, self.preparation)

    @_on_device
    def set_parameters(self, weights: Sequence[Any], biases: Sequence[Any]) -> None:
        """Copy weights and biases into the network.

        Parameters
        ----------
        weights : sequence of array-likes (n_in, n_out)
            One per layer.
        biases : sequence of array-likes (n_out,)
            One per layer.

        Raises
        ------
        InputError
            If a number, shape or value is invalid; the network is unchanged then.
        """
        checked: list[list[Array]] = []
        for name, given, own in (
            ("weights", weights, self._weights),
            ("biases", biases, self._biases),
        ):
            if not isinstance(given, Sequence) or len(given) != len(own):
                count = len(given) if isinstance(given, Sequence) else type(given).__name__
                raise InputError(
                    f"expected {len(own)} arrays, one per layer, got {count}", argument=name
                )
            checked.append([])
            for layer, (x, mine) in enumerate(zip(given, own, strict=True)):
                label = f"{name}[{layer}]"
                array = to_array(label, x, self._device)
                if tuple(array.shape) != tuple(mine.shape):
                    raise InputError(
                        f"expected shape {tuple(mine.shape)}, got {tuple(array.shape)}",
                        argument=label,
                    )
                checked[-1].append(place(label, array, self._device, DTYPES[self._dtype]))
        self.parameters[...] = self._structure.flatten(self._device.xp, *checked)
        self._device.synchronize()  # before another library's stream reuses the memory

    def to(self, device: str | Device) -> Network:
        """Return a copy of the network on a device, or the network itself if it is there."""
        target = get_device(device)
        return self if target == self._device else self._copy(self._dtype, target)

    def astype(self, dtype: str) -> Network:
        """Return a copy of the network in a dtype, or the network itself if it has that dtype."""
        name = dtype_name(dtype)
        return self if name == self._dtype else self._copy(name, self._device)

    def copy(self) -> Network:
        """Return an equal network with its own parameters."""
        return self._copy(self._dtype, self._device)

    @own_errors
    def _copy(self, dtype: str, device: Device) -> Network:
        def move(x: Array) -> Array:
            return x if device == self._device else device.place(self._device.to_numpy(x))

        moved = self._parameters.read(
            lambda parameters: move(self._device.xp.asarray(parameters, copy=True))
        )
        if dtype != self._dtype:
            moved = place("parameters", moved, device, DTYPES[dtype])
        net = Network.from_structure(self._structure, moved, dtype=dtype, device=device)
        for name in ("standardization", "target_standardization"):
            columns = getattr(self, name)
            if columns is not None:
                setattr(net, name, Standardization(*map(move, columns)))
        net.feature_names, net.class_names = self.feature_names, self.class_names
        net.encoding, net.target = self.encoding, self.target
        return net

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with NumPy arrays, so that any machine can restore it."""
        host = self._copy(self._dtype, get_device("cpu"))
        return {
            "structure": host.structure,
            "parameters": host.parameters,
            "dtype": self._dtype,
            "device": self.device,
            "standardization": host.standardization,
            "target_standardization": host.target_standardization,
            "feature_names": self.feature_names,
            "class_names": self.class_names,
            "encoding": self.encoding,
            "target": self.target,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the network on its former device, or on the CPU if that device is missing."""
        try:
            device = get_device(state["device"])
        except DeviceError:
            device = get_device("cpu")
        self._build(state["structure"], state["parameters"], state["dtype"], device)
        for name in ("standardization", "target_standardization"):
            if state[name] is not None:
                setattr(self, name, Standardization(*map(device.place, state[name])))
        self.feature_names, self.class_names = state["feature_names"], state["class_names"]
        self.encoding, self.target = state.get("encoding"), state.get("target")

    def encode_with(self, encoder: Any) -> Network:
        """Make an encoder part of the network, which then takes tables as they come.

        From then on, training and prediction take data frames of pandas and polars, pyarrow tables
        and arrays with text, dates and gaps for X, and turn their columns into the network's
        inputs. A frame is read by name: its columns may be in any order, and further ones are
        ignored. ``standardize``, if it is called afterwards, standardizes what the encoder makes.

        Parameters
        ----------
        encoder : TableEncoder, TableEncoding or None
            A fitted ``TableEncoder``, or the ``encoding`` of another network; None takes the
            network's away.

        Returns
        -------
        Network
            The network itself.

        Raises
        ------
        InputError
            If it is not an encoder, is not fitted, or makes another number of inputs than the
            network has.

        Examples
        --------
        >>> import nnbackend as nb
        >>> X = [[1.5, "blue"], [None, "red"], [2.5, "blue"], [2.0, "red"]]
        >>> encoder = nb.TableEncoder().fit(X)
        >>> net = nb.Network([len(encoder.get_feature_names_out()), 8, 1]).encode_with(encoder)
        >>> net.predict(X).shape
        (4,)
        """
        if encoder is None:
            if self.encoding is not None:
                self.encoding = self.feature_names = None
            return self
        encoding = getattr(encoder, "encoding_", encoder)
        if not isinstance(encoding, TableEncoding):
            hint = "; call its fit first" if hasattr(encoder, "fit") else ""
            raise InputError(
                f"expected a fitted TableEncoder, got {type(encoder).__name__}{hint}",
                argument="encoder",
            )
        n_inputs = self._structure.layer_sizes[0]
        if encoding.n_outputs != n_inputs:
            raise InputError(
                f"expected an encoder that makes {n_inputs} inputs, as many as the network's "
                f"input layer, got {encoding.n_outputs}; make the network with "
                "len(encoder.get_feature_names_out()) of them",
                argument="encoder",
            )
        self.encoding, self.feature_names = encoding, encoding.feature_names
        return self

    @_on_device
    def standardize(self, X: Any, y: Any = None) -> Network:
        """Make standardization with the mean and deviation of data part of the network.

        Call it with the training data, before training. From then on, training and prediction
        replace every input by (X - mean) / scale. With ``y`` (identity, gaussian and quantile
        outputs only), the network learns (y - mean) / scale; losses are in those units, and
        predictions in the units of ``y``.

        Standardization runs in float64. Pass columns with a large offset, such as times, in float64
        or as integers, since float32 has too few digits for them. (Integers beyond 2**53 are
        rounded to float64.) The scale of a column whose numbers are all equal is 1.

        Predictions have the network's dtype. A float32 network returns float64 if the spacing of
        float32 numbers at the mean of a target, 1.2e-7 |mean|, exceeds 1e-4 of its scale (a mean
        more than 839 scales from 0), or if float32 has no numbers as large or small as the target.

        Parameters
        ----------
        X : array-like (n_samples, n_features) or Source
            The data whose column means and standard deviations are used. A source of
            ``nb.sources``, or a memory-mapped, Zarr or h5py array larger than 2**28 bytes, is
            read once, a buffer at a time.
        y : array-like (n_samples,) or (n_samples, n_outputs), optional
            Real-valued targets. With a source, pass the same source again to use its targets.

        Returns
        -------
        Network
            The network itself.

        Examples
        --------
        >>> import nnbackend as nb
        >>> net = nb.Network([2, 3, 1]).standardize([[0.0, 100.0], [2.0, 300.0]])
        >>> net.standardization.mean, net.standardization.scale
        (array([  1., 200.]), array([  1., 100.]))
        """
        if y is not None and not self._structure.output.is_standardizable:
            raise InputError(
                f"expected None, since targets are standardized for output='identity', 'gaussian' "
                f"and 'quantile' only and this network has output={self.output!r}",
                argument="y",
            )
        if isinstance(X, Source) and y is not None and y is not X:
            raise InputError(
                "expected the source again, to standardize the targets that it has, got "
                f"{type(y).__name__}: net.standardize(source, source)",
                argument="y",
            )
        source = as_source(X, None if isinstance(X, Source) and y is X else y)
        given = look("X", X) if source is None else source
        features, *target = self.preparation.moments(given, y)
        self.standardization = features
        self.target_standardization = target[0] if target else None
        self.learn_feature_names(given.feature_names)
        self._device.synchronize()  # before another library's stream reuses the memory
        return self

    def learn_feature_names(self, names: tuple[str, ...] | None) -> None:
        """Take ``feature_names``, unless they are set or are not as many as the columns of X."""
        self.feature_names = self.preparation.knowing(names).feature_names

    @property
    def preparation(self) -> Preparation:
        """The checks and conversions that the network now needs for its data."""
        return Preparation(
            self._structure.layer_sizes[0],
            self._structure.n_targets,
            self._structure.output,
            self._dtype,
            self._device,
            self.standardization,
            self.target_standardization,
            self.feature_names,
            self.encoding,
        )

    def _follow(self, result: Array, given: Given) -> Array:
        """Return a result on the device and in the library of the input."""
        on_host = given.device is None or given.device.kind == "cpu"
        return given.returned(self._device.to_numpy(result) if on_host else result)

    @property
    def _rows_per_block(self) -> int:
        """The number of examples to predict at once."""
        if self._device.kind != "cpu":
            return max(256, DEVICE_ELEMENTS // max(self.layer_sizes[1:]))
        return max(256, CACHED_ELEMENTS // max(self.layer_sizes[1:]))

    @contextmanager
    def being_trained(self) -> Iterator[None]:
        """Refuse other trainings of this network within the context."""
        if not self._trainer.acquire(blocking=False):
            raise InputError(
                "expected a network that is not being trained, got one that another thread, "
                "or the training that this callback belongs to, is training; train net.copy()",
                argument="net",
            )
        try:
            yield
        finally:
            self._trainer.release()

    def take_parameters(self, flat: Array) -> None:
        """Copy a flat vector into the parameters; predictions see either all of it or nothing."""
        self._parameters.write(flat)

    def _forward(self, X: Given) -> Array:
        prepared = self.preparation.features(X)
        xp = self._device.xp

        def logits(parameters: Array) -> Array:
            if self._device.kind == "cpu":
                from nnbackend.engines.native.forward import logits as native_logits

                Z = native_logits(self._structure, parameters, prepared)
                if Z is not None:
                    return Z
            weights, biases = self._structure.unflatten(xp, parameters)
            return propagation.logits(
                xp, self._structure, weights, biases, prepared, self._rows_per_block
            )

        Z = self._parameters.read(logits)
        output = self._structure.output
        return propagation.restored(xp, output, output.function(xp, Z), self.target_standardization)

    @_on_device
    def forward(self, X: Any) -> Array:
        """Return the output activations of examples.

        Parameters
        ----------
        X : array-like (n_samples, n_features)
            One example per row.

        Returns
        -------
        array (n_samples, n_outputs)
            On the device and in the library of X; NumPy for lists and data frames. In the network's
            dtype, or in float64 if float32 is too coarse for the target; see ``standardize``. Of a
            gaussian output, the columns are the mean and the standard deviation; of a quantile
            output, the quantiles of the increasing levels ``quantiles``.
        """
        given = look("X", X)
        return self._follow(self._forward(given), given)

    @_on_device
    def predict(self, X: Any) -> Array:
        """Return classes, or values for other outputs than sigmoid and softmax.

        Parameters
        ----------
        X : array-like (n_samples, n_features)
            One example per row.

        Returns
        -------
        array (n_samples,) or (n_samples, n_outputs)
            Sigmoid: int64 0 or 1 (1 where the activation is above 0.5), (n_samples,) for one output
            and a column per label for several. Softmax: the int64 index of the most probable class,
            (n_samples,). Identity and exp: the outputs in the dtype that ``forward`` returns,
            (n_samples,) if there is only one. Gaussian: the mean, (n_samples,). Quantile: the
            median, (n_samples,); where 0.5 is none of the levels, the value interpolated linearly
            between the two levels around it, or that of the nearest level if all are on one side.
            ``forward`` returns all outputs.

        Raises
        ------
        InputError
            If the output of a classifier is NaN, because numbers in between have overflowed.
            Other outputs are returned even if they are infinite or NaN.
        """
        xp, given = self._device.xp, look("X", X)
        A = self._forward(given)
        if self.output in ("sigmoid", "softmax"):
            self._require_classes(A)
        if self.output == "softmax":
            result = xp.argmax(A, axis=-1)
        else:
            is_binary = self.output == "sigmoid"
            result = xp.astype(A > 0.5, xp.int64) if is_binary else self._structure.output.point(A)
            if result.shape[1] == 1:
                result = result[:, 0]
        return self._follow(result, given)

    @_on_device
    def predict_interval(self, X: Any, coverage: float = 0.9) -> Array:
        """Return intervals that contain the target with a given probability.

        Parameters
        ----------
        X : array-like (n_samples, n_features)
            One example per row.
        coverage : float in (0, 1), default 0.9
            The probability. An interval leaves out as much below as above. A gaussian network takes
            any coverage; a quantile network has learned the intervals between two of its levels,
            such as 0.9 from 0.05 and 0.95.

        Returns
        -------
        array (n_samples, 2)
            The lower and the upper ends, in the dtype that ``forward`` returns.

        Raises
        ------
        InputError
            If the output is neither gaussian nor quantile, or (1 - coverage) / 2 and
            (1 + coverage) / 2 are no levels of a quantile network.

        Notes
        -----
        An interval is the network's belief: it holds what it promises on data like the training
        data, as far as the network has learned their spread and not their noise.

        Examples
        --------
        >>> import numpy as np
        >>> import nnbackend as nb
        >>> rng = np.random.default_rng(0)
        >>> X = rng.uniform(-1.0, 1.0, (500, 1))
        >>> y = rng.normal(2.0 * X[:, 0], np.exp(X[:, 0]))
        >>> net = nb.Network([1, 16, 2], hidden="tanh", output="gaussian").standardize(X, y)
        >>> history = nb.train(net, X, y, epochs=60, batch_size=50, optimizer=nb.Adam(1e-2))
        >>> lower, upper = net.predict_interval(X, 0.9).T
        >>> bool(0.85 < np.mean((lower < y) & (y < upper)) < 0.95)
        True
        """
        coverage = real("coverage", coverage, above=0.0, below=1.0)
        given = look("X", X)
        ends = self._structure.output.interval(self._device.xp, self._forward(given), coverage)
        return self._follow(ends, given)

    def _require_classes(self, A: Array) -> None:
        """Raise an InputError if an output is NaN, which argmax would turn into class 0."""
        xp = self._device.xp
        bad = xp.any(xp.isnan(A), axis=1)
        if bool(xp.any(bad)):
            row = int(xp.argmax(xp.astype(bad, xp.int64)))
            raise InputError(
                f"expected features for which the network's numbers stay finite, got NaN as the "
                f"output of row {row}: its numbers are too large for {self._dtype}; scale X, or "
                "use net.astype('float64')",
                argument="X",
            )

    @_on_device
    def predict_proba(self, X: Any) -> Array:
        """Return class probabilities.

        Parameters
        ----------
        X : array-like (n_samples, n_features)
            One example per row.

        Returns
        -------
        array (n_samples, n_classes)
            Softmax: the outputs. Sigmoid with one output: the columns 1 - a and a; with several
            outputs: the probability of each label.

        Raises
        ------
        InputError
            If the output is neither sigmoid nor softmax.
        """
        if self.output not in ("sigmoid", "softmax"):
            raise InputError(
                f"expected a network with output='sigmoid' or 'softmax', got "
                f"{self.output!r}; use predict",
                argument="predict_proba",
            )
        given = look("X", X)
        A = self._forward(given)
        if self.output == "sigmoid" and A.shape[1] == 1:
            A = self._device.xp.concat([1.0 - A, A], axis=1)
        return self._follow(A, given)

    def objective(
        self,
        loss: str | Loss | None = None,
        l1: float = 0.0,
        l2: float = 0.0,
        *,
        penalty_per_sample: bool = False,
    ) -> Objective:
        """Return the objective that training this network with these options minimizes."""
        return Objective(
            self._structure,
            loss_function(loss, self._structure.output),
            real("l1", l1, minimum=0.0),
            real("l2", l2, minimum=0.0),
            penalty_per_sample,
        )

    @_on_device
    def loss_and_gradients(
        self,
        X: Any,
        y: Any,
        *,
        loss: str | Loss | None = None,
        sample_weight: Any = None,
        l1: float = 0.0,
        l2: float = 0.0,
    ) -> tuple[Array, Gradients]:
        """Return the objective on data and its gradients, without dropout.

        Parameters
        ----------
        X : array-like (n_samples, n_features)
            One example per row.
        y : array-like
            Targets, as for ``train``.
        loss : str or Loss, optional
            As for ``train``; by default the loss that the output implies.
        sample_weight : array-like (n_samples,), optional
            Weights >= 0 of the examples in the mean.
        l1, l2 : float, default 0.0
            Strengths of the penalties l1 sum(abs(W)) + l2 / 2 sum(W^2).

        Returns
        -------
        loss : 0-d array
        gradients : Gradients
            ``gradients.weights`` and ``gradients.biases``, lists as the network's own.

        Examples
        --------
        >>> import nnbackend as nb
        >>> net = nb.Network([2, 1], initializer="zeros", dtype="float64")
        >>> loss, gradients = net.loss_and_gradients([[1.0, 2.0]], [1])
        >>> round(float(loss), 4), gradients.weights[0].tolist(), gradients.biases[0].tolist()
        (0.6931, [[-0.5], [-1.0]], [-0.5])
        """
        objective = self.objective(loss, l1, l2)
        given = look("X", X)
        data = self.preparation.examples(given, y, objective.loss, sample_weight).arrays
        xp = self._device.xp
        value, flat = self._parameters.read(
            lambda parameters: objective.value_and_gradient(xp, parameters, *data)
        )
        weights, biases = self._structure.unflatten(xp, flat)
        gradients = Gradients(
            [self._follow(dW, given) for dW in weights], [self._follow(db, given) for db in biases]
        )
        return self._follow(xp.asarray(value), given), gradients
