"""``TableEncoder``: what columns become, beside scikit-learn; sources; and what is refused."""

# ruff: noqa: DTZ001 - the dates of tables have no zone
import datetime as dt
import json
import pickle
import tracemalloc

import numpy as np
import pytest
from backends import require
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import nnbackend as nb
from nnbackend.core.encoding import NumberEncoding
from nnbackend.data.deciding import BECOMES, EncodingOptions, Survey
from nnbackend.data.door import look
from nnbackend.data.encoding import Categories, Dates, Numbers, TableEncoding
from nnbackend.errors import InputError
from nnbackend.sources import Arrays, Parquet

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

RNG = np.random.default_rng(0)
N = 60
FINITE = st.floats(allow_nan=False, allow_infinity=False)
WORDS = ["red", "blue", "green", "a", "b"]


def gappy(values, every=7):
    return [None if i % every == 3 else value for i, value in enumerate(values)]


def table(n_rows=N, seed=0):
    rng = np.random.default_rng(seed)
    days = [
        dt.datetime(2020, 1, 1) + dt.timedelta(days=int(d)) for d in rng.integers(0, 999, n_rows)
    ]
    return pa.table(
        {
            "size": gappy(rng.normal(size=n_rows).tolist()),
            "count": rng.integers(0, 9, n_rows),
            "open": gappy((rng.random(n_rows) < 0.5).tolist(), 11),
            "colour": gappy(rng.choice(WORDS, n_rows).tolist(), 13),
            "when": pa.array(gappy(days, 17), pa.timestamp("us")),
            "day": [day.date().isoformat() for day in days],
            "one": [1] * n_rows,
            "nothing": pa.nulls(n_rows, pa.string()),
            "name": [f"name {i}" for i in range(n_rows)],
        }
    )


VALUES = {
    "float": (st.floats(allow_nan=False, allow_infinity=False), pa.float64()),
    "integer": (st.integers(-(2**53), 2**53), pa.int64()),
    "boolean": (st.booleans(), pa.bool_()),
    "text": (st.text("ab1- é", max_size=4), pa.string()),
    "date": (st.datetimes(dt.datetime(1678, 1, 1), dt.datetime(2261, 12, 31)), pa.timestamp("us")),
}


@st.composite
def tables(draw):
    """Draw a table of any columns."""
    n_rows = draw(st.integers(1, 8))
    names = st.text("abc=", min_size=1, max_size=3)
    kinds = draw(st.dictionaries(names, st.sampled_from(sorted(VALUES)), min_size=1))
    columns = {}
    for name, kind in kinds.items():
        values, type_ = VALUES[kind]
        items = st.lists(st.none() | values, min_size=n_rows, max_size=n_rows)
        columns[name] = pa.array(draw(items), type_)
    return pa.table(columns)


def column_of(values, **options):
    """Return what one column becomes."""
    return nb.TableEncoder(**options).fit(pa.table({"a": values})).encoding_.columns[0]


def becomes(values, **options):
    return column_of(values, **options).description


# Beside scikit-learn ------------------------------------------------------------------------------


@given(st.lists(st.lists(FINITE, min_size=2, max_size=2), min_size=2, max_size=30))
@settings(max_examples=60)
def test_numbers_that_are_not_squashed_are_standard_scores(rows):
    x = np.clip(np.asarray(rows), -1e100, 1e100)
    columns = {"a": "number", "b": "number"}
    encoder = nb.TableEncoder(columns, squash=False)
    own = encoder.fit_transform(pa.table({"a": x[:, 0], "b": x[:, 1]}))
    # Where a deviation is lost in rounding, scikit-learn takes the column as constant.
    scaler = StandardScaler().fit(x)
    is_clear = np.sqrt(scaler.var_) > 1e-6 * (np.abs(x).max(axis=0) + 1e-100)
    np.testing.assert_allclose(own[:, is_clear], scaler.transform(x)[:, is_clear], atol=1e-7)


@given(st.lists(st.one_of(st.none(), FINITE), min_size=2, max_size=40))
def test_gaps_are_computed_as_the_median(values):
    numbers = np.asarray(values, np.float64)
    assume(len(set(numbers[~np.isnan(numbers)])) > 1)
    column = column_of(numbers, columns={"a": "number"})
    imputer = SimpleImputer(strategy="median").fit(np.clip(numbers, -1e307, 1e307)[:, None])
    if np.nanmax(np.abs(numbers)) < 1e307:
        assert column.encoding.fill == imputer.statistics_[0]
    assert np.nanmin(numbers) <= column.encoding.fill <= np.nanmax(numbers)
    assert column.encoding.marks_gaps is bool(np.isnan(numbers).any())


@given(
    st.lists(st.sampled_from(["a", "b", "c", "dd", "e e"]), min_size=1, max_size=60),
    st.lists(st.sampled_from(["a", "c", "new"]), min_size=1, max_size=6),
    st.integers(1, 6),
)
def test_categories_are_the_columns_of_one_hot_encoding(words, others, fewest):
    counts = {word: words.count(word) for word in words}
    assume(any(n >= fewest for n in counts.values()))
    encoder = nb.TableEncoder({"a": "category"}, min_frequency=fewest).fit(pa.table({"a": words}))
    theirs = OneHotEncoder(handle_unknown="ignore", min_frequency=fewest, sparse_output=False).fit(
        np.asarray(words, object)[:, None]
    )
    for given_words in (words, others):
        np.testing.assert_array_equal(
            encoder.transform(pa.table({"a": given_words})),
            theirs.transform(np.asarray(given_words, object)[:, None]),
        )


def test_squashed_numbers_are_those_of_the_formula():
    x = np.append(RNG.standard_t(2, 200), 1e6)
    z = (x - np.median(x)) / np.subtract(*np.quantile(x, [0.75, 0.25]))
    own = nb.TableEncoder().fit_transform(x[:, None])[:, 0]
    np.testing.assert_allclose(own, 3 * np.arcsinh(z / 3), rtol=1e-12, atol=1e-14)


def test_dates_have_the_parts_of_the_calendar():
    pd = require("pandas")
    index = pd.date_range("2015-02-27 03:00", periods=900, freq="37h")
    encoder = nb.TableEncoder(squash=False).fit(pd.DataFrame({"t": index}))
    data = pd.DataFrame({"t": index})
    frame = dict(zip(encoder.get_feature_names_out(), encoder.transform(data).T, strict=True))
    assert list(frame) == [
        *("t=year", "t=sin(season)", "t=cos(season)", "t=sin(week)", "t=cos(week)"),
        *("t=sin(day)", "t=cos(day)", "t=trend"),
    ]
    hours = index.hour + index.minute / 60
    for name, share in (
        ("day", hours / 24),
        ("week", (index.day_of_week + hours / 24) / 7),
    ):
        np.testing.assert_allclose(frame[f"t=sin({name})"], np.sin(2 * np.pi * share), atol=1e-12)
        np.testing.assert_allclose(frame[f"t=cos({name})"], np.cos(2 * np.pi * share), atol=1e-12)
    for name, numbers in (("year", index.year), ("trend", index.asi8.astype(float))):
        assert np.corrcoef(frame[f"t={name}"], numbers)[0, 1] == pytest.approx(1)
    assert frame["t=trend"].std() == pytest.approx(1)


@parametrize_with_checks([nb.TableEncoder(), nb.TableEncoder(squash=False, dtype=np.float32)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


# What columns become ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "description"),
    [
        ([1.0] * 5, "dropped: constant (1)"),
        ([True] * 5, "dropped: constant (True)"),
        (["x"] * 5, "dropped: constant ('x')"),
        ([dt.date(2020, 1, 1)] * 5, "dropped: constant (2020-01-01T00:00:00.000000)"),
        (["2020-01-01"] * 5, "dropped: constant (2020-01-01T00:00:00.000000)"),
        ([None] * 5, "dropped: all missing"),
        ([f"name {i}" for i in range(30)], "dropped: a value of its own in every row"),
        (list(range(30)), "dropped: row numbers, a value of its own in every row"),
        ([f"x{i}" for i in range(30)] + [None], "dropped: a value of its own in every row"),
        (["a", "b", "c", None], "dropped: 3 values, none of them in 2 rows or more"),
        (["a", "a", "b", "c"], "category of 1 value and 2 rare ones together"),
        ([1.0, None] * 5, "category of 1 value, with gaps"),
        (["x", None] * 5, "category of 1 value, with gaps"),
        ([0, 1] * 5, "number"),
        ([True, None, False] * 5, "boolean, with gaps"),
        (["2020-01-01", "2020-02-01"] * 5, "date: season, trend"),
        (["2020-01-01", "soon"] * 5, "category of 2 values"),
        (["2020-01-01", None] * 5, "date, with gaps"),
        (["a"] * 5 + ["b"] * 3 + ["c"], "category of 2 values and 1 rare one"),
        ([0.5, 1e300, -1e300, None], "number, with gaps"),
    ],
)
def test_columns_become_what_they_hold(values, description):
    varying = list(np.arange(len(values)) * 0.5)
    encoder = nb.TableEncoder().fit(pa.table({"a": values, "b": varying}))
    assert encoder.encoding_.columns[0].description == description
    assert f"{description}" in encoder.summary()


@pytest.mark.parametrize(
    ("values", "asked", "description"),
    [
        ([10115, 501, 10115, 501], "category", "category of 2 values"),
        ([True, False, True, False], "category", "category of 2 values"),
        (["1.5", "2.5", None, "3"], "number", "number, with gaps"),
        (["yes", "x"] * 3, "drop", "dropped: as asked"),
        (["true", "false", "1"], "boolean", "boolean"),
        (["2020-01-01", "2020-01-02"] * 2, "category", "category of 2 values"),
        (["2020-01-01", "2020-01-02"] * 2, "date", "date: season, week, trend"),
        ([1.0, 1.0], "number", "number"),
        (["x", "x"], "category", "category of 1 value"),
        (list(range(30)), "number", "number"),
        ([True, False], "number", "number"),
    ],
)
def test_columns_become_what_is_asked(values, asked, description):
    columns = {"a": values, "b": np.arange(len(values)) * 0.5}
    encoder = nb.TableEncoder({"a": asked}).fit(pa.table(columns))
    assert encoder.encoding_.columns[0].description.startswith(description)
    assert np.isfinite(encoder.transform(pa.table(columns))).all()


@pytest.mark.parametrize(
    ("values", "columns", "message"),
    [
        ([1.0, 2.0], {"c": "number"}, "columns: expected names of columns, got 'c'"),
        ([1.0, 2.0], {"a": "numbr"}, "got 'numbr'; did you mean 'number'"),
        ([1.0, 2.0], {"a": "date"}, "'number', 'category' or 'drop' for 'a', which holds number"),
        ([True, False], {"a": "date"}, "which holds boolean .True in row 0 of X., got 'date'"),
        ([dt.date(2020, 1, 1)] * 2, {"a": "number"}, "which holds date"),
        (
            ["1", "two"],
            {"a": "number"},
            "X: expected numbers in column 'a', got text, such as 'two'",
        ),
        (
            ["true", "maybe"],
            {"a": "boolean"},
            "expected booleans in column 'a', got text, .*'maybe'",
        ),
        (["2020-01-01", "soon"], {"a": "date"}, "expected dates in column 'a', got text, .*'soon'"),
        (["1", "inf"], {"a": "number"}, "X: expected finite numbers or gaps .* got inf in row 1"),
        ([1.0, -np.inf], {}, "X: expected finite numbers or gaps in column 'a', got -inf in row 1"),
        (
            [1.0, 1.0],
            {},
            "columns: .* tells rows apart, got 'a' dropped: constant .* say that one is a 'number'",
        ),
        ([1.0, 2.0], ["a"], "columns: expected a dict such as"),
    ],
)
def test_columns_that_cannot_be_what_is_asked_are_refused(values, columns, message):
    with pytest.raises(InputError, match=message):
        nb.TableEncoder(columns).fit(pa.table({"a": values}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_frequency": 0}, "min_frequency: expected"),
        ({"max_categories": 1.5}, "max_categories: expected"),
        ({"dtype": "int8"}, "dtype: expected float32 or float64, got 'int8'"),
    ],
)
def test_options_that_are_none_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        nb.TableEncoder(**options).fit([[1.0], [2.0]])


def test_the_most_frequent_categories_have_inputs_of_their_own():
    words = [word for i, word in enumerate("abcdef") for _ in range(10 * (i + 1))]
    column = column_of(words, max_categories=2)
    assert (column.values, column.rare) == (("e", "f"), ("a", "b", "c", "d"))


@pytest.mark.parametrize("n_rows", [2, 3, 5])
def test_tables_of_a_few_rows_are_encoded(n_rows):
    few = table(n_rows)
    result = nb.TableEncoder().fit_transform(few)
    assert result.shape[0] == n_rows
    assert np.isfinite(result).all()


def test_numbers_at_the_ends_of_float64_stay_finite():
    big, small = 1.7e308, 5e-324
    for values in ([-big, big], [-big, 0, big], [0, small, 2 * small], [1.0, 1.0 + 2**-52, 1.0],
                   [0, 0, 0, 0, small], [big, big, big, -big], [3, 3, 3, 3, 1e300]):  # fmt: skip
        for squash in (True, False):
            encoder = nb.TableEncoder({"x0": "number"}, squash=squash)
            result = encoder.fit_transform(np.asarray(values, np.float64)[:, None])
            if squash or max(values) < 1e308:
                assert np.isfinite(result).all(), values
            stored = json.loads(json.dumps(encoder.encoding_.to_json(), allow_nan=False))
            assert TableEncoding.from_json(stored) == encoder.encoding_


def test_rounding_does_not_count_as_a_difference_of_quartiles():
    x = np.asarray([0.3, 0.1 + 0.2] * 50 + [0.0, 1.0])[:, None]
    result = nb.TableEncoder().fit_transform(x)[:, 0]
    assert np.ptp(result[:100]) < 1e-12
    assert result[101] - result[100] > 1


def test_dates_far_from_1970_keep_their_microseconds():
    moments = np.asarray(["1600-01-01T00:00:00.000001", "1600-01-01T00:00:00.000002"], "M8[us]")
    column = column_of(pa.array(moments, pa.timestamp("us")))
    assert column.encoding.parts == ("day", "trend")


def test_text_of_very_many_values_is_left_out():
    words = [f"{i}" for i in range(250_000)] * 2
    data = pa.table({"a": words, "b": np.arange(len(words)) / 2})
    first, _ = nb.TableEncoder().fit(data).encoding_.columns
    assert first.description == (
        "dropped: more than 100000 values, none of them in 10 rows or more"
    )
    often = ["often"] * 50_000 + [f"{i}" for i in range(150_000)]
    order = np.random.default_rng(0).permutation(len(often))
    column = column_of(np.asarray(often)[order])
    assert column.values == ("often",)


@settings(max_examples=200)
@given(
    tables(),
    st.dictionaries(st.text("abc=", min_size=1, max_size=3), st.sampled_from(BECOMES), max_size=2),
    st.booleans(),
    st.integers(1, 3),
)
def test_any_table_is_refused_or_encoded_row_by_row(data, columns, squash, min_frequency):
    encoder = nb.TableEncoder(columns, squash=squash, min_frequency=min_frequency)
    try:
        encoder.fit(data)
    except InputError:
        return
    result = encoder.transform(data)
    names = encoder.get_feature_names_out().tolist()
    assert result.shape == (data.num_rows, len(names)) == (data.num_rows, len(set(names)))
    # Unsquashed numbers further apart than float64 reaches are infinite.
    assert not np.isnan(result).any()
    assert np.isfinite(result).all() or not squash
    for i in range(data.num_rows):
        np.testing.assert_array_equal(encoder.transform(data.slice(i, 1))[0], result[i])
    stored = json.loads(json.dumps(encoder.encoding_.to_json(), allow_nan=False))
    assert TableEncoding.from_json(stored) == encoder.encoding_
    options = EncodingOptions(columns=columns, squash=squash, min_frequency=min_frequency)
    survey = Survey(options)
    for i in range(data.num_rows):
        survey.update(look("X", data.slice(i, 1)).table())
    check_alike(survey.encoding(), encoder.encoding_)


# Transforming -------------------------------------------------------------------------------------


def test_frames_go_by_name_in_any_order():
    require("pandas")
    data = table()
    encoder = nb.TableEncoder().fit(data)
    result = encoder.transform(data)
    order = ["day", *reversed([name for name in data.column_names if name != "day"])]
    wider = data.select(order).append_column("more", pa.nulls(N))
    for frame in (wider, wider.to_pandas(), require("polars").from_arrow(wider)):
        np.testing.assert_array_equal(encoder.transform(frame), result)
    # What was dropped is not needed.
    needed = data.select(encoder.encoding_.feature_names)
    np.testing.assert_array_equal(encoder.transform(needed), result)


def test_rows_are_encoded_one_by_one_as_together():
    data = table()
    encoder = nb.TableEncoder().fit(data)
    result = encoder.transform(data)
    for i in range(20):
        np.testing.assert_array_equal(encoder.transform(data.slice(i, 1))[0], result[i])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "size",
            "large",
            "expected numbers in column 'size', got text, such as 'large' in data row",
        ),
        ("colour", 3, "expected text in column 'colour', got numbers, such as 3.0"),
        ("when", "soon", "expected dates in column 'when', got text, such as 'soon'"),
        ("when", 2.5, "expected dates in column 'when', got numbers, such as 2.5"),
        ("open", 2, "expected booleans in column 'open', got numbers, such as 2.0"),
        ("count", np.inf, "expected finite numbers or gaps in column 'count', got inf in row 0"),
    ],
)
def test_a_column_of_another_kind_is_refused(column, value, message):
    encoder = nb.TableEncoder().fit(table())
    row = table().slice(0, 1)
    place = row.column_names.index(column)
    with pytest.raises(InputError, match=f"X: {message}"):
        encoder.transform(row.set_column(place, column, pa.array([value])))


def test_a_missing_column_is_named():
    encoder = nb.TableEncoder().fit(table())
    with pytest.raises(InputError, match=r"X: expected the columns .* got none named 'size' and 1"):
        encoder.transform(table().drop_columns(["size", "colour"]))


@pytest.mark.parametrize("written", ["Colour", "COLOUR", "color"])
def test_a_column_whose_name_is_nearly_that_of_a_missing_one_is_named(written):
    encoder = nb.TableEncoder().fit(table())
    renamed = [written if name == "colour" else name for name in table().column_names]
    with pytest.raises(InputError, match=f"none named 'colour', but '{written}'; rename it"):
        encoder.transform(table().rename_columns(renamed))


def test_no_column_that_is_needed_is_taken_for_a_missing_one():
    frame = pa.table({"price 1": [1.0, 2.5], "price 2": [3.5, 2.0]})
    encoder = nb.TableEncoder().fit(frame)
    with pytest.raises(InputError, match=r"none named 'price 2'$"):
        encoder.transform(frame.select(["price 1"]))


def test_what_looks_alike_is_taken_as_the_column_was():
    data = table()
    encoder = nb.TableEncoder().fit(data)
    as_text = data.set_column(4, "when", data.column("when").cast(pa.string()))
    as_text = as_text.set_column(0, "size", data.column("size").cast(pa.string()))
    as_text = as_text.set_column(2, "open", data.column("open").cast(pa.int64()))
    np.testing.assert_array_equal(encoder.transform(as_text), encoder.transform(data))


def test_gaps_where_training_had_none_are_the_median_or_zeros():
    data = pa.table(
        {
            "n": [1.0, 2.0, 4.0],
            "c": ["a", "b", "a"],
            "d": ["2020-01-01"] * 2 + ["2021-01-01"],
            "b": [True, False, True],
        }
    )
    encoder = nb.TableEncoder({"c": "category"}, min_frequency=1).fit(data)
    gaps = pa.table({name: pa.nulls(1) for name in data.column_names})
    assert (encoder.transform(gaps) == 0).all()


def test_a_text_that_spells_a_date_is_text_where_training_had_other_text():
    words = ["2020-01-01", "soon"] * 4
    encoder = nb.TableEncoder().fit(pa.table({"a": words}))
    assert encoder.transform(pa.table({"a": ["2020-01-01"]})).tolist() == [[1.0, 0.0]]


def test_unknown_categories_are_zeros():
    encoder = nb.TableEncoder({"n": "category"}).fit(
        pa.table({"a": ["x", "y"] * 3, "n": [1.0, 2.0] * 3})
    )
    assert encoder.get_feature_names_out().tolist() == ["a=x", "a=y", "n=1", "n=2"]
    assert (encoder.transform(pa.table({"a": ["z"], "n": [1.5]})) == 0).all()


def test_set_output_and_float32():
    require("pandas")
    data = table().to_pandas()
    encoder = nb.TableEncoder(dtype="float32").set_output(transform="pandas").fit(data)
    frame = encoder.transform(data)
    assert list(frame.columns) == list(encoder.get_feature_names_out())
    assert set(map(str, frame.dtypes)) == {"float32"}
    assert list(frame.index) == list(data.index)


@pytest.mark.parametrize("max_categories", [1, 100])
def test_names_of_outputs_are_distinct(max_categories):
    data = {
        "a": ["b", "b=c", "(missing)", "(rare)", None, "x", "y"] * 3 + ["z"],
        "a=b": [0.0, 1.0, None, 2.5, 3, 1, 2] * 3 + [1],
        "a=b=c": ["d", "e"] * 11,
        "a=(missing)": [float(i) / 3 for i in range(22)],
        "a=b (2)": [float(i) / 7 for i in range(22)],
    }
    encoder = nb.TableEncoder(max_categories=max_categories).fit(pa.table(data))
    names = encoder.get_feature_names_out().tolist()
    assert len(set(names)) == len(names) == encoder.transform(pa.table(data)).shape[1]


def test_clones_and_pickles_encode_alike():
    data = table()
    encoder = nb.TableEncoder({"count": "category"}, min_frequency=3).fit(data)
    assert clone(encoder).get_params() == encoder.get_params()
    copy = pickle.loads(pickle.dumps(encoder))  # noqa: S301 - our own
    np.testing.assert_array_equal(copy.transform(data), encoder.transform(data))


def test_it_is_a_step_of_a_pipeline():
    require("pandas")
    data = table()
    y = [value == "red" for value in data.column("colour").to_pylist()]
    pipe = make_pipeline(nb.TableEncoder(), nb.MLPClassifier((8,), max_iter=60, random_state=0))
    pipe.set_params(mlpclassifier__tol=0.1, mlpclassifier__learning_rate_init=0.05)
    assert pipe.fit(data.to_pandas(), y).score(data.to_pandas(), y) > 0.9


# One pass over blocks -----------------------------------------------------------------------------


def surveyed(data, cuts, **options):
    survey = Survey(EncodingOptions(**options))
    for start, stop in zip([0, *cuts], [*cuts, data.num_rows], strict=True):
        survey.update(look("X", data.slice(start, stop - start)).table())
    return survey.encoding()


def numbers_of(column):
    """Return the parts of a column's encoding that shift and scale."""
    if isinstance(column, Dates):
        return [column.encoding.year, column.encoding.trend]
    return [column.encoding] if isinstance(column, Numbers) else []


def check_alike(encoding, other):
    for own, their in zip(encoding.columns, other.columns, strict=True):
        if all(part.squashes for part in numbers_of(own)):
            assert own == their
            continue
        assert (own.name, own.kind, own.output_names) == (
            their.name,
            their.kind,
            their.output_names,
        )
        for part, other_part in zip(numbers_of(own), numbers_of(their), strict=True):
            np.testing.assert_allclose(part, other_part, rtol=1e-9)


@settings(max_examples=40)
@given(st.lists(st.integers(0, N), max_size=6), st.integers(0, 5), st.booleans())
def test_what_is_learnt_does_not_depend_on_blocks(cuts, seed, first_is_gap):
    data = table(seed=seed)
    if first_is_gap:
        gaps = pa.table(
            {name: pa.nulls(9, data.schema.field(name).type) for name in data.column_names}
        )
        data = pa.concat_tables([gaps, data.slice(0, N - 9)])
    check_alike(surveyed(data, sorted(cuts)), surveyed(data, []))


def test_a_sample_stands_for_many_rows_whatever_the_blocks():
    n = 200_000
    rng = np.random.default_rng(0)
    is_gap = np.arange(n) < 70_000
    numbers = rng.lognormal(size=n)
    words = rng.choice(["2020-01-01", "2021-03-05", "2022-07-07"], n)
    data = pa.table(
        {
            "n": pa.array(numbers, mask=is_gap),
            "c": pa.array(rng.choice(WORDS, n), mask=is_gap),
            "d": pa.array(words, mask=is_gap),
            "late": ["2020-01-01"] * (n - 1) + ["soon"],
        }
    )
    whole = surveyed(data, [])
    for cuts in ([1, 70_000, 140_000], [69_000, 150_000], list(range(1000, n, 17_000))):
        assert surveyed(data, cuts) == whole
    encoding = whole.columns[0].encoding
    assert encoding.fill == pytest.approx(np.median(numbers[70_000:]), rel=0.02)
    assert [column.kind for column in whole.columns] == ["number", "text", "date", "text"]


def test_a_few_values_that_the_sample_misses_are_encoded():
    n = 200_000
    rare = np.full(n, np.nan)
    rare[[4, 150_000]] = 1.0, 4.0
    days = np.full(n, "NaT", "M8[us]")
    days[[4, 150_000]] = "2020-01-01", "2021-03-05"
    data = pa.table({"n": pa.array(rare, from_pandas=True), "d": days})
    result = nb.TableEncoder().fit(data).transform(data.take([4, 150_000, 0]))
    assert np.isfinite(result).all()
    assert (np.abs(result[0] - result[1]) > 0.1).any()


def test_a_column_that_changes_its_kind_in_a_later_block_is_refused():
    survey = Survey(EncodingOptions())
    survey.update(look("X", pa.table({"a": [1.0, 2.0]})).table())
    with pytest.raises(
        InputError, match=r"one kind .* got number at first, and text .'x'. in row 3"
    ):
        survey.update(look("X", pa.table({"a": [None, "x"]})).table())


def written(folder, data, row_group_size=7, n_files=3):
    folder.mkdir()
    size = -(-data.num_rows // n_files)
    for i in range(n_files):
        path = folder / f"{i}.parquet"
        pq.write_table(data.slice(i * size, size), path, row_group_size=row_group_size)
    return folder


def with_labels(data):
    y = np.arange(data.num_rows) % 2
    weight = 1 + np.arange(data.num_rows, dtype=float)
    return data.append_column("y", pa.array(y)).append_column("w", pa.array(weight))


@pytest.mark.parametrize("buffer_bytes", [2**10, 2**13, 2**28])
def test_parquet_is_encoded_as_the_table_is(buffer_bytes, tmp_path):
    data = table()
    types = data.append_column("large", data.column("colour").cast(pa.large_string()))
    types = types.append_column("view", data.column("colour").cast(pa.string_view()))
    types = types.append_column("dictionary", data.column("colour").dictionary_encode())
    types = types.append_column("decimal", data.column("count").cast(pa.decimal128(21, 2)))
    encoder = nb.TableEncoder().fit(types)
    folder = written(tmp_path / "rows", with_labels(types))
    source = Parquet(folder, "y", sample_weight="w", buffer_bytes=buffer_bytes)
    streamed = nb.TableEncoder().fit(source)
    assert streamed.encoding_ == encoder.encoding_
    assert streamed.feature_names_in_.tolist() == types.column_names
    encoded = encoder.transform(source)
    for start, stop in ((0, N), (5, 6), (13, 40)):
        rows = encoded.read(start, stop)
        np.testing.assert_array_equal(rows.X, encoder.transform(types)[start:stop])
        assert rows.y.tolist() == [i % 2 for i in range(start, stop)]
        assert rows.sample_weight.tolist() == [1 + i for i in range(start, stop)]


def test_a_network_trains_on_an_encoded_source_as_on_the_encoded_table(tmp_path):
    data = table()
    folder = written(tmp_path / "rows", with_labels(data), n_files=1)
    encoder = nb.TableEncoder().fit(Parquet(folder, "y"))
    encoded = encoder.transform(Parquet(folder, "y"))
    nets = [nb.Network([encoded.n_features, 5, 1], output="sigmoid", seed=0) for _ in range(2)]
    nets[0].standardize(encoded)
    nets[1].standardize(encoder.transform(data))
    nb.train(nets[0], encoded, epochs=3, batch_size=20, shuffle=False)
    y = np.arange(N) % 2
    nb.train(nets[1], encoder.transform(data), y, epochs=3, batch_size=20, shuffle=False)
    np.testing.assert_allclose(nets[0].parameters, nets[1].parameters, rtol=1e-12, atol=1e-12)
    assert nets[0].feature_names == tuple(encoder.get_feature_names_out())


def test_memory_stays_within_a_buffer_and_what_is_learnt(tmp_path):
    n = 40_000
    columns = {f"n{i}": RNG.normal(size=n) for i in range(6)}
    columns |= {f"c{i}": [f"value {j}" for j in RNG.integers(0, 30, n)] for i in range(6)}
    columns["name"] = [f"a long name that no other row has {i}" for i in range(n)]
    pq.write_table(pa.table(columns), tmp_path / "1.parquet", row_group_size=5000)
    del columns
    buffer_bytes = 2**20
    source = Parquet(tmp_path / "1.parquet", None, buffer_bytes=buffer_bytes)
    assert len(list(source.tables())) > 20
    encoder = nb.TableEncoder({"name": "drop"}).fit(source)
    tracemalloc.start()
    try:
        # Of 40 000 rows the sample has all numbers.
        nb.TableEncoder({"name": "drop"}).fit(source)
        assert tracemalloc.get_traced_memory()[1] < buffer_bytes + 2 * 6 * 8 * n
        tracemalloc.reset_peak()
        encoded = encoder.transform(source)
        for _ in encoded.blocks(0):
            pass
        peak = tracemalloc.get_traced_memory()[1] - tracemalloc.get_traced_memory()[0]
        assert peak < buffer_bytes
    finally:
        tracemalloc.stop()


def test_only_the_columns_that_are_needed_are_read(tmp_path):
    data = table()
    encoder = nb.TableEncoder().fit(data)
    needed = data.select([*reversed(encoder.encoding_.feature_names)])
    folder = written(tmp_path / "rows", with_labels(needed))
    result = encoder.transform(Parquet(folder, "y", features=needed.column_names)).read(0, N).X
    np.testing.assert_array_equal(result, encoder.transform(data))
    with pytest.raises(InputError, match="none named 'count' and 3 more"):
        encoder.transform(Parquet(folder, "y", features=["size", "when"]))


def test_sources_without_names_go_by_place():
    x = np.asarray([[1.0, 5.0, 2.0], [np.nan, 5.0, 3.0], [2.0, 5.0, 3.5], [4.0, 5.0, 1.0]])
    source = Arrays(x, np.arange(4), buffer_bytes=2**12)
    encoder = nb.TableEncoder().fit(source)
    assert encoder.encoding_ == nb.TableEncoder().fit(x).encoding_
    encoded = encoder.transform(source)
    np.testing.assert_array_equal(encoded.read(1, 4).X, encoder.transform(x[1:]))
    with pytest.raises(InputError, match="expected the 3 columns of the training data, got 2"):
        encoder.transform(Arrays(x[:, :2].copy()))


def test_errors_name_rows_of_the_whole_source(tmp_path):
    data = table()
    encoder = nb.TableEncoder().fit(data)
    odd = data.set_column(1, "count", pa.array([1.0] * 50 + [np.inf] + [1.0] * 9))
    source = Parquet(written(tmp_path / "rows", odd), None, buffer_bytes=2**10)
    for act in (nb.TableEncoder().fit, lambda source: encoder.transform(source).read(0, N)):
        with pytest.raises(InputError, match="column 'count', got inf in row 50"):
            act(source)


def test_gaps_in_targets_are_refused(tmp_path):
    data = pa.table({"a": [1.0, 2.0, 3.0], "y": [0, None, 1]})
    source = Parquet(written(tmp_path / "rows", data), "y")
    with pytest.raises(InputError, match=r"no missing values, got 1 in column 'y' of .*remove"):
        nb.TableEncoder().fit(source)


# Stored -------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.booleans(), st.integers(2, N))
def test_json_keeps_all_that_was_learnt(seed, squash, n_rows):
    encoding = nb.TableEncoder(squash=squash).fit(table(n_rows, seed)).encoding_
    stored = json.loads(json.dumps(encoding.to_json(), allow_nan=False))
    assert TableEncoding.from_json(stored) == encoding


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)
STORED = nb.TableEncoder().fit(table()).encoding_.to_json()


@settings(max_examples=300)
@given(st.data())
def test_other_json_is_refused_or_makes_an_encoding_that_works(data):
    stored = json.loads(json.dumps(STORED))
    entry = data.draw(st.sampled_from(stored))
    place = data.draw(st.sampled_from(sorted(entry)))
    if isinstance(entry[place], dict | list) and entry[place] and data.draw(st.booleans()):
        inner = entry[place]
        keys = range(len(inner)) if isinstance(inner, list) else sorted(inner)
        inner[data.draw(st.sampled_from(keys))] = data.draw(JSON)
    elif data.draw(st.booleans()):
        entry[place] = data.draw(JSON)
    else:
        del entry[place]
    try:
        encoding = TableEncoding.from_json(stored)
    except ValueError:
        return
    assert TableEncoding.from_json(json.loads(json.dumps(encoding.to_json()))) == encoding
    rows = look("X", table()).table()
    try:
        result = encoding.apply(rows)
    except InputError:
        return
    assert result.shape == (N, encoding.n_outputs)
    assert not np.isnan(result).any()


@given(JSON)
def test_any_json_is_refused(stored):
    if stored != []:
        with pytest.raises(ValueError, match=r".+"):
            TableEncoding.from_json(stored)


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [(0, "fill", 10**400), (0, "scale", 0.0), (0, "scale", -1), (0, "centre", float("nan")),
     (3, "values", ["a", "a"]), (3, "values", []), (3, "values", [1]),
     (4, "parts", ["trend", "year"]), (4, "parts", ["noon"]), (4, "trend", None),
     (0, "name", "count"), (0, "kind", "text")],
)  # fmt: skip
def test_json_that_is_odd_is_refused(place, key, value):
    stored = json.loads(json.dumps(STORED))
    stored[place][key] = value
    if key == "values":
        stored[place]["rare"] = []
    with pytest.raises(ValueError, match=r"'size'|'colour'|'when'|one name"):
        TableEncoding.from_json(stored)


def test_an_encoding_compares_by_what_it_holds():
    encoding = TableEncoding((Numbers("a", "number", NumberEncoding(0.0, 0.0, 1.0)),))
    assert encoding == TableEncoding.from_json(encoding.to_json())
    assert encoding != TableEncoding((Categories("a", "text", ("x",)),))
