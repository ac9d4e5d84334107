"""Typed tables: the same table through every library, and what each column is."""

# ruff: noqa: DTZ001 - the dates of tables have no zone
import datetime as dt
from decimal import Decimal

import numpy as np
import pytest
from backends import require
from hypothesis import given, settings
from hypothesis import strategies as st

from nnbackend.data.door import look
from nnbackend.data.text_columns import dates_of, text_column
from nnbackend.data.typed import Table, TypedColumn
from nnbackend.errors import InputError

pa = pytest.importorskip("pyarrow")

FIRST = dt.datetime(1678, 1, 1)
LAST = dt.datetime(2261, 12, 31)


def gappy(values):
    return st.one_of(st.none(), values)


@st.composite
def tables(draw):
    """Draw columns of Python's objects, and what they hold."""
    n_rows = draw(st.integers(1, 8))
    kinds = draw(
        st.dictionaries(
            st.text("abc=", min_size=1, max_size=3), st.sampled_from(sorted(VALUES)), min_size=1
        )
    )
    columns = {
        name: draw(st.lists(gappy(VALUES[kind]), min_size=n_rows, max_size=n_rows))
        for name, kind in kinds.items()
    }
    return kinds, columns


VALUES = {
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "integer": st.integers(-(2**53), 2**53),
    "boolean": st.booleans(),
    "text": st.text("ab1- é", max_size=4),
    "date": st.datetimes(FIRST, LAST),
}
TYPES = {
    "float": pa.float64(),
    "integer": pa.int64(),
    "boolean": pa.bool_(),
    "text": pa.string(),
    "date": pa.timestamp("us"),
}


def of_arrow(kinds, columns):
    return pa.table({name: pa.array(x, TYPES[kinds[name]]) for name, x in columns.items()})


def of_pandas(kinds, columns):
    pd = require("pandas")
    frame = {}
    for name, x in columns.items():
        kind = kinds[name]
        if kind == "integer" and None in x:
            frame[name] = pd.Series(np.asarray(x, np.float64))
        elif kind == "date":
            frame[name] = pd.Series(np.asarray(x, "M8[us]"))
        else:
            plain = {"float": np.float64, "integer": np.int64}.get(kind, object)
            frame[name] = pd.Series(np.asarray(x, plain), dtype=plain)
    return pd.DataFrame(frame)


def of_nullable_pandas(kinds, columns):
    pd = require("pandas")
    dtypes = {"float": "Float64", "integer": "Int64", "boolean": "boolean", "text": "string"}
    return pd.DataFrame(
        {name: pd.array(x, dtypes.get(kinds[name], "M8[us]")) for name, x in columns.items()}
    )


def of_objects_in_pandas(kinds, columns):
    del kinds
    return require("pandas").DataFrame(columns, dtype=object)


def of_pandas_over_arrow(kinds, columns):
    pd = require("pandas")
    return pd.DataFrame(
        {
            name: pd.array(x, pd.ArrowDtype(column.type))
            for (name, x), column in zip(
                columns.items(), of_arrow(kinds, columns).itercolumns(), strict=True
            )
        }
    )


def of_polars(kinds, columns):
    pl = require("polars")
    types = {
        "float": pl.Float64,
        "integer": pl.Int64,
        "boolean": pl.Boolean,
        "text": pl.String,
        "date": pl.Datetime("us"),
    }
    return pl.DataFrame(columns, schema={name: types[kind] for name, kind in kinds.items()})


def of_chunks_of_arrow(kinds, columns):
    table = of_arrow(kinds, columns)
    chunks = [table.slice(i, 1) for i in range(table.num_rows)]
    return pa.concat_tables([table.slice(0, 0), *chunks])


def of_dictionaries_of_arrow(kinds, columns):
    table = of_arrow(kinds, columns)
    for i, (name, kind) in enumerate(kinds.items()):
        if kind == "text":
            table = table.set_column(i, name, table.column(name).dictionary_encode())
    return table


WAYS = (of_arrow, of_pandas, of_nullable_pandas, of_objects_in_pandas, of_pandas_over_arrow,
        of_polars, of_chunks_of_arrow, of_dictionaries_of_arrow)  # fmt: skip


def items(column):
    """Return a typed column as Python's objects."""
    column_items = []
    for value, is_missing in zip(column.values.tolist(), column.is_missing, strict=True):
        if is_missing:
            column_items.append(None)
        elif column.kind == "text":
            column_items.append(column.words[value])
        else:
            column_items.append(value)
    return column_items


def expected(kind, values):
    """Return what a typed column of Python's objects holds."""
    if kind == "text":
        return [value or None for value in values]
    if kind == "date":
        zero, unit = dt.datetime(1970, 1, 1), dt.timedelta(microseconds=1)
        return [None if value is None else (value - zero) // unit for value in values]
    return [None if value is None else float(value) for value in values]


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40)
@given(drawn=tables())
def test_a_table_is_the_same_through_every_library(way, drawn):
    kinds, columns = drawn
    table = look("X", way(kinds, columns)).table()
    assert list(table.columns) == list(columns)
    for name, column in table.columns.items():
        values = expected(kinds[name], columns[name])
        assert items(column) == values, name
        kind = {"float": "number", "integer": "number"}.get(kinds[name], kinds[name])
        # Of gaps alone no library says, or need say, what they are gaps in.
        assert column.kind == kind or values == [None] * len(values)
        assert len(set(column.words)) == len(column.words)
        assert column.values.dtype == (np.int64 if column.kind in ("text", "date") else np.float64)


@pytest.mark.parametrize("has_gap", [False, True])
def test_categories_are_text_and_those_that_do_not_occur_are_none(has_gap):
    pd, pl = require("pandas"), require("polars")
    values = ["red", None if has_gap else "red", "blue", "red"]
    enum = pl.Enum(["red", "blue", "green"])
    for column in (
        pd.Series(pd.Categorical(values, categories=["green", "red", "blue"])),
        pl.Series(values, dtype=enum),
        pl.Series(values, dtype=pl.Categorical),
    ):
        frame = pl.DataFrame if isinstance(column, pl.Series) else pd.DataFrame
        found = look("X", frame({"a": column})).table().columns["a"]
        assert found.kind == "text"
        assert items(found) == values
        assert sorted(found.words) == ["blue", "red"]


def test_numbers_as_categories_are_text():
    pd = require("pandas")
    frame = pd.DataFrame({"zip": pd.Categorical([10115, 501, 10115])})
    assert items(look("X", frame).table().columns["zip"]) == ["10115", "501", "10115"]


def test_arrays_are_named_by_place_and_keep_each_columns_kind():
    x = np.asarray([[1.5, "a", True, dt.date(2020, 1, 2)], [None, "", None, None]], dtype=object)
    table = look("X", x).table()
    assert list(table.columns) == ["x0", "x1", "x2", "x3"]
    assert [column.kind for column in table.columns.values()] == [
        "number",
        "text",
        "boolean",
        "date",
    ]
    assert [items(column)[1] for column in table.columns.values()] == [None] * 4
    numbers = look("X", [[1, 2], [3, 4]]).table()
    assert [items(column) for column in numbers.columns.values()] == [[1.0, 3.0], [2.0, 4.0]]


@pytest.mark.parametrize(
    ("values", "kind", "found"),
    [
        ([Decimal("1.5"), None, Decimal("NaN")], "number", [1.5, None, None]),
        ([2**80, 1, None], "number", [2.0**80, 1.0, None]),
        ([dt.timedelta(seconds=90), None], "number", [90.0, None]),
        ([1, "a", None, 2.0, 2.5], "text", ["1", "a", None, "2", "2.5"]),
        ([True, 2, None], "number", [1.0, 2.0, None]),
        ([None, None], "number", [None, None]),
        (["", ""], "number", [None, None]),
        ([dt.date(1970, 1, 2), dt.datetime(1970, 1, 1, 0, 0, 1)], "date", [86400 * 10**6, 10**6]),
    ],
)
def test_objects_become_what_all_of_them_are(values, kind, found):
    column = look("X", np.asarray(values, dtype=object)[:, None]).table().columns["x0"]
    assert (column.kind, items(column)) == (kind, found)


def test_times_with_a_zone_are_those_of_utc():
    zone = dt.timezone(dt.timedelta(hours=2))
    moment = dt.datetime(1970, 1, 1, 2, 0, 1, tzinfo=zone)
    for x in (
        pa.table({"t": pa.array([moment], pa.timestamp("us", "+02:00"))}),
        require("pandas").DataFrame({"t": [moment]}),
        require("polars").DataFrame({"t": [moment]}),
        np.asarray([[moment]], dtype=object),
    ):
        (column,) = look("X", x).table().columns.values()
        assert (column.kind, column.values.tolist()) == ("date", [10**6])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1], [2]], "column 'x0', got list"),
        ([{"a": 1}, {"a": 2}], "column 'x0', got struct"),
        ([object(), 1], "column 'x0', got object in row 0"),
        ([b"\xff", b"a"], "column 'x0', got bytes that are not UTF-8"),
        ([1j, 2j], "column 'x0', got complex"),
    ],
)
def test_what_is_no_column_of_a_table_is_refused(values, message):
    x = np.empty((2, 1), dtype=object)
    x[:, 0] = values
    with pytest.raises(InputError, match=message):
        look("X", x).table()


def test_two_columns_of_one_name_are_refused():
    pd = require("pandas")
    with pytest.raises(InputError, match="got 'a' twice; rename one"):
        look("X", pd.DataFrame([[1, 2]], columns=["a", "a"])).table()


@pytest.mark.parametrize(
    ("words", "are_dates"),
    [
        (["2020-02-29", None], True),
        (["2020-02-30"], False),
        (["2020-01-01T10:00", "2020-01-01 10:00:00.5+01:00"], True),
        (["2020-01-01", "soon"], False),
        (["20200101"], False),
        (["2020-1-1"], False),
    ],
)
def test_text_stays_text_and_says_whether_it_spells_dates(words, are_dates):
    column = look("X", require("pandas").DataFrame({"a": words}, dtype=object)).table().columns["a"]
    assert (column.kind, items(column)) == ("text", words)
    assert (dates_of(column) is not None) is are_dates


@given(
    st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31)), st.integers(-14 * 60, 14 * 60)
)
def test_dates_in_text_are_those_that_datetime_reads(moment, minutes):
    zone = dt.timezone(dt.timedelta(minutes=minutes))
    words = [moment.isoformat(), moment.isoformat(" ", "minutes"), moment.date().isoformat()]
    words += [moment.replace(tzinfo=zone).isoformat()]
    column = dates_of(text_column(words))
    read = [dt.datetime.fromisoformat(word) for word in words[:3]]
    read.append(moment.replace(tzinfo=None))
    microseconds = [(x - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1) for x in read]
    microseconds[-1] -= 60_000_000 * minutes
    assert column.values.tolist() == microseconds


def test_rows_and_columns_can_be_taken():
    columns = {"a": TypedColumn("number", np.arange(3.0)), "b": text_column(["x", None, "y"])}
    table = Table(columns, 3)
    for rows in ([2, 0], np.asarray([True, False, True]), slice(1, None)):
        part = table.take(rows)
        assert part.n_rows == len(part.columns["a"].values)
        assert items(part.columns["a"]) == np.arange(3.0)[rows].tolist()
    assert list(table.only(["b", "a"]).columns) == ["b", "a"]
    with pytest.raises(InputError, match="none named 'c' and 1 more"):
        table.only(["c", "a", "d"])
