"""The arguments of the command."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from nnbackend._version import __version__
from nnbackend.cli.bench import bench
from nnbackend.cli.models import evaluate_model, export, info, predict
from nnbackend.cli.presets import SCHEDULES
from nnbackend.cli.terminal import printable
from nnbackend.cli.train import train
from nnbackend.core.activations import ACTIVATIONS
from nnbackend.core.initializers import INITIALIZERS
from nnbackend.core.losses import LOSSES
from nnbackend.core.optimizers import OPTIMIZERS
from nnbackend.data.datasets import DATASETS

__all__ = ["make_parser"]


class _Parser(argparse.ArgumentParser):
    """Repeats what was typed in a form that any terminal can show."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nnbackend",
        description="Train fully connected neural networks on NumPy (CPU) and CuPy (CUDA).",
    )
    parser.add_argument("--version", action="version", version=f"nnbackend {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_predict(commands)
    _add_evaluate(commands)
    _add_export(commands)
    _add_bench(commands)
    _add_info(commands)
    return parser


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network on a file, or on real data that comes along",
        description="Train a network. With no DATA, on the breast-cancer data of scikit-learn. "
        "Defaults are in parentheses; with *, for a file: data that comes along has its own.",
    )
    parser.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="CSV, TSV, Parquet, NPY or NPZ file (needs --target)",
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help=f"data that comes along: {', '.join(DATASETS)}"
    )
    _add_target(parser)
    parser.add_argument(
        "--drop", metavar="COL", action="append", default=[], help="columns to leave out: A,B"
    )
    parser.add_argument(
        "--task",
        choices=["auto", "classification", "regression"],
        default="auto",
        help="auto: text, booleans and whole numbers of at most 20 distinct values are classes",
    )
    network = parser.add_argument_group("network")
    network.add_argument(
        "--hidden", metavar="16,8", help="hidden units by layer, or 'none' (64,32 *)"
    )
    network.add_argument("--activation", metavar="NAME", help=f"{', '.join(ACTIVATIONS)} (relu *)")
    network.add_argument(
        "--initializer", metavar="NAME", help=f"{', '.join(INITIALIZERS)} (by activation *)"
    )
    network.add_argument("--dropout", type=float, metavar="RATE", help="of hidden units (0 *)")
    network.add_argument("--dtype", metavar="NAME", help="float32 (default) or float64")
    network.add_argument("--device", metavar="NAME", help="cpu (default), cuda, cuda:N, auto")
    training = parser.add_argument_group("training")
    training.add_argument(
        "--loss",
        metavar="NAME",
        help=f"{', '.join(name for name in LOSSES if name != 'poisson')} (by task)",
    )
    training.add_argument("--optimizer", metavar="NAME", help=f"{', '.join(OPTIMIZERS)} (adamw *)")
    training.add_argument("--learning-rate", type=float, metavar="RATE", help="(0.001 *)")
    training.add_argument("--weight-decay", type=float, metavar="STRENGTH", help="(0.01 *)")
    training.add_argument("--schedule", metavar="NAME", help=f"{', '.join(SCHEDULES)} (constant *)")
    training.add_argument("--epochs", type=int, metavar="N", help="at most (200 *)")
    training.add_argument("--batch-size", metavar="N", help="examples per step, or 'full' (32 *)")
    training.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="epochs without a lower validation loss (training loss with --validation 0) that end "
        "the training; 0: no early stopping (20 *)",
    )
    training.add_argument("--l1", type=float, metavar="STRENGTH", help="penalty (0)")
    training.add_argument("--l2", type=float, metavar="STRENGTH", help="penalty (0)")
    training.add_argument("--clip-norm", type=float, metavar="NORM", help="(no clipping)")
    training.add_argument("--engine", metavar="NAME", help="auto (default), reference, cpu, cuda")
    training.add_argument(
        "--precision",
        metavar="NAME",
        help="of products, with --engine cuda: float32 (default), tf32, bfloat16",
    )
    training.add_argument("--seed", type=int, metavar="N", help="of the split and the training (0)")
    training.add_argument("--validation", type=float, metavar="SHARE", help="default 0.2")
    training.add_argument("--held-out", type=float, metavar="SHARE", help="default 0.2")
    parser.add_argument("--out", metavar="FOLDER", help="run folder (default: runs/NAME-DATE-TIME)")
    parser.add_argument(
        "--checkpoint-every",
        metavar="N",
        help="epochs, such as 10 or 0.5, or a time, such as 30s, 10min, 1h (1min)",
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a run that was broken off, or, with more --epochs, one that is complete",
    )
    _add_json(parser)
    parser.set_defaults(run=train)


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser("predict", help="apply a saved model to a file")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("data", metavar="DATA")
    parser.add_argument(
        "--probabilities", action="store_true", help="add a column for each class's probability"
    )
    parser.add_argument("--out", metavar="FILE", help="write CSV there instead of to the terminal")
    parser.add_argument("--device", default="cpu", metavar="NAME")
    _add_json(parser)
    parser.set_defaults(run=predict)


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="measure a saved model on a file with targets")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("data", metavar="DATA")
    _add_target(parser)
    parser.add_argument("--device", default="cpu", metavar="NAME")
    _add_json(parser)
    parser.set_defaults(run=evaluate_model)


def _add_export(commands: Any) -> None:
    parser = commands.add_parser("export", help="write a saved model as an ONNX file")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "out",
        metavar="OUT",
        help="the ONNX file, such as model.onnx; what exists is replaced if it ends in .onnx",
    )
    _add_json(parser)
    parser.set_defaults(run=export)


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure training throughput on every device, against every installed peer",
        description="Time training steps, each contestant in a process of its own, in turns. "
        "Workloads: planar, small, images, mnist, higgs, wide; and digits, trained to an accuracy. "
        "With none named, all of them.",
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD")
    own = parser.add_argument_group("a workload of your own")
    own.add_argument("--layers", metavar="64-256-1", help="units of each layer, input to output")
    own.add_argument("--batch", type=int, metavar="N", help="examples per step (default 128)")
    own.add_argument("--hidden", metavar="NAME", help=", ".join(ACTIVATIONS))
    own.add_argument("--output", metavar="NAME", help="sigmoid or softmax")
    own.add_argument("--optimizer", metavar="NAME", help="adam (default) or sgd")
    parser.add_argument(
        "--contestants",
        metavar="A,B",
        help="nnbackend, nnbackend-ENGINE, textbook, sklearn, torch, torch-graph, torch-compiled, "
        "jax, jax-scan",
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:N (default: all)")
    parser.add_argument(
        "--precision",
        metavar="NAME",
        help="of products on GPUs: float32 (default), tf32, bfloat16",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each (default 7)")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="what a turn lasts, at least (default 0.5)"
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds of 0.2 s")
    parser.add_argument("--out", metavar="FOLDER", help="default: runs/bench-DATE-TIME")
    _add_json(parser)
    parser.set_defaults(run=bench)


def _add_info(commands: Any) -> None:
    parser = commands.add_parser("info", help="devices, versions and BLAS; or what a model is")
    parser.add_argument("model", nargs="?", metavar="MODEL")
    _add_json(parser)
    parser.set_defaults(run=info)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target",
        metavar="COL",
        help="target column: a name; an index in NPY (-1 is the last); a key in NPZ (default y)",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )
