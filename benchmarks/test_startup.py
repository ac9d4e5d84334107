"""Time of a fresh process: Python with NumPy alone, the imports, a first training, the command."""

from __future__ import annotations

import subprocess
import sys

import pytest

TRAIN = (
    "import nnbackend as nb; net = nb.Network([30, 16, 1], device={device!r}); "
    "nb.train(net, [[0.0] * 30, [1.0] * 30], [0, 1], epochs=1)"
)
CODE = {
    "numpy alone": "import numpy",
    "import nnbackend": "import nnbackend",
    "import and names": "import nnbackend as nb; nb.Network, nb.train, nb.save",
    "command": "import sys; from nnbackend.cli import main; sys.exit(main(['info', '--json']))",
}


def run_in_a_fresh_process(code):
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("what", CODE)
def test_startup(benchmark, what):
    benchmark.group = "start-up"
    benchmark.pedantic(run_in_a_fresh_process, (CODE[what],), rounds=5, warmup_rounds=1)


def test_first_training(benchmark, device):
    benchmark.group = "start-up"
    benchmark.extra_info.update(device=device)
    code = TRAIN.format(device=device)
    benchmark.pedantic(run_in_a_fresh_process, (code,), rounds=5, warmup_rounds=1)
