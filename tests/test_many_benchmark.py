"""The program that times many networks at once: its table, record and exit code, and its peers."""

import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).resolve().parent.parent / "benchmarks" / "many.py"
PEERS = ("reference", "jax", "torch")


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("many_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up the names in annotations there.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def table(text):
    """Return the cells of a Markdown table, and require its lines to be aligned."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(set(map(len, lines))) == 1
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_ours_give_a_table_and_a_record(script, tmp_path, capsys):
    path = tmp_path / "record.json"
    names = ["train_many", "one_by_one-one_thread"]
    arguments = ["1", "3", "--rounds", "2", "--epochs", "2", "--seconds", "0"]
    assert script.main([*arguments, "--contestants", *names, "--output", str(path)]) == 0
    header, _, *rows = table(capsys.readouterr().out)
    assert header[1:] == ["K = 1", "K = 3"]
    record = json.loads(path.read_text())
    assert {"numpy", "BLAS", "devices"} <= set(record["environment"])
    assert (record["settings"]["rounds"], record["missing"]) == (2, {})
    for column, (k, result) in enumerate(record["results"].items(), start=1):
        own, other = (result["contestants"][name] for name in names)
        for found in (own, other):
            scale = 1e6 / (int(k) * 2 * 32)
            assert found["microseconds"] == pytest.approx(scale * np.median(found["seconds"]))
            assert [len(found[name]) for name in ("seconds", "mean_losses")] == [2, 2]
            assert found["epochs"] == 2
        assert other["ratio"] == pytest.approx(other["microseconds"] / own["microseconds"])
        # The same bits.
        assert other["largest_difference"] == 0.0
        assert [row[column] for row in rows] == [
            f"{own['microseconds']:.2f}",
            f"{other['microseconds']:.2f} ({other['ratio']:.2f})",
        ]


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_learns_the_same(script, monkeypatch, name):
    monkeypatch.setattr(script, "WORKLOAD", replace(script.WORKLOAD, n_batches=3))
    losses = []
    for each in (script.OWN, name):
        contestant = script.CONTESTANTS[each]()
        try:
            contestant.load()
        except ModuleNotFoundError as error:
            if os.environ.get("NNBACKEND_REQUIRE_ORACLES") == "1":
                raise
            pytest.skip(str(error))
        contestant.prepare(2)
        losses.append(contestant.timed(3)[1])
        # A training begins anew.
        np.testing.assert_allclose(contestant.timed(3)[1], losses[-1], rtol=1e-6)
        assert losses[-1].shape == (3, 2)
        assert (losses[-1][-1] < losses[-1][0]).all()
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_other_losses_are_told_and_make_the_exit_code_1(script, monkeypatch, tmp_path, capsys):
    class Process:
        def __init__(self, name):
            self.loss = 0.5 if name == "train_many" else 0.52

        def ask(self, command, **_):
            answers = {
                "load": {"versions": {}},
                "prepare": {"way": ""},
                "turn": {"seconds": 1.0, "losses": [[0.7, 0.7], [0.5, self.loss]]},
            }
            return answers[command]

        def close(self):
            pass

    monkeypatch.setattr(script, "Process", Process)
    path = tmp_path / "record.json"
    arguments = ["2", "--contestants", "train_many", "torch", "--output", str(path)]
    assert script.main(arguments) == 1
    (result,) = json.loads(path.read_text())["results"].values()
    # One that takes a second for an epoch has fewer of them.
    assert (result["epochs"], result["contestants"]["torch"]["epochs"]) == (20, 2)
    *_, row = table(capsys.readouterr().out)
    assert row[1].endswith("(1.00) **other losses**")


def test_a_peer_that_is_not_installed_has_a_line(script, monkeypatch, capsys):
    class Process:
        def __init__(self, name):
            self.is_missing = name == "jax"

        def ask(self, command, **_):
            if command == "load" and self.is_missing:
                return {"reason": "not measured: needs jax"}
            return {"versions": {}, "way": "", "seconds": 1.0, "losses": [[0.5]]}

        def close(self):
            pass

    monkeypatch.setattr(script, "Process", Process)
    assert script.main(["1", "--contestants", "train_many", "jax"]) == 0
    text = capsys.readouterr().out
    assert len(table(text)) == 3
    assert "JAX vmap+scan: not measured: needs jax" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["8", "0"], "K: expected at least 1, got 0"),
        (["--rounds", "0"], "--rounds: expected at least 1, got 0"),
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--output", "nowhere/record.json"], "expected a file in a folder that exists, got "),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(script, arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
