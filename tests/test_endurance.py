"""A few rounds of the endurance program, which runs for long elsewhere."""

import endurance
import pytest

pytestmark = pytest.mark.slow


def test_trainings_that_are_killed_come_to_the_same_end():
    result = endurance.kills(3, seed=1, task="short")
    assert result.kills == 3
    assert result.is_good, result


def test_nothing_is_held_longer_than_it_is_used():
    looks, result = endurance.soak(seconds=1.0, n_trainings=2)
    assert result.is_good, result
    lines, faults = endurance.growth(looks)
    assert len(lines) == 4
    assert not faults


def test_what_grows_is_reported():
    looks = [endurance.Look(float(k), 10**8 + k * 10**6, 10 + k, 3, 0) for k in range(20)]
    faults = endurance.growth(looks)[1]
    assert [fault.split()[0] for fault in faults] == ["RSS", "descriptors"]
