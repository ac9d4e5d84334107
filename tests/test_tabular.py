"""``nb.tabular``: a pipeline for a table, and targets that are standardized within a model."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

import nnbackend as nb
from nnbackend.cli.request import Request
from nnbackend.errors import InputError

N = 200
RNG = np.random.default_rng(0)
SIZE = RNG.lognormal(size=N)
COLOUR = RNG.choice(["red", "blue", None], N)
PRICE = 1000.0 + 50.0 * np.log(SIZE) + 30.0 * (COLOUR == "red")
X = np.empty((N, 2), dtype=object)
X[:, 0], X[:, 1] = np.where(RNG.random(N) < 0.05, np.nan, SIZE), COLOUR


def test_a_regression_is_learnt_from_text_and_gaps():
    model = nb.tabular(PRICE, random_state=0).fit(X[:150], PRICE[:150])
    # A model that takes numbers alone, and no logarithm, learns less.
    plain = np.nan_to_num(X[:, :1].astype(float))
    linear = LinearRegression().fit(plain[:150], PRICE[:150])
    score = r2_score(PRICE[150:], model.predict(X[150:]))
    assert score > linear.score(plain[150:], PRICE[150:]) + 0.1


@pytest.mark.parametrize("kind", [str, bool, int])
def test_classes_are_learnt_and_come_back_as_they_are(kind):
    labels = {str: np.array(["cheap", "dear"]), bool: np.array([False, True]), int: np.arange(2)}
    y = labels[kind][(np.median(PRICE) < PRICE).astype(int)]
    model = nb.tabular(y, random_state=0).fit(X, y)
    assert set(model.predict(X)) == set(y)
    assert model.score(X, y) > 0.9


def test_a_model_that_takes_all_planned_epochs_has_not_failed():
    # Warnings are errors here.
    model = nb.tabular(PRICE, random_state=0, max_iter=3).fit(X, PRICE)
    assert model[-1].n_iter_ == 3


def test_it_can_be_cloned_saved_and_loaded(tmp_path):
    model = clone(nb.tabular(PRICE, random_state=0, max_iter=5)).fit(X, PRICE)
    nb.save(model, tmp_path / "model.safetensors")
    net = nb.load(tmp_path / "model.safetensors")
    assert np.allclose(net.predict(X), model.predict(X), rtol=1e-6)


def test_intervals_of_a_table():
    model = nb.tabular(PRICE, random_state=0, loss="gaussian").fit(X, PRICE)
    interval = model[-1].predict_interval(model[0].transform(X), 0.9)
    inside = (interval[:, 0] <= PRICE) & (interval[:, 1] >= PRICE)
    assert 0.75 < inside.mean() <= 1.0


def test_the_command_has_the_same_settings():
    fields = {"data": "x.csv", "target": "y", "held_out": 0.0}
    experiment = Request(fields).experiment(N)
    mlp = nb.tabular(PRICE)[-1]
    options = experiment.training
    assert experiment.network.hidden == mlp.hidden_layer_sizes
    assert experiment.network.activation == mlp.activation
    assert experiment.network.dropout == mlp.dropout
    assert (options.epochs, options.batch_size) == (mlp.max_iter, mlp.batch_size)
    assert options.optimizer == mlp.optimizer


def test_decay_divides_a_weight_by_the_same_number_whatever_the_rows():
    totals = set()
    for n_rows in (30, 1000, 10**5, 10**6):
        mlp = nb.tabular(np.arange(n_rows) / 7.0)[-1]
        n_steps = mlp.max_iter * -(-n_rows // mlp.batch_size)
        rates = 0.5 * mlp.optimizer.learning_rate.learning_rate
        totals.add(round(rates * mlp.optimizer.weight_decay * n_steps, 9))
    assert totals == {1.0}


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        ([1.5] * 30, {}, "y: expected at least two values .* got only"),
        ([[1.0, 2.0]] * 3, {}, r"y: expected one target for each row .* got shape \(3, 2\)"),
        ([1.0, 2.5], {"task": "both"}, "task: expected one of auto, .* got 'both'"),
        (["a", "b"] * 20, {"task": "regression"}, "y: .* holds text"),
    ],
)
def test_what_is_no_target_is_refused(y, options, message):
    with pytest.raises(InputError, match=message):
        nb.tabular(y, **options)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("options", [{}, {"solver": "sgd"}, {"loss": "huber"}])
@pytest.mark.parametrize("n_targets", [1, 2])
def test_a_standardized_target_is_scikit_learns_transformed_one(options, n_targets):
    rows = RNG.standard_normal((80, 3))
    y = 1e4 + 300.0 * rows[:, 0] if n_targets == 1 else 1e4 + 300.0 * rows[:, :2]
    options = {"max_iter": 20, "random_state": 0, **options}
    own = nb.MLPRegressor(standardize_target=True, **options).fit(rows, y)
    other = TransformedTargetRegressor(nb.MLPRegressor(**options), transformer=StandardScaler())
    # The order of rounding differs.
    assert np.allclose(own.predict(rows), other.fit(rows, y).predict(rows), rtol=1e-10)


def test_counts_have_a_scale_of_their_own():
    model = nb.MLPRegressor("poisson", standardize_target=True)
    with pytest.raises(InputError, match="standardize_target: expected False for loss='poisson'"):
        model.fit([[0.0], [1.0]], [1, 2])


def test_a_target_that_grows_with_a_heavy_tail_is_learnt():
    quantity = np.random.default_rng(1).lognormal(1.0, 1.2, 400).round()
    revenue = 12.5 * quantity + 0.25
    model = nb.tabular(revenue, random_state=0).fit(quantity[:300, None], revenue[:300])
    assert model.score(quantity[300:, None], revenue[300:]) > 0.9
