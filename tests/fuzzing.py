"""Fuzzing of every reader: a mutant of a valid file is read, or refused in one line.

    python tests/fuzzing.py --models 100000 --data 20000 --commands 2000 --seed 0
    python tests/fuzzing.py --only npz:4711 --seed 0 --keep mutant.npz

A mutant is determined by the seed, its kind and its number. Each kind runs in a process of its own,
with a bound on its memory; one that dies or hangs is reported with the number of its mutant.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import gzip
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

import nnbackend as nb
from nnbackend.cli.command import main
from nnbackend.data.tables import read_table
from nnbackend.data.target import Target
from nnbackend.data.typed import KINDS as COLUMN_KINDS
from nnbackend.errors import InputError, NNBackendError
from nnbackend.io import container
from nnbackend.io.format import to_bytes
from nnbackend.training.checkpoint import read_checkpoint

Random = random.Random
Mutator = Callable[[Random, bytes], bytes]

SECONDS = 5.0  # for one mutant: a hang, on the slowest machine
RESIDENT = 512 * 2**20  # what reading mutants of a few kilobytes may add to the process
DEATHS = 5  # of processes, after which a kind is given up
ADDRESSES = 1024 * 2**20  # the same in addresses, of which allocators take more than they use

INTEGERS = (0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1,
            2**48, 2**53, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
WORDS = ("", "0", "-1", "1e999", "nan", "inf", "-0", "0x1p3", "null", "None", "True", "NA", '"',
         "'", '"""', "\0", "\r", "\n\n", "\t", ";", ",", ",,,", "é", "\ud7ff", "\U0010ffff",
         "\ufeff", "9" * 30, "1" * 400, "a" * 5000, "2020-01-01", "2020-01-01T25:61:00Z",
         "1_000", "²", "../x", "9999-12-31 23:59:59.999999999", "12:34:56", "1e-400",
         "-9223372036854775809")  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What is fuzzed: another reader is another entry of ``KINDS``.

    Attributes
    ----------
    suffix : str
        Of the file's name.
    seeds : callable
        Returns valid files' contents.
    mutators : tuple of callables
        Each changes a content; a mutant has one to three of these changes.
    read : callable
        Reads the file at a path, and raises AssertionError if what it gives is not valid.
    addresses : int
        How many bytes of addresses the reader may take.
    """

    suffix: str
    seeds: Callable[[], Sequence[bytes]]
    mutators: tuple[Mutator, ...]
    read: Callable[[str], None]
    addresses: int = ADDRESSES


@dataclass
class Report:
    """The outcomes of the mutants of a kind."""

    kind: str
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, 0)
    resident: int = 0


# Changes of bytes, for any format


def flip_bits(rng: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_bytes(rng: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8) if changed else 0):
        changed[rng.randrange(len(changed))] = rng.choice(b'\0\1\x7f\x80\xff09aZ[]{}":,- \\\n')
    return bytes(changed)


def truncate(rng: Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def insert(rng: Random, content: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice((1, 2, 8, 100))) + content[at:]


def remove(rng: Random, content: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + content[at + rng.choice((1, 2, 8, 100)) :]


def repeat(rng: Random, content: bytes) -> bytes:
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:end] + content[start:end] * rng.choice((1, 1, 3)) + content[end:]


def exchange(rng: Random, content: bytes) -> bytes:
    a, b, c = sorted(rng.randrange(len(content) + 1) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def set_integer(rng: Random, content: bytes) -> bytes:
    width = rng.choice((1, 2, 4, 8))
    at = rng.choice((0, rng.randrange(len(content) + 1), max(0, len(content) - 40)))
    value = (rng.choice(INTEGERS) + rng.choice((0, 0, 1, -1))) % 256**width
    order = rng.choice(("little", "little", "big"))
    return content[:at] + value.to_bytes(width, order) + content[at + width :]


def add_to_integer(rng: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    if changed:
        at = rng.randrange(len(changed))
        changed[at] = (changed[at] + rng.choice((1, -1, 2, -2, 16))) % 256
    return bytes(changed)


BYTES = (flip_bits, set_bytes, truncate, insert, remove, repeat, exchange, set_integer,
         add_to_integer)  # fmt: skip


def splice(kind: str) -> Mutator:
    def spliced(rng: Random, content: bytes) -> bytes:
        other = rng.choice(seeds_of(kind))
        return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]

    return spliced


# Models


def networks() -> list[bytes]:
    X = np.asarray([[0.0, 10.0], [1.0, 30.0], [2.0, 20.0]])
    little = nb.Network([2, 2, 1], hidden="tanh").standardize(X)
    little.feature_names = ("a", "b")
    named = nb.Network([2, 3, 2, 3], hidden=["gelu", "relu"], output="softmax", dropout=0.25)
    named.class_names = ("low", "Höhe", "高")
    regression = nb.Network([2, 3, 2], output="identity", dtype="float64").standardize(X, X)
    linear = nb.Network([2, 1], output="exp")
    return [to_bytes(net) for net in (little, named, regression, linear)]


def checkpointed() -> nb.Network:
    """Return the network that the checkpoints are of."""
    return nb.Network([2, 3, 1], hidden="tanh", dropout=0.25, seed=3)


def train_on(where: str, epochs: int, **options: object) -> nb.History:
    return nb.train(
        checkpointed(),
        [[0.0, 1.0], [1.0, 3.0], [2.0, 2.0], [0.5, 0.0]],
        [0, 1, 1, 0],
        epochs=epochs,
        batch_size=1,
        validation_data=([[1.0, 1.0]], [1]),
        early_stopping=nb.EarlyStopping(patience=5),
        engine="reference",
        checkpoint=where,
        checkpoint_every=0.5,
        **options,
    )


def checkpoints() -> list[bytes]:
    """Return a checkpoint within an epoch, and one between two, without times that vary."""
    contents = []
    with tempfile.TemporaryDirectory(dir=folder()) as where:
        train_on(where, 2)
        for path in sorted(Path(where).glob("*.safetensors"))[-2:]:
            checkpoint = read_checkpoint(str(path), checkpointed())
            checkpoint.history.epoch_seconds[:] = [0.5] * checkpoint.history.n_epochs
            contents.append(checkpoint.to_bytes(checkpointed()))
    return contents


def go_on(path: str) -> None:
    """Have a training go on from a checkpoint that can be read."""
    read_checkpoint(path, checkpointed())
    with tempfile.TemporaryDirectory(dir=folder()) as where:
        shutil.copy(path, os.path.join(where, "checkpoint-000000000006.safetensors"))
        history = train_on(where, 3, resume=True)
        assert np.isfinite(history.loss).all()
        assert history.n_epochs <= 3


def json_value(rng: Random, depth: int = 0) -> object:  # noqa: PLR0911
    choice = rng.randrange(9 if depth < 4 else 6)
    if choice == 0:
        return rng.choice((None, True, False))
    if choice == 1:
        return rng.choice(INTEGERS) * rng.choice((1, 1, -1)) + rng.choice((0, 1))
    if choice == 2:
        return rng.choice((0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), 2.0, 10**400))
    if choice in (3, 4, 5):
        names = (
            "relu",
            "tanh",
            "sigmoid",
            "softmax",
            "exp",
            "float32",
            "float64",
            "\ud800",
            "a\nb",
        )
        return rng.choice(names + WORDS)
    if choice == 6:
        return {rng.choice(WORDS): json_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    if choice == 7:
        return [json_value(rng, depth + 1)] * rng.choice((0, 1, 2, 3, 1 if depth else 100))
    value: object = rng.choice((1, "relu", None))
    for _ in range(rng.choice((1, 3, 100, 400, 600, 900))):
        value = [value] if rng.random() < 0.9 else {"a": value}
    return value


def changed_json(rng: Random, value: object) -> object:
    """Return a value with one place in it changed."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        changed, key = dict(value), rng.choice(list(value))
        if rng.random() < 0.1:
            del changed[key]
        elif rng.random() < 0.1:
            changed[rng.choice(WORDS)] = json_value(rng)
        else:
            changed[key] = changed_json(rng, value[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        entries, at = list(value), rng.randrange(len(value))
        what = rng.randrange(4)
        if what == 0:
            entries[at : at + 1] = []
        elif what == 1:
            entries[at:at] = [entries[at]] * rng.choice((1, 1, 1000))
        else:
            entries[at] = changed_json(rng, entries[at])
        return entries
    if type(value) in (int, float) and rng.random() < 0.5:
        return value + rng.choice((1, -1, 0.5, 2**31))
    return json_value(rng)


def parts(content: bytes) -> tuple[dict[str, object], bytes]:
    """Return the header and the data of a safetensors file; raise ValueError if it is none."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError  # noqa: TRY004 - as what is no JSON
    return header, content[8 + length :]


def joined(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def change_header(rng: Random, content: bytes) -> bytes:
    try:
        header, data = parts(content)
        return joined(changed_json(rng, header), data)
    except (ValueError, RecursionError):
        return content


def change_model(rng: Random, content: bytes) -> bytes:
    """Change the description or the arrays, and compute the checksum anew."""
    try:
        header, data = parts(content)
        description = json.loads(header["__metadata__"]["nnbackend"])
        if rng.random() < 0.6:
            description = changed_json(rng, description)
        else:
            data = set_numbers(rng, data)
        arrays = {
            name: np.frombuffer(data, np.uint8)[slice(*claim["data_offsets"])]
            for name, claim in header.items()
            if name != "__metadata__"
        }
        description["sha256"] = container.digest(description, arrays)
        header["__metadata__"]["nnbackend"] = json.dumps(description)
        return joined(header, data)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return content


def set_numbers(rng: Random, data: bytes) -> bytes:
    """Set a number, of float32 or float64, to an extreme one."""
    dtype = rng.choice(("<f4", "<f8"))
    numbers = np.frombuffer(data[: len(data) // 8 * 8], dtype).copy()
    if numbers.size:
        limits = np.finfo(dtype)
        extreme = (np.nan, np.inf, -np.inf, limits.max, -limits.max, limits.tiny,
                   limits.smallest_subnormal, 0.0, -0.0, -1.0)  # fmt: skip
        numbers[rng.randrange(numbers.size)] = rng.choice(extreme)
    return numbers.tobytes() + data[numbers.nbytes :]


def read_model(path: str) -> None:
    net = nb.load(path)
    assert net.n_parameters == net.parameters.size
    assert np.isfinite(net.parameters).all()
    shapes = list(zip(net.layer_sizes, net.layer_sizes[1:], strict=False))
    assert [W.shape for W in net.weights] == shapes
    for columns in (net.standardization, net.target_standardization):
        assert columns is None or (np.isfinite(columns.mean).all() and (columns.scale > 0).all())
    for names in (net.feature_names, net.class_names):
        assert names is None or all(name.encode() is not None for name in names)
    assert repr(net)
    # What was read can be written, and is the same when it is read again.
    again = to_bytes(net)
    assert parts(again)[1] == parts(Path(path).read_bytes())[1]


# Tables

X = np.asarray([[0.5, -1.0, 3.0], [1.5, 2.0, 1e-3], [2.5, 0.0, 1e10], [-4.0, 7.0, 8.0]])
Y = np.asarray([0, 1, 1, 0])


def delimited(delimiter: str) -> list[bytes]:
    rows = [["a", "b", "c", "label"], *([*x, y] for x, y in zip(X.tolist(), Y, strict=True))]
    words = [["when", "what", "c"], ["2020-01-01", "one, two", 1], ["2020-01-02", "", 0]]
    texts = []
    for table in (rows, words):
        lines = (
            delimiter.join(f'"{x}"' if " " in str(x) else str(x) for x in row) for row in table
        )
        texts.append("\n".join([*lines, ""]).encode())
    return [*texts, texts[0].replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + texts[0]]


def change_cell(rng: Random, content: bytes) -> bytes:
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    sign = b"\t" if b"\t" in lines[at] else b","
    cells = lines[at].split(sign)
    word = rng.choice(WORDS).encode() if rng.random() < 0.9 else rng.randbytes(4)
    cells[rng.randrange(len(cells))] = word
    lines[at] = sign.join(cells)
    if rng.random() < 0.1:
        lines *= 100
    return b"\n".join(lines)


def change_encoding(rng: Random, content: bytes) -> bytes:
    text = content.decode("utf-8", errors="replace")
    return text.encode(rng.choice(("utf-16", "utf-32", "utf-7", "cp037")), errors="replace")


def inside_gzip(rng: Random, content: bytes) -> bytes:
    try:
        content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return content
    if rng.random() < 0.1:
        content += rng.choice((b",", b"\n", b"0", b"1,2,3,4\n", b'"', b"\0")) * 300_000
    else:
        content = rng.choice((change_cell, *BYTES))(rng, content)
    return gzip.compress(content, mtime=0)


def npy(array: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), **options)
    return stream.getvalue()


@cache
def zeros() -> bytes:
    """Return an array that deflates to a thousandth."""
    return npy(np.zeros((1000, 1000)))


@cache
def matrices() -> list[bytes]:
    fields = np.zeros(3, dtype=[("a", "f8"), ("b", "i4")])
    objects = np.asarray([[1, "a"]], dtype=object)
    dtypes = ("<f8", ">f8", "<f4", "<f2", "i1", "u8", "?", "<c16", "<U5", "S3", "<M8[ns]")
    return [
        *(npy(np.abs(X).clip(0, 100).astype(dtype)) for dtype in dtypes),
        npy(np.asfortranarray(X.astype(np.longdouble))),
        npy(X, version=(2, 0)),
        npy(fields),
        npy(objects),
    ]


def change_npy_header(rng: Random, content: bytes) -> bytes:
    start = 10
    header = content[start : content.find(b"\n") + 1]
    descr = ("<f8", ">f8", "|O", "<f3", "<U0", "<U999999999", "S99999", "<M8[D]", "<m8", "|V8", "?",
             "<f16", "<c8", "a5", "f8", "", "<U1", ">U2", "|b1", "|i1",
             "<i8\\d", "object", "<M8[x]")  # fmt: skip
    shape = ("(4, 3)", "(3, 4)", "()", "(12,)", "(10**9,)", "(1000000000000, 3)", "(-1, 3)",
             "(0, 3)", "(4, 0)", "(0, 1000000000)", "(999999999999999999, 0)", "(4, 3L)", "[4, 3]",
             "(True, 3)", "(4294967296, 4294967296)", "(1,) * 9", f"({'1, ' * 40})", "(1, 12)",
             f"({'9' * 5000}, 3)", "4", "None", "((((4, 3))))")  # fmt: skip
    values = {
        "descr": repr(rng.choice(descr)),
        "fortran_order": rng.choice(("True", "False", "0", "None", "'True'")),
        "shape": rng.choice(shape),
    }
    if rng.random() < 0.7:
        values["descr"] = "'<f8'"
    if rng.random() < 0.7:
        values["fortran_order"] = rng.choice(("True", "False"))
    names = list(values)
    if rng.random() < 0.1:
        names.remove(rng.choice(names))
    text = "{" + ", ".join(f"'{name}': {values[name]}" for name in names) + ", }"
    if rng.random() < 0.05:
        text = rng.choice(("(" * 5000, "__import__('os').system('true')", "{" * 90, "1" * 60_000))
    text = text + " " * rng.choice((0, 10, 64)) + "\n"
    length = len(text) if rng.random() < 0.9 else rng.choice((0, 5, 65535))
    version = rng.choice((1, 1, 1, 1, 2, 3, 0))
    size = min(length, 65535).to_bytes(2 if version < 2 else 4, "little")
    return content[:6] + bytes((version, 0)) + size + text.encode() + content[start + len(header) :]


def archive(members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name), content, method)
    return stream.getvalue()


def archives() -> list[bytes]:
    names = npy(np.asarray(["no", "yes", "yes", "no"]))
    return [
        archive([("X.npy", npy(X)), ("y.npy", npy(Y))]),
        archive([("X.npy", npy(X)), ("y.npy", npy(Y))], zipfile.ZIP_DEFLATED),
        archive([("data.npy", npy(X)), ("t.npy", names), ("n.npy", npy(np.asarray(3)))]),
    ]


def change_member(rng: Random, content: bytes) -> bytes:
    """Write an archive of arrays anew, with changed arrays, odd names, or what is no array."""
    del content
    arrays = matrices()
    names = ("X.npy", "y.npy", "../../escape.npy", "/escape.npy", "0.npy", "X", "X.npy", "a\\b",
             ".npy", "é.npy", "n\nl.npy", "X.npy/", "readme.txt", "d/")  # fmt: skip
    members = [("X.npy", npy(X)), ("y.npy", npy(Y))]
    for _ in range(rng.randint(1, 3)):
        array = zeros() if rng.random() < 0.02 else rng.choice(arrays)
        if rng.random() < 0.7:
            array = rng.choice((change_npy_header, *BYTES))(rng, array)
        members[rng.randrange(2)] = (rng.choice(names), array)
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    return archive(members, rng.choice((*methods[:2], *methods)))


def change_zip(rng: Random, content: bytes) -> bytes:
    """Change one field of a local header, of a directory entry, or of the directory's end."""
    signature, size = rng.choice(((b"PK\1\2", 46), (b"PK\3\4", 30), (b"PK\5\6", 22)))
    at = content.find(signature)
    if at < 0:
        return content
    width = rng.choice((2, 4))
    place = at + rng.randrange(4, size - width + 1, 2)
    value = rng.choice(INTEGERS) % 256**width
    return content[:place] + value.to_bytes(width, "little") + content[place + width :]


def parquet_files() -> list[bytes]:
    import datetime as dt
    import decimal

    import pyarrow as pa
    import pyarrow.parquet

    numbers = {"a": X[:, 0], "b": X[:, 1], "label": Y}
    words = {
        "word": ["x", "y", None, "x"],
        "kind": pa.array(["u", "v", "u", "u"]).dictionary_encode(),
        "flag": [True, None, False, True],
        "day": [dt.date(2020, 1, 1)] * 4,
        "at": [dt.datetime(2020, 1, 1, tzinfo=dt.UTC)] * 4,
        "time": [dt.time(1, 2)] * 4,
        "money": [decimal.Decimal("1.5")] * 4,
        "bytes": [b"\xff", b"", b"a", b"b"],
        "small": pa.array([1, 2, None, 4], pa.uint8()),
        "half": pa.array(np.float16([1, 2, 3, 4])),
        "void": pa.nulls(4),
        "label": Y,
    }
    contents = []
    for columns, options in (
        (numbers, {"compression": "none", "use_dictionary": False}),
        (numbers, {"compression": "snappy", "row_group_size": 2}),
        (numbers, {"compression": "gzip", "data_page_version": "2.0"}),
        (words, {"compression": "none"}),
        (words, {"compression": "zstd", "use_dictionary": False}),
        ({"list": [[1], [2, 3], [], None], "label": Y}, {}),
    ):
        stream = io.BytesIO()
        pyarrow.parquet.write_table(pa.table(columns), stream, **options)
        contents.append(stream.getvalue())
    return contents


def change_footer(rng: Random, content: bytes) -> bytes:
    length = int.from_bytes(content[-8:-4], "little")
    start = max(0, len(content) - 8 - length)
    footer = rng.choice(BYTES)(rng, content[start:-8])
    size = len(footer) if rng.random() < 0.8 else rng.choice(INTEGERS) % 2**32
    return content[:start] + footer + size.to_bytes(4, "little") + content[-4:]


def change_pages(rng: Random, content: bytes) -> bytes:
    """Change the pages and leave the footer, which says where they are."""
    end = max(4, len(content) - 8 - int.from_bytes(content[-8:-4], "little"))
    change = rng.choice((flip_bits, set_bytes, add_to_integer))
    return content[:4] + change(rng, content[4:end]) + content[end:]


def read_columns(path: str) -> None:
    table = read_table(path)
    assert table.n_rows > 0
    for name, column in table.columns.items():
        assert column.kind in COLUMN_KINDS, name
        assert column.values.shape == (table.n_rows,), name
        assert column.is_missing.shape == (table.n_rows,), name
        assert all(column.words), name
        if column.kind == "text":
            assert -1 <= column.values.min() <= column.values.max() < len(column.words)
    names = list(table.columns)
    numbers = [name for name in names if table.columns[name].kind in ("number", "boolean")]
    with contextlib.suppress(InputError):
        features = table.numbers(numbers)
        assert features.dtype == np.float64
        assert np.isfinite(features).all()
    name = table.column("--target", table.target or names[-1])
    table.require_complete([name])
    target, _ = Target.decide(name, table.columns[name])
    y = target.encode(name, table.columns[name], path)
    assert y.shape == (table.n_rows,)
    if target.class_names is None:
        assert np.isfinite(y).all()
    else:
        assert 0 <= y.min() <= y.max() < len(target.class_names)
        assert json.dumps(target.class_names).encode()


# The command


def folder() -> Path:
    """Return the folder that this process writes its mutants to, in memory where that is."""
    shared = Path("/dev/shm")  # noqa: S108
    path = (shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())) / (
        f"nnbackend-fuzzing-{os.getpid()}"
    )
    path.mkdir(exist_ok=True)
    return path


def commands() -> list[bytes]:
    """Return command lines, of which MODEL and DATA stand for files, one argument a line."""
    lines = (
        "predict MODEL DATA", "predict MODEL DATA --probabilities --json", "info MODEL --json",
        "evaluate MODEL DATA --target label", "info MODEL", "evaluate MODEL DATA --json --target a",
        "train DATA --target label --epochs 1 --out RUN --hidden 3 --json --drop b",
        "train DATA --target label --epochs 1 --out RUN --hidden 3 --columns a=category",
    )  # fmt: skip
    return [line.replace(" ", "\n").encode() for line in lines]


OPTIONS = ("--target", "--drop", "--hidden", "--activation", "--initializer", "--dropout",
           "--dtype", "--device", "--loss", "--optimizer", "--learning-rate", "--weight-decay",
           "--schedule", "--batch-size", "--patience", "--l1", "--l2", "--clip-norm", "--engine",
           "--precision", "--seed", "--validation", "--held-out", "--probabilities", "--json",
           "--task", "--columns", "--na", "--weight", "--group", "--order", "--encoding",
           "--")  # fmt: skip
VALUES = ("", "0", "1", "-1", "2", "1e300", "1e-300", "nan", "inf", "16,8", "none", "relu", "adam",
          "sgd", "softmax", "cuda", "cuda:99", "auto", "a,b", "label", "²", "--3", "é", "full",
          "1.5", "9" * 20, "9" * 5000, "\udcff", "a\nb", "x" * 5000, "0.5", "cosine", "float64",
          "regression", "classification", "a=category", "label=drop", "table",
          "4294967296", "MODEL", "DATA", "/")  # fmt: skip


def change_arguments(rng: Random, content: bytes) -> bytes:
    arguments = content.decode(errors="surrogateescape").split("\n")
    at = rng.randrange(len(arguments) + 1)
    if rng.random() < 0.5:
        arguments[at:at] = [rng.choice(OPTIONS), rng.choice(VALUES)]
    else:
        arguments[at : at + 1] = rng.choice(([], [rng.choice(VALUES)], [rng.choice(OPTIONS)]))
    return "\n".join(arguments).encode(errors="surrogateescape")


def run_command(path: str) -> None:
    """Run a mutant's arguments on a model and data, each of them a mutant in half of the cases."""
    content = Path(path).read_bytes()
    arguments = content.decode(errors="surrogateescape").replace("\0", "").split("\n")
    rng = Random(zlib.crc32(content))
    inside = Path(path).parent
    files = {"RUN": inside / "run"}
    for word, kind in (("MODEL", "model"), ("DATA", rng.choice(("csv", "npz", "parquet")))):
        files[word] = inside / f"{word.lower()}{KINDS[kind].suffix}"
        files[word].write_bytes(
            mutant(kind, rng.randrange(2**20), 0) if rng.random() < 0.5 else seeds_of(kind)[0]
        )
    # An epoch at most, and nothing outside of this folder.
    given = [str(files.get(argument, argument)) for argument in arguments]
    if given[0] == "train":
        given += ["--epochs", "1", "--out", str(files["RUN"])]
    elif given[0] not in ("predict", "evaluate", "info"):
        return
    # As Python opens them: the second writes what cannot be encoded with backslashes.
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(given)
    except SystemExit as exit_:  # argparse's way to refuse
        code, said = exit_.code, ""
    else:
        err.seek(0)
        said = err.read()
    shutil.rmtree(files["RUN"], ignore_errors=True)
    assert code in (0, 2), code
    assert said.count("\n") == (code == 2 and bool(said)), said
    if code:
        raise InputError(said)


KINDS: dict[str, Kind] = {
    "model": Kind(
        ".safetensors",
        networks,
        (change_model, change_model, change_model, change_header, *BYTES, splice("model")),
        read_model,
    ),
    "checkpoint": Kind(
        ".safetensors",
        checkpoints,
        (*[change_model] * 6, change_header, *BYTES, splice("checkpoint")),
        go_on,
    ),
    "csv": Kind(
        ".csv",
        lambda: delimited(","),
        (change_cell, change_cell, change_encoding, *BYTES, splice("csv")),
        read_columns,
    ),
    "tsv": Kind(".tsv", lambda: delimited("\t"), (change_cell, *BYTES), read_columns),
    "csv.gz": Kind(
        ".csv.gz",
        lambda: [gzip.compress(text, mtime=0) for text in delimited(",")],
        (*[inside_gzip] * 8, *BYTES, splice("csv.gz")),
        read_columns,
    ),
    "npy": Kind(".npy", matrices, (*[change_npy_header] * 6, *BYTES, splice("npy")), read_columns),
    "npz": Kind(
        ".npz",
        archives,
        (*[change_member] * 5, *[change_zip] * 5, *BYTES, splice("npz")),
        read_columns,
    ),
    # Arrow reserves, but does not touch, the up to 2 GiB that a page claims to hold.
    "parquet": Kind(
        ".parquet",
        parquet_files,
        (*[change_footer] * 6, *[change_pages] * 6, *BYTES, splice("parquet")),
        read_columns,
        addresses=2**33,
    ),
    "command": Kind(".txt", commands, (change_arguments,), run_command, addresses=2**33),
}
DATA = ("csv", "tsv", "csv.gz", "npy", "npz", "parquet")


@cache
def seeds_of(kind: str) -> Sequence[bytes]:
    """Return a kind's valid files."""
    return KINDS[kind].seeds()


def mutant(kind: str, number: int, seed: int) -> bytes:
    """Return the content of a mutant; the first numbers are the seeds as they are."""
    contents = seeds_of(kind)
    if number < len(contents):
        return contents[number]
    rng = Random(f"{seed}:{kind}:{number}")
    content = rng.choice(contents)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(KINDS[kind].mutators)(rng, content)
    return content


def outcome(kind: str, path: str) -> str:
    """Read a file and return what came of it; raise AssertionError for what must not come."""
    try:
        KINDS[kind].read(path)
    except NNBackendError as error:
        message = str(error)
        assert kind == "command" or "\n" not in message, f"a message of several lines: {message!r}"
        assert len(message) < 20_000, f"a message of {len(message)} characters"
        return f"refused with {type(error).__name__}"
    return "read"


def fuzz(kind: str, numbers: range, seed: int, say: Callable[[int], None]) -> Report:
    """Read mutants in this process, whose memory is bounded from then on."""
    report = Report(kind)
    path = folder() / f"mutant{KINDS[kind].suffix}"
    # What is imported and compiled by the first reading is not the mutants'.
    for number in range(len(seeds_of(kind))):
        path.write_bytes(mutant(kind, number, seed))
        with contextlib.suppress(InputError):
            KINDS[kind].read(str(path))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = pages * resource.getpagesize() + KINDS[kind].addresses
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    base = most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    try:
        for number in numbers:
            say(number)
            path.write_bytes(mutant(kind, number, seed))
            faulthandler.dump_traceback_later(10 * SECONDS, exit=True)
            start = time.perf_counter()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    result = outcome(kind, str(path))
            except BaseException as error:  # noqa: BLE001 - any error is a finding
                where = traceback.extract_tb(error.__traceback__)[-1]
                problem = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
                report.failures.append((number, " ".join(problem.split())[:300]))
                result = "failed"
            seconds = time.perf_counter() - start
            report.outcomes[result] += 1
            report.slowest = max(report.slowest, (seconds, number))
            if seconds > SECONDS:
                report.failures.append((number, f"it took {seconds:.1f} s"))
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if now > base + RESIDENT // 1024 and now > most + 2**15:
                report.failures.append((number, f"it raised the memory to {now // 1024} MiB"))
            most = max(most, now)
    finally:
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        shutil.rmtree(path.parent)
    report.seconds = time.perf_counter() - begin
    report.resident = (most - base) // 1024
    return report


def _work(kind: str, numbers: range, seed: int, current, results) -> None:
    def say(number: int) -> None:
        current.value = number

    results.put(fuzz(kind, numbers, seed, say))


def fuzz_apart(kind: str, count: int, seed: int) -> Report:
    """Fuzz in a process of its own; where that dies, go on behind the mutant that killed it."""
    context = multiprocessing.get_context("spawn")
    total = Report(kind)
    start = 0
    while start < count and len(total.failures) < DEATHS:
        current, results = context.Value("q", start), context.Queue()
        arguments = (kind, range(start, count), seed, current, results)
        process = context.Process(target=_work, args=arguments)
        process.start()
        report = None
        while report is None and (process.is_alive() or not results.empty()):
            with contextlib.suppress(Exception):
                report = results.get(timeout=1)
        process.join()
        if report is None:
            total.failures.append((current.value, f"it ended the process: {process.exitcode}"))
            total.outcomes["ended the process"] += 1
            start = current.value + 1
            continue
        total.outcomes += report.outcomes
        total.failures += report.failures
        total.seconds += report.seconds
        total.slowest = max(total.slowest, report.slowest)
        total.resident = max(total.resident, report.resident)
        break
    return total


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--checkpoints", type=int, default=0)
    parser.add_argument("--data", type=int, default=600, help="over all formats")
    parser.add_argument("--commands", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="KIND:NUMBER", help="one mutant, in this process")
    parser.add_argument("--keep", metavar="FILE", help="where to write it")
    options = parser.parse_args()
    if options.only:
        kind, _, number = options.only.rpartition(":")
        content = mutant(kind, int(number), options.seed)
        path = Path(options.keep or folder() / f"mutant{KINDS[kind].suffix}")
        path.write_bytes(content)
        print(f"{path}: {len(content)} bytes")
        warnings.simplefilter("error")
        print(outcome(kind, str(path)))
        return 0
    counts = {"model": options.models, **dict.fromkeys(DATA, -(-options.data // len(DATA)))}
    counts |= {"command": options.commands, "checkpoint": options.checkpoints}
    failed = False
    for kind, count in counts.items():
        if count == 0:
            continue
        report = fuzz_apart(kind, count, options.seed)
        shown = ", ".join(f"{n} {what}" for what, n in report.outcomes.most_common())
        print(
            f"{kind}: {report.outcomes.total()} mutants in {report.seconds:.1f} s (slowest "
            f"{report.slowest[1]}: {1000 * report.slowest[0]:.0f} ms; {report.resident} MiB more): "
            f"{shown}",
            flush=True,
        )
        for number, problem in report.failures[:40]:
            print(f"  --seed {options.seed} --only {kind}:{number}  {problem}", flush=True)
        failed |= bool(report.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(_main())
