"""The columns of a table as inputs of an ONNX file: the formulas of ``core``, traced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nnbackend.core.types import Array, Namespace
from nnbackend.data.encoding import Categories, ColumnEncoding, TableEncoding
from nnbackend.errors import InputError

__all__ = ["columns_of", "encoded", "name_columns"]

# How an input has the values of a column of each kind.
_DTYPES = {"number": "float64", "boolean": "float64", "text": "utf8", "date": "int64"}


def columns_of(ndonnx: Any, encoding: TableEncoding) -> dict[str, Array]:
    """Return the arguments (n_samples, 1) of a trace, one per column that predictions take.

    Their names are numbers, which ``name_columns`` replaces.
    """
    return {
        _placeholder(i): ndonnx.argument(
            shape=("n_samples", 1), dtype=getattr(ndonnx, _DTYPES[column.kind])
        )
        for i, column in enumerate(encoding.used)
    }


def encoded(xp: Namespace, encoding: TableEncoding, columns: Mapping[str, Array]) -> Array:
    """Return the inputs of the network (n_samples, n_outputs), in float64."""
    parts = [
        column.apply(xp, _given(xp, column, xp.squeeze(x, axis=1)))
        for column, x in zip(encoding.used, columns.values(), strict=True)
    ]
    return xp.concat(parts, axis=1)


def _given(xp: Namespace, column: ColumnEncoding, x: Array) -> Array:
    """Return what a column's ``apply`` takes of the values of an input."""
    if not isinstance(column, Categories):
        return x
    import spox.opset.ai.onnx.ml.v4 as operators

    codes, missing = column.codes, column.missing_code
    if column.kind == "text":
        codes = {**codes, "": missing}
        found = operators.label_encoder(
            x.unwrap_spox(),
            keys_strings=list(codes),
            values_int64s=list(codes.values()),
            default_int64=-1,
        )
        return xp.asarray(found)
    found = operators.label_encoder(
        x.unwrap_spox(),
        keys_tensor=np.asarray(list(codes), np.float64),
        values_tensor=np.asarray(list(codes.values()), np.float64),
        default_tensor=np.asarray([-1.0]),
    )
    places = xp.astype(xp.asarray(found), xp.int64)
    return xp.where(xp.isnan(x), missing * xp.ones_like(places), places)


def _placeholder(number: int) -> str:
    return f"column {number}"


def name_columns(model: Any, encoding: TableEncoding) -> Any:
    """Return a traced ``onnx.ModelProto`` whose inputs have the names of the columns.

    Raises
    ------
    InputError
        If a name cannot be that of an input.
    """
    from onnx import compose, helper

    names = encoding.feature_names
    outputs = {output.name for output in model.graph.output}
    for name in names:
        if not name or name in outputs:
            problem = "the name of an output" if name else "no name in ONNX"
            raise InputError(
                f"expected other names of columns, got {name!r}, which is {problem}; rename the "
                "column and fit again",
                argument="net",
            )
    inner = {value for node in model.graph.node for value in node.output}
    inner |= {tensor.name for tensor in model.graph.initializer}
    inner |= {_placeholder(i) for i in range(len(names))}
    if inner & set(names):
        prefix = "network/"
        while any(name.startswith(prefix) for name in names):
            prefix += "/"
        model = compose.add_prefix(model, prefix, rename_outputs=False, rename_functions=False)
    nodes = list(model.graph.node)
    for entry, name in zip(model.graph.input, names, strict=True):
        nodes.insert(0, helper.make_node("Identity", [name], [entry.name]))
        entry.name = name
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
