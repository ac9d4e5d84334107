"""Data frames of pandas, polars and Arrow: columns of every kind, gaps, text, and names."""

import datetime as dt
import re
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest
from backends import require
from test_inputs import check_network_refuses

import nnbackend as nb
from nnbackend.data.door import look, to_array
from nnbackend.data.user_data import read_dataset
from nnbackend.device import Device
from nnbackend.errors import InputError
from nnbackend.sources import Arrays, as_source

RNG = np.random.default_rng(0)
N = 12
FLOATS = RNG.normal(size=N)
# 0 and 1, which every dtype holds: as a feature, a label and a weight.
BITS = np.arange(N) % 2
X = np.stack([BITS, FLOATS], axis=1)


def pandas():
    return require("pandas")


def polars():
    return require("polars")


def arrow():
    return require("pyarrow")


def pandas_column(dtype, change=list):
    return lambda values: pandas().Series(change(values), dtype=dtype)


def arrow_dtype(name):
    def make(values):
        dtype = pandas().ArrowDtype(getattr(arrow(), name)())
        return pandas().Series(values, dtype=dtype)

    return make


def optional(change):
    """Return what applies a function to each value, and leaves gaps."""
    return lambda values: [None if value is None else change(value) for value in values]


def arrow_column(values, type_=None):
    """Return two chunks."""
    return arrow().chunked_array([values[:5], values[5:]], type=type_)


mixed = optional(lambda value: (int, float, Decimal, np.float32, np.int8, np.bool_)[value](value))

# Columns of 0 and 1, or None where there is a gap.
COLUMNS = {
    "pandas int64": lambda values: pandas().Series(np.array(values)),
    "pandas bool": lambda values: pandas().Series(np.array(values, bool)),
    "pandas Int64": pandas_column("Int64"),
    "pandas UInt8": pandas_column("UInt8"),
    "pandas Float64": pandas_column("Float64"),
    "pandas Float32": pandas_column("Float32"),
    "pandas boolean": pandas_column("boolean", optional(bool)),
    "pandas int64[pyarrow]": arrow_dtype("int64"),
    "pandas double[pyarrow]": arrow_dtype("float64"),
    "pandas bool[pyarrow]": lambda values: arrow_dtype("bool_")(optional(bool)(values)),
    "pandas decimal[pyarrow]": lambda values: pandas().Series(
        optional(Decimal)(values), dtype=pandas().ArrowDtype(arrow().decimal128(9, 2))
    ),
    "pandas objects": lambda values: pandas().Series(mixed(values), dtype=object),
    "pandas category": pandas_column("category"),
    "polars Int64": lambda values: polars().Series(values, dtype=polars().Int64),
    "polars Int128": lambda values: polars().Series(values, dtype=polars().Int128),
    "polars Float32": lambda values: polars().Series(values, dtype=polars().Float32),
    "polars Boolean": lambda values: polars().Series(optional(bool)(values)),
    "polars Decimal": lambda values: polars().Series(optional(Decimal)(values)),
    "Arrow int64": lambda values: arrow_column(values, arrow().int64()),
    "Arrow bool": lambda values: arrow_column(optional(bool)(values)),
    "Arrow double": lambda values: arrow_column(values, arrow().float64()),
    "Arrow decimal": lambda values: arrow_column(optional(Decimal)(values)),
    "Arrow array": lambda values: arrow().array(values, arrow().int8()),
}
WITHOUT_GAPS = ("pandas int64", "pandas bool")


def frame(columns):
    """Return a frame of the library of the first column."""
    first = next(iter(columns.values()))
    library = type(first).__module__.partition(".")[0]
    if library == "pyarrow":
        return arrow().table(columns)
    return require(library).DataFrame(columns)


@pytest.fixture(params=COLUMNS)
def column(request):
    """Return a function that makes a column of one kind."""
    make = COLUMNS[request.param]
    return lambda values: make([None if value is None else int(value) for value in values])


@pytest.fixture(params=["pandas", "polars", "pyarrow"])
def library(request):
    """Return a library by what makes a frame of columns, and its name."""
    module = require(request.param)
    make = module.table if request.param == "pyarrow" else module.DataFrame
    return SimpleNamespace(name=request.param, frame=make, module=module)


def network(n_features=2, **options):
    return nb.Network([n_features, 3, 1], **{"dtype": "float64", "seed": 0} | options)


def trained(X, y, **options):
    net = network()
    history = nb.train(net, X, y, epochs=2, batch_size=5, engine="reference", **options)
    return net.parameters, history.loss, history.validation_loss


# Each way in for features, for targets, and for weights: what it gives is compared with NumPy's.
FEATURES = {
    "train": ("X", lambda x: trained(x, BITS)),
    "validation_data": (
        "validation_data[0]",
        lambda x: trained(X, BITS, validation_data=(x, BITS))[2],
    ),
    "predict": ("X", lambda x: network().predict(x)),
    "predict_proba": ("X", lambda x: network().predict_proba(x)),
    "standardize": ("X", lambda x: network().standardize(x).standardization),
    "loss_and_gradients": ("X", lambda x: network().loss_and_gradients(x, BITS)[0]),
    "check_gradients": ("X", lambda x: nb.check_gradients(network(), x, BITS).relative_error),
    "find_learning_rate": (
        "X",
        lambda x: nb.find_learning_rate(network(), x, BITS, steps=3).losses,
    ),
    "batches": ("X[0][0]", lambda x: trained([(x, BITS)], None)[:2]),
}
TARGETS = {
    "train": ("y", lambda y: trained(X, y)),
    "validation_data": (
        "validation_data[1]",
        lambda y: trained(X, BITS, validation_data=(X, y))[2],
    ),
    "loss_and_gradients": ("y", lambda y: network().loss_and_gradients(X, y)[0]),
    "standardize": (
        "y",
        lambda y: network(output="identity").standardize(X, y).target_standardization,
    ),
    "check_gradients": ("y", lambda y: nb.check_gradients(network(), X, y).relative_error),
    "find_learning_rate": (
        "y",
        lambda y: nb.find_learning_rate(network(), X, y, steps=3).losses,
    ),
    "classes": (
        "y",
        lambda y: nb.Network([2, 2], output="softmax", dtype="float64").loss_and_gradients(X, y)[0],
    ),
    "batches": ("X[0][1]", lambda y: trained([(X, y)], None)[:2]),
}
WEIGHTS = {
    "train": ("sample_weight", lambda w: trained(X, BITS, sample_weight=w)),
    "validation_data": (
        "validation_data[2]",
        lambda w: trained(X, BITS, validation_data=(X, BITS, w))[2],
    ),
    "loss_and_gradients": (
        "sample_weight",
        lambda w: network().loss_and_gradients(X, BITS, sample_weight=w)[0],
    ),
    "check_gradients": (
        "sample_weight",
        lambda w: nb.check_gradients(network(), X, BITS, sample_weight=w).relative_error,
    ),
    "find_learning_rate": (
        "sample_weight",
        lambda w: nb.find_learning_rate(network(), X, BITS, steps=3, sample_weight=w).losses,
    ),
}


def check_equal(found, expected):
    if isinstance(expected, tuple):
        for one, other in zip(found, expected, strict=True):
            check_equal(one, other)
    else:
        # A table is in Fortran's order, whose products BLAS may sum in another order.
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("door", FEATURES)
def test_features_of_every_kind_of_column_are_taken(column, door):
    _, call = FEATURES[door]
    given = frame({"bit": column(BITS), "float": FLOATS})
    check_equal(call(given), call(X))


@pytest.mark.parametrize("door", TARGETS)
def test_targets_of_every_kind_of_column_are_taken(column, door):
    _, call = TARGETS[door]
    check_equal(call(column(BITS)), call(BITS))


@pytest.mark.parametrize("door", WEIGHTS)
def test_weights_of_every_kind_of_column_are_taken(column, door):
    _, call = WEIGHTS[door]
    check_equal(call(column(BITS)), call(BITS))


def with_gaps(kind):
    values = [int(bit) for bit in BITS]
    values[3] = values[7] = None
    return COLUMNS[kind](values)


@pytest.mark.parametrize("kind", [kind for kind in COLUMNS if kind not in WITHOUT_GAPS])
def test_gaps_are_refused_with_row_column_and_number(kind):
    for name, call in FEATURES.values():
        given = frame({"bit": with_gaps(kind), "float": FLOATS})
        with pytest.raises(InputError) as caught:
            call(given)
        assert str(caught.value) == (
            f"{name}: expected finite numbers, got nan at [3, 0], row 3 of column 'bit' (2 such "
            "values); remove or impute them"
        )
    for name, call in (*TARGETS.values(), *WEIGHTS.values()):
        with pytest.raises(InputError) as caught:
            call(with_gaps(kind))
        assert str(caught.value) == (
            f"{name}: expected finite numbers, got nan at [3] (2 such values); remove or impute "
            "them"
        )


def test_a_number_too_large_is_named_by_its_column(library):
    net = network(dtype="float32")
    given = library.frame({"small": FLOATS, "large": [1.0] * 5 + [1e300] + [1.0] * 6})
    check_network_refuses(
        net, lambda: net.predict(given), "X: 1e+300 at [5, 1], row 5 of column 'large' is too large"
    )
    net.standardize(X)
    check_network_refuses(net, lambda: net.predict(given), "X: 1e+300 at [5, 1], row 5 of column")


# Text and dates: what to do is done


DAYS = [dt.date(2024, 1, 1) + dt.timedelta(days=7 * i) for i in range(N)]
NO_NUMBERS = {
    "text": (["b", "a", "c"] * 4, "text in column 'what' ('b' in row 0)", [1, 0, 2] * 4),
    "dates": (
        DAYS,
        "dates in column 'what' ('2024-01-01",
        [1704067200 + 7 * 86400 * i for i in range(N)],
    ),
    "moments": (
        [dt.datetime(2024, 1, 1, i) for i in range(N)],  # noqa: DTZ001
        "dates in column 'what' ('2024-01-01",
        [1704067200 + 3600 * i for i in range(N)],
    ),
    "durations": (
        [dt.timedelta(minutes=i) for i in range(N)],
        "durations in column 'what' (",
        [60 * i for i in range(N)],
    ),
}


def run(advice, **scope):
    """Do what an error says, in words that are Python: return a value, or what X is then."""
    scope["numpy"] = np
    if " = " in advice:
        exec(advice, scope)  # noqa: S102 - the package's own messages
        return scope["X"]
    return eval(advice, scope)  # noqa: S307


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_text_and_dates_are_refused_by_column_with_what_makes_numbers_of_them(library, kind):
    values, said, expected = NO_NUMBERS[kind]
    given = library.frame({"float": FLOATS, "what": values})
    with pytest.raises(InputError) as caught:
        network().predict(given)
    assert str(caught.value).startswith(f"X: expected real numbers, got {said}")
    advice = re.search(r"such as (numpy\..*?)(, or|$)", str(caught.value))[1]
    numbers = run(advice, X=given)
    np.testing.assert_array_equal(numbers, expected)
    fixed = library.frame({"float": FLOATS, "what": numbers})
    assert network().predict(fixed).shape == (N,)


def test_a_gap_among_dates_is_to_be_filled_before_they_become_seconds(library):
    given = library.frame({"float": FLOATS, "what": [*DAYS[:-2], None, DAYS[-1]]})
    with pytest.raises(InputError, match=r"dates .*; fill the gaps \(1 of them\) first, then pass"):
        network().predict(given)


@pytest.mark.parametrize("kind", ["text", "dates"])
def test_text_and_dates_as_targets_are_refused_by_their_argument(library, kind):
    values, _, expected = NO_NUMBERS[kind]
    y = library.frame({"y": values})["y"]
    with pytest.raises(InputError) as caught:
        network(output="identity").loss_and_gradients(X, y)
    assert str(caught.value).startswith(f"y: expected real numbers, got {kind} (")
    advice = re.search(r"such as (numpy\..*?)(, or|$)", str(caught.value))[1]
    np.testing.assert_array_equal(run(advice, y=y), expected)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1, "a"] * 6, "got text in column 'what' ('a' in row 1)"),
        ([1.0, 2j] * 6, "got complex in column 'what' ('2j' in row 1)"),
        ([[1], [2, 3]] * 6, "got list in column 'what' ('[1]' in row 0)"),
        ([dt.time(1)] * N, "got times of the day in column 'what' ('01:00:00' in row 0)"),
        ([10**400] * N, "expected numbers that float64 holds in column 'what' ("),
    ],
)
def test_other_objects_are_refused_by_column(values, said):
    column = pandas().Series(values, dtype=object)
    net = network()
    given = pandas().DataFrame({"float": FLOATS, "what": column})
    check_network_refuses(net, lambda: net.predict(given), "X: ", said)


def test_lists_and_vectors_in_a_column_are_refused():
    net = network()
    lists = polars().DataFrame({"float": [1.0, 2.0], "what": [[1, 2], [3]]})
    check_network_refuses(net, lambda: net.predict(lists), "X: ", "in column 'what'")
    pairs = polars().Series("what", [[1, 2], [3, 4]], dtype=polars().Array(polars().Int64, 2))
    check_network_refuses(
        net,
        lambda: net.predict(polars().DataFrame({"float": [1.0, 2.0], "what": pairs})),
        "X: expected one number in each row of column 'what', got an array of (2,)",
    )


def test_a_lazy_frame_is_collected_as_the_error_says():
    lazy = polars().DataFrame({"a": BITS, "b": FLOATS}).lazy()
    with pytest.raises(InputError, match=r"; a lazy frame has none yet, pass X\.collect\(\)$"):
        network().predict(lazy)
    np.testing.assert_array_equal(network().predict(lazy.collect()), network().predict(X))


@pytest.mark.parametrize("kind", ["pandas Int64", "polars Int64", "Arrow int64", "Arrow array"])
def test_one_column_as_features_says_how_to_make_a_table_of_it(kind):
    column = COLUMNS[kind](BITS.tolist())
    with pytest.raises(InputError, match=r"; for one feature use X\.") as caught:
        network(1).predict(column)
    table = run(str(caught.value).rpartition(" use ")[2], X=column)
    np.testing.assert_allclose(network(1).forward(table), network(1).forward(BITS[:, None]))


def test_a_list_of_one_row_says_how_to_make_a_table_of_it():
    with pytest.raises(InputError, match=r"; for one example use numpy\.atleast_2d\(X\)$"):
        network().predict([1.0, 2.0])
    assert network().predict(np.atleast_2d([1.0, 2.0])).shape == (1,)


@pytest.mark.parametrize("given", [[[1.0, Decimal("2.5")]], np.asarray([[1, 2.5]], dtype=object)])
def test_objects_that_are_no_frame_say_how_to_convert_them(given):
    with pytest.raises(InputError, match="got dtype object; convert it") as caught:
        network().predict(given)
    advice = str(caught.value).partition("with ")[2]
    fixed = run(advice if "numpy" in advice else f"X{advice}", X=given)
    np.testing.assert_array_equal(network().forward(fixed), network().forward([[1.0, 2.5]]))


# Dtypes


def test_a_frame_of_float32_stays_float32(library):
    columns = {"a": FLOATS.astype("f4"), "b": BITS.astype("f4")}
    found = to_array("X", library.frame(columns))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.stack(list(columns.values()), axis=1))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("pandas Float32", "float32"),
        ("polars Float32", "float32"),
        ("pandas boolean", "float32"),
        ("pandas UInt8", "float32"),
        ("pandas Int64", "float64"),
        ("pandas objects", "float64"),
        ("polars Decimal", "float64"),
        ("Arrow array", "float32"),
        ("Arrow int64", "float64"),
    ],
)
def test_columns_are_converted_to_what_holds_all_of_them(kind, dtype):
    given = frame({"a": COLUMNS[kind](BITS.tolist()), "b": FLOATS.astype("f4")})
    assert to_array("X", given).dtype == dtype


def test_integers_beyond_2_to_53_stay_next_to_integers_and_are_rounded_next_to_floats(library):
    large = np.array([2**53 + 1, 1])
    found = to_array("X", library.frame({"a": large, "b": np.array([1, 2], "i4")}))
    assert found.dtype == np.int64
    assert found[0, 0] == 2**53 + 1
    found = to_array("X", library.frame({"a": large, "b": np.array([1, 2], "f4")}))
    assert found.dtype == np.float64
    assert found[0, 0] == 2**53


def test_a_frame_of_one_dtype_is_read_in_place():
    given = pandas().DataFrame(X)
    assert np.shares_memory(to_array("X", given), given.to_numpy())


def test_a_column_beside_a_memory_map_is_read(tmp_path, monkeypatch, column):
    monkeypatch.setattr("nnbackend.data.sources.BUFFER_BYTES", 100)
    np.save(tmp_path / "x.npy", X)
    source = as_source(np.load(tmp_path / "x.npy", mmap_mode="r"), column(BITS), column(BITS))
    assert isinstance(source, Arrays)
    np.testing.assert_array_equal(source.read(0, N).y, BITS)
    np.testing.assert_array_equal(source.read(0, N).sample_weight, BITS)


# Names


def test_a_frame_is_read_by_name_in_any_order_and_whatever_else_it_has(library):
    net = network().standardize(library.frame({"bit": BITS, "float": FLOATS}))
    assert net.feature_names == ("bit", "float")
    given = library.frame({"text": ["a"] * N, "float": FLOATS, "bit": BITS})
    np.testing.assert_allclose(net.forward(given), net.forward(X))


def test_validation_data_are_read_by_the_names_that_training_learns(library):
    given = library.frame({"bit": BITS, "float": FLOATS})
    turned = library.frame({"float": FLOATS, "more": ["a"] * N, "bit": BITS})
    found = trained(given, BITS, validation_data=(turned, BITS))
    check_equal(found, trained(X, BITS, validation_data=(X, BITS)))
    with pytest.raises(InputError, match=r"^validation_data\[0\]: .* 'bit' is missing"):
        trained(given, BITS, validation_data=(library.frame({"b": BITS, "f": FLOATS}), BITS))


def test_names_that_a_source_has_are_those_of_validation_data():
    class Named(Arrays):
        feature_names = ("bit", "float")

    turned = pandas().DataFrame({"float": FLOATS, "bit": BITS})
    found = trained(Named(X, BITS), None, shuffle=False, validation_data=(turned, BITS))
    check_equal(found, trained(X, BITS, shuffle=False, validation_data=(X, BITS)))


def test_a_refused_training_learns_no_names(library):
    net, given = network(), library.frame({"bit": BITS, "float": FLOATS})
    check_network_refuses(net, lambda: nb.train(net, given, BITS + 5), "y: ")
    assert net.feature_names is None


def test_a_frame_goes_by_position_where_the_network_has_no_names(library):
    net = network()
    nb.train(net, X, BITS, epochs=1)
    given = library.frame({"b": BITS, "a": FLOATS})
    np.testing.assert_allclose(net.forward(given), net.forward(X))
    assert net.feature_names is None


@pytest.mark.parametrize("columns", [[0, 1], ["a", 1], ["a", "a"], [("a", "b"), ("a", "c")]])
def test_labels_that_are_no_distinct_strings_are_not_learnt_but_go_by_position(columns):
    given = pandas().DataFrame(X)
    given.columns = columns
    net = network().standardize(given)
    assert net.feature_names is None
    np.testing.assert_array_equal(net.forward(given), net.forward(X))


def test_a_gap_in_a_column_without_a_name_is_named_by_its_number():
    given = pandas().DataFrame(X)
    given.iloc[4, 1] = np.nan
    with pytest.raises(InputError, match=r"nan at \[4, 1\], row 4 of column 1; remove"):
        network().predict(given)


def named():
    net = network()
    net.feature_names = ("bit", "float")
    return net


@pytest.mark.parametrize("columns", [["float", "b"], ["f", "bit"]])
def test_a_renamed_column_is_not_taken_by_position_where_others_have_moved(library, columns):
    net, given = named(), library.frame(dict(zip(columns, X.T, strict=True)))
    (unknown,) = set(columns) - {"bit", "float"}
    check_network_refuses(
        net,
        lambda: net.predict(given),
        "X: expected a data frame with the network's feature_names, the column ",
        f"is missing; rename '{unknown}', which is none of ['bit', 'float']",
    )


@pytest.mark.parametrize("columns", [["b", "f"], ["bit", "f"], ["b", "float"]])
def test_other_names_are_refused_and_the_advice_works(library, columns):
    net, given = named(), library.frame(dict(zip(columns, X.T, strict=True)))
    with pytest.raises(
        InputError, match=r"^X: .* the column '\w+' is missing; to go by "
    ) as caught:
        net.predict(given)
    fixed = followed(str(caught.value), given, net)
    np.testing.assert_allclose(net.forward(fixed), net.forward(X))


def followed(message, given, net):
    """Return the frame after doing what an error says."""
    return run(re.search("; to go by position, (set|pass) (.*)$", message)[2], X=given, net=net)


@pytest.mark.parametrize("columns", [[0, 1], ["bit", 1], ["bit", "bit"], [("a", "b"), ("a", "c")]])
def test_labels_that_are_no_distinct_strings_are_never_taken_by_position_for_names(columns):
    net, given = named(), pandas().DataFrame(X)
    given.columns = columns
    with pytest.raises(InputError, match=r"^X: expected .* feature_names") as caught:
        net.predict(given)
    np.testing.assert_allclose(net.forward(followed(str(caught.value), given, net)), net.forward(X))


def test_names_that_are_there_twice_in_place_of_one_that_is_missing_are_refused():
    net = nb.Network([3, 1])
    net.feature_names = ("a", "b", "c")
    given = pandas().DataFrame(np.ones((2, 3)), columns=["b", "a", "a"])
    check_network_refuses(
        net,
        lambda: net.predict(given),
        "X: ",
        "'c' is missing; pass one that has every column once",
    )


def test_a_name_that_is_there_twice_is_refused_and_another_that_is_no_matter():
    net = named()
    given = pandas().DataFrame(np.column_stack([X, X]))
    given.columns = ["bit", "float", 7, 7]
    np.testing.assert_array_equal(net.forward(given), net.forward(X))
    given.columns = ["bit", "float", "float", 7]
    check_network_refuses(
        net,
        lambda: net.forward(given),
        "X: expected each of the network's feature_names once, got 2 columns 'float'; it has "
        "'bit', 'float', 'float', 7: pass one that has every column once",
    )


def test_a_frame_that_lacks_a_column_is_told_what_it_has(library):
    net = named()
    check_network_refuses(
        net,
        lambda: net.predict(library.frame({"float": FLOATS})),
        "X: ",
        "the column 'bit' is missing; it has 'float': pass one that has every column once",
    )


class Frame:
    """A frame of a library that is not known: columns, selection, and an array to NumPy."""

    def __init__(self, columns):
        self._columns, self.columns = columns, list(columns)

    def __getitem__(self, names):
        return Frame({name: self._columns[name] for name in names})

    def __array__(self, dtype=None, copy=None):
        return np.column_stack(list(self._columns.values())).astype(dtype or float)


def test_the_advice_for_a_frame_of_another_library_works():
    net, given = named(), Frame({"b": BITS, "f": FLOATS})
    with pytest.raises(InputError, match="'bit' is missing") as caught:
        net.predict(given)
    np.testing.assert_array_equal(
        net.forward(followed(str(caught.value), given, net)), net.forward(X)
    )


# Estimators and files


# scikit-learn makes objects of these, at its own door.
FOREIGN = ("pandas decimal[pyarrow]", "pandas objects", "polars Decimal", "polars Int128",
           "Arrow decimal")  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in COLUMNS if kind not in FOREIGN])
@pytest.mark.parametrize("make", [nb.MLPClassifier, nb.MLPRegressor])
@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_estimators_take_validation_data_in_every_kind_of_column(kind, make, early_stopping):
    def curves(X, y):
        model = make(
            hidden_layer_sizes=(3,), max_iter=2, random_state=0, early_stopping=early_stopping
        )
        model.fit(X, BITS, X_val=X, y_val=y)
        scores = model.validation_scores_ if early_stopping else []
        return model.loss_curve_, scores, model.validation_loss_curve_

    given = frame({"bit": COLUMNS[kind](BITS.tolist()), "float": FLOATS})
    for found, expected in zip(
        curves(given, COLUMNS[kind](BITS.tolist())), curves(X, BITS), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_decimals_of_a_parquet_file_are_numbers_to_the_command(tmp_path):
    import pyarrow.parquet

    table = arrow().table({"bit": arrow_column([Decimal(int(bit)) for bit in BITS]), "y": FLOATS})
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    dataset = read_dataset(str(tmp_path / "data.parquet"), "y", as_numbers=True)
    np.testing.assert_array_equal(dataset.X, BITS[:, None])


# Looking


def test_what_was_looked_at_is_not_looked_at_again():
    given = look("X", X)
    assert look("another", given) is given
    net = network()
    np.testing.assert_array_equal(net.preparation.features(given), net.preparation.features(X))


def test_features_are_looked_at_once_on_their_way_through_train():
    asked = []

    class Watched(Frame):
        @property
        def columns(self):
            asked.append("columns")
            return list(self._columns)

        @columns.setter
        def columns(self, names):
            pass

        def __array__(self, dtype=None, copy=None):
            asked.append("array")
            return super().__array__(dtype, copy)

    net = network()
    nb.train(net, Watched({"bit": BITS, "float": FLOATS}), BITS, epochs=2)
    assert asked.count("array") == 1
    # Asking whether there are any, and what they are.
    assert asked.count("columns") == 2


def test_frames_and_lists_are_on_no_device_and_arrays_are(library):
    assert look("X", library.frame({"a": BITS})).device is None
    assert look("X", X.tolist()).device is None
    assert look("X", X).device == Device("cpu")
    assert look("X", library.frame({"a": BITS, "b": FLOATS})).n_rows == N
