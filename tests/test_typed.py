"""Tables of typed columns, from arrays, lists and data frames of each library."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pytest
from backends import require
from hypothesis import given, settings
from hypothesis import strategies as st

from nnbackend.data.door import look
from nnbackend.data.text_columns import typed_words
from nnbackend.errors import InputError

US = 10**6
DAY = 86400 * US


def arrow_series(values, type_):
    return require("pandas").Series(
        values, dtype=require("pandas").ArrowDtype(type_(require("pyarrow")))
    )


def series(dtype):
    return lambda values: require("pandas").Series(values, dtype=dtype)


def polars_series(type_):
    return lambda values: require("polars").Series(values, dtype=type_(require("polars")))


def chunked(type_):
    """Return what makes an Arrow column of two chunks, the first one shorter."""
    return lambda values: require("pyarrow").chunked_array(
        [values[:1], values[1:]], type=type_(require("pyarrow"))
    )


def objects(values):
    column = np.empty((len(values), 1), object)
    column[:, 0] = values
    return column


NULLABLE = {"number": "Float64", "boolean": "boolean", "text": "string", "date": "datetime64[ns]"}
ARROW = {
    "number": lambda pa: pa.float64(),
    "boolean": lambda pa: pa.bool_(),
    "text": lambda pa: pa.string(),
    "date": lambda pa: pa.timestamp("us"),
}
POLARS = {
    "number": lambda pl: pl.Float64,
    "boolean": lambda pl: pl.Boolean,
    "text": lambda pl: pl.String,
    "date": lambda pl: pl.Datetime("us"),
}
# Each way in for a column of Python's values, None where there is a gap.
WAYS = {
    "objects": lambda _, values: objects(values),
    "lists": lambda _, values: [[value] for value in values],
    "pandas objects": lambda _, values: series(object)(values),
    "pandas nullable": lambda kind, values: series(NULLABLE[kind])(values),
    "pandas Arrow": lambda kind, values: arrow_series(values, ARROW[kind]),
    "polars": lambda kind, values: polars_series(POLARS[kind])(values),
    "Arrow": lambda kind, values: chunked(ARROW[kind])(values),
}
TEXT_WAYS = {
    "pandas category": series("category"),
    "pandas str": series("str"),
    "polars categorical": polars_series(lambda pl: pl.Categorical),
    "polars binary": lambda values: polars_series(lambda pl: pl.Binary)(
        [value if value is None else value.encode() for value in values]
    ),
    "Arrow large": chunked(lambda pa: pa.large_string()),
    "Arrow view": chunked(lambda pa: pa.string_view()),
    "Arrow dictionary": chunked(lambda pa: pa.dictionary(pa.int8(), pa.string())),
    "Arrow binary": chunked(lambda pa: pa.binary()),
}


def typed(column):
    """Return the only column of a table, or of a frame made of one of its columns."""
    if type(column) is not list and not (isinstance(column, np.ndarray) and column.ndim == 2):
        library = type(column).__module__.partition(".")[0]
        if library == "pyarrow":
            column = require("pyarrow").table({"c": column})
        elif library in ("pandas", "polars"):
            column = require(library).DataFrame({"c": column})
        else:
            column = column[:, None]
    table = look("X", column).table()
    (result,) = table.columns.values()
    assert len(result.values) == table.n_rows
    assert len(set(result.words)) == len(result.words)
    if result.kind == "text":
        assert set(result.values[~result.is_missing]) == set(range(len(result.words)))
    return result


def decoded(column):
    """Return a column as Python's values, None where there is a gap."""
    convert = {
        "text": lambda value: column.words[value],
        "boolean": bool,
        "number": float,
        "date": int,
    }[column.kind]
    missing = column.is_missing
    return [None if gap else convert(v) for v, gap in zip(column.values, missing, strict=True)]


def micros(moment):
    zone = dt.UTC if moment.tzinfo else None
    return (moment - dt.datetime(1970, 1, 1, tzinfo=zone)) // dt.timedelta(microseconds=1)


VALUES = {
    "number": st.floats(allow_nan=False, width=64),
    "boolean": st.booleans(),
    "text": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3),
    "date": st.datetimes(*map(dt.datetime.fromisoformat, ("1700-01-01", "2200-01-01"))),
}


@pytest.mark.parametrize("kind", VALUES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_column_is_the_same_from_every_library(kind, data):
    values = data.draw(st.lists(st.none() | VALUES[kind], min_size=1, max_size=6))
    change = {"text": lambda value: value or None, "date": micros}.get(kind, lambda value: value)
    expected = [None if value is None else change(value) for value in values]
    ways = {name: lambda v, w=way: w(kind, v) for name, way in WAYS.items()}
    if kind == "text":
        ways |= TEXT_WAYS
    for name, way in ways.items():
        column = typed(way(values))
        assert decoded(column) == expected, name
        if any(value is not None for value in expected):
            assert column.kind == kind, name
        else:
            assert column.is_missing.all(), name


NUMBERS = {
    "Decimal objects": lambda: objects([Decimal("1.5"), None, Decimal(2)]),
    "Decimal NaN": lambda: objects([Decimal("1.5"), Decimal("NaN"), 2]),
    "booleans beside numbers": lambda: objects([1.5, np.nan, 2]),
    "Arrow decimal128": lambda: chunked(lambda pa: pa.decimal128(9, 2))(
        [Decimal("1.5"), None, Decimal(2)]
    ),
    "Arrow decimal256": lambda: chunked(lambda pa: pa.decimal256(50, 2))(
        [Decimal("1.5"), None, Decimal(2)]
    ),
    "polars Decimal": lambda: polars_series(lambda pl: pl.Decimal(9, 2))(
        [Decimal("1.5"), None, Decimal(2)]
    ),
    "duration objects": lambda: objects([dt.timedelta(seconds=1.5), None, np.timedelta64(2, "s")]),
    "durations": lambda: np.array([1500, "NaT", 2000], "m8[ms]"),
    "durations of 5 ns": lambda: np.array([3 * 10**8, "NaT", 4 * 10**8], "m8[5ns]"),
    "Arrow duration": lambda: chunked(lambda pa: pa.duration("ns"))(
        [dt.timedelta(seconds=1.5), None, dt.timedelta(seconds=2)]
    ),
    "polars Duration": lambda: polars_series(lambda pl: pl.Duration("ms"))(
        [dt.timedelta(seconds=1.5), None, dt.timedelta(seconds=2)]
    ),
    "time objects": lambda: objects([dt.time(0, 0, 1, 500_000), None, dt.time(0, 0, 2)]),
    "Arrow time": lambda: chunked(lambda pa: pa.time64("us"))(
        [dt.time(0, 0, 1, 500_000), None, dt.time(0, 0, 2)]
    ),
    "Arrow short time": lambda: chunked(lambda pa: pa.time32("ms"))(
        [dt.time(0, 0, 1, 500_000), None, dt.time(0, 0, 2)]
    ),
    "polars Time": lambda: polars_series(lambda pl: pl.Time)(
        [dt.time(0, 0, 1, 500_000), None, dt.time(0, 0, 2)]
    ),
    "masked array": lambda: np.ma.masked_array([[1.5], [7], [2]], [[0], [1], [0]]),
    "text that is empty beside numbers": lambda: objects([1.5, "", 2]),
}


@pytest.mark.parametrize("make", NUMBERS.values(), ids=NUMBERS)
def test_decimals_durations_and_times_are_numbers(make):
    column = typed(make())
    assert (column.kind, decoded(column)) == ("number", [1.5, None, 2])


def test_whole_numbers_beyond_int64_are_numbers():
    big = [2**70, None, -(2**80)]
    for column in (objects(big), polars_series(lambda pl: pl.Int128)(big)):
        assert decoded(typed(column)) == [2.0**70, None, -(2.0**80)]
    assert decoded(typed(series("UInt64")([2**64 - 1, None]))) == [2.0**64, None]
    assert decoded(typed(chunked(lambda pa: pa.int64())([2**62 + 1, None]))) == [2.0**62, None]


def zoned(hour=12):
    return dt.datetime(2020, 7, 1, hour, tzinfo=dt.timezone(dt.timedelta(hours=2)))


DATES = {
    "objects with a zone": lambda: objects([zoned(), None]),
    "pandas zone": lambda: series("datetime64[ns, Europe/Berlin]")([zoned(), None]),
    "pandas Arrow zone": lambda: arrow_series(
        [zoned(), None], lambda pa: pa.timestamp("ms", "Europe/Berlin")
    ),
    "polars zone": lambda: polars_series(lambda pl: pl.Datetime("ns", "UTC"))([zoned(), None]),
    "Arrow zone": lambda: chunked(lambda pa: pa.timestamp("s", "Asia/Tokyo"))([zoned(), None]),
    "NumPy hours": lambda: np.array(["2020-07-01T10", "NaT"], "M8[h]"),
    "NumPy objects": lambda: objects(
        [np.datetime64("2020-07-01T10:00", "m"), np.datetime64("NaT")]
    ),
    "pandas period": lambda: series("period[h]")(["2020-07-01 10:00", None]),
    "pandas period objects": lambda: series(object)(
        [require("pandas").Period("2020-07-01 10:00", "h"), None]
    ),
}


@pytest.mark.parametrize("make", DATES.values(), ids=DATES)
def test_dates_of_each_kind_are_microseconds_of_utc(make):
    column = typed(make())
    assert (column.kind, decoded(column)) == ("date", [micros(zoned()), None])


DAYS = {
    "date objects": lambda: objects([dt.date(1969, 12, 30), None]),
    "Arrow date32": lambda: chunked(lambda pa: pa.date32())([dt.date(1969, 12, 30), None]),
    "Arrow date64": lambda: chunked(lambda pa: pa.date64())([dt.date(1969, 12, 30), None]),
    "polars Date": lambda: polars_series(lambda pl: pl.Date)([dt.date(1969, 12, 30), None]),
}


DATE_TEXTS = {
    "objects": lambda: objects(["2020-07-01 10:00", ""]),
    "seconds": lambda: objects(["2020-07-01T10:00:00.000000000", None]),
    "Z": lambda: np.array(["2020-07-01T10:00Z", ""]),
    "a zone": lambda: series("category")(["2020-07-01T06:30:00-03:30", None]),
    "a short zone": lambda: chunked(lambda pa: pa.string())(["2020-07-01T12:00:00+02", None]),
    "dates as categories": lambda: series("category")(
        [require("pandas").Timestamp("2020-07-01 10:00"), None]
    ),
}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("2020/07/01 10:00", "2020-07-01T10:00"),
        ("2020.07.01", "2020-07-01"),
        ("01.07.2020", "2020-07-01"),
        ("01.07.2020 10:00:00,5", "2020-07-01T10:00:00.5"),
    ],
)
def test_dates_that_can_be_read_in_one_way_are_dates(word, expected):
    column = typed_words(typed(objects([word, None])))
    assert column.kind == "date"
    assert column.values[0] == np.datetime64(expected, "us").astype(np.int64)


@pytest.mark.parametrize("word", ["07/01/2020", "01-07-2020", "2020-07/01", "32.07.2020"])
def test_dates_that_may_be_read_in_two_ways_are_text(word):
    assert typed_words(typed(objects([word, None]))).kind == "text"


@pytest.mark.parametrize("make", DATE_TEXTS.values(), ids=DATE_TEXTS)
def test_text_that_spells_dates_is_text_until_all_rows_are_known(make):
    column = typed(make())
    assert column.kind == "text"
    column = typed_words(column)
    assert (column.kind, decoded(column)) == ("date", [micros(zoned()), None])


@pytest.mark.parametrize("make", DAYS.values(), ids=DAYS)
def test_days_are_dates(make):
    column = typed(make())
    assert (column.kind, decoded(column)) == ("date", [-2 * DAY, None])


def test_parts_of_a_microsecond_are_cut_towards_the_past():
    assert decoded(typed(np.array([-1, 1999], "M8[ns]"))) == [-1, 1]
    assert decoded(typed(np.array(["1970-02", "1971-01"], "M8[M]"))) == [31 * DAY, 365 * DAY]


@pytest.mark.parametrize(
    "word",
    ["2020-02-30", "2020-1-1", "2020", "2020-01", "now", "NaT", "2020-01-01Z", "2020-01-01T25:00",
     "2020-01-01T10:00+", "2020-01-011", "2020-01-01T10:001", "\u0662\u0660\u0662\u0660-01-01"],
)  # fmt: skip
def test_text_that_is_almost_a_date_stays_text(word):
    column = typed(objects(["2020-01-01", word]))
    assert (column.kind, decoded(column)) == ("text", ["2020-01-01", word])
    assert typed_words(column) is column


@given(
    st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31)),  # noqa: DTZ001
    st.integers(-14 * 60, 14 * 60),
)
def test_dates_in_text_are_those_that_datetime_reads(moment, minutes):
    zone = dt.timezone(dt.timedelta(minutes=minutes))
    words = [moment.isoformat(), moment.isoformat(" ", "minutes"), moment.date().isoformat()]
    expected = [micros(dt.datetime.fromisoformat(word)) for word in words]
    words.append(moment.replace(tzinfo=zone).isoformat())
    expected.append(micros(moment) - 60 * US * minutes)
    assert decoded(typed_words(typed(objects(words)))) == expected


def test_a_mixture_with_text_is_text():
    values = ["a", 2.0, 2, 1.5, True, 1, None, np.nan, dt.date(2020, 1, 1), b"b", Decimal("2.50")]
    expected = ["a", "2", "2", "1.5", "True", "1", None, None, "2020-01-01", "b", "2.50"]
    column = typed(objects(values))
    assert (column.kind, decoded(column)) == ("text", expected)


def test_categories_that_are_numbers_are_words():
    for values in ([3, None, 1], [3.0, None, 1.0]):
        column = typed(series("category")(values))
        assert (column.kind, decoded(column)) == ("text", ["3", None, "1"])
    mixed = require("pandas").Categorical(["1", 1, 1.5], categories=["unseen", 1, "1", 1.5])
    assert decoded(typed(series(None)(mixed))) == ["1", "1", "1.5"]


def test_columns_of_gaps_are_numbers():
    pd, pl, pa = map(require, ("pandas", "polars", "pyarrow"))
    for column in (
        objects([None, np.nan]),
        objects([pd.NA, pd.NaT]),
        np.array(["", ""]),
        pl.Series([None, None]),
        pa.chunked_array([pa.nulls(2)]),
        pd.Series([None, None], dtype="category"),
    ):
        assert typed(column).kind == "number"
        assert decoded(typed(column)) == [None, None]


def test_infinite_numbers_and_kinds_of_arrays_are_kept():
    assert decoded(typed(np.array([[np.inf], [-1]], "float32"))) == [np.inf, -1]
    assert typed(np.array([[True], [False]])).kind == "boolean"
    assert decoded(typed(np.array([["a"], [""]]))) == ["a", None]
    assert decoded(typed(np.array([[b"a"], [b""]]))) == ["a", None]


def test_columns_of_arrays_have_numbered_names_and_lists_keep_their_kinds():
    table = look("X", [[1, "a", True], [2.5, "b", False]]).table()
    assert table.name == "X"
    assert {name: column.kind for name, column in table.columns.items()} == {
        "x0": "number", "x1": "text", "x2": "boolean"}  # fmt: skip
    records = np.array([(1, "a"), (2, "b")], [("n", int), ("t", "U1")])
    table = look("X", records).table()
    assert {name: decoded(column) for name, column in table.columns.items()} == {
        "n": [1, 2], "t": ["a", "b"]}  # fmt: skip


def test_names_of_frames_become_text_and_chosen_columns_alone_are_read():
    pd = require("pandas")
    frame = pd.DataFrame({0: [1.0], "b": ["x"], "bad": [[1]]})
    table = look("X", frame).table(["b", "0"])
    assert list(table.columns) == ["b", "0"]
    assert table.n_rows == 1
    with pytest.raises(InputError, match=r"X: .*none named 'z'"):
        look("X", frame).table(["b", "z"])
    with pytest.raises(InputError, match="distinct column names, got '0' twice"):
        look("X", pd.DataFrame([[1, 2]], columns=[0, "0"])).table()


def test_a_frame_of_another_library_is_read_through_numpy():
    class Frame:
        columns = ("a", "b")
        shape = (2, 2)

        def __array__(self, dtype=None, copy=None):
            return np.array([[1, "x"], [2, None]], object)

    table = look("X", Frame()).table()
    assert {name: decoded(column) for name, column in table.columns.items()} == {
        "a": [1, 2], "b": ["x", None]}  # fmt: skip


def test_arrays_of_other_libraries_are_read_on_the_host_alone():
    torch = require("torch")
    table = look("X", torch.tensor([[1.0, 2.0]])).table()
    assert [decoded(column) for column in table.columns.values()] == [[1], [2]]


REFUSED = {
    "list": (lambda: objects([1, [2]]), r"'x0', got objects of type list \('\[2\]' in row 1\)"),
    "complex": (lambda: np.array([[1j]]), "'x0', got complex numbers"),
    "array": (lambda: objects(["a", np.zeros(2)]), "objects of type ndarray"),
    "mixture": (lambda: objects([1, dt.date(2020, 1, 1)]), "a mixture of dates and numbers"),
    "half a pair": (
        lambda: objects(["a", "\ud800"]),
        r"text that UTF-8 cannot hold .*ud800.* in row 1\); read it with errors='replace'",
    ),
    "bytes": (lambda: objects([b"a", b"\xff"]), r"bytes that are not UTF-8 .*\\xff.* in row 1"),
    "Arrow bytes": (lambda: chunked(lambda pa: pa.binary())([b"a", b"\xff"]), "in row 1"),
    "Arrow list": (lambda: require("pyarrow").array([[1]]), "'c', got list<.*; make columns of"),
    "polars list": (lambda: require("polars").Series([[1]]), r"'c', got List\(Int64\)"),
    "far date": (lambda: np.array([10**15], "M8[s]"), "292000 years"),
    "huge": (lambda: objects([10**400]), "a number that float64 does not hold"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_columns_of_no_kind_are_refused(make, message):
    with pytest.raises(InputError, match=f"X: .*{message}"):
        typed(make())


NO_TABLES = {
    "dict": (lambda: {"a": [1]}, "got builtins.dict. Reshape your data: .*pandas.DataFrame"),
    "vector": (lambda: np.zeros(3), r"got shape \(3,\)\. Reshape your data: for one example"),
    "ragged": (lambda: [[1, 2], [3]], r"got shape \(2,\). Reshape your data: pass rows of equal"),
    "series": (
        lambda: require("pandas").Series(["a"]),
        r"shape \(1,\). Reshape your data: .*X.to_frame\(\)",
    ),
    "lazy": (lambda: require("polars").LazyFrame({"a": [1]}), r"pass X.collect\(\)"),
    "cube": (lambda: np.zeros((1, 2, 3)), r"got shape \(1, 2, 3\)"),
}


@pytest.mark.parametrize(("make", "message"), NO_TABLES.values(), ids=NO_TABLES)
def test_what_is_no_table_is_refused(make, message):
    with pytest.raises(
        InputError, match=rf"X: expected a table \(n_rows, n_columns\), .*{message}"
    ):
        look("X", make()).table()
