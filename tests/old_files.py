"""How files_0_1_0 was written: python tests/old_files.py, with nnbackend 0.1.0.

Every later version has to read them as they are. Columns of -1 and 1 have moments that no
algorithm rounds, so digests of data and standardization do not depend on the machine.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import nnbackend as nb

FOLDER = Path(__file__).parent / "files_0_1_0"
SIGNS = np.array(list(itertools.product([-1.0, 1.0], repeat=5)))
LABELS = (SIGNS[:, 0] * SIGNS[:, 1] > 0).astype(int)
KINDS = (SIGNS[:, 2] + SIGNS[:, 3] + 2).astype(int) // 2
VALUES = 1000.0 + 50.0 * SIGNS[:, 0] * SIGNS[:, 4]


def networks() -> dict[str, tuple[nb.Network, Any, dict[str, Any]]]:
    """Return a network of each kind, its targets, and how it is trained."""
    binary = nb.Network([5, 8, 4, 1], hidden=["tanh", "relu"], dropout=[0.1, 0.0], dtype="float64")
    binary.feature_names = tuple(f"sign {i}" for i in range(5))
    binary.class_names = ("same", "different")
    classes = nb.Network([5, 6, 3], hidden="gelu", output="softmax").standardize(SIGNS)
    values = nb.Network([5, 7, 1], hidden="silu", output="identity", dtype="float64")
    values.standardize(SIGNS, VALUES)
    # Its rates do not depend on how many epochs are asked for.
    schedule = nb.schedules.Exponential(0.02, 0.9)
    return {
        "binary": (binary, LABELS, {"optimizer": nb.Adam(0.01), "l2": 1e-3}),
        "classes": (
            classes,
            KINDS,
            {"optimizer": nb.SGD(schedule, momentum=0.9), "clip_norm": 1.0},
        ),
        "values": (
            values,
            VALUES,
            {
                "optimizer": nb.AdamW(0.01),
                "loss": "huber",
                "validation_data": (SIGNS[::3], VALUES[::3]),
                "early_stopping": nb.EarlyStopping(patience=50),
            },
        ),
    }


def train(name: str, epochs: int, **options: Any) -> tuple[nb.Network, nb.History]:
    """Train a network of ``networks`` on the reference engine."""
    net, y, how = networks()[name]
    history = nb.train(
        net, SIGNS, y, epochs=epochs, batch_size=12, seed=3, engine="reference", **how, **options
    )
    return net, history


def main() -> None:
    """Write models, checkpoints in mid-epoch, a run of the command, and what they predict."""
    expected: dict[str, Any] = {"version": nb.__version__}
    for name in networks():
        folder = FOLDER / f"{name}-checkpoints"
        shutil.rmtree(folder, ignore_errors=True)
        net, _ = train(name, 4, checkpoint=folder, checkpoint_every=1 / 3, checkpoints_kept=4)
        # The newest is at the end: the one before it is in mid-epoch.
        newest, chosen, *older = sorted(folder.glob("*.safetensors"), reverse=True)
        for path in (newest, *older):
            path.unlink()
        nb.save(net, FOLDER / f"{name}.safetensors")
        finished, history = train(name, 8)
        expected[name] = {
            "forward": net.forward(SIGNS[:6]).tolist(),
            "checkpoint": nb.load(chosen).forward(SIGNS[:6]).tolist(),
            "finished": finished.forward(SIGNS[:6]).tolist(),
            "loss": history.loss,
        }
    command()
    (FOLDER / "expected.json").write_text(f"{json.dumps(expected, indent=1)}\n")


def command() -> None:
    """Write a run of the command that has taken 3 of its 6 epochs."""
    header = ",".join([*(f"sign {i}" for i in range(5)), "kind"])
    rows = [",".join(map(str, [*x, "abc"[k]])) for x, k in zip(SIGNS, KINDS, strict=True)]
    data, run = FOLDER / "signs.csv", FOLDER / "run"
    data.write_text("\n".join([header, *rows, ""]))
    shutil.rmtree(run, ignore_errors=True)
    arguments = (
        "--target kind --hidden 6 --optimizer adam --validation 0 --held-out 0 --patience 0 "
        "--engine reference --dtype float64 --epochs 3 --checkpoint-every 1 --out run"
    )
    nnbackend = [sys.executable, "-m", "nnbackend"]
    subprocess.run(
        [*nnbackend, "train", data.name, *arguments.split()], check=True, cwd=FOLDER,
        stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(FOLDER.parents[1])},
    )  # fmt: skip
    for path in run.rglob("*"):
        if path.suffix in (".png", ".csv") or path.name == "history.json":
            path.unlink()
    files = sorted((run / "checkpoints").glob("*.safetensors"))
    for path in files[:-1]:
        path.unlink()
    command_file = run / "command.json"
    command_file.write_text(command_file.read_text().replace(str(data), data.name))


if __name__ == "__main__":
    main()
