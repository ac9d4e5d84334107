"""What stands before a network in a Pipeline, as ONNX: skl2onnx's graph in front of ours."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from nnbackend.errors import InputError, MissingDependencyError
from nnbackend.io.convert import import_library
from nnbackend.io.sklearn import EncodingEstimator

__all__ = ["behind", "split"]


_TEXT = "OUS"


def split(net: Any) -> tuple[Any, Any]:
    """Return the steps of a Pipeline that take skl2onnx, and the estimator after them.

    None, and what was given, for all else, and where an encoder of tables, a scaler, or both are
    all there is: a network can have these in it.
    """
    if not hasattr(net, "steps"):
        return None, net
    pipeline = import_library("sklearn.pipeline", "scikit-learn").Pipeline
    standard = import_library("sklearn.preprocessing", "scikit-learn").StandardScaler
    if not isinstance(net, pipeline):
        return None, net
    *before, last = [
        (name, step) for name, step in net.steps if step is not None and step != "passthrough"
    ]
    kinds = (EncodingEstimator, standard)
    found = [kind for _, step in before for kind in kinds if isinstance(step, kind)]
    if len(found) == len(before) and found in ([], [EncodingEstimator], [standard], [*kinds]):
        return None, pipeline([*before, last]) if before else last[1]
    return pipeline(before), last[1]


def behind(head: Any, model: Any) -> Any:
    """Return a network's ``onnx.ModelProto`` with what ``split`` returned as ``head`` before it.

    Its only input is X if all columns are of one kind, numbers or text. If not, each is an input of
    its name and the shape (n_samples, 1); those that no step reads are none.
    """
    try:
        import skl2onnx  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"exporting the steps of scikit-learn's before a network needs {error.name}; install "
            "it with: pip install skl2onnx"
        ) from error
    import onnxruntime
    from onnx import compose, helper

    steps = _converted(head, model)
    features = model.graph.input[0].type.tensor_type.elem_type
    model = compose.add_prefix(model, "network/", rename_outputs=False, rename_functions=False)
    (transformed,) = steps.graph.output
    # Encoders give other numbers than the network takes.
    cast = "steps/features"
    steps.graph.node.append(helper.make_node("Cast", [transformed.name], [cast], to=features))
    transformed.name, transformed.type.tensor_type.elem_type = cast, features
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    merged = compose.merge_models(
        steps,
        model,
        io_map=[(cast, model.graph.input[0].name)],
        name=model.graph.name,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
    )
    # The opset of either half is in it.
    opsets = {entry.domain: entry for entry in merged.opset_import}
    del merged.opset_import[:]
    merged.opset_import.extend(opsets.values())
    read = {name for node in merged.graph.node for name in node.input}
    kept = [entry for entry in merged.graph.input if entry.name in read]
    for entry in kept:
        entry.type.tensor_type.shape.dim[0].dim_param = "n_samples"
    del merged.graph.input[:]
    merged.graph.input.extend(kept)
    metadata.pop("feature_names", None)
    given = getattr(head, "feature_names_in_", None)
    if given is not None:
        metadata["feature_names"] = json.dumps(given.tolist())
    helper.set_model_props(merged, metadata)
    # What skl2onnx writes is not always a graph, nor one that there are operators for in float64.
    with _naming(head, "onnxruntime cannot run what skl2onnx makes of"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        onnxruntime.InferenceSession(
            merged.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    return merged


def _converted(head: Any, model: Any) -> Any:
    """Return the graph of steps, its inner names in a space of their own."""
    import skl2onnx
    from onnx import compose
    from sklearn.exceptions import NotFittedError
    from sklearn.impute import SimpleImputer
    from sklearn.utils.validation import check_is_fitted

    for _, step in head.steps:
        try:
            check_is_fitted(step)
        except NotFittedError as error:
            raise InputError(
                f"expected a fitted Pipeline, got one whose {type(step).__name__} is not fitted; "
                "call fit first",
                argument="net",
            ) from error
    features = model.graph.input[0].type.tensor_type.elem_type
    opset = model.opset_import[0].version
    inputs = _inputs(head, features, {output.name for output in model.graph.output})
    with _naming(head, "skl2onnx cannot convert"):
        steps = skl2onnx.convert_sklearn(
            type(head)([(name, _numbered(step)) for name, step in head.steps]),
            initial_types=inputs,
            target_opset=opset,
            custom_conversion_functions={SimpleImputer: _convert_imputer},
        )
    # skl2onnx says the earliest that has the operators; they are those of ours.
    others = [entry for entry in steps.opset_import if entry.domain]
    del steps.opset_import[:]
    steps.opset_import.extend([*others, *model.opset_import])
    steps.ir_version = model.ir_version
    steps = compose.add_prefix(steps, "steps/", rename_functions=False)
    # skl2onnx makes identifiers of columns' names.
    columns = {}
    for entry, (name, _) in zip(steps.graph.input, inputs, strict=True):
        columns[entry.name], entry.name = name, name
    for node in steps.graph.node:
        node.input[:] = [columns.get(name, name) for name in node.input]
    return steps


@contextmanager
def _naming(head: Any, problem: str) -> Iterator[None]:
    """Say which steps an error of another library is about, and what to do."""
    try:
        yield
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        names = ", ".join(type(step).__name__ for _, step in head.steps)
        raise InputError(
            f"{problem} the steps before the network, {names} ({type(error).__name__}: {text}); "
            "export the network alone, pipeline[-1], and transform its features before",
            argument="net",
        ) from error


def _convert_imputer(scope: Any, operator: Any, container: Any) -> None:
    """Add a SimpleImputer to what skl2onnx builds.

    skl2onnx's own takes an operator that onnxruntime has in float32 alone, and no gaps in text that
    are not text themselves. ONNX has no others: here a gap in text is the empty text.
    """
    from skl2onnx.common.data_types import StringTensorType, guess_proto_type

    imputer = operator.raw_operator
    fill, missing = imputer.statistics_, imputer.missing_values
    is_text = isinstance(operator.inputs[0].type, StringTensorType)
    if imputer.add_indicator:
        raise NotImplementedError("a SimpleImputer with add_indicator=True")
    if any(value != value for value in fill.tolist()):  # noqa: PLR0124 - NaN, also as an object
        raise NotImplementedError("a SimpleImputer of a column without values")
    names = iter([scope.get_unique_variable_name(f"imputed{i}") for i in range(4)])

    def constant(values: Any) -> str:
        name: str = next(names)
        values = np.asarray(values)
        kind = guess_proto_type(operator.inputs[0].type)
        container.add_initializer(name, kind, values.shape, values.ravel().tolist())
        return name

    def added(operation: str, inputs: list[str], **attributes: Any) -> str:
        name: str = next(names)
        container.add_node(operation, inputs, [name], **attributes)
        return name

    X = operator.inputs[0].full_name
    if len(operator.inputs) > 1:
        X = added("Concat", [entry.full_name for entry in operator.inputs], axis=1)
    if is_text:
        gap = missing if isinstance(missing, str) else ""
        is_gap = added("Equal", [X, constant([gap.encode()])])
        fill = np.asarray([str(value).encode() for value in fill])
    elif missing is None or missing != missing:  # noqa: PLR0124
        is_gap = added("IsNaN", [X])
    else:
        is_gap = added("Equal", [X, constant([missing])])
    outputs = [operator.outputs[0].full_name]
    container.add_node("Where", [is_gap, constant(fill), X], outputs)


def _inputs(head: Any, features: int, outputs: set[str]) -> list[tuple[str, Any]]:
    """Return names and types of the columns that steps are fitted to."""
    from onnx import TensorProto
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, StringTensorType

    numbers = DoubleTensorType if features == TensorProto.DOUBLE else FloatTensorType
    # Vectorizers of text do not count: they take one column.
    are_text = _are_text(head, getattr(head, "n_features_in_", 1))
    kinds = [StringTensorType if is_text else numbers for is_text in are_text]
    if len(set(kinds)) == 1:
        return [("X", kinds[0]([None, len(kinds)]))]
    given = getattr(head, "feature_names_in_", None)
    names = [f"x{i}" for i in range(len(kinds))] if given is None else given.tolist()
    taken = sorted(outputs.intersection(names))
    if taken:
        raise InputError(
            f"expected other names of columns than those of the outputs, got {taken[0]!r}; rename "
            "the column and fit again",
            argument="net",
        )
    return [(name, kind([None, 1])) for name, kind in zip(names, kinds, strict=True)]


def _are_text(step: Any, n_columns: int) -> list[bool]:
    """Return for each column that a fitted transformer takes whether it holds text."""
    if hasattr(step, "steps"):
        return _are_text(step.steps[0][1], n_columns)
    if hasattr(step, "transformer_list"):
        parts = [_are_text(part, n_columns) for _, part in step.transformer_list]
        return [any(column) for column in zip(*parts, strict=True)]
    if hasattr(step, "transformers_"):
        found = [False] * n_columns
        for _, part, indices in _numbered(step).transformers_:
            for index, is_text in zip(indices, _are_text(part, len(indices)), strict=True):
                found[index] = found[index] or is_text
        return found
    if hasattr(step, "categories_"):
        return [_holds_text(categories) for categories in step.categories_]
    if hasattr(step, "statistics_"):
        # An imputer's fill values are objects where the columns are.
        return [step.statistics_.dtype.kind in _TEXT] * n_columns
    return [hasattr(step, "vocabulary_")] * n_columns


def _holds_text(categories: Any) -> bool:
    """Return whether categories are text; raise if only some are: ONNX has no columns of both."""
    of_text = [isinstance(value, str) for value in categories.tolist()]
    if any(of_text) and not all(of_text):
        other = categories.tolist()[of_text.index(False)]
        raise InputError(
            f"expected text alone in a column of categories, got {other!r} among them; put a "
            "SimpleImputer(strategy='constant', fill_value='missing') before the encoder",
            argument="net",
        )
    return all(of_text)


def _numbered(step: Any) -> Any:
    """Return a fitted ColumnTransformer with the numbers of its columns; another step as it is.

    skl2onnx takes neither all that scikit-learn does, nor names that are no identifiers.
    """
    if not hasattr(step, "transformers_"):
        return step
    numbered = copy.copy(step)
    names = getattr(step, "feature_names_in_", np.empty(0, object)).tolist()
    n_columns = step.n_features_in_
    numbered.transformers_ = [
        (name, part, _indices(columns, n_columns, names))
        for name, part, columns in step.transformers_
    ]
    return numbered


def _indices(columns: Any, n_columns: int, names: list[str]) -> list[int]:
    """Return the numbers of columns that are given as names, numbers, a slice or a mask."""
    numbers = list(range(n_columns))
    if isinstance(columns, slice):
        first, end = columns.start, columns.stop
        if isinstance(first, str):
            first = names.index(first)
        if isinstance(end, str):
            end = names.index(end) + 1
        return numbers[first : end : columns.step]
    chosen = np.atleast_1d(np.asarray(columns))
    if chosen.dtype.kind in _TEXT:
        return [names.index(name) for name in chosen.tolist()]
    return [numbers[i] for i in (np.flatnonzero(chosen) if chosen.dtype == bool else chosen)]
