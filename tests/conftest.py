"""Fixtures: one array library per ``backend``, and the frameworks that serve as oracles."""

from __future__ import annotations

import importlib.util
import os
import signal

# What scikit-learn's array API dispatch asks of SciPy; read when that is imported.
os.environ.setdefault("SCIPY_ARRAY_API", "1")

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("backends")

from backends import PARAMETERS, load, require  # noqa: E402 - its asserts are rewritten first

# In the background of a shell Ctrl-C may be ignored; tests of it would wait forever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Run under mpiexec; without mpi4py they cannot even be looked through for doctests.
collect_ignore = ["mpi_programs.py", "training_programs.py"]

# Drawn examples are the same at every run, and slow machines do not fail.
settings.register_profile(
    "nnbackend", deadline=None, derandomize=True, max_examples=40, database=None
)
settings.load_profile("nnbackend")

if importlib.util.find_spec("jax") is not None:
    import jax

    # Set before the first array is made; results shall not depend on a GPU being there.
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")
    # Nearly all the time goes into compiling each operation for each shape.
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session", params=PARAMETERS)
def backend(request):
    return load(*request.param)


@pytest.fixture(scope="session")
def torch():
    return require("torch")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Call the command in an empty folder; return exit code, stdout and stderr."""
    from nnbackend.cli import command as cli

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return call
