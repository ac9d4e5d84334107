"""The command with losses on a distribution: what it prints, writes and refuses."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

import nnbackend as nb
from nnbackend.cli import evaluation

N = 300
SOON = (
    *("--epochs", "8", "--hidden", "8", "--batch-size", "16", "--learning-rate", "0.02"),
    *("--weight-decay", "0", "--schedule", "constant", "--seed", "1"),
)


@pytest.fixture
def noisy(run):
    """Write a table whose noise grows with a column; return the command."""
    rng = np.random.default_rng(0)
    size, colour = rng.uniform(0.0, 2.0, N), rng.choice(["red", "green"], N)
    price = 100 + 20 * size + 5 * (colour == "red") + (1 + 4 * size) * rng.standard_normal(N)
    lines = [f"{s:.6f},{c},{p:.5f}" for s, c, p in zip(size, colour, price, strict=True)]
    Path("t.csv").write_text("\n".join(["size,colour,price", *lines]) + "\n")
    return run


def train(run, *options):
    code, out, err = run(
        *("train", "t.csv", "--target", "price", *SOON, *options, "--out", "r", "--json")
    )
    assert (code, err) == (0, "")
    return json.loads(out)


def columns_of(text):
    rows = list(csv.DictReader(io.StringIO(text)))
    return {name: np.asarray([float(row[name]) for row in rows]) for name in rows[0]}


def targets(path):
    with open(path, newline="") as file:
        return np.asarray([float(row["price"]) for row in csv.DictReader(file)])


def test_a_gaussian_is_trained_evaluated_and_predicted_in_units_of_the_target(noisy):
    trained = train(noisy, "--loss", "gaussian")
    assert trained["network"]["output"] == "gaussian"
    scores = trained["held_out"]
    # A normal distribution of the mean and the deviation of all targets has 4.0.
    assert scores["nll"] < 3.7
    assert scores["r2"] > 0.3
    assert scores["expected_coverage"] == 0.9
    assert 0.7 < scores["coverage"] <= 1.0

    assert json.loads(noisy("evaluate", "r", "r/held_out.csv", "--json")[1]) == scores
    y = targets("r/held_out.csv")
    given = columns_of(noisy("predict", "r", "r/held_out.csv", "--coverage", "0.9")[1])
    assert list(given) == ["prediction", "std", "lower", "upper"]
    mean, std = given["prediction"], given["std"]
    nll = np.mean(np.log(std * np.sqrt(2 * np.pi)) + 0.5 * ((y - mean) / std) ** 2)
    assert scores["nll"] == pytest.approx(nll, rel=1e-5)
    assert scores["coverage"] == np.mean((given["lower"] <= y) & (y <= given["upper"]))
    # Text, the same with fewer digits.
    out = noisy("evaluate", "r", "r/held_out.csv")[1]
    assert f"negative log-likelihood    {scores['nll']:.4f}\n" in out
    assert f"coverage of 0.9 intervals  {scores['coverage']:.4f}\n" in out


def test_quantiles_are_columns_and_their_loss_is_in_units_of_the_target(noisy):
    from sklearn.metrics import mean_pinball_loss

    trained = train(noisy, "--loss", "quantile", "--quantiles", "0.1,0.5,0.75,0.9")
    assert trained["network"]["quantiles"] == [0.1, 0.5, 0.75, 0.9]
    assert trained["network"]["layer_sizes"][-1] == 4
    scores = trained["held_out"]
    assert scores["expected_coverage"] == 0.8
    assert json.loads(noisy("evaluate", "r", "r/held_out.csv", "--json")[1]) == scores
    y = targets("r/held_out.csv")
    given = columns_of(noisy("predict", "r", "r/held_out.csv", "--coverage", "0.8")[1])
    names = [f"quantile_{level}" for level in (0.1, 0.5, 0.75, 0.9)]
    assert list(given) == ["prediction", *names, "lower", "upper"]
    for left, right in (("prediction", names[1]), ("lower", names[0]), ("upper", names[3])):
        np.testing.assert_array_equal(given[left], given[right])
    losses = [mean_pinball_loss(y, given[name], alpha=float(name[9:])) for name in names]
    assert scores["pinball"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert scores["coverage"] == np.mean((given["lower"] <= y) & (y <= given["upper"]))

    code, out, err = noisy("predict", "r", "t.csv", "--coverage", "0.9")
    assert (code, out) == (2, "")
    assert err == (
        "nnbackend predict: --coverage: expected 0.8, got 0.9: the network has learned the "
        "quantiles 0.1, 0.5, 0.75 and 0.9; train with the quantiles 0.05 and 0.95, too\n"
    )
    assert re.search(r"^quantiles +\[0.1, 0.5, 0.75, 0.9\]$", noisy("info", "r")[1], re.MULTILINE)
    assert json.loads(noisy("info", "r", "--json")[1])["quantiles"] == [0.1, 0.5, 0.75, 0.9]


def test_levels_have_defaults_and_none_that_make_an_interval_leave_the_coverage_out(noisy):
    trained = train(noisy, "--loss", "quantile", "--epochs", "1")
    assert trained["network"]["quantiles"] == [0.05, 0.5, 0.95]
    assert trained["held_out"]["expected_coverage"] == 0.9
    code, out, _ = noisy(
        *("train", "t.csv", "--target", "price", "--epochs", "1", "--loss", "quantile"),
        *("--quantiles", "0.5", "--out", "s"),
    )
    assert code == 0
    assert "mean pinball loss" in out
    assert "coverage" not in out


def test_a_training_of_quantiles_goes_on_as_it_would_have(noisy):
    levels = ("--loss", "quantile", "--quantiles", "0.25,0.75")
    train(noisy, *levels, "--epochs", "4")
    begun = ("--target", "price", *SOON, *levels, "--epochs", "2", "--out", "s")
    assert noisy("train", "t.csv", *begun)[0] == 0
    stored = json.loads(Path("s/command.json").read_text())["options"]
    assert (stored["loss"], stored["quantiles"]) == ("quantile", [0.25, 0.75])
    code, _, err = noisy("train", "--resume", "s", "--epochs", "4")
    assert (code, err) == (0, "")
    whole, resumed = (nb.load(f"{folder}/model.safetensors") for folder in "rs")
    assert whole.quantiles == resumed.quantiles == (0.25, 0.75)
    np.testing.assert_array_equal(whole.parameters, resumed.parameters)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantiles", "0.1,0.9"], "--quantiles: expected --loss quantile along with it, got no"),
        (["--loss", "gaussian", "--quantiles", "0.5"], "along with it, got gaussian"),
        (["--loss", "quantile", "--quantiles", "0.9,0.1"], "--quantiles: expected levels that"),
        (["--loss", "quantile", "--quantiles", "1"], "--quantiles: expected"),
        (["--loss", "quantile", "--quantiles", "a"], "--quantiles: expected levels between 0 and"),
        (
            ["--target", "colour", "--loss", "gaussian"],
            "--loss: expected a target of numbers for 'gaussian', got 2 classes; leave it out",
        ),
        (["--target", "colour", "--loss", "quantile"], "got 2 classes"),
    ],
)
def test_bad_options_give_one_sentence_and_leave_nothing(noisy, options, message):
    code, out, err = noisy("train", "t.csv", "--target", "price", *options, "--out", "r")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("r").exists()


def test_other_models_tell_no_intervals(noisy):
    train(noisy, "--epochs", "1")
    for share in ("0.9", "2"):
        code, out, err = noisy("predict", "r", "t.csv", "--coverage", share)
        assert (code, out) == (2, "")
        assert "--coverage: expected a model that was trained with --loss gaussian or" in err
        assert err.count("\n") == 1


def test_a_share_that_is_none_is_told(noisy):
    train(noisy, "--loss", "gaussian", "--epochs", "1")
    code, out, err = noisy("predict", "r", "t.csv", "--coverage", "1.5")
    assert (code, out) == (2, "")
    assert err.startswith("nnbackend predict: --coverage: expected")


@pytest.mark.parametrize(
    ("loss", "outputs"),
    [("gaussian", ["prediction", "std"]), ("quantile", ["prediction", "quantiles"])],
)
def test_export_lists_what_the_file_gives(noisy, loss, outputs):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("ndonnx")
    train(noisy, "--loss", loss, "--epochs", "1")
    facts = json.loads(noisy("export", "r", "m.onnx", "--json")[1])
    assert facts["outputs"] == outputs
    session = runtime.InferenceSession("m.onnx")
    assert [entry.name for entry in session.get_outputs()] == outputs
    assert [entry.name for entry in session.get_inputs()] == facts["inputs"] == ["size", "colour"]


@pytest.mark.parametrize("exponent", [-900, 0, 900])
def test_scores_of_a_distribution_are_right_at_any_magnitude(exponent):
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((50, 2)), rng.standard_normal(50)
    for output, sizes in (("gaussian", [2, 2]), ("quantile", [2, 3])):
        scores = []
        for power in (0, exponent):
            net = nb.Network(sizes, output=output, dtype="float64", seed=0)
            net.standardize(X, np.ldexp(y, power))
            scores.append(evaluation.evaluate(net, X, np.ldexp(y, power)))
        one, other = scores
        assert one["coverage"] == other["coverage"] > 0
        if output == "gaussian":
            assert other["nll"] == pytest.approx(one["nll"] + exponent * np.log(2), rel=1e-12)
        else:
            assert other["pinball"] == pytest.approx(np.ldexp(one["pinball"], exponent), rel=1e-12)


def test_an_output_that_is_not_finite_is_refused_by_row(run):
    net = nb.Network([1, 2], output="gaussian", dtype="float32", seed=0)
    net.set_parameters([[[0.0, 1e30]]], [[0.0, 0.0]])
    nb.save(net, "m")
    np.savez("d.npz", X=[[1.0], [1e20]], y=[1.0, 2.0])
    for command in ("predict", "evaluate"):
        code, out, err = run(command, "m", "d.npz")
        assert (code, out) == (2, "")
        assert "got the prediction inf in row 1" in err


def test_many_columns_take_one_line(run):
    names = [f"column_{i}" for i in range(200)]
    rng = np.random.default_rng(0)
    rows = [",".join([*(f"{x:.3f}" for x in rng.standard_normal(200)), k]) for k in "ab" * 20]
    Path("w.csv").write_text("\n".join([",".join([*names, "y"]), *rows]) + "\n")
    code, out, err = run("train", "w.csv", "--target", "y", "--epochs", "1", "--out", "r")
    assert (code, err) == (0, "")
    told = run("info", "r")[1]
    for text in (out, told):
        assert "column_11 and 188 more\n" in text
        assert max(map(len, text.splitlines())) < 250
    facts = json.loads(run("info", "r", "--json")[1])
    assert facts["features"] == names
    assert set(next(iter(facts["columns"].values())).split(", ")) <= set(names)
