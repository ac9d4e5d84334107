"""Sources give the rows of their files; streams give every row once, in bounded memory."""

import sys
import threading
import tracemalloc
from contextlib import closing
from fractions import Fraction

import numpy as np
import pytest
from backends import require
from devices import on_each_device, to_host
from hypothesis import given
from hypothesis import strategies as st

import nnbackend as nb
from nnbackend.core.losses import loss_function
from nnbackend.core.standardization import Moments, Standardization
from nnbackend.data import sources
from nnbackend.data.parquet import Parquet
from nnbackend.data.source import Rows, Source, digest
from nnbackend.data.sources import Arrays, as_source
from nnbackend.data.stream import Stream
from nnbackend.errors import InputError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

KIB = 2**10


def data(n_samples, n_features=3, seed=0):
    """Return features whose first column is the row's number, labels, and weights."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_samples, n_features)).astype("float32")
    X[:, 0] = np.arange(n_samples)
    return X, rng.integers(0, 2, n_samples), rng.integers(1, 4, n_samples).astype("float64")


def memmap(folder, name, x):
    mapped = np.memmap(folder / name, dtype=x.dtype, mode="w+", shape=x.shape)
    mapped[...] = x
    mapped.flush()
    return np.memmap(folder / name, dtype=x.dtype, mode="r", shape=x.shape)


def of_memmap(folder, arrays, **options):
    mapped = [memmap(folder, f"{i}.bin", x) for i, x in enumerate(arrays)]
    return Arrays(*mapped, **options)


def of_zarr(folder, arrays, *, zarr_format, chunk_rows=37, **options):
    zarr = require("zarr")
    stored = []
    for i, x in enumerate(arrays):
        store = str(folder / f"{i}-{zarr_format}.zarr")
        chunks = (chunk_rows, *x.shape[1:])
        array = zarr.create_array(
            store=store, shape=x.shape, chunks=chunks, dtype=x.dtype, zarr_format=zarr_format
        )
        array[...] = x
        stored.append(zarr.open_array(store, mode="r"))
    return Arrays(*stored, **options)


def write_parquet(folder, columns, cuts=(0, 100, 107, None), groups=(41, 100, 13)):
    folder.mkdir(exist_ok=True)
    # Written in another order than that of the names.
    for i in (1, 0, 2):
        part = {key: x[cuts[i] : cuts[i + 1]] for key, x in columns.items()}
        pq.write_table(pa.table(part), folder / f"{i}.parquet", row_group_size=groups[i])
    (folder / "README").write_text("no data")
    return folder


def of_parquet(folder, arrays, **options):
    X, *more = arrays
    columns = {"weight": more[1]} if len(more) > 1 else {}
    columns |= {f"x{j}": X[:, j] for j in range(X.shape[1])} | {"label": more[0]}
    names = {"sample_weight": "weight"} if len(more) > 1 else {}
    return Parquet(write_parquet(folder / "rows", columns), "label", **names, **options)


KINDS = {
    "memmap": of_memmap,
    "zarr2": lambda *a, **k: of_zarr(*a, zarr_format=2, **k),
    "zarr3": lambda *a, **k: of_zarr(*a, zarr_format=3, **k),
    "parquet": of_parquet,
}
on_each_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def network(n_features=3, output="sigmoid", **options):
    return nb.Network([n_features, 4, 1], output=output, **options)


def stream(net, source, batch_size, *, shuffle=True):
    return Stream(
        net.preparation, source, loss_function(None, net.structure.output), batch_size, shuffle
    )


def rows_in_order(part):
    """Return the row numbers of a part, as they are trained on."""
    numbers = to_host(part.data.X)[:, 0].astype(int)
    return numbers if part.order is None else numbers[part.order]


def n_readers():
    return sum(thread.name.startswith("nnbackend-reader") for thread in threading.enumerate())


# Sources


@on_each_kind
def test_any_rows_are_those_of_the_arrays(make, tmp_path):
    arrays = data(250)
    source = make(tmp_path, arrays)
    assert (source.n_samples, source.n_features) == arrays[0].shape
    for start, stop in [(0, 250), (0, 1), (40, 42), (99, 108), (37, 74), (249, 250)]:
        for got, x in zip(source.read(start, stop), arrays, strict=True):
            assert type(got) is np.ndarray
            assert got.dtype == x.dtype
            np.testing.assert_array_equal(got, x[start:stop])


def test_rows_of_a_memmap_are_copies(tmp_path):
    X = memmap(tmp_path, "x", data(10)[0])
    assert not np.shares_memory(Arrays(X).read(2, 5).X, X)


def test_columns_of_parquet_are_taken_by_name(tmp_path):
    columns = {"a": np.arange(4, dtype="int8"), "b": np.arange(4) > 1, "c": np.arange(4.0) / 2}
    columns["d"] = columns["a"] + 1
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    source = Parquet(tmp_path / "t.parquet", ["c", "d"], features=["b", "a"])
    assert source.feature_names == ("b", "a")
    X, y, weight = source.read(1, 4)
    assert (X.dtype, y.dtype, weight) == (np.int8, np.float64, None)
    np.testing.assert_array_equal(X, [[0, 1], [1, 2], [1, 3]])
    np.testing.assert_array_equal(y, [[0.5, 2], [1, 3], [1.5, 4]])
    assert Parquet(tmp_path / "t.parquet", None).read(0, 4).y is None


def test_parquet_files_are_closed_and_their_rows_stay_bounded(tmp_path, monkeypatch):
    X = np.ones((40_000, 8))
    table = pa.table({f"x{j}": X[:, j] + np.arange(40_000) for j in range(8)} | {"y": X[:, 0]})
    pq.write_table(table, tmp_path / "t.parquet", use_dictionary=False, data_page_size=2**14)
    del table
    opened = []

    class Watched(pq.ParquetFile):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            opened.append(self)

    monkeypatch.setattr(pq, "ParquetFile", Watched)
    source = Parquet(tmp_path / "t.parquet", "y")
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(pool)
    try:
        assert len(source.read(20_000, 20_100).X) == 100
    finally:
        pa.set_memory_pool(usual)
    assert pool.max_memory() < X.nbytes
    assert len(opened) == 2
    assert all(file.closed for file in opened)


BAD_ARRAYS = [
    ((np.zeros(3),), {}, r"X: expected an array \(n_samples, n_features\), got shape \(3,\)"),
    ((np.zeros((0, 3)),), {}, r"X: expected at least one example and one feature"),
    (([[1.0]],), {}, r"X: expected an array with a shape and a dtype .* got builtins.list"),
    ((np.array([["a"]]),), {}, r"X: expected real numbers of at most 64 bits, got dtype <U1"),
    ((np.zeros((2, 1), complex),), {}, "X: expected real numbers"),
    ((np.zeros((2, 1)), np.zeros(3)), {}, r"y: expected 2 rows, .* got shape \(3,\)"),
    ((np.zeros((2, 1)), np.zeros(2), np.zeros((2, 1))), {}, "sample_weight: expected an array"),
    ((np.zeros((2, 1)),), {"buffer_bytes": 0}, "buffer_bytes: expected an integer >= 1"),
]


@pytest.mark.parametrize(("arrays", "options", "message"), BAD_ARRAYS)
def test_arrays_that_cannot_be_read_are_refused(arrays, options, message):
    with pytest.raises(InputError, match=message):
        Arrays(*arrays, **options)


def test_a_sparse_matrix_is_refused():
    sparse = require("scipy.sparse").csr_array(np.eye(3))
    with pytest.raises(InputError, match="X: expected a dense array"):
        Arrays(sparse)


def test_chunks_larger_than_a_buffer_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"X: expected chunks of at most buffer_bytes=100, got"):
        of_zarr(tmp_path, data(80), zarr_format=3, buffer_bytes=100)


COLUMNS = {"a": [1.0, 2.0], "b": [1, 2], "t": ["x", "y"]}
BAD_PARQUET = [
    (COLUMNS, {"target": "z"}, r"target: no column 'z' in '.*1.parquet'"),
    (COLUMNS, {"target": "t"}, r"target: expected numbers, got string in column 't' .*from 0"),
    (
        {"a": [1.0], "l": [[1.0]]},
        {"target": "a"},
        r"features: expected numbers, got list.* in column 'l' of .*; encode it, or leave it out",
    ),
    (COLUMNS, {"target": "b", "sample_weight": "t"}, r"sample_weight: .* string in column 't'"),
    (COLUMNS, {"target": "b", "features": []}, "features: expected names of at least one"),
    (COLUMNS, {"target": "b", "features": ["a", "a"]}, "distinct columns, got 'a' twice"),
    (COLUMNS, {"target": "b", "features": ["a", "b"]}, "distinct columns, got 'b' twice"),
    ({"a": [], "b": []}, {"target": "b"}, "path: expected at least one row, got none"),
]


@pytest.mark.parametrize(("columns", "options", "message"), BAD_PARQUET)
def test_parquet_columns_that_cannot_be_learnt_are_refused(tmp_path, columns, options, message):
    pq.write_table(pa.table(columns), tmp_path / "1.parquet")
    with pytest.raises(InputError, match=message):
        Parquet(tmp_path, **options)


def test_parquet_features_that_are_no_numbers_are_refused_where_numbers_are_read(tmp_path):
    pq.write_table(pa.table(COLUMNS), tmp_path / "1.parquet")
    source = Parquet(tmp_path / "1.parquet", "b")
    message = r"features: .* string in column 't' of .*; encode the source with nb.TableEncoder, or"
    with pytest.raises(InputError, match=message):
        source.read(0, 2)
    with pytest.raises(InputError, match=message):
        nb.train(network(2), source, epochs=1)
    assert Parquet(tmp_path / "1.parquet", "b", features=["a"]).read(0, 2).X.shape == (2, 1)


def test_parquet_files_that_do_not_fit_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="files named"):
        Parquet(tmp_path, "b")
    with pytest.raises(InputError, match=r"cannot read '.*none.parquet'"):
        Parquet(tmp_path / "none.parquet", "b")
    pq.write_table(pa.table({"a": [1.0], "b": [1]}), tmp_path / "1.parquet")
    (tmp_path / "2.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match=r"cannot read '.*2.parquet' .*whole"):
        Parquet(tmp_path, "b")
    pq.write_table(pa.table({"a": [1], "b": [1]}), tmp_path / "2.parquet")
    with pytest.raises(InputError, match=r"other names or types in '.*2.parquet': 'a'"):
        Parquet(tmp_path, "b")


def test_without_pyarrow_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(nb.MissingDependencyError, match=r"needs pyarrow.* pip install"):
        Parquet("rows.parquet", "y")


def test_missing_values_are_refused_with_file_and_column(tmp_path):
    for name, values in (("1", [1.0, 2.0]), ("2", [3.0, None])):
        pq.write_table(pa.table({"a": values, "b": [0, 1]}), tmp_path / f"{name}.parquet")
    source = Parquet(tmp_path, "b")
    assert source.read(0, 3).X.tolist() == [[1], [2], [3]]
    with pytest.raises(InputError, match=r"no missing values, got 1 in column 'a' of '.*2.parq"):
        source.read(0, 4)


REPLACED = [
    (
        {"a": [1.0], "b": [0]},
        "expected 2 rows in row group 0 of '.*2.parquet', .* got 1; leave the",
    ),
    (
        {"a": np.ones(0), "b": np.ones(0, int)},
        "expected 2 rows in row group 0 of '.*2.parquet', .* got 0",
    ),
    ({"a": [1.0] * 4, "b": [0] * 4}, "expected 2 rows in row group 0 of '.*2.parquet', .* got 4"),
    ({"a": [1.0] * 2, "b": [0] * 2}, "expected 2 rows in row group 1 of '.*2.parquet', .* got 0"),
    ({"a": [1.0] * 4}, "expected column 'b' of '.*2.parquet' to be int64, .* got none; leave the"),
    ({"b": [1] * 4}, "expected column 'a' of '.*2.parquet' to be double, .* got none"),
    ({"a": ["x"] * 4, "b": [0] * 4}, "column 'a' of '.*2.parquet' to be double, .* got string"),
    ({"a": [1.0] * 4, "b": [0.5] * 4}, "column 'b' of '.*2.parquet' to be int64, .* got double"),
]


@pytest.mark.parametrize(("columns", "message"), REPLACED)
def test_a_file_that_was_replaced_is_refused(tmp_path, columns, message):
    for name in "12":
        table = pa.table({"a": [1.0, 2.0, 3.0, 4.0], "b": [0, 1, 0, 1]})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
    source = Parquet(tmp_path, "b")
    pq.write_table(pa.table(columns), tmp_path / "2.parquet")
    for use in (
        lambda: source.read(0, 8),
        lambda: network(1).standardize(source),
        lambda: nb.train(network(1), source, epochs=1),
    ):
        with pytest.raises(InputError, match=f"path: .*{message}"):
            use()


def test_columns_in_another_order_in_a_replaced_file_are_the_same_rows(tmp_path):
    columns = {"a": [1.0, 2.0], "b": [0, 1]}
    pq.write_table(pa.table(columns), tmp_path / "1.parquet")
    source = Parquet(tmp_path, "b")
    pq.write_table(pa.table({"c": [5, 6], "b": [0, 1], "a": [1.0, 2.0]}), tmp_path / "1.parquet")
    X, y, _ = source.read(0, 2)
    assert (X.tolist(), y.tolist()) == ([[1], [2]], [0, 1])


def test_what_is_in_a_file_and_larger_than_a_buffer_is_a_source(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BUFFER_BYTES", 500)
    X, y, weight = data(100)
    mapped = memmap(tmp_path, "x", X)
    for large in (mapped, mapped[5:], np.asarray(mapped)[:, 1:], mapped[::-1]):
        source = as_source(large, list(y[: len(large)]))
        assert isinstance(source, Arrays)
        np.testing.assert_array_equal(source.read(0, 10).X, large[:10])
    zarr = require("zarr")
    assert isinstance(as_source(zarr.array(X, chunks=(10, 3)), y, weight), Arrays)
    for small in (
        X,
        mapped[:40],
        mapped + 1,
        mapped[[*range(100)]],
        X.tolist(),
        None,
        zarr.array(X)[:],
    ):
        assert as_source(small, y) is None
    assert as_source(source) is source
    with pytest.raises(InputError, match="y: expected None with a source"):
        as_source(source, y)


def test_the_digest_is_of_the_data_not_of_the_file(tmp_path):
    arrays = data(250)
    expected = digest(Arrays(*arrays))
    for kind, make in KINDS.items():
        (tmp_path / kind).mkdir()
        assert digest(make(tmp_path / kind, arrays)) == expected
    assert digest(Arrays(arrays[0].astype(">f4"), *arrays[1:])) == expected
    others = [arrays[:2], (arrays[0].astype("float64"), *arrays[1:]), [x[:-1] for x in arrays]]
    last = arrays[0].copy()
    last[-1, -1] += 1
    others.append((last, *arrays[1:]))
    assert len({expected, *(digest(Arrays(*other)) for other in others)}) == 5


# Streams


@on_each_device
@on_each_kind
def test_what_fits_a_buffer_is_trained_on_as_arrays_are(make, device, tmp_path):
    X, y, weight = data(250)
    net = network(device=device).standardize(X)
    parts = list(stream(net, make(tmp_path, (X, y, weight)), 32).parts(np.random.default_rng(5)))
    (part,) = parts
    expected = net.preparation.examples(
        X, y, loss_function(None, net.structure.output), weight
    ).arrays
    for got, x in zip((part.data.X, part.data.y, part.data.sample_weight), expected, strict=True):
        assert got.dtype == x.dtype
        np.testing.assert_array_equal(to_host(got), to_host(x))
    np.testing.assert_array_equal(part.order, np.random.default_rng(5).permutation(250))
    assert part.n_steps == 8


def test_the_form_of_the_examples_is_that_of_their_parts():
    X, y, weight = data(100)
    weight[0] = 0
    for arrays in ((X, y), (X, y, weight)):
        rows = stream(network(), Arrays(*arrays), 10)
        (part,) = rows.parts(None)
        for name in ("X", "y", "sample_weight"):
            one, many = getattr(rows.form(), name), getattr(part.data, name)
            assert (one is None) == (many is None)
            assert one is None or (one.dtype, one.shape[1:]) == (many.dtype, many.shape[1:])
        assert rows.digest(np.asarray).startswith(digest(Arrays(*arrays)))


@on_each_kind
def test_training_on_a_small_source_gives_the_bits_of_training_on_arrays(make, tmp_path):
    X, y, weight = data(250)
    source = make(tmp_path, (X, y, weight))
    nets = [network().standardize(X), network().standardize(source)]
    options = {"epochs": 2, "batch_size": 32, "engine": "reference"}
    histories = [
        nb.train(nets[0], X, y, sample_weight=weight, **options),
        nb.train(nets[1], source, **options),
    ]
    np.testing.assert_array_equal(nets[0].parameters, nets[1].parameters)
    assert histories[0].loss == histories[1].loss


@on_each_kind
def test_larger_data_comes_once_and_in_whole_batches(make, tmp_path):
    source = make(tmp_path, data(250), buffer_bytes=4 * KIB)
    rows = stream(network(), source, 10)
    parts = list(rows.parts(np.random.default_rng(0)))
    assert len(parts) > 2
    order = np.concatenate([rows_in_order(part) for part in parts])
    np.testing.assert_array_equal(np.sort(order), np.arange(250))
    assert not np.array_equal(order, np.sort(order))
    X, y, weight = data(250)
    for part in parts:
        numbers = part.data.X[:, 0].astype(int)
        np.testing.assert_array_equal(part.data.X, X[numbers])
        np.testing.assert_array_equal(part.data.y[:, 0], y[numbers])
        np.testing.assert_array_equal(part.data.sample_weight, weight[numbers])
    in_order = stream(network(), source, 10, shuffle=False).parts(None)
    order = np.concatenate([rows_in_order(part) for part in in_order])
    np.testing.assert_array_equal(order, np.arange(250))


@given(
    n_samples=st.integers(1, 300),
    batch_size=st.integers(1, 60),
    buffer_bytes=st.integers(1, 20 * KIB),
    block_rows=st.integers(1, 100),
    shuffle=st.booleans(),
    seed=st.integers(0, 5),
)
def test_an_epoch_can_go_on_at_any_step(
    n_samples, batch_size, buffer_bytes, block_rows, shuffle, seed
):
    class Blocks(Arrays):
        @property
        def block_rows(self):
            return block_rows

    X, y, _ = data(n_samples)
    source = Blocks(X, y, buffer_bytes=buffer_bytes)
    rows = stream(network(), source, batch_size, shuffle=shuffle)
    n_steps = -(-n_samples // batch_size)
    assert (len(rows), rows.n_samples) == (n_steps, n_samples)

    def epoch(first_step):
        rng = np.random.default_rng(seed)
        parts = list(rows.parts(rng, first_step))
        numbers = [rows_in_order(part) for part in parts]
        for part, order in zip(parts, numbers, strict=True):
            assert part.n_steps == -(-len(order) // batch_size) > 0
        assert all(len(order) % batch_size == 0 for order in numbers[:-1])
        assert sum(part.n_steps for part in parts) == n_steps - first_step
        return np.concatenate([*numbers, np.empty(0, int)]), rng.integers(2**60)

    whole, drawn = epoch(0)
    np.testing.assert_array_equal(np.sort(whole), np.arange(n_samples))
    for first_step in {0, 1, n_steps // 2, n_steps - 1, n_steps}:
        if first_step <= n_steps:
            order, drawn_then = epoch(first_step)
            np.testing.assert_array_equal(order, whole[first_step * batch_size :])
            assert drawn_then == drawn


class Counted(Arrays):
    """Arrays that note what is read."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.read_rows = []

    def read(self, start, stop):
        self.read_rows.append((start, stop))
        return super().read(start, stop)


def test_parts_before_the_first_step_are_not_read():
    X, y, _ = data(2000)
    source = Counted(X, y, buffer_bytes=8 * KIB)
    rows = stream(network(), source, 10)
    n_parts = len(list(rows.parts(np.random.default_rng(0))))
    assert n_parts > 5
    source.read_rows.clear()
    (part,) = rows.parts(np.random.default_rng(0), len(rows) - 1)
    assert sum(stop - start for start, stop in source.read_rows) == part.data.n_samples


def test_one_part_is_read_ahead_and_no_more():
    X, y, _ = data(2000)
    source = Counted(X, y, buffer_bytes=8 * KIB)
    rows = stream(network(), source, 10)
    source.read_rows.clear()
    with closing(rows.parts(np.random.default_rng(0))) as parts:
        size = next(parts).data.n_samples
        for number in range(1, 4):
            next(parts)
            # Reading goes on meanwhile, by one part at most.
            n_read = sum(stop - start for start, stop in list(source.read_rows))
            assert size * (number + 1) <= n_read <= size * (number + 2)


@pytest.mark.parametrize("standardizes", [False, True])
@pytest.mark.parametrize("kind", ["memmap", "zarr3", "parquet"])
def test_memory_stays_within_two_buffers(kind, standardizes, tmp_path):
    buffer_bytes = 512 * KIB
    arrays = data(20_000, 24)
    n_bytes = sum(x.nbytes for x in arrays)
    if kind == "parquet":
        columns = {f"x{j}": arrays[0][:, j] for j in range(24)} | {"y": arrays[1]}
        folder = write_parquet(tmp_path / "rows", columns, (0, 9000, 15_000, None), (1000,) * 3)
        source = Parquet(folder, "y", buffer_bytes=buffer_bytes)
    else:
        chunks = {"chunk_rows": 1000} if kind == "zarr3" else {}
        source = KINDS[kind](tmp_path, arrays, buffer_bytes=buffer_bytes, **chunks)
    del arrays
    assert n_bytes > 4 * buffer_bytes
    net = network(24)
    if standardizes:
        net.standardize(source)
    list(stream(net, source, 64).parts(np.random.default_rng(0), 310))  # imports, caches
    tracemalloc.start()
    try:
        if standardizes:
            net.standardize(source)
            assert tracemalloc.get_traced_memory()[1] < 1.4 * buffer_bytes
            tracemalloc.reset_peak()
        n_rows = 0
        for part in stream(net, source, 64).parts(np.random.default_rng(0)):
            n_rows += part.data.n_samples
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n_rows == 20_000
    assert peak < 2 * buffer_bytes


class Failing(Arrays):
    """Arrays whose last rows cannot be read."""

    def read(self, start, stop):
        if stop > 900:
            raise OSError("the disk is gone")
        return super().read(start, stop)


def test_an_error_of_the_reader_comes_out_as_it_is_and_the_thread_ends():
    X, y, _ = data(1000)
    rows = stream(network(), Failing(X, y, buffer_bytes=8 * KIB), 10, shuffle=False)
    with pytest.raises(OSError, match="the disk is gone"):
        list(rows.parts(None))
    assert n_readers() == 0


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_the_thread_ends_with_the_epoch(error):
    X, y, _ = data(1000)
    rows = stream(network(), Arrays(X, y, buffer_bytes=8 * KIB), 10)

    def train():
        with closing(rows.parts(np.random.default_rng(0))) as parts:
            next(parts)
            if error is not None:
                raise error

    if error is None:
        train()
    else:
        with pytest.raises(error):
            train()
    assert n_readers() == 0
    for _ in rows.parts(np.random.default_rng(0)):
        assert n_readers() <= 1
    assert n_readers() == 0


def test_errors_name_the_rows_of_the_source():
    X, y, weight = data(1000)
    bad_X, bad_y, bad_weight = X.copy(), y.copy(), weight.copy()
    bad_X[905, 2], bad_y[903], bad_weight[905] = np.nan, 7, np.inf
    options = {"buffer_bytes": 8 * KIB}
    for arrays, message in (
        ((bad_X, y), r"X\[900:910\]: expected finite numbers, got nan at \[5, 2\]"),
        ((X, bad_y), r"y\[900:910\]: expected labels 0 and 1 .*, got 7 in row 3"),
        (
            (X, y, bad_weight),
            r"sample_weight\[900:910\]: expected finite numbers, got inf at \[5\]",
        ),
        ((X, y, -weight), r"sample_weight: expected weights >= 0"),
        ((X, y, 0 * weight), r"sample_weight: expected weights >= 0 that are not all zero"),
    ):
        rows = stream(network(), Arrays(*arrays, **options), 10)
        with pytest.raises(InputError, match=message):
            list(rows.parts(np.random.default_rng(0)))
    zeros = weight * (np.arange(1000) % 20 < 10)
    assert list(stream(network(), Arrays(X, y, zeros, **options), 10).parts(None))


def test_a_source_that_does_not_fit_is_refused_before_training():
    X, y, _ = data(100)
    with pytest.raises(InputError, match="y: expected targets to train on"):
        stream(network(), Arrays(X), 10)
    with pytest.raises(InputError, match="expected 4 features"):
        stream(network(4), Arrays(X, y), 10)

    class Short(Arrays):
        def read(self, start, stop):
            return Rows(*(x[:1] for x in super().read(start, stop)[:2]))

    with pytest.raises(InputError, match=r"X: expected 100 rows of Short.read\(0, 100\), got 1"):
        list(stream(network(), Short(X, y), 10, shuffle=False).parts(None))


def test_columns_in_another_order_are_refused(tmp_path):
    pq.write_table(pa.table({"a": [1.0, 2], "b": [3.0, 5], "y": [0, 1]}), tmp_path / "1.parquet")
    net = network(2).standardize(Parquet(tmp_path, "y"))
    assert net.feature_names == ("a", "b")
    other = Parquet(tmp_path, "y", features=["b", "a"])
    for use in (net.standardize, lambda source: stream(net, source, 2)):
        with pytest.raises(InputError, match="got 'b' in place of 'a'; pass features="):
            use(other)


# Standardization in one stream

MAGNITUDES = st.sampled_from([1e-300, 1e-12, 1.0, 1e12, 1e300])


@st.composite
def columns_in_blocks(draw):
    seed, n_samples = draw(st.integers(0, 2**32)), draw(st.integers(2, 60))
    rng = np.random.default_rng(seed)
    centres = np.array([draw(st.sampled_from([0.0, 1.0, -1e6])) for _ in range(3)])
    scales = np.array([draw(MAGNITUDES) for _ in range(3)])
    columns = (centres + rng.normal(size=(n_samples, 3))) * scales
    if draw(st.booleans()):
        columns[: n_samples // 2, draw(st.integers(0, 2))] = 0
    cuts = sorted(draw(st.sets(st.integers(1, n_samples - 1), max_size=6)))
    return columns, np.split(columns, cuts)


def merged(blocks):
    result = None
    for block in blocks:
        moments = Moments.of(np, block)
        result = moments if result is None else result.merge(np, moments)
    return result


@given(columns_in_blocks())
def test_blocks_have_the_statistics_of_the_whole(drawn):
    columns, blocks = drawn
    whole, streamed = Standardization.fit(np, columns), Standardization.of(np, merged(blocks))
    largest = np.abs(columns).max(axis=0)
    for j in range(3):
        exact = [Fraction(float(x)) for x in columns[:, j]]
        mean = sum(exact) / len(exact)
        variance = sum((x - mean) ** 2 for x in exact) / len(exact)
        # A few roundings at the size of the largest value; the square root is taken of a ratio.
        ratio = variance / Fraction(float(largest[j])) ** 2
        deviation = float(ratio) ** 0.5
        for found in (whole, streamed):
            assert (
                abs(float((Fraction(float(found.mean[j])) - mean) / Fraction(largest[j])))
                < 1e-15 * 8
            )
            assert found.scale[j] / largest[j] == pytest.approx(deviation, rel=1e-12, abs=4e-15)


@pytest.mark.parametrize("value", [0.0, 1e-310, 0.1, -3e7, 1.7e308])
def test_a_constant_column_has_scale_1_in_blocks_too(value):
    columns = np.full((101, 1), value)
    found = Standardization.of(np, merged(np.split(columns, [7, 40, 41])))
    assert found.scale[0] == 1
    assert found.mean[0] == value


def test_constant_blocks_of_two_huge_values_do_not_overflow():
    blocks = [np.full((3, 1), 1.7e308), np.full((3, 1), -1.7e308)]
    found = Standardization.of(np, merged(blocks))
    assert (found.mean[0], found.scale[0]) == (0, 1.7e308)


@on_each_device
@on_each_kind
def test_a_network_is_standardized_with_a_source_as_with_arrays(make, device, tmp_path):
    X, y, _ = data(250)
    y = y + 0.5
    expected = network(output="identity", device=device).standardize(X, y)
    for buffer_bytes, rtol in ((2**28, 0), (4 * KIB, 1e-13)):
        folder = tmp_path / str(buffer_bytes)
        folder.mkdir()
        source = make(folder, (X, y), buffer_bytes=buffer_bytes)
        net = network(output="identity", device=device).standardize(source, source)
        for name in ("standardization", "target_standardization"):
            for got, x in zip(getattr(net, name), getattr(expected, name), strict=True):
                np.testing.assert_allclose(to_host(got), to_host(x), rtol=rtol, atol=0)
        assert network(output="identity").standardize(source).target_standardization is None


def test_a_memmap_larger_than_a_buffer_is_standardized_in_blocks(tmp_path, monkeypatch):
    X, y, _ = data(250)
    expected = network(output="identity").standardize(X, y)
    monkeypatch.setattr(sources, "BUFFER_BYTES", 1000)
    net = network(output="identity").standardize(memmap(tmp_path, "x", X), y)
    for name in ("standardization", "target_standardization"):
        np.testing.assert_allclose(getattr(net, name), getattr(expected, name), rtol=1e-13)


def test_bad_values_leave_a_network_as_it_was_and_are_named():
    X, y, _ = data(1000)
    X[905, 1] = np.inf
    net = network()
    with pytest.raises(InputError, match=r"X\[\d+:\d+\]: expected finite numbers, got inf at"):
        net.standardize(Arrays(X, y, buffer_bytes=8 * KIB))
    with pytest.raises(InputError, match="y: expected the source again"):
        network(output="identity").standardize(Arrays(X), y)
    assert net.standardization is None


# Estimators


def blocks_of(model, source, n_outputs):
    """Return what partial_fit reads at a time."""
    read = list(model._blocks(source, None, None, n_outputs))
    stops = np.cumsum([len(X) for X, _, _ in read])
    return list(zip([0, *stops[:-1]], stops, strict=True))


@pytest.mark.parametrize("batch_size", ["auto", 64])
def test_partial_fit_on_a_source_is_partial_fit_on_its_blocks(batch_size):
    X, y, weight = data(1850)
    X[:, 0] /= 1850
    source = Arrays(X, y, weight, buffer_bytes=100 * KIB)
    options = {"hidden_layer_sizes": (4,), "random_state": 0, "batch_size": batch_size}
    for make, more in ((nb.MLPClassifier, {"classes": [0, 1]}), (nb.MLPRegressor, {})):
        model, expected = make(**options), make(**options)
        blocks = blocks_of(model, source, 2)
        assert len(blocks) > 2
        assert all(
            (stop - start) % (64 if batch_size == 64 else 200) == 0 for start, stop in blocks[:-1]
        )
        for _ in range(2):
            model.partial_fit(source, **more)
            for start, stop in blocks_of(model, source, 2 if more else 1):
                rows = slice(start, stop)
                expected.partial_fit(X[rows], y[rows], weight[rows], **more)
        for got, x in zip(model.coefs_, expected.coefs_, strict=True):
            np.testing.assert_array_equal(got, x)
        assert model.loss_curve_ == expected.loss_curve_


def test_partial_fit_takes_large_memmaps_with_names_of_classes(tmp_path, monkeypatch):
    X, y, weight = data(1000)
    names = np.array(["no", "yes"])[y]
    monkeypatch.setattr(sources, "BUFFER_BYTES", 4 * KIB)
    model = nb.MLPClassifier((4,), random_state=0, batch_size=50)
    mapped = memmap(tmp_path, "x", X)
    model.partial_fit(mapped, names, weight, classes=["no", "yes"])
    assert len(model.loss_curve_) > 3
    assert set(model.predict(X)) <= {"no", "yes"}
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.partial_fit(mapped, names[:-1])
    with pytest.raises(ValueError, match="requires y"):
        model.partial_fit(mapped)
    with pytest.raises(InputError, match="y: expected None with a source"):
        model.partial_fit(Arrays(X, y), y)


def test_partial_fit_stays_within_the_buffer(tmp_path):
    X, y, _ = data(10_000, 64)
    source = of_memmap(tmp_path, (X, y), buffer_bytes=600 * KIB)
    assert X.nbytes > 4 * source.buffer_bytes
    del X
    model = nb.MLPRegressor(hidden_layer_sizes=(4,), random_state=0, batch_size=500)
    model.partial_fit(source)
    tracemalloc.start()
    try:
        model.partial_fit(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * source.buffer_bytes


def test_a_source_of_ones_own_needs_three_things():
    class Parity(Source):
        n_samples, n_features = 1000, 1

        def read(self, start, stop):
            numbers = np.arange(start, stop)
            return Rows(numbers[:, None], numbers % 2)

    parts = list(
        stream(network(1), Parity(buffer_bytes=8 * KIB), 16).parts(np.random.default_rng(1))
    )
    assert sorted(np.concatenate([rows_in_order(part) for part in parts])) == list(range(1000))


# Files that change while they are in use


def layouts(folder, X):
    """Return memory maps of the same numbers, and views of them."""
    row_major = memmap(folder, "c", X)
    np.save(folder / "f.npy", np.asfortranarray(X))
    big_endian = memmap(folder, "big", X.astype(">f8"))
    wide = memmap(folder, "wide", np.repeat(X, 3, axis=1))
    with open(folder / "offset", "wb") as file:
        file.write(bytes(5000) + X.tobytes())
    twice = memmap(folder, "twice", np.repeat(X, 2, axis=0))
    return {
        "C": row_major,
        "Fortran": np.load(folder / "f.npy", mmap_mode="r"),
        "another byte order": big_endian,
        "columns": wide[:, ::3],
        "offset": np.memmap(folder / "offset", X.dtype, "r", offset=5000, shape=X.shape),
        "every other row": twice[::2],
        "from behind": memmap(folder, "reversed", X[::-1])[::-1],
        "a part": memmap(folder, "longer", np.vstack([X, X]))[len(X) :],
        "an ndarray": np.asarray(row_major),
        "transposed": memmap(folder, "t", np.ascontiguousarray(X.T)).T,
        "copy on write": np.memmap(folder / "c", X.dtype, "c", shape=X.shape),
    }


LAYOUTS = ["C", "Fortran", "another byte order", "columns", "offset", "every other row",
           "from behind", "a part", "an ndarray", "transposed", "copy on write"]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_a_memmap_is_read(layout, tmp_path):
    X, y, _ = data(250)
    mapped = layouts(tmp_path, X)[layout]
    source = Arrays(mapped, y)
    for start, stop in [(0, 250), (0, 1), (40, 137), (249, 250)]:
        got = source.read(start, stop).X
        assert got.dtype == mapped.dtype
        assert not np.shares_memory(got, mapped)
        np.testing.assert_array_equal(got, X[start:stop])


@given(st.data())
def test_any_view_of_a_memmap_is_read(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("view")
    cube = memmap(folder, "cube", np.arange(4 * 5 * 6, dtype="int16").reshape(4, 5, 6))

    def part(size):
        step = drawn.draw(st.sampled_from([1, 2, 3, -1, -2]))
        first, last = sorted(drawn.draw(st.lists(st.integers(0, size), min_size=2, max_size=2)))
        return slice(first, last, step) if step > 0 else slice(last, first, step)

    order = drawn.draw(st.permutations(range(3)))
    view = cube[part(4), part(5), drawn.draw(st.integers(0, 5))]
    view = view if order[0] < order[1] else view.T
    if view.size:
        np.testing.assert_array_equal(Arrays(view).read(0, len(view)).X, np.array(view))


def test_what_was_written_to_a_memmap_is_read(tmp_path):
    X, y, _ = data(50)
    memmap(tmp_path, "x", X)
    for mode in ("r+", "c"):
        mapped = np.memmap(tmp_path / "x", X.dtype, mode, shape=X.shape)
        source = Arrays(mapped, y)
        mapped[7, 1] = 123
        assert source.read(5, 10).X[2, 1] == 123
        # In a copy of its own the file has no part.
        np.testing.assert_array_equal(source.read(0, 50).X, mapped)


def cut(path, n_bytes):
    with open(path, "r+b") as file:
        file.truncate(n_bytes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_memmap_whose_file_was_cut_off_is_refused(layout, tmp_path):
    X, y, _ = data(25_000)
    mapped = layouts(tmp_path, X)[layout]
    source = Arrays(mapped, y, buffer_bytes=64 * KIB)
    cut_off = {
        "an ndarray": "c",
        "copy on write": "c",
        "Fortran": "f.npy",
        "another byte order": "big",
        "columns": "wide",
        "every other row": "twice",
        "from behind": "reversed",
        "a part": "longer",
        "transposed": "t",
    }
    path = cut_off.get(layout, layout.lower())
    cut(tmp_path / path, 4096)
    message = rf"X: cannot read '.*{path}': it was cut off .* 4096 bytes"
    for use in (
        lambda: source.read(0, 25_000),
        lambda: network().standardize(source),
        lambda: nb.train(network(), source, epochs=1),
        lambda: nb.MLPClassifier((4,)).partial_fit(source, classes=[0, 1]),
    ):
        with pytest.raises(InputError, match=message):
            use()


def test_a_memmap_cut_off_during_training_keeps_what_was_learnt(tmp_path):
    X, y, _ = data(25_000)
    source = Arrays(memmap(tmp_path, "x", X), y, buffer_bytes=64 * KIB)
    net = network()
    before = net.parameters.copy()
    with pytest.raises(InputError, match=r"cannot read '.*x'"):
        nb.train(net, source, epochs=5, callbacks=lambda _: cut(tmp_path / "x", 8192))
    assert not np.array_equal(net.parameters, before)


def test_a_map_outlives_the_name_of_its_file(tmp_path):
    X, y, _ = data(250)
    source = Arrays(memmap(tmp_path, "x", X), y)
    other = Arrays(memmap(tmp_path, "other", X), y)
    (tmp_path / "x").unlink()
    (tmp_path / "new").write_bytes((X + 1).tobytes())
    (tmp_path / "new").replace(tmp_path / "other")
    for each in (source, other):
        np.testing.assert_array_equal(each.read(3, 200).X, X[3:200])


# Chunks of Zarr arrays that are missing

ZARR_LAYOUTS = {
    "format 2": {"zarr_format": 2, "chunks": (10, 3)},
    "format 3": {"zarr_format": 3, "chunks": (10, 3)},
    "blocks of columns": {"zarr_format": 3, "chunks": (10, 2)},
    "shards": {"zarr_format": 3, "chunks": (5, 1), "shards": (20, 2)},
    "filled with NaN": {"zarr_format": 3, "chunks": (10, 3), "fill_value": np.nan},
}


def zarr_array(path, x, **options):
    zarr = require("zarr")
    array = zarr.create_array(store=str(path), shape=x.shape, dtype=x.dtype, **options)
    array[...] = x
    return zarr.open_array(str(path), mode="r")


def chunk_files(path):
    """Return the files of a Zarr array's chunks, or shards, in the order of their rows."""
    files = [file for file in path.rglob("*") if file.is_file() and file.name[0] not in ".z"]

    def indices(file):
        return [
            int(i) for i in str(file.relative_to(path)).replace("/", ".").split(".") if i != "c"
        ]

    return sorted(files, key=indices)


@pytest.mark.parametrize("layout", ZARR_LAYOUTS)
@pytest.mark.parametrize("number", [0, 3, -1])
def test_a_missing_chunk_is_refused(layout, number, tmp_path):
    X, y, _ = data(101)
    array = zarr_array(tmp_path / "x", X, **ZARR_LAYOUTS[layout])
    source = Arrays(array, y, buffer_bytes=4 * KIB)
    np.testing.assert_array_equal(source.read(0, 101).X, X)
    # It vanishes while the source is in use.
    chunk_files(tmp_path / "x")[number].unlink()
    what = "shards" if layout == "shards" else "chunks"
    message = rf"X: expected a Zarr array whose {what} are all stored, got \d+ of \d+, .* rows"
    for use in (
        lambda: source.read(0, 101),
        lambda: [source.read(i, i + 1) for i in range(101)],
        lambda: network().standardize(source),
        lambda: nb.train(network(), source, epochs=1),
        lambda: nb.train(network(), Arrays(array, y), epochs=1),
        lambda: nb.train(network(), array, y, epochs=1),
        lambda: nb.MLPClassifier((4,)).partial_fit(source, classes=[0, 1]),
        lambda: network().predict(array),
    ):
        with pytest.raises(InputError, match=message):
            use()
    # What is asked for is given.
    allowed = Arrays(array, y, allow_missing_chunks=True).read(0, 101).X
    np.testing.assert_array_equal(allowed, array[:])
    if layout != "filled with NaN":
        network().predict(array[:])


@pytest.mark.parametrize("name", ["y", "sample_weight"])
def test_missing_targets_and_weights_are_refused_too(name, tmp_path):
    arrays = dict(zip(("X", "y", "sample_weight"), data(100), strict=True))
    arrays[name] = zarr_array(tmp_path / "x", arrays[name], chunks=(10,))
    source = Arrays(**arrays)
    chunk_files(tmp_path / "x")[4].unlink()
    with pytest.raises(
        InputError, match=rf"{name}: .* got 9 of 10, and .* 0(.0)? in rows 40 to 49"
    ):
        source.read(35, 60)
    with pytest.raises(InputError, match=rf"{name}: .* got 9 of 10"):
        nb.train(network(), arrays.pop("X"), **arrays, epochs=1)


@pytest.mark.parametrize("layout", ZARR_LAYOUTS)
def test_stored_chunks_of_the_fill_value_are_data(layout, tmp_path):
    X, y, _ = data(101)
    X[20:61] = X[:, 2:] = 0
    options = {**ZARR_LAYOUTS[layout], "config": {"write_empty_chunks": True}}
    source = Arrays(zarr_array(tmp_path / "x", X, **options), y)
    for start, stop in [(0, 101), (25, 31), (100, 101)]:
        np.testing.assert_array_equal(source.read(start, stop).X, X[start:stop])


def test_chunks_are_counted_where_one_may_be_missing_and_once(tmp_path):
    X, y, _ = data(101)
    X[20:61] = 0
    counted = []

    class Counting:
        """A Zarr array that notes when its chunks are counted."""

        def __init__(self, array):
            self.array = array

        def __getattr__(self, name):
            return getattr(self.array, name)

        def __getitem__(self, rows):
            return self.array[rows]

        @property
        def nchunks_initialized(self):
            counted.append(1)
            return self.array.nchunks_initialized

    options = {"chunks": (10, 3), "config": {"write_empty_chunks": True}}
    source = Arrays(Counting(zarr_array(tmp_path / "x", X, **options)), y)
    source.read(0, 20)
    assert counted == []
    for _ in range(3):
        source.read(0, 101)
    assert counted == [1]
