"""Files of earlier versions keep loading: models, checkpoints, and runs of the command."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import old_files
import pytest

import nnbackend as nb

EXPECTED = json.loads((old_files.FOLDER / "expected.json").read_text())
NAMES = list(old_files.networks())
# The versions of NumPy and of the BLAS may differ from those that the files were written with.
RELATIVE_ERROR = {"float32": 1e-5, "float64": 1e-11}


def assert_forward(net, expected):
    error = RELATIVE_ERROR[net.dtype]
    np.testing.assert_allclose(net.forward(old_files.SIGNS[:6]), expected, rtol=error, atol=error)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_0_1_0_loads(name):
    net = nb.load(old_files.FOLDER / f"{name}.safetensors")
    original = old_files.networks()[name][0]
    assert repr(net) == repr(original)
    assert (net.feature_names, net.class_names) == (original.feature_names, original.class_names)
    assert_forward(net, EXPECTED[name]["forward"])


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_0_1_0_loads_as_a_model(name):
    (path,) = (old_files.FOLDER / f"{name}-checkpoints").glob("*.safetensors")
    assert_forward(nb.load(path), EXPECTED[name]["checkpoint"])


@pytest.mark.parametrize("name", NAMES)
def test_a_training_of_0_1_0_goes_on_from_mid_epoch(name, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(old_files.FOLDER / f"{name}-checkpoints", folder)
    net, history = old_files.train(name, 8, checkpoint=folder, resume=True)
    error = RELATIVE_ERROR[net.dtype]
    np.testing.assert_allclose(history.loss, EXPECTED[name]["loss"], rtol=error)
    assert_forward(net, EXPECTED[name]["finished"])


def run(*arguments, cwd):
    command = [sys.executable, "-m", "nnbackend", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_a_run_of_0_1_0_predicts_and_goes_on(tmp_path):
    for name in ("run", "signs.csv"):
        copy = shutil.copytree if name == "run" else shutil.copy
        copy(old_files.FOLDER / name, tmp_path / name)
    predicted = run("predict", "run", "signs.csv", cwd=tmp_path).split()
    assert predicted[0] == "prediction"
    assert set(predicted[1:]) <= set("abc")
    printed = run("train", "--resume", "run", "--epochs", "6", cwd=tmp_path)
    assert re.search(r"epochs +6 \(completed\)", printed)
