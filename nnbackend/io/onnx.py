"""Networks as ONNX files: the functions of ``core``, traced with ndonnx's array API namespace."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nnbackend._version import __version__
from nnbackend.core import propagation
from nnbackend.core.activations import Activation
from nnbackend.core.standardization import Standardization
from nnbackend.core.types import Array, Namespace
from nnbackend.errors import InputError, MissingDependencyError
from nnbackend.floating_point import own_errors
from nnbackend.io.files import checked_path, write_atomically
from nnbackend.io.format import checked_names, checked_tensors, name_counts
from nnbackend.io.onnx_steps import behind, split
from nnbackend.io.onnx_tables import columns_of, encoded, name_columns
from nnbackend.model.network import Network
from nnbackend.model.stack import Stack, deviation

__all__ = ["export_onnx", "traced"]


# Bytes of parameters: a message of protobuf, which an ONNX file is, ends at 2 GiB.
_LARGEST = 2**31 - 2**24


@own_errors
def export_onnx(net: Any, path: str | os.PathLike[str]) -> None:
    """Write a network as one ONNX file, whole or not at all.

    The file computes what the network does, standardization included. Its input is ``X``
    (n_samples, n_features), for any number of examples, in the network's dtype; it is float64 where
    float32 is too coarse for a standardized feature, by the rule by which ``standardize`` says it
    of a target (a mean more than 839 deviations from 0, mostly). The outputs of a
    network with a sigmoid or softmax output are ``label``, what ``predict`` returns, and
    ``probabilities``, what ``predict_proba`` does; else ``prediction``, what ``predict`` returns,
    and for a gaussian output the deviation ``std`` (n_samples,), for a quantile output all
    ``quantiles`` (n_samples, n_levels). Shapes and dtypes are theirs as well: a label is int64,
    even of a class with a name.

    Parameters
    ----------
    net : Network
        The network, on any device. Also what ``save`` takes of scikit-learn's kind; a label is the
        index of the class then. An ensemble is one graph, of mean probabilities, or of the mean as
        ``prediction`` and the deviation that ``return_std=True`` gives as ``std``. Or a fitted
        Pipeline of transformers that skl2onnx knows, and one of these last; see the notes.
    path : path-like
        The file; its folder has to exist. An existing file is replaced if it ends in ``.onnx``.

    Raises
    ------
    InputError
        If the network cannot be exported: a parameter is not finite, an activation of your own
        cannot be traced (it branches on values, or leaves its namespace), skl2onnx cannot convert a
        step, or the parameters take 2 GiB; if the file cannot be written; or if it exists and does
        not end in ``.onnx``.
    MissingDependencyError
        If a package of the extra ``onnx`` is not installed, skl2onnx only for a Pipeline.

    Notes
    -----
    The operators are ndonnx's, of opset 21, which onnxruntime reads from version 1.19 on (1.26 to
    1.31 round some constants of float64 models to float32). The metadata hold ``nnbackend_version``
    and, where the network has them, ``feature_names``, ``class_names`` and the levels ``quantiles``
    as JSON lists.

    Of a Pipeline the file holds all steps, those before the network as skl2onnx writes them. Its
    input is ``X`` where all columns are numbers, or all are text; else each column that a step
    reads is an input of its name (``x0``, ``x1``, ... without names) and the shape (n_samples, 1).
    Text has no NaN in ONNX: a gap that a ``SimpleImputer`` fills is the empty text there.

    Of a network with an encoder, or a Pipeline that begins with a ``TableEncoder``, the inputs are
    the columns of the table, by name, each (n_samples, 1), those that were dropped left out:

    - numbers as float64, NaN for a gap; booleans as well, 0.0 and 1.0;
    - text as strings, the empty one for a gap: ``column.fillna("").to_numpy(object)[:, None]``;
    - dates as int64, microseconds since 1970, of UTC where they have a zone, and -2**63 for a gap:
      ``column.to_numpy("M8[us]").astype("int64")[:, None]``.

    A category that is unknown becomes zeros, as here. The metadata hold ``columns``, a JSON object
    of their names and kinds: number, boolean, text and date.

    Nothing is checked when the file is used: NaN in ``X`` gives NaN, and a label without meaning.

    Examples
    --------
    >>> import nnbackend as nb, onnxruntime  # doctest: +SKIP
    >>> nb.export_onnx(nb.Network([2, 3, 1]), "model.onnx")  # doctest: +SKIP
    >>> session = onnxruntime.InferenceSession("model.onnx")  # doctest: +SKIP
    >>> session.run(["probabilities"], {"X": [[0.0, 0.0]]})  # doctest: +SKIP
    [array([[0.5, 0.5]], dtype=float32)]
    """
    head = None
    if not isinstance(net, Network | Stack):
        from nnbackend.io.sklearn import as_model

        head, net = split(net)
        net = as_model(net)
    target = checked_path(path)
    # A pipe or a device is written to, not replaced; of a link, its target is replaced.
    if os.path.isfile(target) and not os.path.realpath(target).lower().endswith(".onnx"):
        raise InputError(
            f"expected a new file, or one to replace that ends in .onnx, got {target!r}, "
            "which exists",
            argument="path",
        )
    model = traced(net)
    if head is not None:
        model = behind(head, model)
    write_atomically(target, model.SerializeToString())


def traced(exported: Network | Stack) -> Any:
    """Return the network, or the mean of those of a stack, as an ``onnx.ModelProto``."""
    net, noise = (
        (exported.networks[0], exported.noise) if isinstance(exported, Stack) else (exported, None)
    )
    names, tensors = checked_names(net), checked_tensors(exported)
    n_bytes = sum(x.nbytes for x in tensors.values())
    if n_bytes > _LARGEST:
        raise InputError(
            f"expected parameters of less than 2 GiB, as one ONNX file holds no more, got "
            f"{n_bytes / 2**30:.1f} GiB in {net.dtype}",
            argument="net",
        )
    onnx, ndonnx, operators = _libraries()
    xp = _Namespace(ndonnx, operators)
    # Parameters are inputs of the trace, so that nothing is computed on them and each keeps its
    # name; the recorded graph gets them as constants.
    parameters = {name: _input(ndonnx, x.shape, x.dtype) for name, x in tensors.items()}
    given, returned = (_dtype(net, tensors, f"{kind}standardization") for kind in ("", "target_"))
    if net.encoding is None:
        X = _input(ndonnx, ("n_samples", net.layer_sizes[0]), given)
        inputs = {"X": X}
    else:
        inputs = columns_of(ndonnx, net.encoding)
        X = encoded(xp, net.encoding, inputs)
    A = _forward(xp, net, parameters, X)
    each = A
    if isinstance(exported, Stack):
        A = xp.mean(each, axis=0)
    outputs = _outputs(xp, net, xp.astype(A, ndonnx.from_numpy_dtype(returned)))
    if noise is not None:
        std = deviation(xp, each, A, xp.asarray(noise.astype(net.dtype)))
        outputs["std"] = xp.squeeze(std, axis=1) if net.layer_sizes[-1] == 1 else std
    model = ndonnx.build({**inputs, **parameters}, outputs)
    for output in model.graph.output:
        batch, *columns = output.type.tensor_type.shape.dim
        batch.dim_param = "n_samples"
        for dimension in columns:
            dimension.dim_value = name_counts(net.structure)["class_names"]
    del model.graph.input[len(inputs) :]
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(x, name) for name, x in tensors.items()
    )
    if net.encoding is not None:
        model = name_columns(model, net.encoding)
        names["columns"] = {column.name: column.kind for column in net.encoding.used}
    model.graph.name = model.producer_name = "nnbackend"
    model.producer_version = __version__
    metadata = {
        key: json.dumps(value)
        for key, value in {**names, "quantiles": net.quantiles}.items()
        if value is not None
    }
    onnx.helper.set_model_props(model, {"nnbackend_version": __version__, **metadata})
    return model


def _dtype(net: Network, tensors: Mapping[str, Array], standardization: str) -> np.dtype[Any]:
    """Return the dtype of what is standardized: the network's, or float64 if that is too coarse."""
    if getattr(net, standardization) is None:
        return np.dtype(net.dtype)
    exceeds = _standardization(tensors, standardization).exceeds(np, net.dtype)
    return np.dtype("float64" if exceeds.any() else net.dtype)


def _libraries() -> tuple[Any, Any, Any]:
    """Return onnx, ndonnx, and the operators of the opset that ndonnx takes."""
    try:
        import ndonnx
        import onnx
        import onnxruntime  # noqa: F401 - without it ndonnx warns
        import spox.opset.ai.onnx.v21 as operators
    except ImportError as error:
        raise MissingDependencyError(
            f"exporting to ONNX needs {error.name}; install what it takes, the extra 'onnx', with: "
            "pip install onnx ndonnx onnxruntime"
        ) from error
    return onnx, ndonnx, operators


def _input(ndonnx: Any, shape: tuple[str | int, ...], dtype: Any) -> Array:
    return ndonnx.argument(shape=shape, dtype=ndonnx.from_numpy_dtype(dtype))


class _Namespace:
    """ndonnx's functions, but some as the single operators they are, or as onnxruntime has them.

    ndonnx guards the matrix product and the maximum against arrays without elements by branches in
    the graph. No array here lacks elements but those of no examples, which the operators can take.
    """

    def __init__(self, ndonnx: Any, operators: Any) -> None:
        self._ndonnx = ndonnx
        self._operators = operators

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ndonnx, name)

    def matmul(self, x1: Array, x2: Array, /) -> Array:
        product = self._operators.matmul(x1.unwrap_spox(), x2.unwrap_spox())
        return self._ndonnx.asarray(product)

    def cos(self, x: Array, /) -> Array:
        # onnxruntime has the cosine in float32 alone.
        return self._ndonnx.sin(x + math.pi / 2)

    def max(
        self, x: Array, /, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
    ) -> Array:
        axes = None if axis is None else self._operators.const(np.atleast_1d(axis))
        largest = self._operators.reduce_max(x.unwrap_spox(), axes, keepdims=keepdims)
        return self._ndonnx.asarray(largest)

    def mean(self, x: Array, /, *, axis: int) -> Array:
        axes = self._operators.const(np.atleast_1d(axis))
        mean = self._operators.reduce_mean(x.unwrap_spox(), axes, keepdims=False)
        return self._ndonnx.asarray(mean)


def _forward(xp: Namespace, net: Network, arrays: Mapping[str, Array], X: Array) -> Array:
    """Return what ``Network.forward`` does, a standardized target in float64."""
    A = X
    if net.standardization is not None:
        A = _standardization(arrays, "standardization").apply(X)
    A = xp.astype(A, arrays["weights.0"].dtype)
    structure = replace(net.structure, hidden=tuple(map(_traceable, net.structure.hidden)))
    layers = range(len(structure.weight_shapes))
    weights = [arrays[f"weights.{layer}"] for layer in layers]
    biases = [arrays[f"biases.{layer}"] for layer in layers]
    A = structure.output.function(xp, propagation.logits(xp, structure, weights, biases, A))
    if net.target_standardization is not None:
        target = _standardization(arrays, "target_standardization")
        A = structure.output.restored(xp, A, target)
    return A


def _standardization(arrays: Mapping[str, Array], name: str) -> Standardization:
    return Standardization(arrays[f"{name}.mean"], arrays[f"{name}.scale"])


def _traceable(entry: Activation) -> Activation:
    """Return an activation that says so if its function cannot be traced."""

    def function(xp: Namespace, Z: Array) -> Array:
        try:
            A = entry.function(xp, Z)
            if (type(A), A.dtype, A.ndim) == (type(Z), Z.dtype, Z.ndim):
                return A
            problem = f"it returned {A!r} for {Z!r}"
        except Exception as error:  # noqa: BLE001 - a user's function fails as it likes
            problem = f"{type(error).__name__}: {error}"
        raise InputError(
            f"the activation {entry.name!r} cannot be traced for ONNX ({problem}); write it "
            "with functions of its namespace xp that keep shape and dtype, xp.where for branches",
            argument="net",
        )

    return replace(entry, function=function)


def _outputs(xp: Namespace, net: Network, A: Array) -> dict[str, Array]:
    """Return what ``Network.predict`` and ``Network.predict_proba`` do, by name."""
    if net.output == "softmax":
        return {"label": xp.argmax(A, axis=-1), "probabilities": A}
    output, has_one = net.structure.output, net.structure.n_targets == 1
    result = xp.astype(A > 0.5, xp.int64) if net.output == "sigmoid" else output.point(A)
    if has_one:
        result = xp.squeeze(result, axis=1)
    if net.output != "sigmoid":
        return {"prediction": result, **output.spread(A)}
    return {"label": result, "probabilities": xp.concat([1.0 - A, A], axis=1) if has_one else A}
