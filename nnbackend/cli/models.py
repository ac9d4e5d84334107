"""``nnbackend predict``, ``evaluate``, ``export`` and ``info``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnbackend.checks import listed
from nnbackend.cli.naming import naming
from nnbackend.cli.parser import add_json, add_na, add_target, texts_of
from nnbackend.cli.printing import LINE_NAMES, print_lines, score_lines
from nnbackend.cli.terminal import csv_text, printable, to_json, write_csv
from nnbackend.errors import InputError

if TYPE_CHECKING:
    from nnbackend.data.tables import FileTable
    from nnbackend.data.target import Target
    from nnbackend.model.network import Network
    from nnbackend.model.stack import Stack

__all__ = ["add"]


def add(commands: Any) -> None:
    """Declare the commands."""
    names = {"path": "MODEL", "X": "DATA", "device": "--device", "coverage": "--coverage"}
    parser = commands.add_parser("predict", help="apply a saved model to a file")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("data", metavar="DATA")
    parser.add_argument(
        "--probabilities", action="store_true", help="add a column for each class's probability"
    )
    parser.add_argument(
        "--coverage",
        type=float,
        metavar="SHARE",
        help="add the ends, lower and upper, of intervals that hold this share of the targets",
    )
    parser.add_argument("--out", metavar="FILE", help="write CSV there instead of to the terminal")
    parser.add_argument("--device", default="cpu", metavar="NAME")
    add_na(parser)
    add_json(parser)
    parser.set_defaults(run=_predict, names=names)

    parser = commands.add_parser("evaluate", help="measure a saved model on a file with targets")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("data", metavar="DATA")
    add_target(parser)
    parser.add_argument("--device", default="cpu", metavar="NAME")
    add_na(parser)
    add_json(parser)
    parser.set_defaults(run=_evaluate, names=names)

    parser = commands.add_parser("export", help="write a saved model as an ONNX file")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "out",
        metavar="OUT",
        help="the ONNX file, such as model.onnx; what exists is replaced if it ends in .onnx",
    )
    add_json(parser)
    parser.set_defaults(run=_export, names=names)

    parser = commands.add_parser("info", help="devices, versions and BLAS; or what a model is")
    parser.add_argument("model", nargs="?", metavar="MODEL")
    add_json(parser)
    parser.set_defaults(run=_info, names=names)


@dataclass(frozen=True)
class _Given:
    """A model and a file: what the model takes of it, and how it reads the target."""

    net: Network | Stack
    table: FileTable
    target: Target
    X: Any


def _given(options: argparse.Namespace) -> _Given:
    """Read a model and a file, by the kinds that the model knows."""
    from nnbackend.cli.run_folder import model_file
    from nnbackend.data.tables import read_table
    from nnbackend.data.target import Target
    from nnbackend.io.models import read

    net = read(model_file(options.model), device=options.device)
    target = net.target or Target.of_classes(_class_names(net))
    encoding = net.encoding
    kinds = dict.fromkeys(net.feature_names or (), "number")
    if encoding is not None:
        kinds = {column.name: column.kind for column in encoding.used}
    column = getattr(options, "target", None) or target.name
    if column is not None:
        kinds[column] = target.kind
    na = target.na if options.na is None else texts_of(options.na)
    table = read_table(options.data, kinds, na)
    if encoding is not None:
        return _Given(net, table, target, table)
    known = net.feature_names or ()
    missing = [name for name in known if name not in table.columns]
    if known and not missing:
        names = list(known)
    elif known and table.has_names:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"expected the model's {len(known)} feature columns, {missing[0]!r} is missing "
            f"in {options.data}{more}",
            argument="DATA",
        )
    else:
        column = getattr(options, "target", None) or table.target
        left_out = {None if column is None else table.column("--target", column)}
        names = [name for name in table.columns if name not in left_out]
        if len(names) != net.layer_sizes[0]:
            raise InputError(
                f"expected {net.layer_sizes[0]} feature columns, as many as the model's "
                f"input layer, got {len(names)} in {options.data}",
                argument="DATA",
            )
    return _Given(net, table, target, table.numbers(names))


def _class_names(net: Network | Stack) -> tuple[str, ...] | None:
    if net.output not in ("sigmoid", "softmax"):
        return None
    return net.class_names or tuple(str(i) for i in range(max(2, net.layer_sizes[-1])))


def _predict(options: argparse.Namespace) -> None:
    from nnbackend.cli.evaluation import finite_predictions
    from nnbackend.cli.run_folder import model_file

    given = _given(options)
    net, X = given.net, given.X
    if options.probabilities and net.output not in ("sigmoid", "softmax"):
        raise InputError(
            "expected a classifier, got the model of a regression", argument="--probabilities"
        )
    predicted = finite_predictions(net, X)
    columns: list[tuple[str, list[Any]]]
    if predicted.ndim == 1:
        values = predicted.tolist()
        if net.output in ("sigmoid", "softmax") and net.class_names is not None:
            values = [net.class_names[k] for k in values]
        columns = [("prediction", values)]
    else:
        columns = [(f"prediction_{k}", values.tolist()) for k, values in enumerate(predicted.T)]
    columns += _spread(net, X, options.coverage)
    if options.probabilities:
        probability = net.predict_proba(X)
        names = net.class_names or tuple(str(k) for k in range(probability.shape[1]))
        columns += [
            (f"probability_{name}", values.tolist())
            for name, values in zip(names, probability.T, strict=True)
        ]
    if options.out is None:
        if options.json:
            sys.stdout.write(to_json(dict(columns)))
        else:
            write_csv(columns)
        return
    from nnbackend.io.files import write_atomically

    for name, path in (("MODEL", model_file(options.model)), ("DATA", options.data)):
        if os.path.exists(options.out) and os.path.samefile(options.out, path):
            raise InputError(
                f"expected a file other than {name}, got {options.out!r}, which it is",
                argument="--out",
            )
    text = to_json(dict(columns)) if options.json else csv_text(columns)
    with naming(path="--out"):
        write_atomically(options.out, text.encode())


def _spread(net: Network | Stack, X: Any, coverage: float | None) -> list[tuple[str, list[Any]]]:
    """Return columns that say how far the targets are spread, of a model that knows it."""
    import numpy as np

    from nnbackend.cli.evaluation import finite_outputs
    from nnbackend.model.stack import Stack

    output = net.structure.output
    if coverage is not None and not output.is_distribution:
        raise InputError(
            "expected a model that was trained with --loss gaussian or --loss quantile, got one "
            f"with the output {net.output!r}, which tells no intervals",
            argument="--coverage",
        )
    columns: list[tuple[str, Any]] = []
    if isinstance(net, Stack):
        if net.noise is not None:
            # A row for each target.
            std = np.atleast_2d(net.predict_std(X).T)
            one = len(std) == 1
            columns += [("std" if one else f"std_{k}", values) for k, values in enumerate(std)]
    elif output.is_distribution:
        for name, values in output.spread(finite_outputs(net, X)).items():
            if name == "quantiles":
                levels = zip(net.quantiles or (), values.T, strict=True)
                columns += [(f"quantile_{level!r}", quantile) for level, quantile in levels]
            else:
                columns.append((name, values))
        if coverage is not None:
            ends = net.predict_interval(X, coverage).T
            columns += zip(("lower", "upper"), ends, strict=True)
    return [(name, values.tolist()) for name, values in columns]


def _evaluate(options: argparse.Namespace) -> None:
    from nnbackend.cli.evaluation import evaluate

    given = _given(options)
    net, table = given.net, given.table
    n_outputs = net.structure.n_targets
    if n_outputs > 1 and net.output != "softmax":
        raise InputError(
            f"expected a model of one target, got one of {n_outputs}, which one column "
            "cannot measure; write what predict gives with --out, and compare it column by column",
            argument="MODEL",
        )
    column = options.target or table.target
    if column is None and given.target.name in table.columns:
        column = given.target.name
    if column is None:
        raise InputError("expected the column with the true values, got none", argument="--target")
    column = table.column("--target", column)
    table.require_complete([column])
    y = given.target.encode(column, table.columns[column], table.name)
    scores = evaluate(net, given.X, y)
    if options.json:
        sys.stdout.write(to_json(scores))
    else:
        print_lines(score_lines(scores))


def _export(options: argparse.Namespace) -> None:
    from nnbackend.cli.run_folder import model_file
    from nnbackend.io.models import read
    from nnbackend.io.onnx import exported

    model = model_file(options.model)
    net = read(model)
    if os.path.exists(options.out) and os.path.samefile(options.out, model):
        raise InputError(
            f"expected a file other than the model, got {options.out!r}, which is the model",
            argument="OUT",
        )
    with naming(path="OUT"):
        graph = exported(net, options.out).graph
    inputs, outputs = ([entry.name for entry in side] for side in (graph.input, graph.output))
    if options.json and not _is_standard_output(options.out):
        sys.stdout.write(to_json({"file": options.out, "inputs": inputs, "outputs": outputs}))
        return
    taken = [("input", f"X (n_samples, {net.layer_sizes[0]}) {net.dtype}")]
    if net.encoding is not None:
        names = printable(listed(inputs, LINE_NAMES, str))
        taken = [("inputs", f"{names}, each (n_samples, 1)")]
    lines = [("file", options.out), *taken, ("outputs", ", ".join(outputs))]
    print_lines(lines, sys.stderr if _is_standard_output(options.out) else None)


def _is_standard_output(path: str) -> bool:
    """Whether a path leads to where this process prints, such as /dev/stdout."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.stat(path), os.fstat(1))
    return False


def _facts(model: Network | Stack, most: int | None) -> dict[str, Any]:
    """Return what a model is; of its names at most ``most``, as text, unless it is None."""
    from nnbackend.data.encoding import described
    from nnbackend.model.stack import Stack

    def told(names: Sequence[str] | None) -> Any:
        if names is None or most is None:
            return None if names is None else list(names)
        return listed(names, most, str)

    net = model.networks[0] if isinstance(model, Stack) else model
    noise = model.noise if isinstance(model, Stack) else None
    return {
        **({"members": len(model.networks)} if isinstance(model, Stack) else {}),
        **({} if noise is None else {"noise": noise.tolist()}),
        "layer sizes": net.layer_sizes,
        "hidden": list(net.hidden),
        "output": net.output,
        **({} if net.quantiles is None else {"quantiles": list(net.quantiles)}),
        "dropout": list(net.dropout),
        "dtype": net.dtype,
        "parameters": model.n_parameters,
        "standardized": net.standardization is not None,
        "features": told(net.feature_names),
        "classes": told(net.class_names),
        **({} if net.target is None else {"data": dict(net.target.facts)}),
        **(
            {} if net.encoding is None else {"columns": dict(described(net.encoding.columns, most))}
        ),
    }


def _info(options: argparse.Namespace) -> None:
    from nnbackend.cli.run_folder import model_file

    if options.model is not None:
        from nnbackend.io.models import read

        facts = _facts(read(model_file(options.model)), None if options.json else LINE_NAMES)
    else:
        from nnbackend.bench.environment import environment

        facts = environment()
    if options.json:
        sys.stdout.write(to_json(facts))
        return
    lines: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, dict) and name in ("data", "columns"):
            lines += value.items()
            continue
        entries = value if isinstance(value, list) and name in ("devices", "BLAS") else [value]
        for entry in entries:
            shown = ", ".join(map(str, entry.values())) if isinstance(entry, dict) else entry
            lines.append((name, str(shown)))
    print_lines(lines)
