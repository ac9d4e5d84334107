"""Estimators in skl2onnx: their converters, registered whichever of the two is imported first.

skl2onnx finds the converter of a class in tables of its own, and asks nobody: neither for the
options of a step nor for the members of a vote or a stack would it ask the estimator. So they are
entered when both are there. Importing nnbackend does not import skl2onnx.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np

from nnbackend.errors import InputError
from nnbackend.io.onnx import traced
from nnbackend.io.sklearn import EncodingEstimator, as_model
from nnbackend.model.network import Network
from nnbackend.model.stack import Stack

__all__ = ["register"]


# What skl2onnx's parser of classifiers makes of the labels and probabilities.
_OPTIONS = {
    "zipmap": [True, False, "columns"],
    "nocl": [True, False],
    "output_class_labels": [False, True],
}
# onnx rewrites a traced graph for opsets down to this one: below it leaves attributes that earlier
# operators do not have.
_LEAST_OPSET = 19


def register(*estimators: type) -> None:
    """Register estimators with skl2onnx: now where it is loaded, else once it is imported."""
    if "skl2onnx" in sys.modules:
        _enter(importlib.import_module("skl2onnx"), estimators)
        return
    for finder in sys.meta_path:
        if isinstance(finder, _OnImport):
            finder.estimators += estimators
            return
    sys.meta_path.insert(0, _OnImport(estimators))


def _enter(skl2onnx: ModuleType, estimators: Iterable[type]) -> None:
    for estimator in estimators:
        skl2onnx.update_registered_converter(
            estimator,
            f"NNBackend{estimator.__name__}",
            _shapes,
            _convert,
            options=_OPTIONS if hasattr(estimator, "predict_proba") else None,
        )


class _OnImport(MetaPathFinder):
    """Registers estimators with skl2onnx once that is imported, and is gone then.

    skl2onnx is found by the other finders, and loaded by its own loader. Of other modules it says
    that it does not know them.
    """

    def __init__(self, estimators: tuple[type, ...]) -> None:
        self.estimators = estimators

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "skl2onnx":
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(fullname, path, target)
            if spec is not None:
                # Looking for a module, without importing it, comes here as well.
                if spec.loader is not None:
                    spec.loader = _Followed(spec.loader, self)
                return spec
        return None


class _Followed(Loader):
    """The loader of skl2onnx, which registers a finder's estimators afterwards."""

    def __init__(self, loader: Loader, finder: _OnImport) -> None:
        self.loader = loader
        self.finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # As if it had been imported without us.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        _enter(module, self.finder.estimators)


def _shapes(operator: Any) -> None:
    """Set the types of an operator's outputs, as skl2onnx's own estimators have them."""
    from skl2onnx.common.data_types import (
        DoubleTensorType,
        FloatTensorType,
        Int64TensorType,
        StringTensorType,
    )
    from skl2onnx.common.utils import check_input_and_output_numbers
    from skl2onnx.common.utils_classifier import get_label_classes

    estimator = operator.raw_operator
    if isinstance(estimator, EncodingEstimator):
        raise InputError(
            f"expected steps that skl2onnx has inputs for, got {type(estimator).__name__}, whose "
            "columns are of several kinds; write the Pipeline, with a network right after it or "
            "after a StandardScaler, with nb.export_onnx(pipeline, path)",
            argument="model",
        )
    is_classifier = hasattr(estimator, "predict_proba")
    n_outputs = 2 if is_classifier else 1
    check_input_and_output_numbers(
        operator, input_count_range=1, output_count_range=[n_outputs, n_outputs]
    )
    given = operator.inputs[0]
    n_samples = given.get_first_dimension()
    floats = DoubleTensorType if isinstance(given.type, DoubleTensorType) else FloatTensorType
    if not is_classifier:
        operator.outputs[0].set_type(floats([n_samples, estimator.n_outputs_]))
        return
    classes = get_label_classes(operator.scope_inst, estimator)
    kind = StringTensorType if classes.dtype.kind in "OUS" else Int64TensorType
    several = [len(classes)] if _is_multilabel(estimator) else []
    operator.outputs[0].set_type(kind([n_samples, *several]))
    operator.outputs[1].set_type(floats([n_samples, len(classes)]))


def _is_multilabel(estimator: Any) -> bool:
    model = as_model(estimator)
    return model.output == "sigmoid" and model.layer_sizes[-1] > 1


def _convert(scope: Any, operator: Any, container: Any) -> None:
    """Add the traced graph of an operator's estimator to what skl2onnx builds."""
    from onnx.compose import add_prefix
    from onnx.version_converter import convert_version
    from skl2onnx.common.utils_classifier import get_label_classes
    from skl2onnx.helpers import add_onnx_graph

    estimator = operator.raw_operator
    classes = None
    if hasattr(estimator, "predict_proba") and not _is_multilabel(estimator):
        classes = get_label_classes(scope, estimator)
    given, *_ = operator.inputs
    returned = operator.outputs[-1]
    kinds = [entry.type.to_onnx_type().tensor_type.elem_type for entry in (given, returned)]
    model = _adapted(as_model(estimator), classes, *kinds)
    opset = container.target_opset_any_domain("")
    if opset < _LEAST_OPSET:
        raise InputError(
            f"expected an opset of at least {_LEAST_OPSET} for {type(estimator).__name__}, got "
            f"{opset}",
            argument="target_opset",
        )
    if opset != model.opset_import[0].version:
        model = convert_version(model, opset)
    # skl2onnx makes its names of these, and does not tell those of constants from others'.
    model = add_prefix(model, f"{operator.onnx_name}/", rename_functions=False)
    for number, node in enumerate(model.graph.node):
        node.name = f"{operator.onnx_name}/{node.op_type}_{number}"
    add_onnx_graph(scope, operator, container, model)


def _adapted(exported: Network | Stack, classes: Any, given: int, returned: int) -> Any:
    """Return a graph that takes and returns what skl2onnx's own estimators do.

    It takes numbers of any kind, and returns classes themselves, floats of the kind ``returned``,
    and predictions with an axis of outputs. It computes in the network's dtype, or in float64
    where features are of that, as the estimator does.
    """
    import onnx
    from onnx import helper

    double = onnx.TensorProto.DOUBLE
    if isinstance(exported, Stack):
        networks = tuple(_as_float64(net) if given == double else net for net in exported.networks)
        model = traced(replace(exported, networks=networks, noise=None))
    else:
        model = traced(_as_float64(exported) if given == double else exported)
    graph = model.graph
    (features,) = graph.input
    kind = features.type.tensor_type
    nodes = [helper.make_node("Cast", ["given"], [features.name], to=kind.elem_type)]
    features.name, kind.elem_type = "given", given
    after, outputs = [], []
    for output in graph.output:
        name = f"{output.name}_returned"
        if output.name != "label":
            cast = output.name
            if cast == "prediction":
                columns = np.asarray([-1, exported.layer_sizes[-1]], np.int64)
                graph.initializer.append(onnx.numpy_helper.from_array(columns, "columns"))
                after.append(helper.make_node("Reshape", [cast, "columns"], ["prediction_columns"]))
                cast = "prediction_columns"
            after.append(helper.make_node("Cast", [cast], [name], to=returned))
            value = helper.make_tensor_value_info(name, returned, ["n_samples", None])
        elif classes is None:
            after.append(helper.make_node("Identity", [output.name], [name]))
            value = helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["n_samples", None])
        else:
            is_text = classes.dtype.kind in "OUS"
            values = onnx.numpy_helper.from_array(
                classes.astype(object if is_text else np.int64), "classes"
            )
            graph.initializer.append(values)
            after.append(helper.make_node("Gather", ["classes", output.name], [name]))
            value = helper.make_tensor_value_info(name, values.data_type, ["n_samples"])
        outputs.append(value)
    nodes += [*graph.node, *after]
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    graph.output.extend(outputs)
    return model


def _as_float64(net: Network) -> Network:
    return net if net.dtype == "float64" else net.astype("float64")
