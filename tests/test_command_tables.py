"""The command on tables as they come: what it makes of columns, says of them, and reads back."""

import json
from pathlib import Path

import numpy as np
import pytest

import nnbackend as nb

# Of a schedule and a decay that are the same for any number of epochs.
QUICK = ("--epochs", "3", "--hidden", "8", "--schedule", "constant", "--weight-decay", "0.01")
N = 160


def rows_of_a_table():
    """Return columns of text that make up a table of every kind, with gaps."""
    rng = np.random.default_rng(0)
    size, colour = rng.standard_normal(N), rng.choice(["red", "green", "blue"], N)
    price = 10 * size + 5 * (colour == "red") + rng.standard_normal(N)
    return {
        "id": [f"item-{i}" for i in range(N)],
        "size": [f"{x:.6f}" if i % 11 else "" for i, x in enumerate(size)],
        "colour": [c if i % 7 else "NA" for i, c in enumerate(colour)],
        "zip": rng.choice(["00501", "10001", "94103"], N).tolist(),
        "sold": rng.choice(["True", "False"], N).tolist(),
        "day": [str(np.datetime64("2024-01-01") + int(d)) for d in rng.integers(0, 365, N)],
        "planet": ["earth"] * N,
        "price": [f"{x:.4f}" for x in price],
        "class": np.where(price > 2, "dear", "cheap").tolist(),
    }


def write(path, columns, separator=","):
    lines = [separator.join(columns)]
    lines += [separator.join(row) for row in zip(*columns.values(), strict=True)]
    Path(path).write_text("\n".join(lines) + "\n")


@pytest.fixture
def trained(run):
    """Train on a table of every kind; return what was printed, as JSON, and its columns."""
    columns = rows_of_a_table()
    write("table.csv", columns)
    code, out, err = run(
        *("train", "table.csv", "--target", "class", "--drop", "price", *QUICK),
        *("--json", "--out", "r"),
    )
    assert (code, err) == (0, "")
    return json.loads(out), columns


def test_a_table_of_every_kind_is_summarized_before_it_is_trained_on(run):
    columns = rows_of_a_table()
    columns["class"][3] = columns["class"][5] = ""
    write("table.csv", columns)
    code, out, err = run("train", "table.csv", "--target", "class", *QUICK, "--out", "r")
    assert (code, err) == (0, "")
    assert out.startswith("table: 158 examples x 8 features, 2 classes\n")
    for line in (
        "separator comma, encoding utf-8",
        "160, 2 of them without 'class': left out",
        "'class', 2 classes: text",
        "values in 'size' (15), 'colour' (23)",
    ):
        assert line in out
    facts = json.loads(Path("r/history.json").read_text())
    assert facts["data"]["rows"] == "160, 2 of them without 'class': left out"
    assert facts["columns"]["date: season, week, trend"] == "day"
    told = run("info", "r")[1]
    for name in ("id", "size", "colour", "zip", "sold", "day", "planet"):
        assert name in out
        assert name in told
    for line in ("160, 2 of them without 'class': left out", "separator comma, encoding utf-8"):
        assert line in told


def test_held_out_rows_are_evaluated_to_the_same_scores(run, trained):
    result, _ = trained
    for options in ((), ("--target", "class")):
        code, out, err = run("evaluate", "r", "r/held_out.csv", *options, "--json")
        assert (code, err) == (0, "")
        assert json.loads(out) == result["held_out"]


def test_a_file_is_read_by_name_in_any_order_of_columns_and_any_dialect(run, trained):
    _, columns = trained
    code, expected, err = run("predict", "r", "table.csv", "--probabilities")
    assert (code, err) == (0, "")
    assert len(expected.splitlines()) == N + 1
    turned = dict(reversed(columns.items()))
    del turned["class"], turned["planet"], turned["id"], turned["price"]
    write("other.csv", {**turned, "more": ["x"] * N}, separator=";")
    assert run("predict", "r", "other.csv", "--probabilities") == (0, expected, "")


@pytest.mark.usefixtures("trained")
def test_a_single_row_is_read_with_the_kinds_of_the_training(run):
    expected = run("predict", "r", "table.csv", "--probabilities")[1].splitlines()
    lines = Path("table.csv").read_text().splitlines()
    for row in (0, 1, 7, 11):
        Path("one.csv").write_text(f"{lines[0]}\n{lines[1 + row]}\n")
        code, out, err = run("predict", "r", "one.csv", "--probabilities")
        assert (code, err) == (0, "")
        found, wanted = (line.split(",") for line in (out.splitlines()[1], expected[1 + row]))
        assert found[0] == wanted[0]
        np.testing.assert_allclose(
            np.float64(found[1:]), np.float64(wanted[1:]), rtol=1e-5, atol=1e-6
        )


def test_unknown_categories_and_gaps_are_predicted(run, trained):
    _, columns = trained
    columns["colour"], columns["zip"] = ["violet"] * N, ["00000"] * N
    columns["size"], columns["day"] = [""] * N, ["?"] * N
    write("odd.csv", columns)
    code, out, err = run("predict", "r", "odd.csv", "--json")
    assert (code, err) == (0, "")
    assert set(json.loads(out)["prediction"]) <= {"cheap", "dear"}


def test_a_column_that_changed_kind_or_is_missing_is_told(run, trained):
    _, columns = trained
    write("odd.csv", {**columns, "size": ["1.5", "large"] * (N // 2)})
    code, out, err = run("predict", "r", "odd.csv")
    assert (code, out) == (2, "")
    assert err == (
        "nnbackend predict: DATA: expected numbers in column 'size', got text, such as 'large' in "
        "data row 2 of 'odd.csv'; correct the column\n"
    )
    del columns["day"]
    write("less.csv", columns)
    code, out, err = run("predict", "r", "less.csv")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'day'" in err


def test_rows_without_a_target_are_refused_in_evaluate(run, trained):
    _, columns = trained
    columns["class"][4] = ""
    write("gap.csv", columns)
    code, _, err = run("evaluate", "r", "gap.csv")
    assert code == 2
    assert "expected no missing values, got some in 'class' (1), the first in data row 5" in err
    columns["class"][4] = "fair"
    write("new.csv", columns)
    assert (
        "holds the class 'fair', which the model does not know"
        in run("evaluate", "r", "new.csv")[2]
    )


def test_a_regression_on_a_table_is_in_the_units_of_its_target(run):
    columns = rows_of_a_table()
    del columns["class"]
    columns["price"] = [f"{1000 + float(x)}" for x in columns["price"]]
    write("table.csv", columns)
    arguments = ("--epochs", "80", "--learning-rate", "0.01", "--hidden", "16", "--json")
    code, out, err = run("train", "table.csv", "--target", "price", *arguments, "--out", "r")
    assert (code, err) == (0, "")
    scores = json.loads(out)["held_out"]
    assert scores["r2"] > 0.5
    assert json.loads(run("evaluate", "r", "r/held_out.csv", "--json")[1]) == scores


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["00501", "10001"], ("00501", "10001")),
        (["1e3", "+1", "1"], ("+1", "1", "1e3")),
        (["True", "maybe"], ("True", "maybe")),
        (['"NA"', '"None"'], ("NA", "None")),
        (["True", "False"], ("False", "True")),
        (["3", "7"], ("3", "7")),
    ],
)
def test_classes_come_back_as_they_were_spelled(run, classes, names):
    rng = np.random.default_rng(0)
    y = rng.integers(0, len(classes), 90)
    write("table.csv", {"a": [str(3.0 * k) for k in y], "y": [classes[k] for k in y]})
    code, out, err = run(
        *("train", "table.csv", "--target", "y", "--epochs", "60", "--learning-rate", "0.02"),
        *("--json", "--out", "r"),
    )
    assert (code, err) == (0, "")
    assert nb.load("r/model.safetensors").class_names == names
    assert json.loads(out)["held_out"]["accuracy"] == 1.0
    predicted = json.loads(run("predict", "r", "table.csv", "--json")[1])["prediction"]
    assert predicted == [classes[k].strip('"') for k in y]
    # Of one class alone, a file's column would be of another kind.
    for k, name in enumerate(classes):
        write("one.csv", {"a": [str(3.0 * k)] * 3, "y": [name] * 3})
        scores = json.loads(run("evaluate", "r", "one.csv", "--json")[1])
        assert scores["accuracy"] == 1.0
    assert json.loads(run("evaluate", "r", "r/held_out.csv", "--json")[1])["accuracy"] == 1.0


def test_columns_are_what_is_told(run):
    columns = rows_of_a_table()
    columns["grade"] = [str(1 + i % 5) for i in range(N)]
    write("table.csv", columns)
    typed = ("--columns", "grade=category,zip=number", "--columns", "id=drop")
    code, out, err = run(
        *("train", "table.csv", "--target", "class", "--drop", "price", *typed, *QUICK),
        *("--json", "--out", "r"),
    )
    assert (code, err) == (0, "")
    stored = json.loads(Path("r/command.json").read_text())["options"]
    assert stored["columns"] == ["grade=category", "zip=number", "id=drop"]
    told = run("info", "r")[1]
    assert "grade" in told
    scores = json.loads(out)["held_out"]
    assert json.loads(run("evaluate", "r", "r/held_out.csv", "--json")[1]) == scores
    assert run("train", "--resume", "r", "--epochs", "4")[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--columns", "size"], "--columns: expected COL=KIND"),
        (["--columns", "size=words"], "--columns: expected COL=KIND"),
        (["--columns", "sise=number"], "--columns: no column 'sise'"),
        (["--columns", "colour=number"], "DATA: expected numbers in column 'colour', got text"),
        (["--columns", "class=number"], "--columns: expected a feature, got the target 'class'"),
        (["--encoding", "none"], "DATA: expected no missing values, got some in"),
        (["--encoding", "none", "--columns", "a=drop"], "--columns: expected --encoding table"),
        (["--task", "regression"], "--target: column 'class' holds text"),
        (["--target", "planet"], "--target: expected at least two classes"),
        (["--target", "id"], "--target: expected classes of several rows"),
        (["--target", "day"], "--target: expected numbers, booleans or text in column 'day'"),
        (["--weight", "colour"], "--weight: expected no missing values"),
        (["--order", "zip"], "--order: expected numbers or dates"),
    ],
)
def test_what_is_not_in_the_table_is_told_and_leaves_nothing(run, options, message):
    write("table.csv", rows_of_a_table())
    target = () if "--target" in options else ("--target", "class")
    code, _, err = run("train", "table.csv", *target, *options, "--out", "r")
    assert code == 2
    assert err.startswith(f"nnbackend train: {message}")
    assert err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["table.csv"]


@pytest.mark.parametrize("row", [0, 20, 39])
def test_an_infinite_number_is_named_by_its_row_before_the_rows_are_split(run, row):
    size = [str(i % 7 + 0.5) for i in range(40)]
    size[row] = "1e999"
    write("table.csv", {"size": size, "class": ["dear", "cheap"] * 20})
    code, _, err = run("train", "table.csv", "--target", "class", *QUICK, "--out", "r")
    assert code == 2
    assert err.startswith(
        f"nnbackend train: DATA: expected finite numbers, got inf in row {row} of column 'size' of"
    )
    assert [path.name for path in Path().iterdir()] == ["table.csv"]


@pytest.mark.parametrize(
    ("column", "option", "message"),
    [
        (["x"] * 40, (), "--columns: expected a column that tells rows apart, got 'size' dropped"),
        (["1"] + ["0"] * 39, ("--weight", "size"), "--weight: expected weights >= 0 that are not"),
    ],
)
def test_what_shows_only_after_the_rows_were_split_names_the_option(run, column, option, message):
    other = [str(i % 7 + 0.5) for i in range(40)] if option else ["x"] * 40
    # The row of weight is held out: groups are drawn, and one of the two holds it alone.
    group = [str(i % 2) for i in range(40)]
    write(
        "table.csv",
        {"size": column, "other": other, "group": group, "class": ["dear", "cheap"] * 20},
    )
    code, _, err = run(
        *("train", "table.csv", "--target", "class", "--group", "group", *option),
        *("--seed", "0", *QUICK, "--out", "r"),
    )
    assert code == 2
    assert err.startswith(f"nnbackend train: {message}")


@pytest.mark.parametrize("option", ["--columns=a=drop", "--na=x", "--weight=a", "--group=a",
                                    "--order=a", "--encoding=none"])  # fmt: skip
def test_options_of_a_file_need_a_file(run, option):
    code, _, err = run("train", option)
    assert code == 2
    assert err.startswith(f"nnbackend train: {option.partition('=')[0]}: expected a DATA file")


def test_what_stands_for_a_gap_is_kept_with_the_model(run):
    columns = {
        "a": [str(i % 9) if i % 5 else "-99" for i in range(N)],
        "y": ["NA" if i % 9 > 4 else "x" for i in range(N)],
    }
    write("table.csv", columns)
    code, out, err = run("train", "table.csv", "--target", "y", "--na=-99", *QUICK, "--out", "r")
    assert (code, err) == (0, "")
    assert "values in 'a' (32)" in out
    assert nb.load("r/model.safetensors").class_names == ("NA", "x")
    code, with_marker, _ = run("predict", "r", "table.csv")
    write("empty.csv", {**columns, "a": ["" if x == "-99" else x for x in columns["a"]]})
    assert run("predict", "r", "empty.csv") == (0, with_marker, "")


@pytest.mark.usefixtures("trained")
def test_a_run_on_a_table_goes_on_as_it_would_have(run):
    assert run("train", "--resume", "r", "--epochs", "5")[0] == 0
    arguments = ("--target", "class", "--drop", "price", *QUICK, "--epochs", "5")
    assert run("train", "table.csv", *arguments, "--out", "s")[0] == 0
    first, second = (nb.load(f"{folder}/model.safetensors").parameters for folder in "rs")
    assert np.array_equal(first, second)


def test_a_run_that_was_begun_without_an_encoding_goes_on_without_one(run):
    x = np.random.default_rng(0).standard_normal((N, 2))
    write("table.csv", {"a": [str(v) for v in x[:, 0]], "b": [str(v) for v in x[:, 1]],
                        "y": [str(int(v > 0)) for v in x[:, 0]]})  # fmt: skip
    arguments = ("train", "table.csv", "--target", "y", "--encoding", "none", *QUICK)
    assert run(*arguments, "--out", "r")[0] == 0
    command = json.loads(Path("r/command.json").read_text())
    # As earlier versions wrote it.
    assert command["options"].pop("encoding") == "none"
    Path("r/command.json").write_text(json.dumps(command))
    code, _, err = run("train", "--resume", "r", "--epochs", "5")
    assert (code, err) == (0, "")
    assert nb.load("r/model.safetensors").standardization is not None


@pytest.mark.parametrize("name", ["table.parquet", "table.feather", "table.csv.gz", "table.tsv"])
def test_every_format_gives_the_same_model(run, name):
    import gzip

    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    x, word = rng.standard_normal(N), rng.choice(["u", "v"], N)
    y = np.where(x + (word == "u") > 0.5, "yes", "no")
    columns = {"x": x.tolist(), "word": word.tolist(), "y": y.tolist()}
    text = {key: [str(v) for v in values] for key, values in columns.items()}
    write("table.csv", text)
    if name.endswith(".gz"):
        Path(name).write_bytes(gzip.compress(Path("table.csv").read_bytes()))
    elif name.endswith(".tsv"):
        write(name, text, "\t")
    elif name.endswith(".parquet"):
        pyarrow.parquet.write_table(pa.table(columns), name)
    else:
        pyarrow.feather.write_feather(pa.table(columns), name)
    for folder, data in (("r", "table.csv"), ("s", name)):
        assert run("train", data, "--target", "y", *QUICK, "--out", folder)[0] == 0
    first, second = (nb.load(f"{folder}/model.safetensors").parameters for folder in "rs")
    assert np.array_equal(first, second)


def test_an_excel_file_is_trained_on(run):
    from backends import require

    pandas = require("pandas")
    require("openpyxl")
    columns = rows_of_a_table()
    columns["size"] = [float(x) if x else None for x in columns["size"]]
    pandas.DataFrame(columns).to_excel("table.xlsx", index=False)
    code, out, err = run("train", "table.xlsx", "--target", "class", *QUICK, "--out", "r")
    assert (code, err) == (0, "")
    assert "sheet 'Sheet1'" in out
    assert run("evaluate", "r", "table.xlsx")[0] == 0
