"""Training in several processes: the result of one, and all of them end together."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from launcher import PATIENCE, UNDER_MPI, launch_under_mpi, mpiexec

import nnbackend as nb

pytestmark = UNDER_MPI

PROGRAMS = os.path.join(os.path.dirname(__file__), "training_programs.py")


def launch(n, *arguments):
    done = launch_under_mpi(PROGRAMS, n, *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.mark.parametrize("n", [2, 4])
def test_the_result_is_that_of_one_process(n):
    launch(n, "equal")


def test_float32_sums_are_the_same_bits_everywhere():
    launch(3, "float32")


def test_rank_0_alone_speaks():
    launch(2, "one_speaks")


@pytest.mark.parametrize("n", [2, 3])
def test_a_checkpoint_is_gone_on_from(n, tmp_path):
    launch(n, "go_on", tmp_path)


@pytest.mark.parametrize("n", [2, 3])
def test_what_fails_on_one_process_ends_all(n, tmp_path):
    (tmp_path / "file").touch()
    launch(n, "fail", tmp_path)


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path):
    launch(3, "stop", tmp_path)


def command(n, *arguments):
    return [*mpiexec(), "-n", str(n), sys.executable, "-m", "nnbackend", "train", *arguments]


def run(n, *arguments):
    return subprocess.run(
        command(n, *arguments), capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def test_the_command_trains_in_several_processes_and_one_prints(tmp_path):
    options = ["--epochs", "5", "--dtype", "float64", "--json", "--out"]
    alone, together = (run(n, *options, str(tmp_path / str(n))) for n in (1, 2))
    assert (alone.returncode, together.returncode) == (0, 0), together.stderr
    results = [json.loads(done.stdout) for done in (alone, together)]
    losses = [result["history"]["loss"] for result in results]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-12)
    assert [line[:14] for line in together.stderr.splitlines()] == [
        f"rank {rank} is proc" for rank in range(2)
    ]
    nets = [nb.load(tmp_path / str(n) / "model.safetensors") for n in (1, 2)]
    np.testing.assert_allclose(nets[1].parameters, nets[0].parameters, rtol=0, atol=1e-12)


def test_bad_input_is_told_by_all(tmp_path):
    done = run(2, "--hidden", "x", "--out", str(tmp_path / "r"))
    assert done.returncode == 2
    assert done.stderr.count("--hidden: expected units by layer") == 2
    assert not (tmp_path / "r").exists()


def test_a_killed_process_ends_all_within_ten_seconds(tmp_path):
    arguments = ["--dataset", "digits", "--epochs", "100000", "--patience", "0"]
    folder = tmp_path / "r"
    arguments += ["--checkpoint-every", "1", "--engine", "reference", "--out", str(folder)]
    with subprocess.Popen(command(2, *arguments), stderr=subprocess.PIPE, text=True) as process:
        told = [process.stderr.readline().split() for _ in range(2)]
        deadline = time.monotonic() + PATIENCE
        while not list(folder.glob("checkpoints/*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.05)
        pid = next(int(line[4]) for line in told if line[1] == "1")
        os.kill(pid, signal.SIGKILL)
        try:
            process.wait(timeout=10)
        finally:
            process.kill()
        assert process.returncode != 0
    done = run(2, "--resume", str(folder), "--epochs", "60")
    assert done.returncode == 0, done.stderr
