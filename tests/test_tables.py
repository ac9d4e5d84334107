"""Reading users' files: every format gives the same numbers, and damage gives one sentence."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from backends import require
from pyarrow.feather import write_feather

import nnbackend as nb
from nnbackend.data.door import look
from nnbackend.data.tables import read_table
from nnbackend.data.text_columns import as_kind
from nnbackend.data.user_data import read_dataset

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 3))
Y = RNG.integers(0, 2, 20)


@pytest.fixture
def files(tmp_path):
    """One data set in every format; the target is the last column, or ``y``."""
    table = pa.table({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2], "label": Y})
    pyarrow.csv.write_csv(table, tmp_path / "data.csv")
    with pa.CompressedOutputStream(str(tmp_path / "data.csv.gz"), "gzip") as stream:
        pyarrow.csv.write_csv(table, stream)
    options = pyarrow.csv.WriteOptions(delimiter="\t")
    pyarrow.csv.write_csv(table, tmp_path / "data.tsv", options)
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    np.save(tmp_path / "data.npy", np.column_stack([X, Y]))
    np.savez(tmp_path / "data.npz", X=X, y=Y)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("data.csv", "label"),
        ("data.csv.gz", "label"),
        ("data.tsv", "label"),
        ("data.parquet", "label"),
        ("data.npy", "-1"),
        ("data.npy", "3"),
        ("data.npz", None),
        ("data.npz", "y"),
    ],
)
def test_every_format_gives_the_same_data(files, name, target):
    dataset = read_dataset(str(files / name), target, task="classification", as_numbers=True)
    # CSV holds the shortest decimal that reads back as the same float64, so this is exact.
    assert np.array_equal(dataset.X, X)
    assert np.array_equal(dataset.y, Y)
    assert dataset.class_names == ("0", "1")
    assert dataset.name == "data"


def test_dropped_columns_are_left_out(files):
    dataset = read_dataset(str(files / "data.csv"), "label", drop=["b"], as_numbers=True)
    assert dataset.feature_names == ("a", "c")
    assert np.array_equal(dataset.X, X[:, [0, 2]])


@pytest.mark.parametrize(
    ("name", "content", "target", "message"),
    [
        ("x.csv", "a,b\n1,2\n", "c", "--target: no column 'c' in"),
        ("x.csv", "length,b\n1,2\n", "lenght", "did you mean 'length'"),
        ("x.csv", "a,b\n1,2\n", None, "--target: expected the column to learn, one of 'a', 'b'"),
        ("x.csv", "a,b\n1,2\n3\n", "b", "DATA: expected 2 values .*, got 1 value in line 3 of"),
        ("x.csv", "a,b\n", "b", "at least one row"),
        ("x.csv", "", "b", "DATA: expected a table, got the empty file"),
        ("x.csv", "a,a,b\n1,2,3\n", "b", "distinct column names, got 'a' twice"),
        (
            "x.csv",
            "a,b\n1,0\nnan,1\n",
            "b",
            "no missing values, got some in 'a' \\(1\\), the first in data row 2",
        ),
        ("x.csv", "a,b\n1,0\ninf,1\n", "b", "finite numbers, got inf in row 1 of column 'a'"),
        (
            "x.csv",
            "a,b\n1,0\n,1\n",
            "b",
            "no missing values, got some in 'a' \\(1\\), the first in data row 2",
        ),
        (
            "x.csv",
            "a,b\n1,\n2,1\n",
            "b",
            "--target: expected at least two classes in column 'b', got only '1'",
        ),
        ("x.csv", "a,b\nred,0\nblue,1\n", "b", "text or dates in 'a'.*train a model on the table"),
        ("x.csv", "a,b\n2020-01-01,0\n2020-01-02,1\n", "b", "text or dates in 'a'"),
        ("x.csv", "b\n0\n1\n", "b", "at least one feature column"),
        ("x.csv", "a,b\n1,2020-01-01\n2,2020-01-02\n", "b", "'b', got dates, such as 2020-01-01"),
        ("x.csv", "a,b\n1,\n2,NA\n", "b", "--target: .* column 'b', got 2 gaps and nothing else"),
        ("x.csv", "a,b\n1,x\n2,y\n3,z\n", "b", "got 3 distinct values in 3 rows"),
        ("x.csv", "a,b\n1,1.5\n2,1.5\n", "b", "at least two values in column 'b', got only '1.5'"),
        ("x.csv", "a,b,c\n,1,yes\n2,,no\n", "c", "in 'a' \\(1\\), 'b' \\(1\\)"),
        ("x.csv", "1.5,2.5\n3.5,4.5\n", "2.5", "expected a header line"),
        ("x.csv", b"a\xe9,b\n1,0\n2,\x81\n", "b", "DATA: .* got the byte 0x81 at position 11 of"),
        ("x.csv", "a,b\n,0\n,1\n", "b", "got some in 'a' \\(2\\)"),
        ("x.csv", b"a,b\n\xff\xfe,1\nx,0\n", "b", "DATA: .*text"),
        (
            "x.csv",
            b"\x89PNG\r\n\x1a\n\0\0\0",
            "b",
            "DATA: expected a table of text, got other bytes",
        ),
        ("x.parquet", b"PAR1 but no more", "b", "DATA: cannot read"),
        ("x.npy", b"\x93NUMPY truncated", "0", "DATA: cannot read"),
        ("x.npy", b"", "0", "DATA: cannot read"),
        ("x.npz", b"PK\x03\x04 truncated", "y", "DATA: cannot read"),
        ("x.json", "1 2", "0", "expected a file ending in .csv"),
        ("x.txt", "a,b\n", "b", "at least one row, got none in .* a header alone"),
        ("x.txt", "a,b", "b", "at least one row, got none in .* a header alone"),
        ("x.csv", '"', "b", "at least one row, got none in .* a header alone"),
        (
            "x.csv.gz",
            gzip.compress(b"a,b\n1,2\n" + bytes(2**24).replace(b"\0", b"7")),
            "b",
            "DATA: expected lines of less than 16777216 bytes, got a longer one in",
        ),
    ],
)
def test_a_file_that_cannot_be_used_gives_one_sentence(tmp_path, name, content, target, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(nb.InputError, match=message) as caught:
        read_dataset(str(path), target, as_numbers=True)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_told(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(nb.InputError, match="DATA: "):
            read_table(str(path))


def test_truncated_files_never_give_data(files, tmp_path):
    for name in ("data.npy", "data.npz", "data.parquet"):
        content = (files / name).read_bytes()
        for length in range(0, len(content) - 1, max(1, len(content) // 40)):
            path = tmp_path / f"cut-{name}"
            path.write_bytes(content[:length])
            with pytest.raises(nb.InputError, match="DATA: "):
                read_table(str(path))


def test_a_pickle_inside_an_array_file_is_not_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    np.save(tmp_path / "trap.npy", np.asarray([[Trap()]], dtype=object), allow_pickle=True)
    with pytest.raises(nb.InputError, match="DATA: cannot read"):
        read_table(str(tmp_path / "trap.npy"))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": Y}, "one matrix"),
        ({"a": X, "b": X}, "one matrix"),
        ({"X": X, "y": Y[:5]}, "expected 20 values in 'y'"),
        ({"X": X.astype(complex)}, "real numbers, got dtype complex128"),
        ({"X": X[:0]}, "at least one row"),
    ],
)
def test_npz_files_of_another_shape_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(nb.InputError, match=message):
        read_table(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_text_is_read_in_the_encoding_that_it_is_in(tmp_path, encoding):
    path = tmp_path / "words.csv"
    path.write_bytes("größe,kind\n1,dög\n2,€\n".encode(encoding))
    table = read_table(str(path))
    assert list(table.columns) == ["größe", "kind"]
    assert table.columns["kind"].words == ("dög", "€")
    assert f"encoding {encoding.removesuffix('-sig')}" in table.detected


def shown(table):
    """Return each column's kind and its values as messages show them."""
    return {
        name: (column.kind, [column.shown(row) for row in range(table.n_rows)])
        for name, column in table.columns.items()
    }


@pytest.fixture
def read(tmp_path):
    """Write a content to a file of that name, and read it."""

    def written_and_read(content, name="x.csv", **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_table(str(path), **options)

    return written_and_read


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("x.csv", "a,b\n1.5,x\n", ("separator comma",)),
        ("x.csv", "a;b\n1,5;x\n", ("separator semicolon", "decimal comma in 1 column")),
        ("x.csv", "a;b\n1.5;x\n", ("separator semicolon",)),
        ("x.tsv", "a\tb\n1.5\tx\n", ("separator tab",)),
        ("x.txt", "a|b\n1.5|x\n", ("separator vertical bar",)),
        ("x.TXT", "a\tb\n1,5\tx\n", ("separator tab", "decimal comma in 1 column")),
        ("x.csv", 'a,b\n"1.5","x"\n', ("separator comma", 'quotes "')),
        ("x.csv", "a,b\n1.5,'x'\n", ("separator comma", "quotes '")),
    ],
)
def test_how_a_file_is_written_is_found_and_said(read, name, content, facts):
    table = read(content, name)
    assert shown(table) == {"a": ("number", ["1.5"]), "b": ("text", ["'x'"])}
    assert set(table.detected) == {*facts, "encoding utf-8"}
    assert table.name.endswith(name)


def test_quotes_hold_separators_line_ends_and_quotes(read):
    table = read('a,b\n"x, y","one\ntwo"\n"say ""hi""",3\n')
    assert shown(table)["a"][1] == ["'x, y'", "'say \"hi\"'"]
    assert shown(table)["b"][1] == [r"'one\ntwo'", "'3'"]
    assert shown(read('a,b\n"say \\"hi\\", or",3\n'))["a"][1] == ["'say \"hi\", or'"]
    # A backslash is itself where quotes are doubled.
    assert read('a,b\n"C:\\dir\\",3\n').columns["a"].words == ("C:\\dir\\",)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_end_ends_a_line(read, end):
    table = read(end.join(["a;b", "1;x", "", "2;y", ""]))
    assert shown(table) == {"a": ("number", ["1.0", "2.0"]), "b": ("text", ["'x'", "'y'"])}


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["1", "-2.5", "1e3", "+4", ".5"], "number", [1, -2.5, 1000, 4, 0.5]),
        (["1", " 2", "3 "], "number", [1, 2, 3]),
        (["123456789012345678901", "1"], "number", [123456789012345678901.0, 1]),
        (["00501", "10001"], "text", None),
        (["0.5", "0"], "number", [0.5, 0]),
        (["true", "False", "TRUE"], "boolean", [1, 0, 1]),
        (["yes", "no"], "text", None),
        (["2024-01-31", "2024-02-29"], "date", None),
        (["2024-01-31 10:00", "2024-02-29T10:00:00.5+02:00"], "date", None),
        (["2024-02-30", "2024-02-29"], "text", None),
        (["1", "x"], "text", None),
        (["1_000", "2"], "text", None),
        (["1,5", "2"], "text", None),
    ],
)
def test_a_column_is_what_all_of_its_values_are(read, values, kind, expected):
    quoted = "".join(f'"{value}"\n' if "," in value else f"{value}\n" for value in values)
    column = read(f"a\n{quoted}").columns["a"]
    assert column.kind == kind
    if expected is not None:
        assert column.values.tolist() == expected
    elif kind == "text":
        assert [column.words[code] for code in column.values] == values
    gaps = read(f"a,b\n,1\n{quoted.replace(chr(10), ',1' + chr(10))}").columns["a"]
    assert (gaps.kind, gaps.shown(0)) == (kind, "a gap")


def test_dates_are_microseconds_since_1970_in_utc(read):
    values = read("a\n2024-02-29T10:00:00.5+02:00\n1969-12-31T23:59:59Z\n").columns["a"].values
    expected = np.asarray(["2024-02-29T08:00:00.5", "1969-12-31T23:59:59"], "M8[us]")
    assert values.tolist() == expected.astype(np.int64).tolist()


@pytest.mark.parametrize(
    ("content", "kind", "values"),
    [
        ('a,b\n"1,234.50",x\n"-1,234,567",y\n950,z\n', "number", ["1234.5", "-1234567.0", "950.0"]),
        ("a;b\n1,234.50;x\n950;y\n", "number", ["1234.5", "950.0"]),
        # No groups of three: nobody writes thousands so.
        ('a,b\n"1,23",x\n"1,234",y\n', "text", ["'1,23'", "'1,234'"]),
        ('a,b\n"0,125",x\n"0,250",y\n', "text", ["'0,125'", "'0,250'"]),
        ('a,b\n"1234,567",x\n"1,2",y\n', "text", ["'1234,567'", "'1,2'"]),
    ],
)
def test_commas_between_thousands(read, content, kind, values):
    table = read(content)
    assert shown(table)["a"] == (kind, values)
    assert ("commas between thousands in 1 column" in table.detected) == (kind == "number")


def test_a_column_with_commas_between_thousands_is_what_it_is_known_as(read):
    content = 'a\n"1,234"\n"12,345.5"\n'
    assert shown(read(content, kinds={"a": "number"}))["a"][1] == ["1234.0", "12345.5"]
    table = read(content, kinds={"a": "text"})
    assert shown(table)["a"] == ("text", ["'1,234'", "'12,345.5'"])
    assert not any("thousands" in fact for fact in table.detected)


def test_thousands_are_numbers_in_a_frame_that_is_read_as_numbers():
    table = look("X", pa.table({"a": ["1,234", "12.5"]})).table()
    assert as_kind("a", "X", table.columns["a"], "number").values.tolist() == [1234.0, 12.5]


def test_decimal_commas_and_groups_of_thousands(read):
    table = read("a;b;c\n1,5;1.234,5;1.500\n-2;2,25;2.250\n")
    assert table.columns["a"].values.tolist() == [1.5, -2]
    assert table.columns["b"].values.tolist() == [1234.5, 2.25]
    # With nothing else to go by, a point is a point.
    assert table.columns["c"].values.tolist() == [1.5, 2.25]


def test_the_usual_markers_are_gaps_unless_they_are_quoted(read):
    markers = ["", "NA", "N/A", "nan", "null", "None", "NULL", "?", "-"]
    table = read("a,b\n" + "".join(f"{marker},1\n" for marker in markers) + "1,1\n")
    assert shown(table)["a"] == ("number", ["a gap"] * len(markers) + ["1.0"])
    quoted = read('a,b\n"NA",1\n"None",1\nNA,1\n"",1\n')
    assert shown(quoted)["a"] == ("text", ["'NA'", "'None'", "a gap", "a gap"])
    told = read("a,b\n-99,NA\n1,x\n,y\n", na=["-99"])
    assert shown(told) == {
        "a": ("number", ["a gap", "1.0", "a gap"]),
        "b": ("text", ["'NA'", "'x'", "'y'"]),
    }


@pytest.mark.parametrize(
    ("values", "kind", "gap"),
    [
        (["1.5", "2"], "number", ""),
        (["1.5", "2"], "number", "  "),
        (["1,5", "1.234,5"], "number", ""),
        (["1,5", "1.234,5"], "number", "  "),
        (["true", "False"], "boolean", ""),
        (["true", "False"], "boolean", "  "),
        (["2024-01-31", "2024-02-29"], "date", ""),
        (["red", "blue"], "text", ""),
        (["red", "blue"], "text", "  "),
    ],
)
def test_a_gap_may_be_quoted_as_every_other_value(read, values, kind, gap):
    content = "".join(f'"{value}";"x"\n' for value in ["a", *values, gap])
    for column in (
        read(content).columns["a"],
        read(content, kinds={"a": kind}).columns["a"],
        read(f"{content.splitlines()[0]}\n" + f'"{gap}";"x"\n' * 150 + content[8:]).columns["a"],
    ):
        assert column.kind == kind
        assert bool(column.is_missing[-1]) is (kind != "text" or not gap)
        assert not column.is_missing[-3:-1].any()
    # Of blanks alone, none spells anything else.
    alone = read(f'"a";"b"\n"{gap}";"x"\n').columns["a"]
    assert (alone.kind, alone.words) == (("text", (gap,)) if gap else ("number", ()))


def test_a_column_is_read_as_the_kind_that_is_told(read):
    content = "a,b,c,d,e\n00501,1,1,2020-01-01,\n10001,0,1.50,2020-01-02,\n"
    kinds = {"a": "number", "b": "boolean", "c": "text", "d": "text", "e": "date"}
    assert shown(read(content, kinds=kinds)) == {
        "a": ("number", ["501.0", "10001.0"]),
        "b": ("boolean", ["True", "False"]),
        "c": ("text", ["'1'", "'1.50'"]),
        "d": ("text", ["'2020-01-01'", "'2020-01-02'"]),
        "e": ("date", ["a gap", "a gap"]),
    }


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [("number", "old", "numbers"), ("boolean", "maybe", "booleans"), ("date", "spring", "dates")],
)
def test_a_column_that_is_not_of_its_kind_shows_a_value(read, kind, value, expected):
    with pytest.raises(nb.InputError) as caught:
        read(f"a,b\n,1\n{value},1\n", kinds={"a": kind})
    assert str(caught.value).startswith(
        f"DATA: expected {expected} in column 'a', got text, such as '{value}' in data row 2 of"
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("a,b\n1,2\n3\n", 3),
        ("a,b\n1,2\n\n3,4,5\n", 4),
        ('a,b\n"x\ny",2\n3,4,5\n', 4),
        ("a;b;c\n1;2;3\n1;2\n", 3),
        ('a,b\n1,2\n"3,4\n5,6\n', 3),
    ],
)
def test_a_ragged_row_is_named_by_its_line(read, content, line):
    with pytest.raises(nb.InputError, match=f"values? in line {line} of"):
        read(content)


def test_a_ragged_row_far_behind_is_named_by_its_line(read):
    with pytest.raises(nb.InputError, match=r"expected 2 values .* got 3 values in line 200002 of"):
        read("a,b\n" + "1,2\n" * 200_000 + "1,2,3\n" + "1,2\n" * 1000)


def test_a_byte_far_behind_that_is_in_no_encoding_is_named_by_its_position(read):
    content = b"a,b\n" + b"1,x\n" * 300_000 + b"1,\x81\n"
    with pytest.raises(nb.InputError, match="byte 0x81 at position 1200006 of"):
        read(content)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns", "date32", "date64"])
def test_dates_of_every_unit_are_those_of_the_frame_or_refused(tmp_path, unit):
    stored = {"date32": pa.date32(), "date64": pa.date64()}.get(unit) or pa.timestamp(unit, "UTC")
    width = pa.int32() if unit == "date32" else pa.int64()
    far = {"s": 10**15, "ms": 10**17, "date32": 2**30, "date64": 86_400_000 * 10**9}.get(unit)
    path = str(tmp_path / "x.parquet")

    def table(*values):
        return pa.table({"a": pa.array(values, width).cast(stored)})

    # Of nanoseconds, what is before a microsecond belongs to the one before.
    near = table(-86_400_000, None, 172_800_000) if unit == "date64" else table(-1_001, None, 2_000)
    pyarrow.parquet.write_table(near, path)
    column = read_table(path).columns["a"]
    expected = look("X", near).table().columns["a"]
    assert (column.kind, column.values.tolist()) == ("date", expected.values.tolist())
    if far is not None:
        pyarrow.parquet.write_table(table(0, far), path)
        with pytest.raises(nb.InputError, match=r"DATA: .* column 'a', got a date that is more th"):
            read_table(path)


def test_feather_and_arrow_files_are_read(tmp_path):
    table = pa.table({"a": [1, None], "b": ["x", "NA"], "c": [[1], [2]], "d": [True, None]})
    expected = {
        "a": ("number", ["1.0", "a gap"]),
        "b": ("text", ["'x'", "'NA'"]),
        "d": ("boolean", ["True", "a gap"]),
    }
    write_feather(table, tmp_path / "x.feather")
    with pa.ipc.new_stream(str(tmp_path / "x.arrow"), table.schema) as stream:
        stream.write_table(table)
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    for name in ("x.feather", "x.arrow", "x.parquet"):
        found = read_table(str(tmp_path / name))
        assert shown(found) == expected
        assert list(found.unreadable) == ["c"]
        with pytest.raises(nb.InputError, match=r"--target: expected a column of plain .* 'c'"):
            found.column("--target", "c")
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(nb.InputError, match="DATA: "):
            read_table(str(tmp_path / name))


def test_excel_files_are_read(tmp_path):
    pandas = require("pandas")
    require("openpyxl")
    path = tmp_path / "x.xlsx"
    frame = pandas.DataFrame(
        {
            "a": [1, 2.5, None],
            "b": ["x", "NA", "00501"],
            "c": [True, False, None],
            "d": [pandas.Timestamp("2024-01-31"), None, pandas.Timestamp("2024-02-29T12")],
            "e": [1, "x", 2.0],
        }
    )
    with pandas.ExcelWriter(path) as writer:
        frame.to_excel(writer, sheet_name="first", index=False)
        frame.to_excel(writer, sheet_name="second", index=False)
    table = read_table(str(path))
    assert shown(table) == {
        "a": ("number", ["1.0", "2.5", "a gap"]),
        "b": ("text", ["'x'", "a gap", "'00501'"]),
        "c": ("boolean", ["True", "False", "a gap"]),
        "d": ("date", ["2024-01-31T00:00:00.000000", "a gap", "2024-02-29T12:00:00.000000"]),
        "e": ("text", ["'1'", "'x'", "'2'"]),
    }
    assert table.detected == ("sheet 'first', the first of 2",)
    pandas.DataFrame([[1, 2]]).to_excel(path, header=["a", "a"], index=False)
    with pytest.raises(nb.InputError, match="distinct column names, got 'a' twice"):
        read_table(str(path))
    path.write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(nb.InputError, match="DATA: cannot read"):
        read_table(str(path))


def test_excel_without_pandas_says_what_to_install(tmp_path, monkeypatch):
    import sys

    (tmp_path / "x.xlsx").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(nb.MissingDependencyError, match="pip install pandas openpyxl"):
        read_table(str(tmp_path / "x.xlsx"))
