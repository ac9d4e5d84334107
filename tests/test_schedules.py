"""Schedules give the rates of torch's schedulers and of scikit-learn."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from nnbackend.core import schedules
from nnbackend.core.schedules import (
    SCHEDULES,
    Clock,
    Constant,
    Cosine,
    Exponential,
    InverseScaling,
    LinearWarmup,
    OneCycle,
    ReduceOnPlateau,
    StepDecay,
)
from nnbackend.errors import InputError

EPOCHS = 20
# torch follows recursions over 80 steps, each with a few roundings of 1e-16.
RTOL = 1e-13


def rates(schedule, steps_per_epoch=1, epochs=EPOCHS, state=None):
    total = epochs * steps_per_epoch
    return [schedule.rate(Clock(step, steps_per_epoch, total), state) for step in range(total)]


def torch_rates(torch, build, count, learning_rate=0.1):
    """Return the rates of ``count`` steps under the scheduler that ``build`` makes."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=learning_rate)
    scheduler = build(torch.optim.lr_scheduler, optimizer)
    result = []
    for step in range(count):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < count - 1:  # OneCycleLR refuses to go beyond its end
            scheduler.step()
    return result


# id: ours with lengths in epochs, and torch's for n steps per epoch with lengths in steps
CASES = {
    "step": (
        StepDecay(0.1, every=6, factor=0.5),
        lambda lr, opt, n: lr.StepLR(opt, step_size=6 * n, gamma=0.5),
    ),
    "exponential": (
        Exponential(0.1, factor=0.9),
        lambda lr, opt, n: lr.ExponentialLR(opt, gamma=0.9 ** (1 / n)),
    ),
    "cosine": (
        Cosine(0.1, minimum=0.01),
        lambda lr, opt, n: lr.CosineAnnealingLR(opt, T_max=EPOCHS * n, eta_min=0.01),
    ),
    "linear_warmup": (
        LinearWarmup(0.1, epochs=7, start_factor=0.2),
        lambda lr, opt, n: lr.LinearLR(opt, start_factor=0.2, total_iters=7 * n),
    ),
    # Chained, torch's schedulers multiply their factors.
    "linear_warmup_into_cosine": (
        LinearWarmup(Cosine(0.1), epochs=5),
        lambda lr, opt, n: lr.ChainedScheduler(
            [
                lr.LinearLR(opt, start_factor=0.1, total_iters=5 * n),
                lr.CosineAnnealingLR(opt, T_max=EPOCHS * n),
            ]
        ),
    ),
    "one_cycle": (
        OneCycle(0.1),
        lambda lr, opt, n: lr.OneCycleLR(opt, 0.1, total_steps=EPOCHS * n, cycle_momentum=False),
    ),
    "one_cycle_options": (
        OneCycle(0.1, epochs=EPOCHS, rising_fraction=0.45, initial_divisor=10, final_divisor=100),
        lambda lr, opt, n: lr.OneCycleLR(
            opt,
            0.1,
            epochs=EPOCHS,
            steps_per_epoch=n,
            pct_start=0.45,
            div_factor=10,
            final_div_factor=100,
            cycle_momentum=False,
        ),
    ),
}


@pytest.mark.parametrize("steps_per_epoch", [1, 4])
@pytest.mark.parametrize("case", CASES)
def test_rates_equal_those_of_torch(torch, case, steps_per_epoch):
    ours, build = CASES[case]
    expected = torch_rates(
        torch, lambda lr, opt: build(lr, opt, steps_per_epoch), EPOCHS * steps_per_epoch
    )
    np.testing.assert_allclose(rates(ours, steps_per_epoch), expected, rtol=RTOL)
    assert len(set(expected)) > 2


@pytest.mark.parametrize("total_steps", [4, 5, 10, 33])
def test_one_cycle_equals_torch_at_any_length_with_a_rising_step(torch, total_steps):
    expected = torch_rates(
        torch,
        lambda lr, opt: lr.OneCycleLR(opt, 0.1, total_steps=total_steps, cycle_momentum=False),
        total_steps,
    )
    np.testing.assert_allclose(rates(OneCycle(0.1), 1, total_steps), expected, rtol=RTOL)


@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_one_cycle_too_short_to_rise_only_falls_to_its_end(total_steps):
    result = rates(OneCycle(0.1), 1, total_steps)
    assert result == sorted(result, reverse=True)
    assert max(result) <= 0.1
    # The last rate is 0.1 / 25 / 1e4, two roundings away.
    assert result[-1] == pytest.approx(4e-7, rel=1e-15)


# After its length a schedule stays where it ended.
@pytest.mark.parametrize(
    ("schedule", "end"),
    [
        (Cosine(0.1, epochs=3, minimum=0.01), 0.01),
        (LinearWarmup(0.1, epochs=3), 0.1),
        (OneCycle(0.1, epochs=3), 0.1 / 25 / 1e4),
    ],
    ids=["cosine", "linear_warmup", "one_cycle"],
)
def test_a_schedule_stays_where_it_ended(schedule, end):
    # Half a cosine ends at 1 + cos(pi), which is 0 to one rounding.
    assert rates(schedule, 2)[6:] == pytest.approx([end] * (2 * EPOCHS - 6), rel=1e-15)


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 0.5, "patience": 2},
        {"factor": 0.5, "patience": 0, "threshold": 0.0},
        {"factor": 0.3, "patience": 1, "threshold": 0.05, "cooldown": 3},
        {"factor": 0.2, "patience": 1, "cooldown": 1, "minimum": 0.01},
    ],
    ids=str,
)
def test_plateau_rates_equal_those_of_torch_on_random_losses(torch, options):
    rng = np.random.default_rng(0)
    losses = np.exp(-np.arange(60) / 30) * rng.uniform(0.8, 1.2, 60)
    ours = ReduceOnPlateau(0.1, **options)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    names = {"minimum": "min_lr"}
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, **{names.get(name, name): value for name, value in options.items()}, eps=0.0
    )
    state, actual, expected = ours.start(), [], []
    for epoch, loss in enumerate(losses):
        actual.append(ours.rate(Clock(epoch), state))
        expected.append(optimizer.param_groups[0]["lr"])
        state = ours.observe(state, float(loss))
        optimizer.step()
        scheduler.step(float(loss))
    # The same multiplications in the same order.
    assert actual == expected
    assert len(set(actual)) > 2


def test_plateau_state_is_explicit_and_passes_through_a_warmup():
    schedule = LinearWarmup(
        ReduceOnPlateau(0.4, factor=0.5, patience=0), epochs=2, start_factor=0.5
    )
    start = schedule.start()
    after = schedule.observe(schedule.observe(start, 1.0), 2.0)
    # Powers of two times 0.4: exact.
    assert [schedule.rate(Clock(step), start) for step in (0, 1, 2)] == [0.2, 0.75 * 0.4, 0.4]
    assert [schedule.rate(Clock(step), after) for step in (0, 2)] == [0.1, 0.2]
    assert schedule.start() == start


def test_a_rise_of_a_negative_loss_is_no_improvement():
    # Where torch's best * (1 - threshold) would take -0.95 for better than -1.
    schedule = ReduceOnPlateau(0.4, factor=0.5, patience=0, threshold=0.1)
    after = schedule.observe(schedule.observe(schedule.start(), -1.0), -0.95)
    assert schedule.rate(Clock(2), after) == 0.2


@pytest.mark.parametrize("power", [0.5, 0.25])
def test_inverse_scaling_equals_that_of_scikit_learn(power):
    from sklearn.neural_network._stochastic_optimizers import SGDOptimizer

    n_samples, learning_rate = 150, 0.1
    theirs = SGDOptimizer([], learning_rate, lr_schedule="invscaling", power_t=power)
    expected, formula = [], []
    for epoch in range(EPOCHS):
        expected.append(theirs.learning_rate)
        formula.append(learning_rate / (epoch * n_samples + 1) ** power)
        theirs.iteration_ends((epoch + 1) * n_samples)
    ours = InverseScaling(learning_rate, power=power, period=1 / n_samples)
    # One division, one power: a few roundings.
    np.testing.assert_allclose(rates(ours), expected, rtol=1e-15)
    np.testing.assert_allclose(rates(ours), formula, rtol=1e-15)


def test_inverse_scaling_by_default_counts_epochs():
    assert rates(InverseScaling(0.1, power=1.0), 1, 4) == [0.1, 0.1 / 2, 0.1 / 3, 0.1 / 4]


def test_a_constant_is_what_a_number_stands_for():
    assert schedules.as_schedule(0.1) == Constant(0.1)
    assert rates(Constant(0.1), 3, 2) == [0.1] * 6
    cosine = Cosine(0.1)
    assert schedules.as_schedule(cosine) is cosine


EXAMPLES = [
    Constant(0.5),
    StepDecay(0.5, every=3.0, factor=0.5),
    Exponential(0.5, factor=0.9),
    Cosine(0.5, epochs=3.0, minimum=0.1),
    LinearWarmup(0.5, epochs=3.0, start_factor=0.2),
    OneCycle(0.5, epochs=3.0),
    InverseScaling(0.5),
    ReduceOnPlateau(0.5),
]


@pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda schedule: type(schedule).__name__)
def test_rates_are_python_floats_though_options_be_numpy_scalars(schedule):
    numpy_options = {
        field.name: np.float64(value)
        for field in dataclasses.fields(schedule)
        if isinstance(value := getattr(schedule, field.name), float)
    }
    given = dataclasses.replace(schedule, **numpy_options)
    assert {type(rate) for rate in rates(given, 4, 5, given.start())} == {float}


def test_every_schedule_is_tested():
    assert {type(schedule) for schedule in EXAMPLES} == set(SCHEDULES.values())


def test_the_same_length_in_epochs_gives_the_same_rates_at_epochs_whatever_the_batch_size():
    for schedule in EXAMPLES:
        if not isinstance(schedule, OneCycle):  # its extremes fall on steps, not on epochs
            few, many = (
                rates(schedule, 1, 6, schedule.start()),
                rates(schedule, 5, 6, schedule.start()),
            )
            # Times are quotients of steps: one rounding more.
            np.testing.assert_allclose(many[::5], few, rtol=1e-14)


# (class, options that are right, option, wrong value, what the message says)
WRONG = [
    (StepDecay, {"learning_rate": 0.1, "every": 1}, "every", 0, "> 0"),
    (StepDecay, {"learning_rate": 0.1, "every": 1}, "factor", 0.0, "> 0"),
    (Exponential, {"learning_rate": 0.1, "factor": 0.9}, "factor", -0.9, "> 0"),
    (Cosine, {"learning_rate": 0.1}, "epochs", 0, "> 0"),
    (Cosine, {"learning_rate": 0.1}, "minimum", -0.1, ">= 0"),
    (LinearWarmup, {"learning_rate": 0.1, "epochs": 1}, "start_factor", 1.5, "<= 1"),
    (LinearWarmup, {"learning_rate": 0.1, "epochs": 1}, "epochs", 0, "> 0"),
    (OneCycle, {"learning_rate": 0.1}, "rising_fraction", 1.0, "< 1"),
    (OneCycle, {"learning_rate": 0.1}, "final_divisor", 0.0, "> 0"),
    (InverseScaling, {"learning_rate": 0.1}, "power", -1.0, ">= 0"),
    (InverseScaling, {"learning_rate": 0.1}, "period", 0.0, "> 0"),
    (ReduceOnPlateau, {"learning_rate": 0.1}, "factor", 1.0, "< 1"),
    (ReduceOnPlateau, {"learning_rate": 0.1}, "patience", 1.5, "integer >= 0"),
    (ReduceOnPlateau, {"learning_rate": 0.1}, "cooldown", -1, "integer >= 0"),
]


@pytest.mark.parametrize(("cls", "options", "name", "value", "expected"), WRONG)
def test_options_out_of_bounds_are_errors_that_name_them(cls, options, name, value, expected):
    cls(**options)
    with pytest.raises(InputError, match=f"{name}: expected .*{expected}.*, got {value}"):
        cls(**(options | {name: value}))


@pytest.mark.parametrize(
    ("cls", "options", "name"),
    [
        (cls, options, name)
        for cls, options in {
            row[0]: row[1] for row in [*WRONG, (Constant, {"learning_rate": 0.1})]
        }.items()
        for name in ("learning_rate", *itertools.islice(options, 1, None))
    ],
)
def test_required_options_cannot_be_none(cls, options, name):
    with pytest.raises(InputError, match=f"{name}: expected .* got None"):
        cls(**(options | {name: None}))
