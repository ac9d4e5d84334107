"""Mutants of every kind of file are read or refused; what was found stays mended.

``python tests/fuzzing.py --models 100000 --data 20000`` does the same at length.
"""

import gzip
import json
import os
import struct
import zipfile
from pathlib import Path

import fuzzing
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from fuzzing import KINDS, X, Y, archive, npy

import nnbackend as nb
from nnbackend.data.tables import read_table
from nnbackend.data.target import Target
from nnbackend.data.user_data import read_dataset
from nnbackend.errors import InputError, ModelFileError
from nnbackend.io.format import to_bytes

# How many mutants of each; a second's worth, or so.
COUNTS = {"model": 1500, "checkpoint": 200, "csv": 400, "tsv": 400, "csv.gz": 150, "npy": 600,
          "npz": 150, "parquet": 300}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", COUNTS)
def test_a_mutant_is_read_or_refused(kind, monkeypatch):
    # The process that runs tests is not bounded: what it holds is not the mutants'.
    monkeypatch.setattr(fuzzing.resource, "setrlimit", lambda *_: None)
    report = fuzzing.fuzz(kind, range(COUNTS[kind]), 0, lambda _: None)
    assert report.failures == []
    assert report.outcomes["read"] >= len(fuzzing.seeds_of(kind)) // 2
    assert report.outcomes.total() == COUNTS[kind]


def test_a_mutant_is_the_same_at_every_run():
    for kind in KINDS:
        assert fuzzing.mutant(kind, 77, 5) == fuzzing.mutant(kind, 77, 5)
        assert KINDS[kind].suffix


@pytest.fixture
def written(tmp_path):
    """Write a content under a name, and return the path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    return write


def refused(path, match):
    with pytest.raises(InputError, match=match) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)


def header(text, version=1):
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes((version, 0)) + size + text.encode()


def claim(shape, descr="'<f8'"):
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n")


# NPY and NPZ


@pytest.mark.parametrize(
    "shape",
    ["(1000000000000, 3)", "(999999999999999999, 999999999999999999)", "(4, 3)", f"({'9' * 500},)",
     f"({'1, ' * 5000})"],
    ids=["terabytes", "overflow", "a little more", "500 digits", "5000 dimensions"],
)  # fmt: skip
def test_a_shape_that_the_file_does_not_hold_is_refused(shape, written):
    refused(written("x.npy", claim(shape) + bytes(95)), "cannot read")
    refused(written("x.npz", archive([("X.npy", claim(shape) + bytes(95))])), "cannot read")


@pytest.mark.parametrize("shape", ["(0, 1000000000)", "(999999999999999999, 0)", "(0, 3)"])
def test_a_matrix_without_numbers_makes_no_columns(shape, written):
    refused(written("x.npy", claim(shape)), "at least one row and column")


@pytest.mark.parametrize(
    "descr",
    ["'|O'", "[('a', '<f8')]", "'<U0'", "'<f3'", "'|V8'", "'<f8\\d'", "'a5'", "'object'", "''"],
)
def test_a_dtype_that_is_not_plain_is_refused(descr, written):
    refused(written("x.npy", claim("(4, 3)", descr) + bytes(96)), "cannot read")


def test_a_header_is_not_evaluated(written):
    for text in ("(" * 9000, "__import__('os').system('false')", "{'shape': (" + "1, " * 20_000):
        refused(written("x.npy", header(text) + bytes(96)), "cannot read")


def test_headers_that_other_programs_write_are_read(written):
    text = '{"shape": (4L,3L) ,"fortran_order":True, "descr" : ">f4"}'
    content = header(text, version=2) + np.asfortranarray(X.astype(">f4")).tobytes("F")
    table = read_table(written("x.npy", content))
    assert np.array_equal(table.numbers(["0", "1", "2"]), X.astype(np.float32))


def test_bytes_that_are_no_booleans_no_text_and_no_long_numbers(written):
    table = read_table(written("x.npy", claim("(2, 2)", "'|b1'") + bytes((0, 1, 2, 255))))
    assert table.numbers(["0", "1"]).tolist() == [[0, 1], [1, 1]]
    points = struct.pack("<4I", 65, 0x110000, 0xD800, 66)
    text = claim("(4,)", "'<U1'") + points
    refused(written("x.npz", archive([("X.npy", npy(X)), ("y.npy", text)])), "not Unicode")
    table = read_table(written("x.npy", npy(np.full((2, 2), np.longdouble("1e4000")))))
    with pytest.raises(InputError, match="finite numbers, got inf"):
        table.numbers(["0", "1"])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("X.npy", npy(X)), ("readme.txt", b"hello")], "ending in .npy, got the member 'readme"),
        ([("X.npy", npy(X)), ("X.npy", npy(X))], "distinct names"),
        ([("X.npy", npy(X)), ("0.npy", npy(Y))], "got the vector '0'"),
        ([("X.npy", npy(X) + b"more")], "something behind 'X'"),
        ([("a\nb.npy", npy(X)), ("../b.npy", npy(X))], r"one matrix .*'a\\nb' .*'../b'"),
    ],
)
def test_archives_of_something_else_are_refused(members, message, written):
    refused(written("x.npz", archive(members)), message)


def test_members_are_neither_written_nor_expanded_beyond_what_they_claim(written, tmp_path):
    path = written("x.npz", archive([("../escape.npy", npy(X)), ("y.npy", npy(Y))]))
    assert read_table(path).n_rows == 4
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]
    assert not (tmp_path.parent / "escape.npy").exists()
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        refused(written("x.npz", archive([("X.npy", npy(X))], method)), "stored or deflated")
    content = bytearray(archive([("X.npy", npy(X))]))
    at = content.find(b"PK\1\2") + 24
    content[at : at + 4] = struct.pack("<I", 2**31)
    refused(written("x.npz", content), "got a claim of 2147483648 bytes")


def test_what_deflates_to_a_thousandth_is_read(written):
    zeros = archive([("X.npy", npy(np.zeros((1000, 1000))))], zipfile.ZIP_DEFLATED)
    assert len(zeros) < 8_000_000 / 900
    assert read_table(written("x.npz", zeros)).n_rows == 1000


# Text and Parquet


def test_a_line_of_more_than_a_megabyte_is_read(written):
    names = ",".join(f"f{i}" for i in range(5000))
    line = ",".join(["0." + "3" * 250] * 5000)
    table = read_table(written("x.csv", f"{names}\n{line}\n".encode()))
    assert len(table.columns) == 5000


@pytest.mark.slow
def test_compressed_commas_make_no_columns(written):
    commas = gzip.compress(b"," * 5_000_000)
    assert len(commas) < 10_000
    refused(written("x.csv.gz", commas), "distinct column names, got '' twice")
    refused(written("x.csv.gz", gzip.compress(b"a" * 2**24)), "lines of less than 16777216 bytes")


def parquet(path, columns, **options):
    pyarrow.parquet.write_table(pa.table(columns), path, **options)
    return str(path)


def test_text_that_is_none_in_parquet_is_refused(tmp_path):
    buffers = [None, pa.py_buffer(struct.pack("<3i", 0, 1, 2)), pa.py_buffer(b"\xff\xfe")]
    column = pa.Array.from_buffers(pa.string(), 2, buffers)
    refused(
        parquet(tmp_path / "x.parquet", {"a": [1, 2], "b": column}), "got text that is not UTF-8"
    )


def test_a_run_of_rows_that_the_file_cannot_hold_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    n_rows = 20_000_000
    options = {"max_rows_per_page": n_rows, "row_group_size": n_rows, "compression": "zstd"}
    parquet(path, {"a": np.zeros(n_rows, np.int8)}, **options)
    assert path.stat().st_size < 8 * n_rows / 2**16
    refused(str(path), "for the 20000000 rows and 1 columns it claims")


@pytest.mark.slow
def test_a_long_text_in_every_row_is_held_once(tmp_path):
    words = pa.array(["long " * 200_000, "b"]).take(pa.array(np.arange(1000) % 2))
    path = parquet(tmp_path / "x.parquet", {"a": np.arange(1000.0), "word": words})
    assert len(read_table(path).columns["word"].words) == 2
    dataset = read_dataset(path, "word")
    assert dataset.y.tolist() == [1, 0] * 500


def test_categories_and_gaps_in_parquet(tmp_path):
    kind = pa.array(["u", None, "v", "u"]).dictionary_encode()
    path = parquet(tmp_path / "x.parquet", {"a": [1, 2, 3, 4], "kind": kind}, row_group_size=2)
    table = read_table(path)
    column = table.columns["kind"]
    assert [column.shown(row) for row in range(4)] == ["'u'", "a gap", "'v'", "'u'"]


@pytest.mark.parametrize("name", ["²", "--1", "-", "9" * 5000, "1_0", "-4"])
def test_a_column_number_is_a_number(name, written):
    table = read_table(written("x.npy", npy(X)))
    with pytest.raises(InputError, match="no column"):
        table.column("--target", name)
    assert table.column("--target", "-1") == "2"


def test_paths_that_cannot_be_opened_are_refused(tmp_path):
    for name in ("x" * 300 + ".csv", "a\0b.csv", "none\n.csv"):
        refused(str(tmp_path / name), "no such file")
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.csv")
    Path(path).write_bytes(b"a,b\n1,2\n")
    assert read_table(path).n_rows == 1


# Models


def described(change):
    """Return a model file with a changed description and the checksum of that."""
    content = fuzzing.networks()[0]
    head, data = fuzzing.parts(content)
    text = change(head["__metadata__"]["nnbackend"])
    head["__metadata__"]["nnbackend"] = text
    return fuzzing.joined(head, data)


def refused_model(path, match):
    with pytest.raises(ModelFileError, match=match) as caught:
        nb.load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_names_that_cannot_be_written_are_refused(written, tmp_path):
    def change(text):
        return text.replace('"a", "b"', r'"\ud800", "b"')

    refused_model(written("m", described(change)), "its feature_names are not 2 names")
    net = nb.Network([2, 1])
    net.feature_names = ("\ud800", "b")
    with pytest.raises(InputError, match=r"net.feature_names: expected None or 2 strings"):
        nb.save(net, tmp_path / "m")


@pytest.mark.parametrize("depth", [100, 500, 900, 950, 980, 100_000])
def test_a_description_as_deep_as_can_be_read_is_refused(depth, written):
    def change(text):
        return f'{text[:-1]}, "x": {"[" * depth}{"]" * depth}}}'

    refused_model(written("m", described(change)), "not a valid model")


@pytest.mark.parametrize("key", ["format", "dtype", "output", "layer_sizes"])
def test_messages_are_one_short_line_whatever_the_file_says(key, written):
    def change(text):
        return json.dumps({**json.loads(text), key: "a\nb" * 100_000})

    refused_model(written("m", described(change)), "not a valid model: its ")


def test_more_layers_than_arrays_are_refused_before_anything_is_made_of_them(written):
    n = 300_000

    def change(text):
        claims = {"layer_sizes": [1] * (n + 2), "hidden": ["tanh"] * n, "dropout": [0] * n}
        return json.dumps({**json.loads(text), **claims})

    refused_model(written("m", described(change)), "its 6 arrays are too few for its 300001 layers")


def test_a_header_with_a_line_break_is_refused_in_one_line(written):
    head, data = fuzzing.parts(fuzzing.networks()[0])
    head["biases.0"]["dtype"] = "a\nb"
    refused_model(written("m", fuzzing.joined(head, data)), "not a whole safetensors file")


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("target", {"name": "y"}, "its target is not"),
        ("target", [], "its target is not"),
        ("target", {"name": "y", "task": "regression", "kind": "number", "na": None, "facts": []},
         "its target is not"),
        ("encoding", {}, "its encoding is odd: its columns are no list"),
        ("encoding", [], "its encoding is odd: it has 0 outputs for 2 inputs"),
    ],
)  # fmt: skip
def test_an_odd_target_or_encoding_is_refused(entry, value, message, written):
    net = nb.Network([2, 1])
    net.class_names = ("NA", "x")
    net.target = Target("y", "classification", "text", net.class_names)
    path = written("m", to_bytes(net))
    assert nb.load(path).target == net.target
    head, data = fuzzing.parts(Path(path).read_bytes())
    description = json.loads(head["__metadata__"]["nnbackend"])
    head["__metadata__"]["nnbackend"] = json.dumps({**description, entry: value})
    refused_model(written("m", fuzzing.joined(head, data)), message)
