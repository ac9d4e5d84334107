"""What a target column is: decided once, from how a file spells it, and the same in later files."""

import numpy as np
import pytest

import nnbackend as nb
from nnbackend.data.tables import read_table
from nnbackend.data.target import Target
from nnbackend.data.text_columns import text_column
from nnbackend.data.typed import TypedColumn
from nnbackend.data.user_data import read_dataset


def column_of(values):
    values = np.asarray(values)
    if values.dtype.kind == "U":
        return text_column(values.tolist())
    kind = "boolean" if values.dtype.kind == "b" else "number"
    return TypedColumn(kind, values.astype(np.float64))


@pytest.mark.parametrize(
    ("values", "task", "codes", "names"),
    [
        (["b", "a", "b"], "auto", [1, 0, 1], ("a", "b")),
        ([True, False], "auto", [1, 0], ("False", "True")),
        ([3, 7, 3], "auto", [0, 1, 0], ("3", "7")),
        ([1.0, 2.0], "classification", [0, 1], ("1", "2")),
        ([0.5, 1.5], "auto", [0.5, 1.5], None),
        ([1.0, 2.0], "auto", [0, 1], ("1", "2")),
        ([1.0, 2.0], "regression", [1.0, 2.0], None),
        ([1, 2], "regression", [1.0, 2.0], None),
        (list(range(50)), "auto", [float(i) for i in range(50)], None),
    ],
)
def test_targets_become_class_indices_or_numbers(values, task, codes, names):
    column = column_of(values)
    target, _ = Target.decide("t", column, task=task)
    y = target.encode("t", column, "x.csv")
    assert y.tolist() == codes
    assert y.dtype == (np.float64 if names is None else np.int64)
    assert target.class_names == names


@pytest.mark.parametrize(
    ("values", "task", "message"),
    [
        (["a", "b"], "regression", "'t' holds text, such as 'a'"),
        (["a", "a"], "auto", "at least two classes.*got only 'a'"),
        ([1.0, np.inf], "auto", "'t' holds inf"),
        ([np.nan, np.nan], "auto", "got 2 gaps and nothing else"),
        (np.arange(3000), "classification", "3000 distinct values"),
        (["a", "b", "c"], "auto", "3 distinct values in 3 rows"),
        ([0.5, 0.5], "auto", "at least two values.*got only '0.5'"),
    ],
)
def test_a_target_that_cannot_be_learnt_is_refused(values, task, message):
    with pytest.raises(nb.InputError, match=message):
        Target.decide("t", column_of(values), task=task)


@pytest.fixture
def written(tmp_path):
    """Write a table of rows of a feature and a target, and return the path."""

    def write(targets, name="x.csv"):
        path = tmp_path / name
        rows = "".join(f"{i},{target}\n" for i, target in enumerate(targets))
        path.write_text(f"a,y\n{rows}")
        return str(path)

    return write


@pytest.mark.parametrize(
    ("spelled", "kind", "names"),
    [
        (["00501", "10001"], "text", ("00501", "10001")),
        (["1e3", "1e4"], "text", ("1e3", "1e4")),
        (["+1", "1", "-1"], "text", ("+1", "-1", "1")),
        (["+1", "-1"], "text", ("+1", "-1")),
        (["True", "False"], "boolean", ("False", "True")),
        (["true", "false"], "boolean", ("false", "true")),
        (["FALSE", "TRUE"], "boolean", ("FALSE", "TRUE")),
        (["0", "1"], "number", ("0", "1")),
        (["0.0", "1.0"], "number", ("0", "1")),
        (['"NA"', '"None"'], "text", ("NA", "None")),
        (["10", "9", "2"], "number", ("2", "9", "10")),
        (["yes", "no"], "text", ("no", "yes")),
        (["2020-02-30", "x"], "text", ("2020-02-30", "x")),
    ],
)
def test_classes_are_spelled_as_in_the_file(written, spelled, kind, names):
    dataset = read_dataset(written(spelled * 3), "y")
    assert dataset.target.kind == kind
    assert dataset.class_names == names
    plain = [word.strip('"').removesuffix(".0") for word in spelled * 3]
    assert [names[k] for k in dataset.y] == plain


@pytest.mark.parametrize(
    ("spelled", "later"),
    [
        (["00501", "10001"], ["10001", "10001"]),
        (["1e3", "abc"], ["1e3", "1e3"]),
        (["+1", "1"], ["1", "1"]),
        (["True", "maybe"], ["True", "True"]),
        (["2020-01-01", "x"], ["2020-01-01", "2020-01-01"]),
        (["1", "x"], ["1", "1"]),
        (["0", "1"], ["0.0", "1.0"]),
        (["True", "False"], ["TRUE", "true"]),
    ],
)
def test_a_later_file_is_read_with_the_kind_that_was_decided(written, spelled, later):
    target = read_dataset(written(spelled * 3), "y").target
    path = written(later, "later.csv")
    column = read_table(path, {"y": target.kind}).columns["y"]
    found = [target.class_names[k] for k in target.encode("y", column, path)]
    assert [name.lower() for name in found] == [w.lower().removesuffix(".0") for w in later]


def test_a_numeric_target_of_many_values_is_a_regression_that_says_so(written):
    path = written([f"{v}.5" for v in range(30)])
    dataset = read_dataset(path, "y")
    assert dataset.class_names is None
    facts = dict(dataset.target.facts)
    assert facts["target"] == (
        "'y', a regression: numbers of many values (30 distinct); --task classification for classes"
    )
    path = written([v % 15 for v in range(30)])
    assert len(read_dataset(path, "y").class_names) == 15
    assert read_dataset(path, "y", task="regression").class_names is None
    path = written([v % 25 for v in range(75)])
    assert read_dataset(path, "y").class_names is None
    assert len(read_dataset(path, "y", task="classification").class_names) == 25


def test_decimals_whole_numbers_beyond_int64_and_durations_are_numbers(tmp_path):
    import datetime as dt
    from decimal import Decimal

    import pyarrow as pa
    import pyarrow.parquet

    n = 30
    values = {
        "decimal": pa.array([Decimal(i) / 4 for i in range(n)], pa.decimal128(10, 2)),
        "huge": pa.array([Decimal(10**30 + 10**29 * i) for i in range(n)], pa.decimal256(40, 0)),
        "unsigned": pa.array(
            [2**64 - 1 - 2**60 * (i % 8) - i * 10**6 for i in range(n)], pa.uint64()
        ),
        "duration": pa.array([dt.timedelta(minutes=i) for i in range(n)]),
    }
    path = str(tmp_path / "x.parquet")
    pyarrow.parquet.write_table(pa.table({"a": np.arange(n), **values}), path)
    expected = {
        "decimal": np.arange(n) / 4,
        "huge": 1e30 + 1e29 * np.arange(n),
        "unsigned": [float(v) for v in values["unsigned"].to_pylist()],
        "duration": 60.0 * np.arange(n),
    }
    for name, numbers in expected.items():
        dataset = read_dataset(path, name)
        assert dataset.class_names is None
        np.testing.assert_allclose(dataset.y, numbers, rtol=1e-15)
    text = tmp_path / "x.csv"
    text.write_text("a,y\n" + "".join(f"{i},{10**20 + 10**19 * i}\n" for i in range(n)))
    np.testing.assert_allclose(
        read_dataset(str(text), "y").y, 1e20 + 1e19 * np.arange(n), rtol=1e-15
    )


def test_rows_without_a_target_are_left_out_and_counted(written):
    dataset = read_dataset(written(["x", "", "z", "NA", "x", "z"]), "y")
    assert dataset.y.tolist() == [0, 1, 0, 1]
    assert dataset.features(slice(None)).columns["a"].values.tolist() == [0, 2, 4, 5]
    assert dict(dataset.target.facts)["rows"] == "6, 2 of them without 'y': left out"
    # What is quoted is a text, and what --na does not name is one, too.
    dataset = read_dataset(written(["x", '"NA"', "z", "NA", "x", "NA"]), "y", na=["x"])
    assert dataset.class_names == ("NA", "z")
    assert dataset.y.tolist() == [0, 1, 0, 0]


def test_a_target_survives_its_description():
    target = Target("y", "classification", "text", ("NA", "x"), ("-",), (("rows", "3"),))
    assert Target.from_json(target.to_json(), ("NA", "x")) == target
    for change in (
        {"kind": "date"},
        {"task": "regression"},
        {"na": "x"},
        {"name": 1},
        {"more": 1},
        {"facts": [["a"]]},
    ):
        with pytest.raises(ValueError, match="expected"):
            Target.from_json({**target.to_json(), **change}, ("NA", "x"))


def test_a_target_of_another_kind_shows_both_and_a_value(written):
    target = Target("y", "regression", "number")
    path = written(["1.5", "old", "2"])
    with pytest.raises(nb.InputError) as caught:
        read_table(path, {"y": target.kind})
    assert str(caught.value) == (
        f"DATA: expected numbers in column 'y', got text, such as 'old' in data row 2 of {path!r}; "
        "correct the column"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": "w"}, "--weight: no column 'w'"),
        ({"weight": "y"}, "--weight: expected another column than the target"),
        ({"weight": "a"}, "--weight: expected finite numbers >= 0.* got -1 in column 'a'"),
        ({"group": "g"}, "--group: expected no missing values, got some in 'g'"),
        ({"order": "t"}, "--order: expected numbers or dates .* in column 't', got 'x'"),
        ({"drop": ["z"]}, "--drop: no column 'z'"),
    ],
)
def test_columns_of_weights_groups_and_order_are_checked(tmp_path, options, message):
    path = tmp_path / "x.csv"
    path.write_text("a,g,t,y\n1,u,x,0\n-1,,y,1\n2,v,z,0\n")
    with pytest.raises(nb.InputError, match=message) as caught:
        read_dataset(str(path), "y", **options)
    assert "\n" not in str(caught.value)
