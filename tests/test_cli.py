"""The command: what a user types, sees and finds on disk."""

import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nnbackend as nb
from nnbackend.cli import evaluation, result
from nnbackend.cli.experiment import OPTIONS
from nnbackend.cli.naming import renamed
from nnbackend.data.datasets import load_dataset

FILES = ["curves.png", "held_out.csv", "history.json", "model.safetensors"]
FOR_GOING_ON = ["checkpoints", "command.json"]
QUICK = ["--epochs", "2"]


@pytest.mark.parametrize(
    ("dataset", "accuracy"), [("breast_cancer", 0.96), ("digits", 0.97), ("planar", 0.90)]
)
def test_train_reaches_the_promised_held_out_accuracy(run, dataset, accuracy):
    code, out, err = run("train", "--dataset", dataset, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["held_out"]["accuracy"] >= accuracy
    folder = Path(result["run"])
    extra = ["decision_boundary.png"] if dataset == "planar" else []
    assert sorted(result["files"]) == sorted(FILES + extra)
    assert {path.name for path in folder.iterdir()} == {*result["files"], *FOR_GOING_ON}
    for picture in folder.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "history.json").read_text())["history"] == result["history"]


def test_train_without_arguments_learns_breast_cancer_and_names_its_folder(run):
    code, out, err = run("train", "--epochs", "40")
    assert (code, err) == (0, "")
    assert out.startswith("breast_cancer: 569 examples x 30 features, 2 classes\n")
    assert "held-out accuracy" in out
    assert "examples/s" in out
    (folder,) = Path("runs").iterdir()
    assert str(folder) in out
    assert folder.name.startswith("breast_cancer-")


def test_standardization_uses_the_training_part_only_and_is_in_the_model(run):
    _, out, _ = run("train", *QUICK, "--json", "--out", "r")
    net = nb.load("r/model.safetensors")
    dataset = load_dataset("breast_cancer")
    assert net.class_names == dataset.class_names
    assert net.feature_names == dataset.feature_names
    from nnbackend.cli.evaluation import split

    rows = split(dataset, 0.2, 0.2, seed=0)
    assert json.loads(out)["samples"] == {"training": 341, "validation": 114, "held_out": 114}
    parts = np.concatenate([rows.training, rows.validation, rows.held_out])
    assert np.array_equal(np.sort(parts), np.arange(569))
    # The same two sums of 341 float64 numbers, at most in another order.
    expected = dataset.X[rows.training].mean(axis=0)
    np.testing.assert_allclose(net.standardization.mean, expected, rtol=1e-12)


def test_same_seed_gives_the_same_model_bytes_and_another_seed_others(run):
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert run("train", *QUICK, "--seed", seed, "--out", folder)[0] == 0
    first, again, other = (Path(f, "model.safetensors").read_bytes() for f in "abc")
    assert first == again
    assert first != other


def test_evaluate_repeats_the_held_out_scores(run):
    for dataset in ("breast_cancer", "diabetes", "digits"):
        _, out, _ = run("train", "--dataset", dataset, *QUICK, "--json", "--out", dataset)
        code, again, _ = run(
            "evaluate",
            dataset,
            f"{dataset}/held_out.csv",
            *("--target", "target", "--json"),
        )
        assert code == 0
        assert json.loads(again) == json.loads(out)["held_out"]


def test_predict_gives_class_names_and_probabilities_that_sum_to_one(run):
    run("train", "--dataset", "digits", *QUICK, "--out", "r")
    model, data = "r/model.safetensors", "r/held_out.csv"
    code, out, _ = run("predict", model, data, "--probabilities")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert len(rows) == 359
    probabilities = np.asarray(
        [[float(row[f"probability_{k}"]) for k in range(10)] for row in rows]
    )
    # Ten float32 probabilities, each rounded by at most 6e-8.
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)
    assert [row["prediction"] for row in rows] == [str(k) for k in probabilities.argmax(axis=1)]
    assert run("predict", model, data, "--probabilities", "--out", "p.csv")[:2] == (0, "")
    assert Path("p.csv").read_text() == out
    _, as_json, _ = run("predict", model, data, "--json")
    assert json.loads(as_json)["prediction"] == [row["prediction"] for row in rows]
    for name, path in (("MODEL", model), ("DATA", data)):
        before = Path(path).read_bytes()
        code, _, error = run("predict", model, data, "--out", path)
        assert code == 2
        assert f"--out: expected a file other than {name}" in error
        assert Path(path).read_bytes() == before


@pytest.mark.parametrize("name", ["data.csv", "data.npy", "data.npz", "data.parquet"])
def test_a_users_file_trains_evaluates_and_predicts(run, name):
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 4))
    y = (X[:, 0] + X[:, 1] > 0).astype(int)
    target = ["--target", "class"]
    if name == "data.npy":
        np.save(name, np.column_stack([X, y]))
        target = ["--target=-1", "--task", "classification"]
    elif name == "data.npz":
        np.savez(name, X=X, y=y)
        target = []
    else:
        words = np.asarray(["no", "yes"])[y]
        table = pa.table({**{f"f{i}": X[:, i] for i in range(4)}, "class": words})
        write = pyarrow.csv.write_csv if name == "data.csv" else pyarrow.parquet.write_table
        write(table, name)
    code, out, err = run(
        *("train", name, *target, "--hidden", "8", "--learning-rate", "0.02", "--epochs", "60"),
        *("--out", "r", "--json"),
    )
    assert (code, err) == (0, "")
    # Of 24 rows, of which some lie at the border.
    assert json.loads(out)["held_out"]["accuracy"] > 0.79
    target = target[:2] if name in ("data.csv", "data.parquet") else target[:1]
    code, out, _ = run("evaluate", "r/model.safetensors", name, *target, "--json")
    assert code == 0
    assert json.loads(out)["accuracy"] > 0.85
    _, out, _ = run("predict", "r/model.safetensors", name)
    expected = {"no", "yes"} if name in ("data.csv", "data.parquet") else {"0", "1"}
    assert set(out.splitlines()[1:]) == expected


def test_a_regression_is_learnt_in_the_units_of_its_target(run):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 3))
    np.save("d.npy", np.column_stack([X, 1e5 + 1e4 * X[:, 0]]))
    _, out, _ = run(
        *("train", "d.npy", "--target=-1", "--hidden", "none", "--learning-rate", "0.02"),
        *("--weight-decay", "0", "--json"),
    )
    # A linear network can represent this target exactly; what is left is early stopping's.
    assert json.loads(out)["held_out"]["r2"] > 0.99


def test_every_training_option_reaches_the_training(run):
    code, out, err = run(
        *("train", "--hidden", "5,4", "--activation", "tanh", "--initializer", "lecun_uniform"),
        *("--dropout", "0.1", "--dtype", "float64", "--device", "cpu", "--optimizer", "sgd"),
        *("--learning-rate", "0.2", "--schedule", "cosine", "--weight-decay", "0.001"),
        *("--loss", "squared_error", "--epochs", "3", "--batch-size", "full", "--patience", "0"),
        *("--l1", "0.001", "--l2", "0.002", "--clip-norm", "1", "--engine", "reference"),
        *("--seed", "7", "--validation", "0", "--held-out", "0.1", "--out", "r", "--json"),
    )
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["network"]["layer_sizes"] == [30, 5, 4, 1]
    assert result["network"]["hidden"] == ["tanh", "tanh"]
    assert result["network"]["dtype"] == "float64"
    assert result["optimizer"] == "sgd"
    assert result["batch_size"] is None
    assert result["seed"] == 7
    assert result["samples"] == {"training": 512, "validation": 0, "held_out": 57}
    assert result["history"]["validation_loss"] == []
    # Half a cosine over three steps: 0.2, 0.15, 0.05.
    np.testing.assert_allclose(result["history"]["learning_rate"], [0.2, 0.15, 0.05], rtol=1e-12)
    assert nb.load("r/model.safetensors").dropout == (0.1, 0.1)


# Each option: what is typed, and the value that it has.
TYPED = {
    "activation": ("tanh", "tanh"),
    "initializer": ("lecun_uniform", "lecun_uniform"),
    "dropout": ("0.1", 0.1),
    "dtype": ("float64", "float64"),
    "device": ("auto", "auto"),
    "loss": ("quantile", "quantile"),
    "quantiles": ("0.1,0.9", [0.1, 0.9]),
    "optimizer": ("sgd", "sgd"),
    "epochs": ("2", 2),
    "batch_size": ("full", None),
    "patience": ("3", 3),
    "l1": ("0.001", 0.001),
    "l2": ("1", 1.0),
    "clip_norm": ("2", 2.0),
    "engine": ("reference", "reference"),
    "precision": ("float32", "float32"),
    "seed": ("7", 7),
    "validation": ("0", 0.0),
    "held_out": ("0.1", 0.1),
}


def test_every_option_is_told_by_history_and_command(run):
    typed = [f"--{name.replace('_', '-')}={text}" for name, (text, _) in TYPED.items()]
    values = {name: value for name, (_, value) in TYPED.items()}
    code, out, err = run("train", "--dataset", "diabetes", *typed, "--out", "r", "--json")
    assert (code, err) == (0, "")
    options = json.loads(out)["options"]
    assert {name: options[name] for name in TYPED} == {**values, "optimizer": repr(nb.SGD())}
    stored = json.loads(Path("r/command.json").read_text())["options"]
    assert stored == {"dataset": "diabetes", **values}
    assert run("train", "--resume", "r")[0] == 0
    # Those that are not typed are there, and nothing is stored.
    code, out, _ = run("train", *QUICK, "--out", "s", "--json")
    assert json.loads(out)["options"].keys() == options.keys()
    assert json.loads(Path("s/command.json").read_text())["options"] == {"epochs": 2}


def test_every_declared_option_is_typed_here(run):
    declared = re.findall(r"^  --([a-z0-9-]+)", run("train", "--help")[1], flags=re.MULTILINE)
    names = {name.replace("-", "_") for name in declared}
    assert names & set(OPTIONS) - {"hidden"} == set(TYPED)


def test_help_tells_the_defaults(run):
    code, out, _ = run("train", "--help")
    words = " ".join(out.split())
    assert code == 0
    for text in (
        "or 'none' (256,128 *)", "at most (100; more", "or 'full' (32; 128", "stopping (20 with",
        "--learning-rate RATE (0.001 *)", "--l1 STRENGTH penalty (0)", "(adamw *)", "(silu *)",
        "the training (0)", "(float32)", "--clip-norm NORM (no clipping)",
    ):  # fmt: skip
        assert text in words


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (nb.InputError("expected 1: got 0", "batch_size"), "--batch-size: expected 1: got 0"),
        (nb.InputError("expected 1", "batch_sizes"), "batch_sizes: expected 1"),
        (nb.InputError("batch_size: expected 1"), "batch_size: expected 1"),
        (nb.InputError("batch_size is 0"), "batch_size is 0"),
    ],
)
def test_an_error_is_told_with_the_option_that_was_typed(error, sentence):
    assert renamed(error, {"batch_size": "--batch-size", "epochs": "--epochs"}) == sentence


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digits"], "DATA: no such file 'digits'; did you mean --dataset digits?"),
        (["train", "--dataset", "digit"], "--dataset: unknown name 'digit'; did you mean"),
        (["train", "none.csv", "--target", "y"], "DATA: no such file 'none.csv'"),
        (["train", "--target", "y"], "--target: expected a DATA file"),
        (["train", "x.csv", "--dataset", "digits"], "--dataset: expected either"),
        (["train", "--hidden", "8,x"], "--hidden: expected units by layer"),
        (["train", "--hidden", "8,0"], "--hidden: expected units by layer"),
        (["train", "--task", "regression"], "--task: expected a DATA file"),
        (["train", "--dataset", "planar", "--drop", "x1"], "--drop: expected a DATA file"),
        (
            ["train", "--activation", "rleu"],
            "--activation: unknown name 'rleu'; did you mean 'relu'",
        ),
        (["train", "--initializer", "he"], "--initializer: unknown name 'he'"),
        (["train", "--optimizer", "adamx"], "--optimizer: unknown name 'adamx'; did you mean"),
        (["train", "--schedule", "cosin"], "--schedule: unknown name 'cosin'; did you mean"),
        (["train", "--loss", "hubber"], "--loss: unknown name 'hubber'; did you mean 'huber'"),
        (["train", "--loss", "poisson"], "--loss: 'poisson' is for counts"),
        (["train", "--learning-rate", "-1"], "--learning-rate: expected a finite number > 0"),
        (["train", "--learning-rate", "nan"], "--learning-rate: expected a finite number > 0"),
        (["train", "--epochs", "0"], "--epochs: expected an integer >= 1, got 0"),
        (["train", "--batch-size", "0"], "--batch-size: expected an integer >= 1, got 0"),
        (["train", "--batch-size", "some"], "--batch-size: expected an integer or 'full'"),
        (["train", "--patience", "-1"], "--patience: expected an integer >= 1, got -1"),
        (["train", "--dropout", "1"], "--dropout: expected"),
        (["train", "--l2", "-1"], "--l2: expected"),
        (["train", "--clip-norm", "0"], "--clip-norm: expected"),
        (["train", "--seed", "-1"], "--seed: expected an integer >= 0"),
        (["train", "--validation", "1"], "--validation: expected"),
        (["train", "--validation", "0.6", "--held-out", "0.6"], "DATA: expected enough rows"),
        (["train", "--dtype", "float16"], "--dtype: expected 'float32' or 'float64'"),
        (["train", "--device", "gpu"], "--device: expected 'cpu', 'cuda'"),
        (["train", "--engine", "fast"], "--engine: unknown name 'fast'"),
        (["train", "--out", "/proc/none/run"], "--out: cannot create the run folder"),
        (["train", "--out", "full"], "--out: expected a new or an empty folder"),
        (["predict", "none.safetensors", "x.csv"], "MODEL: expected a readable model file"),
        (["predict", "full/file", "x.csv", "--device", "gpu"], "--device: expected 'cpu'"),
        (["info", "full/file"], "MODEL: 'full/file' is not a whole safetensors file"),
    ],
)
def test_bad_input_gives_one_sentence_and_exit_code_2_and_leaves_nothing(run, arguments, message):
    Path("full").mkdir()
    Path("full/file").write_text("kept")
    code, _, err = run(*arguments)
    assert code == 2
    assert err.startswith(f"nnbackend {arguments[0]}: {message}")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert sorted(str(path) for path in Path().rglob("*")) == ["full", "full/file"]


def test_an_unknown_option_or_command_exits_with_2(run):
    for arguments in (["train", "--epochz", "3"], ["trian"], [], ["train", "--epochs", "x"]):
        code, _, err = run(*arguments)
        assert code == 2
        assert "usage: nnbackend" in err


def test_bad_data_for_a_model_is_told_by_column(run):
    run("train", *QUICK, "--out", "r")
    model = "r/model.safetensors"
    Path("few.csv").write_text("mean radius,target\n1.0,benign\n")
    code, _, err = run("predict", model, "few.csv")
    assert code == 2
    assert "DATA: expected the model's 30 feature columns, 'mean texture' is missing" in err
    np.save("narrow.npy", np.zeros((3, 29)))
    assert "expected 30 feature columns" in run("predict", model, "narrow.npy")[2]
    text = Path("r/held_out.csv").read_text()
    Path("odd.csv").write_text(text.replace("benign", "bening"))
    code, _, err = run("evaluate", model, "odd.csv", "--target", "target")
    assert code == 2
    assert "holds the class 'bening', which the model does not know; did you mean 'benign'?" in err
    code, _, err = run("evaluate", model, "r/held_out.csv")
    assert (code, "--target: expected the column" in err) == (2, True)


def test_divergence_is_told_and_what_was_learnt_is_kept(run):
    arguments = ["train", "--dataset", "diabetes", "--optimizer", "sgd", "--weight-decay", "0"]
    code, _, err = run(*arguments, "--learning-rate", "1e30", "--out", "r")
    assert code == 2
    assert "in epoch 1; the network keeps its parameters from before training" in err
    assert not Path("r").exists()
    code, out, err = run(*arguments, "--learning-rate", "3", "--out", "r", "--hidden", "none")
    assert code == 2
    assert "diverged" in out
    assert "the network keeps its parameters from after epoch" in err
    assert np.isfinite(nb.load("r/model.safetensors").parameters).all()


def test_a_full_disk_leaves_no_part_of_an_outcome_and_what_was_learnt(run, monkeypatch):
    real = result.write_atomically

    def fail_at_the_picture(path, content):
        if Path(path).name == "curves.png":
            raise nb.InputError("path: cannot write (No space left on device)")
        real(path, content)

    monkeypatch.setattr(result, "write_atomically", fail_at_the_picture)
    code, _, err = run("train", *QUICK, "--out", "r")
    assert code == 2
    assert "No space left" in err
    assert "go on with: nnbackend train --resume r" in err
    assert sorted(path.name for path in Path("r").iterdir()) == FOR_GOING_ON
    monkeypatch.setattr(result, "write_atomically", real)
    assert run("train", "--resume", "r")[0] == 0
    assert nb.load("r/model.safetensors").n_parameters == 641


def test_a_failed_run_leaves_the_folder_that_was_there_before(run):
    Path("mine").mkdir()
    assert run("train", "--epochs", "-1", "--out", "mine")[0] == 2
    assert list(Path().iterdir()) == [Path("mine")]


def test_control_c_keeps_what_was_learnt(run, monkeypatch):
    from nnbackend.training.loop import Loop

    original = Loop._read
    calls = []

    def interrupted(self, *given):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, *given)

    monkeypatch.setattr(Loop, "_read", interrupted)
    code, out, _ = run("train", "--out", "r", "--json")
    assert code == 130
    result = json.loads(out)
    assert result["history"]["stopped"] == "interrupted"
    assert len(result["history"]["loss"]) == 3
    assert nb.load("r/model.safetensors").n_parameters == 641


def model(path, output, weights, dtype="float32", **names):
    """Save a network without hidden layers."""
    net = nb.Network([len(weights), len(weights[0])], output=output, dtype=dtype)
    net.set_parameters([weights], [[0.0] * len(weights[0])])
    for name, value in names.items():
        setattr(net, name, value)
    nb.save(net, path)
    return net


@pytest.mark.parametrize(
    ("output", "weights", "value"),
    [
        ("softmax", [[-1e38, 1.0]], "NaN"),
        ("softmax", [[1e38, 1e38, -1e38]], "NaN"),
        ("identity", [[1e38]], "-inf"),
        ("identity", [[1e38, 1.0]], "-inf"),
        ("exp", [[-1e38]], "inf"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--json",), ("--out", "p.csv")], ids=["", "json", "out"])
def test_a_prediction_that_is_not_finite_is_refused_by_row(run, output, weights, value, options):
    model("m", output, weights)
    np.save("X.npy", [[1.0], [-1e30]])
    code, out, err = run("predict", "m", "X.npy", *options)
    assert (code, out) == (2, "")
    assert err.startswith("nnbackend predict: DATA: expected features for which")
    assert f"{value} " in err
    assert "row 1" in err
    assert err.count("\n") == 1
    assert not Path("p.csv").exists()
    np.savez("d.npz", X=[[1.0], [-1e30]], y=[0.0, 1.0])
    if output == "softmax" or len(weights[0]) == 1:
        code, again, err_again = run("evaluate", "m", "d.npz", "--json")
        assert (code, again, err_again) == (2, "", err.replace("predict:", "evaluate:", 1))


def test_a_sigmoid_or_softmax_of_large_numbers_is_still_a_class(run):
    np.save("X.npy", [[1.0], [-1e30]])
    model("m", "sigmoid", [[1e38]])
    assert run("predict", "m", "X.npy")[:2] == (0, "prediction\n1\n0\n")
    model("m", "softmax", [[1e8, -1e8]])
    assert run("predict", "m", "X.npy")[:2] == (0, "prediction\n0\n1\n")


@pytest.mark.parametrize("output", ["identity", "exp", "sigmoid"])
def test_a_model_of_several_targets_predicts_columns_and_is_not_evaluated_on_one(run, output):
    net = model("m", output, [[1.0, -1.0], [0.5, 2.0]])
    X = np.asarray([[1.0, 2.0], [3.0, -4.0], [0.0, 0.5]])
    np.savez("d.npz", X=X, y=[0.0, 1.0, 1.0])
    code, out, _ = run("predict", "m", "d.npz")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["prediction_0", "prediction_1"]
    values = [[float(row[f"prediction_{k}"]) for k in range(2)] for row in rows]
    np.testing.assert_array_equal(values, net.predict(X))
    code, out, err = run("evaluate", "m", "d.npz")
    assert (code, out) == (2, "")
    assert "MODEL: expected a model of one target, got one of 2" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("exponent", [-990, -300, 0, 300, 990])
def test_scores_of_a_regression_are_right_at_any_magnitude(run, exponent):
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    x, y = np.asarray([1.0, -2.0, 3.5, 0.25]), np.asarray([1.5, -2.0, 3.0, 1.0])
    model("m", "identity", [[1.0]], dtype="float64")
    # Powers of two change no digit.
    np.savez("d.npz", X=np.ldexp(x, exponent)[:, None], y=np.ldexp(y, exponent))
    code, out, err = run("evaluate", "m", "d.npz", "--json")
    assert (code, err) == (0, "")
    scores = json.loads(out)
    assert scores["r2"] == r2_score(y, x)
    assert scores["rmse"] == np.ldexp(root_mean_squared_error(y, x), exponent)
    assert scores["mae"] == np.ldexp(mean_absolute_error(y, x), exponent)


def test_a_score_beyond_all_numbers_is_null_and_named(run):
    model("m", "identity", [[1.0]], dtype="float64")
    np.savez("d.npz", X=[[1.7e308], [1.7e308]], y=[-1.7e308, -1.6e308])
    code, out, err = run("evaluate", "m", "d.npz", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out, parse_constant=lambda _: pytest.fail("no JSON"))["not_finite"] == [
        "rmse",
        "mae",
    ]


def test_a_training_whose_held_out_rows_overflow_is_kept(run, monkeypatch):

    def not_finite(*_):
        raise nb.InputError("DATA: expected finite predictions")

    monkeypatch.setattr(evaluation, "finite_predictions", not_finite)
    code, out, err = run("train", *QUICK, "--out", "r")
    assert code == 2
    assert "held-out" not in out
    assert err == "nnbackend train: DATA: expected finite predictions\n"
    assert nb.load("r/model.safetensors").n_parameters == 641


def test_info_names_devices_and_versions(run):
    code, out, _ = run("info", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["numpy"] == np.__version__
    assert facts["nnbackend"] == nb.__version__
    assert facts["devices"][0]["name"] == "cpu"
    assert facts["BLAS"]
    assert run("info")[1].startswith("nnbackend")


def test_info_describes_a_model(run):
    run("train", "--dataset", "planar", "--epochs", "1", "--out", "r")
    facts = json.loads(run("info", "r/model.safetensors", "--json")[1])
    assert facts["layer sizes"] == [2, 4, 1]
    assert facts["classes"] == ["red", "blue"]


def _command(*arguments):
    return [sys.executable, "-m", "nnbackend", *arguments]


def test_a_terminal_sees_a_progress_bar_with_both_losses(tmp_path):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        _command("train", "--dataset", "diabetes", "--epochs", "60", "--patience", "0"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=follower,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(follower)
    drawn = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:
            break
        if not part:
            break
        drawn += part
    out, _ = process.communicate()
    os.close(leader)
    assert process.returncode == 0
    assert b"epoch 60/60" in drawn
    assert b"loss 0." in drawn
    assert b"validation 0." in drawn
    assert b"held-out R2" in out


@pytest.mark.slow
def test_without_a_terminal_there_is_no_bar_and_json_is_all_of_stdout(tmp_path):
    arguments = ("train", "--dataset", "diabetes", "--epochs", "2")
    plain = subprocess.run(
        _command(*arguments), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert plain.stderr == ""
    assert "\x1b" not in plain.stdout
    as_json = subprocess.run(
        _command(*arguments, "--json"), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert as_json.stderr == ""
    assert json.loads(as_json.stdout)["dataset"] == "diabetes"
