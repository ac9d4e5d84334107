"""Checkpoints: a training that is broken off and taken up again equals one that never was."""

import errno
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import factories
import numpy as np
import pytest
import safetensors.numpy
from devices import on_each_engine

import nnbackend as nb
from nnbackend.core.activations import ACTIVATIONS
from nnbackend.data.sources import Arrays
from nnbackend.errors import InputError, ModelFileError
from nnbackend.io import container, files
from nnbackend.training.checkpoint import (
    parse_checkpoint,
    read_checkpoint,
    read_training,
    training_bytes,
)
from nnbackend.training.checkpoint_folder import CheckpointFolder, Keeper, checkpoint_files
from nnbackend.training.errors import CheckpointError, DivergenceError
from nnbackend.training.options import TrainingOptions

N_SAMPLES, BATCH_SIZE = 23, 5
STEPS = 5
EPOCHS = 4

X = np.random.default_rng(0).normal(size=(N_SAMPLES, 3))
Y = (X @ [1.0, 2.0, 3.0] > 0).astype(int)
WEIGHT = np.random.default_rng(1).uniform(0.5, 2.0, N_SAMPLES)
X_NEW, Y_NEW = X[::2] + 0.5, Y[::2]
VALIDATION = {"validation_data": (X_NEW, Y_NEW)}
PLATEAU = nb.schedules.ReduceOnPlateau(0.05, factor=0.5, patience=1, threshold=0.05)
BATCHES = [(X[i : i + 5], Y[i : i + 5], WEIGHT[i : i + 5]) for i in range(0, N_SAMPLES, 5)]


network = partial(factories.network, dtype="float32", seed=0)


def train(net, data=(X, Y), **options):
    defaults = {"epochs": EPOCHS, "engine": "reference"}
    if not isinstance(data[0], list):
        defaults["batch_size"] = BATCH_SIZE
    return nb.train(net, *data, **{**defaults, **options})


def keeping(folder, every=1 / STEPS, kept=100, **options):
    return {
        "checkpoint": folder,
        "checkpoint_every": every,
        "checkpoints_kept": kept,
        **options,
    }


def outcome(net, history):
    """Return all that a training gives and that does not depend on the clock, in bytes."""
    state = history.optimizer_state
    facts = history.to_dict()
    del facts["epoch_seconds"]
    return net.parameters.tobytes(), state.step, [x.tobytes() for x in state.arrays], facts


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def taken_up(path, folder, net, data=(X, Y), **options):
    """Return the outcome of a training that goes on from one checkpoint, in a new folder."""
    folder.mkdir()
    shutil.copy(path, folder)
    kept = keeping(folder, every=timedelta(hours=1), resume=True)
    return outcome(net, train(net, data, **{**options, **kept}))


# What is kept

OPTIMIZERS = {
    "sgd": nb.SGD(0.1),
    "momentum": nb.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "rmsprop": nb.RMSprop(0.01, momentum=0.5, centered=True),
    "adagrad": nb.Adagrad(0.1, decay=0.1),
    "adam": nb.Adam(0.02),
    "adamw": nb.AdamW(0.02),
}
# Of each: options of the network, the data, and options of the training.
CASES = {
    **{name: ({}, (X, Y), {"optimizer": optimizer}) for name, optimizer in OPTIMIZERS.items()},
    "float64": ({"dtype": "float64"}, (X, Y), VALIDATION),
    "weights": ({}, (X, Y), {"sample_weight": WEIGHT}),
    "dropout": ({"dropout": 0.3}, (X, Y), {"sample_weight": WEIGHT}),
    "plateau": ({}, (X, Y), {"optimizer": nb.SGD(PLATEAU), "epochs": 6}),
    "plateau of validation": ({}, (X, Y), {"optimizer": nb.SGD(PLATEAU), **VALIDATION}),
    "cosine": ({}, (X, Y), {"optimizer": nb.Adam(nb.schedules.Cosine(0.05))}),
    "early stopping": (
        {"dropout": 0.1},
        (X, Y),
        {
            "early_stopping": nb.EarlyStopping(patience=2, min_delta=0.05),
            "optimizer": nb.Adam(0.3),
            "epochs": 20,
            **VALIDATION,
        },
    ),
    "early stopping by loss": (
        {},
        (X, Y),
        {"early_stopping": nb.EarlyStopping(patience=1, min_delta=0.03, monitor="loss")},
    ),
    "unshuffled": ({}, (X, Y), {"shuffle": False}),
    "full batch": ({"dropout": 0.2}, (X, Y), {"batch_size": None, "epochs": 8}),
    "penalties and clipping": (
        {},
        (X, Y),
        {
            "l1": 0.01,
            "l2": 0.1,
            "clip_value": 0.1,
            "clip_norm": 0.2,
            "penalty_per_sample": True,
            "sample_weight": WEIGHT,
            "loss_by_rows": True,
        },
    ),
    "batches": ({"dropout": 0.3}, (BATCHES,), {}),
    "source": ({}, (Arrays(X, Y, buffer_bytes=400),), {}),
    "native": ({}, (X, Y), {"engine": "native", "optimizer": nb.Adam(0.02)}),
    "native, unshuffled": (
        {},
        (X, Y),
        {
            "engine": "native",
            "optimizer": nb.Adam(nb.schedules.Cosine(0.02)),
            "sample_weight": WEIGHT,
            "shuffle": False,
            **VALIDATION,
        },
    ),
    "native, large layers": (
        {"sizes": (3, 300, 200, 1), "dropout": (0.3, 0.0)},
        (X, Y),
        {"engine": "native", "early_stopping": nb.EarlyStopping(patience=50), **VALIDATION},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_broken_off_after_any_step_and_taken_up_it_gives_the_bits_of_one_never_broken_off(
    case, tmp_path
):
    options, data, training = CASES[case]
    net = network(**options)
    expected = outcome(net, train(net, data, **training))
    net = network(**options)
    assert outcome(net, train(net, data, **training, **keeping(tmp_path / "all"))) == expected
    files = checkpoint_files(tmp_path / "all")
    n_steps, every = expected[1], max(1, expected[1] // 12)
    assert len(files) == n_steps
    for number, path in enumerate(files[::every]):
        # Its own parameters are of no account.
        fresh = network(**{**options, "seed": 9})
        folder = tmp_path / f"{number}"
        *result, facts = taken_up(path, folder, fresh, data, **training)
        if isinstance(data[0], list):
            # Batches that were left out are not counted.
            facts["n_samples"] = expected[3]["n_samples"]
        assert (*result, facts) == expected, path


def test_going_on_twice_and_thrice_gives_the_same_bits(tmp_path):
    options = {"optimizer": nb.Adam(0.02), **VALIDATION}
    net = network(dropout=0.2)
    expected = outcome(net, train(net, **options))

    def breaks(state):
        if state.epoch in {1, 2, 4} - seen:
            seen.add(state.epoch)
            raise ZeroDivisionError

    seen = set()
    kept = keeping(tmp_path, every=2 / STEPS, kept=2, resume=True)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            train(network(dropout=0.2), **options, **kept, callbacks=breaks)
    net = network(dropout=0.2)
    assert outcome(net, train(net, **options, **kept)) == expected


@pytest.mark.parametrize("case", ["adam", "plateau", "dropout", "batches", "native"])
def test_more_epochs_after_the_last_equal_as_many_at_once(case, tmp_path):
    options, data, training = CASES[case]
    net = network(**options)
    expected = outcome(net, train(net, data, **{**training, "epochs": 7}))
    kept = keeping(tmp_path, every=timedelta(hours=1))
    train(network(**options), data, **{**training, "epochs": 3}, **kept)
    for epochs in (5, 7):
        net = network(**options)
        kept["resume"] = True
        history = train(net, data, **{**training, "epochs": epochs}, **kept)
        assert history.n_epochs == epochs
    assert outcome(net, history) == expected
    # As many as there were: nothing is left to do.
    assert outcome(net, train(net, data, **{**training, "epochs": 7}, **kept)) == expected
    with pytest.raises(CheckpointError, match=r"^epochs: expected at least the 7 .* got 2$"):
        train(net, data, **{**training, "epochs": 2}, **kept)


@pytest.mark.parametrize("engine", ["auto", "cpu", "native"])
def test_a_checkpoint_that_has_the_former_name_of_the_engine_goes_on(engine, tmp_path):
    net = network()
    expected = outcome(net, train(net, engine="native"))
    train(network(), engine="native", **keeping(tmp_path / "all"))
    path = Path(checkpoint_files(tmp_path / "all")[7])
    found = read_checkpoint(str(path), network())
    assert found.identity["engine"] == "native"
    former = replace(found, identity={**found.identity, "engine": "cpu"})
    folder = tmp_path / "former"
    folder.mkdir()
    (folder / path.name).write_bytes(former.to_bytes(network()))
    net = network()
    assert outcome(net, train(net, engine=engine, **keeping(folder, resume=True))) == expected
    newest = checkpoint_files(folder)[0]
    assert read_checkpoint(newest, network()).identity["engine"] == "native"


@pytest.mark.parametrize("reason", ["early stopping", "callback"])
def test_what_a_rule_or_a_callback_has_ended_stays_ended(reason, tmp_path):
    kept = keeping(tmp_path, every=10.0)
    if reason == "callback":
        training = {"callbacks": lambda state: state.epoch == 3 and state.stop()}
    else:
        training = CASES["early stopping"][2]
    net = network()
    expected = outcome(net, train(net, **training, **kept))
    assert expected[3]["stopped"] == reason
    net = network(seed=9)
    training = {**training, "callbacks": (), "epochs": 60}
    assert outcome(net, train(net, **training, **kept, resume=True)) == expected


def test_callbacks_hear_of_the_epochs_to_come(tmp_path):
    seen = []
    kept = keeping(tmp_path)
    train(network(), epochs=2, **kept)

    def note(state):
        seen.append((state.epoch, state.epochs, state.history.n_epochs))

    train(network(), epochs=4, resume=True, callbacks=note, **kept)
    assert seen == [(3, 4, 3), (4, 4, 4)]


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (1, [5, 10, 15, 20]),
        (2, [10, 20]),
        (1.4, [7, 14, 20]),
        (0.4, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
        (1e-9, list(range(1, 21))),
        (1e9, [20]),
        (timedelta(microseconds=1), list(range(1, 21))),
        (timedelta(days=1), [20]),
    ],
)
@on_each_engine
def test_one_is_written_whenever_it_is_due_and_at_the_end(every, steps, engine, tmp_path):
    train(network(), engine=engine, optimizer="adam", **keeping(tmp_path, every=every))
    written = [int(name[11:23]) for name in names(tmp_path)]
    if every == timedelta(microseconds=1):
        # Several steps are run at once.
        assert set(written) <= set(steps)
        assert len(written) > 1
    else:
        assert written == steps


@pytest.mark.parametrize("kept", [1, 3])
def test_the_newest_few_stay(kept, tmp_path):
    train(network(), **keeping(tmp_path, kept=kept))
    assert names(tmp_path) == [
        f"checkpoint-{20 - k:012d}.safetensors" for k in reversed(range(kept))
    ]


def test_a_checkpoint_is_a_model_of_its_step(tmp_path):
    net = network(dtype="float64").standardize(X)
    net.feature_names = ("a", "b", "c")
    parameters = []
    train(net, callbacks=lambda _: parameters.append(net.parameters.copy()), **keeping(tmp_path))
    for epoch, expected in enumerate(parameters, 1):
        stored = nb.load(tmp_path / f"checkpoint-{epoch * STEPS:012d}.safetensors")
        np.testing.assert_array_equal(stored.parameters, expected)
        assert stored.feature_names == ("a", "b", "c")
        np.testing.assert_array_equal(stored.standardization.mean, net.standardization.mean)
    np.testing.assert_array_equal(stored.predict_proba(X_NEW), net.predict_proba(X_NEW))


# What cannot be written


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("point", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_one_that_cannot_be_written_ends_training_with_what_was_learnt(
    point, number, epoch, tmp_path, monkeypatch
):
    net = network()
    expected = outcome(net, train(net))
    parameters = []
    net = network()
    real_open = open
    real = {"open": open, "fsync": os.fsync, "replace": os.replace}.get(point)

    def fails(*arguments):
        if len(parameters) > epoch:
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    class File:
        """A file that takes a part of what is written."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            if len(parameters) > epoch:
                raise OSError(number, os.strerror(number))
            self.file.write(content[len(content) // 2 :])

    with monkeypatch.context() as patch:
        if point == "write":
            patch.setattr(files, "open", lambda *a, **k: File(real_open(*a, **k)), raising=False)
        elif point == "open":
            patch.setattr(
                files,
                "open",
                lambda *a, **k: fails(*a) if "x" in a[1] else real_open(*a, **k),
                raising=False,
            )
        else:
            patch.setattr(os, point, fails)
        with pytest.raises(CheckpointError) as caught:
            train(
                net,
                callbacks=lambda _: parameters.append(net.parameters.copy()),
                **keeping(tmp_path, every=1.0),
            )
    message = str(caught.value)
    assert message.startswith(f"checkpoint: cannot write into {str(tmp_path)!r}")
    assert os.strerror(number) in message
    assert "\n" not in message
    assert caught.value.history.n_epochs == epoch + 1
    np.testing.assert_array_equal(net.parameters, parameters[-1])
    assert names(tmp_path) == [
        f"checkpoint-{k * STEPS:012d}.safetensors" for k in range(1, epoch + 1)
    ]
    assert ("the newest is" in message) == (epoch > 0)
    net = network()
    assert outcome(net, train(net, **keeping(tmp_path, resume=True))) == expected


def test_a_limit_of_the_system_leaves_no_part_of_a_file(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def lower(state):
        if state.epoch == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))

    try:
        with pytest.raises(CheckpointError, match=os.strerror(errno.EFBIG)):
            train(network(), callbacks=lower, **keeping(tmp_path, every=1.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["checkpoint-000000000005.safetensors"]


def test_a_folder_that_cannot_be_made_or_written_is_found_out_before_training(
    tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    net = network()
    before = net.parameters.copy()
    seen = []
    with pytest.raises(CheckpointError, match="expected a folder, got the file"):
        train(net, callbacks=seen.append, **keeping(tmp_path / "file"))

    def fails(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for point in ("unlink", "fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, point, fails)
            with pytest.raises(CheckpointError, match="Read-only"):
                train(net, callbacks=seen.append, **keeping(tmp_path / point))
    assert not seen
    np.testing.assert_array_equal(net.parameters, before)
    # Whatever went wrong, the folder is free again.
    train(net, **keeping(tmp_path / "unlink"))


def test_an_old_one_that_cannot_be_deleted_is_no_error(tmp_path, monkeypatch):
    unlink = os.unlink

    def fails(path, *arguments):
        if "checkpoint-" in os.path.basename(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(path, *arguments)

    monkeypatch.setattr(os, "unlink", fails)
    train(network(), **keeping(tmp_path, every=1.0, kept=1))
    assert len(names(tmp_path)) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_while_one_is_written_leaves_no_part_of_it(number, tmp_path, monkeypatch):
    """The second signal acts at once, wherever that is."""
    fsync = os.fsync
    epochs = []

    def interrupted(descriptor):
        if len(epochs) == 2:
            signal.raise_signal(number)
            signal.raise_signal(number)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", interrupted)
    kept = keeping(tmp_path, every=1.0)
    if number == signal.SIGTERM:
        with pytest.raises(SystemExit) as caught:
            train(network(), callbacks=epochs.append, **kept)
        assert caught.value.code == 143
    else:
        assert train(network(), callbacks=epochs.append, **kept).stopped == "interrupted"
    assert names(tmp_path) == ["checkpoint-000000000005.safetensors"]


def test_numbers_that_are_not_finite_are_not_kept(tmp_path):
    """A step may make parameters infinite whose loss was finite: the epoch's end says so."""
    data = 100.0 * X, 10.0 * Y
    options = {"optimizer": nb.SGD(3e38)}
    with pytest.raises(DivergenceError) as expected:
        train(network((3, 1), output="identity"), data, **options)
    net = network((3, 1), output="identity")
    with pytest.raises(DivergenceError) as caught:
        train(net, data, **options, **keeping(tmp_path))
    assert str(caught.value) == str(expected.value)
    assert names(tmp_path) == []
    assert np.isfinite(net.parameters).all()


def test_what_a_killed_process_left_behind_is_cleaned_up_and_nothing_else(tmp_path):
    train(network(), epochs=1, **keeping(tmp_path, every=1.0))
    others = ["notes.txt", "mine.tmp", ".0123.tmp", ".0123456789abcdef.tmp.bak"]
    for name in (*others, ".0123456789abcdef.tmp", ".fedcba9876543210.tmp"):
        (tmp_path / name).write_bytes(b"part")
    train(network(), epochs=1, **keeping(tmp_path, every=1.0, resume=True))
    assert names(tmp_path) == sorted([*others, "checkpoint-000000000005.safetensors"])


# What cannot be gone on from


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def replaced_by_a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "truncated": truncated,
    "flipped": flipped,
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a folder": replaced_by_a_folder,
    "a model": lambda path: nb.save(network(), path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_newest_whole_one_is_used_and_damaged_ones_are_renamed(damage, tmp_path, caplog):
    net = network(dropout=0.2)
    expected = outcome(net, train(net))
    train(network(dropout=0.2), epochs=3, **keeping(tmp_path, kept=4))
    files = names(tmp_path)
    for name in files[-2:]:
        DAMAGE[damage](tmp_path / name)
    net = network(dropout=0.2)
    with caplog.at_level(logging.WARNING, "nnbackend"):
        assert outcome(net, train(net, **keeping(tmp_path, every=9.0, resume=True))) == expected
    assert [record.message.count("passing over") for record in caplog.records] == [1, 1]
    damaged = [f"{name}.damaged" for name in files[-2:]]
    assert names(tmp_path) == sorted([*files[:-2], *damaged, "checkpoint-000000000020.safetensors"])


def test_where_all_are_damaged_training_does_not_begin_anew(tmp_path):
    train(network(), **keeping(tmp_path, kept=2))
    for name in names(tmp_path):
        truncated(tmp_path / name)
    before = names(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"got 2 that are damaged, the newest because .*; del"
    ):
        train(network(), **keeping(tmp_path, resume=True))
    assert names(tmp_path) == before


def rewritten(path, **changes):
    """Change what a checkpoint says, and give it the checksum of that."""
    content = path.read_bytes()
    n = 8 + int.from_bytes(content[:8], "little")
    facts = json.loads(json.loads(content[8:n])["__metadata__"]["nnbackend"])
    facts |= changes
    arrays = safetensors.numpy.load(content)
    facts["sha256"] = container.digest(facts, arrays)
    path.write_bytes(safetensors.numpy.save(arrays, {"nnbackend": json.dumps(facts)}))


UNUSABLE = {
    "an activation of the user's": ({"hidden": ["mine"]}, r"'mine'.*register_activation"),
    "a newer format": ({"format": 3}, "format is 3, .*update nnbackend"),
    "names twice": ({"class_names": ["a", "a"]}, "class_names are not distinct"),
    "a history of another kind": ({"training": {"arrays": []}}, "its arrays differ"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_is_whole_and_cannot_be_used_is_not_called_damaged(kind, tmp_path, caplog):
    changes, message = UNUSABLE[kind]
    train(network(), **keeping(tmp_path, kept=4))
    files = names(tmp_path)
    for name in files[-2:]:
        rewritten(tmp_path / name, **changes)
    before = {name: (tmp_path / name).read_bytes() for name in files}
    net = network()
    start = net.parameters.copy()
    with pytest.raises(CheckpointError, match=message) as caught:
        train(net, **keeping(tmp_path, every=9.0, resume=True))
    assert "damaged" not in str(caught.value)
    assert "delete" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caplog.text == ""
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    np.testing.assert_array_equal(net.parameters, start)


def test_an_activation_that_is_registered_late_goes_on_from_its_checkpoints(tmp_path):
    nb.register_activation("cubic", lambda _xp, Z: Z * Z * Z, lambda _xp, Z, _A: 3 * Z * Z)
    mine = ACTIVATIONS["cubic"]
    try:
        net = network(hidden="cubic")
        expected = outcome(net, train(net))
        begun = network(hidden="cubic")
        train(begun, epochs=2, **keeping(tmp_path))
        kept = names(tmp_path)
        del ACTIVATIONS["cubic"]
        with pytest.raises(CheckpointError, match="call register_activation first"):
            train(network(), **keeping(tmp_path, resume=True))
        assert names(tmp_path) == kept
        ACTIVATIONS["cubic"] = mine
        net = network(hidden="cubic")
        assert outcome(net, train(net, **keeping(tmp_path, resume=True))) == expected
    finally:
        ACTIVATIONS.pop("cubic", None)


OTHERS = {
    "layer_sizes": {"net": network((3, 7, 1))},
    "dtype": {"net": network(dtype="float64")},
    "hidden": {"net": network(hidden="relu")},
    "dropout": {"net": network(dropout=0.5)},
    "data": {"data": (X + 1e-9, Y)},
    "the data's weights": {"sample_weight": WEIGHT},
    "the data's targets": {"data": (X, 1 - Y)},
    "standardization": {"net": network().standardize(X)},
    "validation_data": VALIDATION,
    "optimizer.beta1": {"optimizer": nb.Adam(0.02, beta1=0.8)},
    "the optimizer's kind": {"optimizer": "sgd"},
    "loss": {"loss": "squared_error"},
    "l1": {"l1": 1e-3},
    "l2": {"l2": 1e-3},
    "penalty_per_sample": {"penalty_per_sample": True},
    "loss_by_rows": {"loss_by_rows": True},
    "batch_size": {"batch_size": 6},
    "clip_value": {"clip_value": 1.0},
    "clip_norm": {"clip_norm": 1.0},
    "shuffle": {"shuffle": False},
    "seed": {"seed": 1},
    "early_stopping": {"early_stopping": nb.EarlyStopping(monitor="loss")},
}


def test_every_option_that_decides_the_outcome_is_compared():
    # Another precision needs the CUDA engine.
    deciding = set(TrainingOptions().deciding()) - {"precision"}
    assert deciding <= {name.partition(".")[0] for name in OTHERS}


@pytest.mark.parametrize("other", OTHERS)
def test_a_training_of_another_kind_is_refused_and_changes_nothing(other, tmp_path):
    train(network(), optimizer=nb.Adam(0.02), epochs=1, **keeping(tmp_path, every=1.0))
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    asked = {"net": network(), "optimizer": nb.Adam(0.02), **OTHERS[other]}
    parameters = asked["net"].parameters.copy()
    with pytest.raises(CheckpointError) as caught:
        train(**asked, **keeping(tmp_path, resume=True))
    sentence = str(caught.value)
    if other in ("layer_sizes", "dtype", "hidden", "dropout"):
        assert sentence.startswith("checkpoint: expected one of Network(")
    else:
        name = other.removeprefix("the ").partition("'")[0]
        assert sentence.startswith(f"checkpoint: expected to go on with the same {name} (")
    assert "\n" not in sentence
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    np.testing.assert_array_equal(asked["net"].parameters, parameters)


def test_a_folder_with_checkpoints_is_not_written_over(tmp_path):
    train(network(), **keeping(tmp_path))
    before = names(tmp_path)
    with pytest.raises(CheckpointError, match="pass resume=True"):
        train(network(), **keeping(tmp_path))
    assert names(tmp_path) == before


def test_a_folder_is_one_trainings_at_a_time(tmp_path):
    program = (
        "import sys; from nnbackend.training.checkpoint_folder import CheckpointFolder; "
        "CheckpointFolder(sys.argv[1])"
    )

    def begin_others(state):
        if state.epoch != 1:
            return
        with pytest.raises(CheckpointError, match="no other training is using"):
            train(network(), **keeping(tmp_path, resume=True))
        other = subprocess.run(
            [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False
        )
        assert other.returncode == 1
        assert "no other training is using" in other.stderr

    train(network(), epochs=2, callbacks=begin_others, **keeping(tmp_path))
    train(network(), epochs=3, **keeping(tmp_path, resume=True))


# Another test of this process may have started JAX, which warns of every fork.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_a_process_forked_during_training_does_not_keep_the_folder(tmp_path):
    children = []

    def fork(state):
        if state.epoch == 1:
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            children.append((child, writer))
            os.close(reader)

    train(network(), epochs=1, callbacks=fork, **keeping(tmp_path))
    try:
        train(network(), epochs=2, **keeping(tmp_path, resume=True))
    finally:
        for child, writer in children:
            os.close(writer)
            os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"resume": True}, "resume: expected checkpoint"),
        ({"resume": 1}, "resume: expected True or False"),
        ({"checkpoint": 3}, "checkpoint: expected the path of a folder"),
        ({"checkpoint": ""}, "checkpoint: expected the path of a folder"),
        ({"checkpoint": "here", "checkpoint_every": 0}, "checkpoint_every: expected"),
        ({"checkpoint": "here", "checkpoint_every": "1min"}, "checkpoint_every: expected"),
        ({"checkpoint": "here", "checkpoint_every": timedelta(0)}, "checkpoint_every: expected"),
        ({"checkpoint": "here", "checkpoints_kept": 0}, "checkpoints_kept: expected"),
        ({"checkpoint": "here", "shuffle": lambda: np.arange(N_SAMPLES)}, "shuffle: expected"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence_and_leave_no_folder(
    options, sentence, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=sentence):
        train(network(), **options)
    assert names(tmp_path) == []


@pytest.mark.slow
def test_no_flipped_bit_and_no_prefix_of_a_checkpoint_is_read_as_another(tmp_path):
    net = network((1, 1))
    train(net, (X[:, :1], Y), epochs=2, **keeping(tmp_path, every=0.5, optimizer="sgd"))
    path = checkpoint_files(tmp_path)[1]
    content = Path(path).read_bytes()
    parts = vars(read_checkpoint(path, net))
    target = tmp_path / "altered"
    rng = np.random.default_rng(0)
    equal = []
    n_header = 8 + int.from_bytes(content[:8], "little")
    for place in range(len(content)):
        # All bits of the numbers and of the lengths; of the text, one of each letter.
        is_text = 8 <= place < n_header
        for bit in rng.choice(8, 1) if is_text else range(8):
            altered = bytearray(content)
            altered[place] ^= 1 << bit
            target.write_bytes(altered)
            try:
                found = vars(read_checkpoint(str(target), net))
            except (ModelFileError, CheckpointError):
                continue
            # JSON's 1e-05 may be written 1E-05.
            assert repr(found) == repr(parts), (place, bit)
            equal.append(place)
    assert len(equal) < 10
    for length in range(0, len(content), 37):
        target.write_bytes(content[:length])
        with pytest.raises(ModelFileError):
            read_checkpoint(str(target), net)


def test_a_checkpoint_is_read_of_bytes_as_of_its_file(tmp_path):
    net = network()
    train(net, **keeping(tmp_path, every=0.5))
    path = checkpoint_files(tmp_path)[1]
    content = Path(path).read_bytes()
    found = parse_checkpoint(content, "bytes", net)
    assert found.to_bytes(net) == read_checkpoint(path, net).to_bytes(net) == content
    with pytest.raises(ModelFileError, match="path: 'bytes' is not a whole safetensors file"):
        parse_checkpoint(content[:-1], "bytes", net)
    with pytest.raises(CheckpointError, match="got 'bytes' of Network"):
        parse_checkpoint(content, "bytes", network((3, 7, 1)))


GENERATOR = np.random.default_rng(0).bit_generator.state
HOSTILE = {
    "identity": [None, [], "text", 3],
    "optimizer_step": [None, -1, 1.5, "1", True, []],
    "totals": [None, [], [0.0], [0.0, 0.0, 0.0], ["a", "b"], 3, [10**400, 1]],
    "position": [None, -1, "1", 0.5, {}],
    "generators": [
        None,
        [],
        {},
        {"shuffle": GENERATOR},
        {"shuffle": GENERATOR, "dropout": None},
        {"shuffle": GENERATOR, "dropout": {**GENERATOR, "bit_generator": "MT19937"}},
        {"shuffle": GENERATOR, "dropout": {**GENERATOR, "bit_generator": "os.system"}},
        {"shuffle": GENERATOR, "dropout": {**GENERATOR, "state": {"state": -1, "inc": 2**200}}},
        {"shuffle": GENERATOR, "dropout": {**GENERATOR, "uinteger": "x"}},
    ],
    "history": [
        None,
        {},
        [],
        "text",
        {"loss": 3},
        {"loss": [1.0], "validation_loss": [1.0, 2.0], "learning_rate": [], "epoch_seconds": []},
    ],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_description_that_makes_no_sense_is_refused_though_its_checksum_is_right(name, tmp_path):
    """Whoever forges a checkpoint can forge its checksum: nothing but a refusal may follow."""
    net = network()
    train(net, **keeping(tmp_path, every=0.6, kept=10))
    path = checkpoint_files(tmp_path)[1]
    stored, description, arrays = read_training(path)
    del description["arrays"]
    whole = training_bytes(stored, description, arrays)
    assert whole == Path(path).read_bytes()
    for value in HOSTILE[name]:
        content = training_bytes(stored, {**description, name: value}, arrays)
        Path(path).write_bytes(content)
        with pytest.raises(ModelFileError, match="is not a valid checkpoint"):
            read_checkpoint(path, net)
        # Its network is whole.
        np.testing.assert_array_equal(nb.load(path).parameters, stored.parameters)
    del description[name]
    Path(path).write_bytes(training_bytes(stored, description, arrays))
    with pytest.raises(ModelFileError, match="is not a valid checkpoint"):
        read_checkpoint(path, net)


# Signals


@pytest.fixture
def _handlers():
    """Give the signals back as they were."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def raising(*numbers, epoch=2):
    def callback(state):
        if state.epoch == epoch:
            for number in numbers:
                signal.raise_signal(number)

    return callback


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGTERM,), 143),
        ((signal.SIGINT,), None),
        ((signal.SIGINT, signal.SIGTERM), 143),
        ((signal.SIGTERM, signal.SIGINT), 143),
    ],
    ids=["SIGTERM", "SIGINT", "both", "both, the other way"],
)
def test_a_signal_ends_training_with_a_checkpoint_to_go_on_from(numbers, code, tmp_path):
    net = network(dropout=0.2)
    expected = outcome(net, train(net, epochs=5))
    kept = keeping(tmp_path, every=timedelta(hours=1))
    net = network(dropout=0.2)
    before = [signal.getsignal(number) for number in numbers]
    options = {"epochs": 5, "callbacks": raising(*numbers), **kept}
    if code is None:
        history = train(net, **options)
        assert (history.stopped, history.n_epochs) == ("interrupted", 2)
    else:
        with pytest.raises(SystemExit) as caught:
            train(net, **options)
        assert caught.value.code == code
    assert [signal.getsignal(number) for number in numbers] == before
    assert names(tmp_path) == ["checkpoint-000000000010.safetensors"]
    np.testing.assert_array_equal(nb.load(checkpoint_files(tmp_path)[0]).parameters, net.parameters)
    net = network(dropout=0.2)
    assert outcome(net, train(net, epochs=5, **kept, resume=True)) == expected


@pytest.mark.usefixtures("_handlers")
def test_a_handler_of_the_users_own_is_called_after_the_checkpoint(tmp_path):
    calls = []
    signal.signal(signal.SIGTERM, lambda number, _: calls.append((number, names(tmp_path))))
    history = train(
        network(), callbacks=raising(signal.SIGTERM), **keeping(tmp_path, every=timedelta(hours=1))
    )
    assert (history.stopped, history.n_epochs) == ("terminated", 2)
    assert calls == [(signal.SIGTERM, ["checkpoint-000000000010.safetensors"])]


@pytest.mark.usefixtures("_handlers")
def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    both = raising(signal.SIGTERM, signal.SIGINT)
    history = train(network(), callbacks=both, **keeping(tmp_path))
    assert (history.stopped, history.n_epochs) == ("completed", EPOCHS)


@pytest.mark.usefixtures("_handlers")
def test_without_checkpoints_signals_are_left_alone():
    calls = []
    signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    history = train(network(), callbacks=raising(signal.SIGTERM))
    assert (history.stopped, calls) == ("completed", [1])


@pytest.mark.usefixtures("_handlers")
def test_in_another_thread_signals_are_left_alone_and_training_is_the_same(tmp_path):
    calls = []
    signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    net = network()
    expected = outcome(net, train(net))
    results = []

    def work():
        own = network()
        results.append(outcome(own, train(own, callbacks=raising(signal.SIGTERM), **kept)))

    kept = keeping(tmp_path)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert (results, calls) == ([expected], [1])


PROGRAM = """
import sys, threading, time
import nnbackend as nb
net = nb.Network([3, 6, 1], hidden="tanh")
X = [[i % 3, i % 5, i % 7] for i in range(40)]
y = [i % 2 for i in range(40)]
def hear(state):
    print("epoch", state.epoch, flush=True)
def work():
    nb.train(net, X, y, epochs=10**6, batch_size=5, callbacks=hear, checkpoint=sys.argv[1])
if sys.argv[2] == "thread":
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
try:
    work()
finally:
    print("finally", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("where", "code"), [("main", 143), ("thread", -signal.SIGTERM)])
def test_a_process_that_is_terminated_while_it_trains(where, code, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path, where], stdout=subprocess.PIPE, text=True
    ) as process:
        line = ""
        for line in process.stdout:
            if line == "epoch 20\n":
                process.terminate()
                break
        rest = process.stdout.read()
        assert process.wait(60) == code
    files = checkpoint_files(tmp_path)
    if where == "main":
        assert rest.endswith("finally\n")
        assert int(files[0][-24:-12]) >= 20 * 8
    else:
        # The system ended it: what is there are the checkpoints that were due.
        assert files == []


def test_closing_twice_is_closing_once(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.close()
    folder.close()
    again = CheckpointFolder(tmp_path)
    again.close()


def test_a_rule_that_is_met_with_the_last_epoch_has_ended_the_training(tmp_path):
    rule = nb.EarlyStopping(patience=2, monitor="loss", min_delta=0.05)
    options = {"early_stopping": rule, "optimizer": nb.SGD(0.3)}
    net = network()
    expected = outcome(net, train(net, epochs=30, **options))
    assert expected[3]["stopped"] == "early stopping"
    n_epochs = len(expected[3]["loss"])
    train(network(), epochs=n_epochs, **options, **keeping(tmp_path, every=9))
    net = network()
    history = train(net, epochs=30, **options, **keeping(tmp_path, every=9, resume=True))
    assert outcome(net, history) == expected


def test_the_number_of_examples_is_still_known_of_batches_that_were_left_out(tmp_path):
    train(network(), (BATCHES,), epochs=2, **keeping(tmp_path / "all"))
    # Broken off in the second and last epoch.
    history = train(network(), (BATCHES,), epochs=2, **keeping(tmp_path / "all", resume=True))
    assert history.n_samples == N_SAMPLES
    os.unlink(checkpoint_files(tmp_path / "all")[0])
    history = train(network(), (BATCHES,), epochs=2, **keeping(tmp_path / "all", resume=True))
    assert history.n_samples == N_SAMPLES
    assert history.samples_per_second > 0


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_last_checkpoint_that_cannot_be_written_is_an_error_with_a_history(
    number, tmp_path, monkeypatch
):
    calls = []
    signal.signal(signal.SIGTERM, lambda *_: calls.append("forwarded"))

    def fails(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def callback(state):
        raising(number)(state)
        if state.epoch == 2:
            monkeypatch.setattr(os, "replace", fails)

    with pytest.raises(CheckpointError) as caught:
        train(network(), callbacks=callback, **keeping(tmp_path, every=9.0))
    assert caught.value.history.n_epochs == 2
    # The process was asked to end: whoever asked is to be heard.
    assert calls == (["forwarded"] if number == signal.SIGTERM else [])


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_an_epoch_that_diverged_keeps_the_last_finite_parameters(
    number, tmp_path, monkeypatch
):
    signal.signal(signal.SIGTERM, lambda *_: None)
    is_due, calls = Keeper.is_due, []

    def signalled(*arguments):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(number)
        return is_due(*arguments)

    monkeypatch.setattr(Keeper, "is_due", signalled)
    net = network((3, 1), output="identity")
    before = net.parameters.copy()
    train(net, (100.0 * X, 10.0 * Y), optimizer=nb.SGD(3e38), **keeping(tmp_path))
    np.testing.assert_array_equal(net.parameters, before)


def test_a_network_that_cannot_be_stored_is_refused_before_training(tmp_path):
    own = nb.Activation("not registered", lambda xp, Z: xp.tanh(Z), lambda _, __, A: 1.0 - A * A)
    net = network(hidden=own)
    before = net.parameters.copy()
    with pytest.raises(InputError, match="not registered"):
        train(net, **keeping(tmp_path, every=1.0))
    np.testing.assert_array_equal(net.parameters, before)


@pytest.mark.parametrize("engines", [("reference", "native"), ("native", "reference")])
def test_an_engine_reads_the_checkpoints_of_another(engines, tmp_path):
    """The numbers are those of either, to rounding."""
    options = {"optimizer": nb.Adam(0.02)}
    net = network()
    expected = train(net, **options)
    train(network(), epochs=2, engine=engines[0], **options, **keeping(tmp_path))
    own = network()
    history = train(own, engine=engines[1], **options, **keeping(tmp_path, resume=True))
    np.testing.assert_allclose(history.loss, expected.loss, rtol=1e-5)
    np.testing.assert_allclose(own.parameters, net.parameters, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("is_anothers", [True, False], ids=["made anew", "deleted"])
def test_a_folder_that_is_no_longer_this_trainings_gets_nothing(is_anothers, tmp_path):
    net, path, others, learnt = network(), tmp_path / "folder", [], []

    def meanwhile(state):
        learnt.append(net.parameters.copy())
        if state.epoch == 2:
            shutil.rmtree(path)
            if is_anothers:
                others.append(CheckpointFolder(path))
                others[0].write(7, b"theirs")

    with pytest.raises(CheckpointError, match="was deleted or is another's by now") as caught:
        train(net, callbacks=meanwhile, **keeping(path, every=1.0))
    assert caught.value.history.n_epochs == len(learnt) == 2
    np.testing.assert_array_equal(net.parameters, learnt[-1])
    if not is_anothers:
        assert not path.exists()
        return
    assert [name for name in names(path) if not name.startswith(".")] == [
        "checkpoint-000000000007.safetensors"
    ]
    with pytest.raises(CheckpointError, match="no other training is using"):
        CheckpointFolder(path)
    others[0].close()
