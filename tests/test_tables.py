"""Reading users' files: every format gives the same numbers, and damage gives one sentence."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

import nnbackend as nb
from nnbackend.data.tables import read_table
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
