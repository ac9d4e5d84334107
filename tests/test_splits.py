"""How the command splits a table: by group, in an order, with weights; and what it writes back."""

import json
from pathlib import Path

import numpy as np
import pytest

import nnbackend as nb
from nnbackend.cli.evaluation import split
from nnbackend.data.user_data import read_dataset

RNG = np.random.default_rng(0)
N = 120


@pytest.fixture
def table(tmp_path):
    """A table with a group, a date and a weight, in no order."""
    x = RNG.standard_normal((N, 2))
    days = RNG.permutation(N)
    start = np.datetime64("2024-01-01")
    lines = ["a,b,who,day,w,y"]
    for i in range(N):
        label = "yes" if x[i, 0] + x[i, 1] > 0 else "no"
        lines.append(f"{x[i, 0]},{x[i, 1]},p{i % 13},{start + days[i]},{1 + i % 3},{label}")
    path = tmp_path / "x.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_in_two_parts(table, seed):
    dataset = read_dataset(table, "y", group="who")
    assert "who" not in dataset.feature_names
    rows = split(dataset, 0.2, 0.3, seed)
    parts = [rows.training, rows.validation, rows.held_out]
    assert sorted(np.concatenate(parts)) == list(range(N))
    groups = [set(dataset.groups[part]) for part in parts]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 13
    # A group has 9 or 10 rows.
    assert 24 <= len(rows.validation) < 34
    assert 36 <= len(rows.held_out) < 46
    again = split(dataset, 0.2, 0.3, seed)
    assert np.array_equal(again.held_out, rows.held_out)
    assert not np.array_equal(split(dataset, 0.2, 0.3, seed + 1).held_out, rows.held_out)
    assert len(split(dataset, 0.0, 0.3, seed).validation) == 0


def test_two_groups_are_too_few_for_three_parts(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,g,y\n" + "1,u,0\n2,v,1\n" * 20)
    dataset = read_dataset(str(path), "y", group="g")
    with pytest.raises(nb.InputError, match=r"--group: expected enough groups .* got 2"):
        split(dataset, 0.2, 0.2, 0)


def test_the_last_rows_are_held_out(table):
    dataset = read_dataset(table, "y", order="day")
    rows = split(dataset, 0.25, 0.25, 0)
    days = [
        np.sort(dataset.order[part]) for part in (rows.training, rows.validation, rows.held_out)
    ]
    assert [len(part) for part in days] == [60, 30, 30]
    assert np.array_equal(np.concatenate(days), np.sort(dataset.order))


def test_weights_are_of_the_training(run, table):
    code, out, err = run(
        *("train", table, "--target", "y", "--weight", "w", "--drop", "who,day", "--epochs", "3"),
        *("--json", "--out", "r"),
    )
    assert (code, err) == (0, "")
    weighted = json.loads(out)["history"]["loss"]
    arguments = ("--target", "y", "--drop", "who,day,w", "--epochs", "3", "--json", "--out", "s")
    plain = json.loads(run("train", table, *arguments)[1])["history"]["loss"]
    assert weighted != plain
    assert nb.load("r/model.safetensors").layer_sizes[0] == 2
    assert json.loads(Path("r/command.json").read_text())["options"]["weight"] == "w"


def test_a_split_by_group_is_not_in_an_order(run, table):
    code, _, err = run("train", table, "--target", "y", "--group", "who", "--order", "day")
    assert code == 2
    assert err.startswith("nnbackend train: --order: expected one of --group and --order")
