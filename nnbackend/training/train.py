"""Training: what is asked for is checked, and made into a loop over epochs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import numpy as np

from nnbackend.core.losses import Loss
from nnbackend.core.optimizers import Optimizer, OptimizerState
from nnbackend.data.batches import Feed
from nnbackend.data.examples import Examples, Resident
from nnbackend.data.placement import Memory
from nnbackend.data.stream import Stream
from nnbackend.device import Device, get_device
from nnbackend.engines.base import Problem, Start
from nnbackend.engines.choice import default_engine, get_engine, reference_seconds
from nnbackend.errors import InputError
from nnbackend.floating_point import own_errors
from nnbackend.model.network import Network
from nnbackend.parallel.launch import together
from nnbackend.parallel.team import Team
from nnbackend.training.arguments import (
    check_early_stopping,
    examples_of,
    validation_of,
)
from nnbackend.training.checkpoint import Checkpoint
from nnbackend.training.history import Callback, EarlyStopping, History
from nnbackend.training.identity import identity_of
from nnbackend.training.loop import Loop
from nnbackend.training.options import TrainingOptions
from nnbackend.training.resuming import (
    checkpoint_folder,
    find_checkpoint,
    keep_and_share,
    set_optimizer_state,
)
from nnbackend.training.signals import Interruption

__all__ = ["train"]

_LOGGER = logging.getLogger("nnbackend")


@own_errors
def train(
    net: Network,
    X: Any,
    y: Any = None,
    *,
    optimizer: str | Optimizer | None = None,
    loss: str | Loss | None = None,
    epochs: int = 50,
    batch_size: int | None = 128,
    shuffle: bool | Callable[[], Any] = True,
    seed: int | None = 0,
    sample_weight: Any = None,
    validation_data: tuple[Any, ...] | None = None,
    early_stopping: EarlyStopping | None = None,
    callbacks: Callback | Iterable[Callback] = (),
    l1: float = 0.0,
    l2: float = 0.0,
    penalty_per_sample: bool = False,
    loss_by_rows: bool = False,
    clip_value: float | None = None,
    clip_norm: float | None = None,
    engine: str = "auto",
    precision: str = "float32",
    optimizer_state: OptimizerState | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float | timedelta = timedelta(minutes=1),
    checkpoints_kept: int = 3,
    resume: bool = False,
    communicator: Any = None,
) -> History:
    """Train a network in place: forward propagation, loss, backward propagation, update.

    Data is checked and placed on the network's device once; features that a GPU has no room for
    stay on the host, and the rows of each batch are copied. The loss leaves the device once per
    epoch. Ctrl-C ends the training and returns what was learnt so far, with ``"interrupted"`` in
    ``history.stopped``: look at it in a loop over trainings.

    Parameters
    ----------
    net : Network
        Trained in place, on its own device.
    X : array-like (n_samples, n_features)
        One example per row. A ``numpy.memmap`` or Zarr array too large for memory is read in
        blocks; see ``nb.sources``. Without ``y``: a source from there, or an iterable of batches
        (X, y) or (X, y, sample_weight), such as torch's DataLoader, each pass over which is an
        epoch; ``batch_size`` and ``shuffle`` are its own matter then, and the reference engine
        trains. Features of very different scales
        train badly: call ``net.standardize(X)`` first, and ``net.standardize(X, y)`` for a
        regression.
    y : array-like
        Sigmoid: labels 0 and 1, (n_samples,) or (n_samples, n_outputs). Softmax: integer labels
        (n_samples,), or rows (n_samples, n_classes) that sum to one (those that do to within 1e-3
        are divided by their sums). Identity, exp: numbers, (n_samples,) or (n_samples, n_outputs).
    optimizer : str or Optimizer, optional
        ``nb.SGD``, ``nb.RMSprop``, ``nb.Adagrad``, ``nb.Adam`` or ``nb.AdamW``, with a learning
        rate or a schedule of ``nb.schedules``; or a name, for its defaults. By default
        ``nb.Adam(1e-3)``.
    loss : str or Loss, optional
        ``binary_cross_entropy``, ``softmax_cross_entropy``, ``squared_error``, ``absolute_error``,
        ``huber``, ``poisson``, or an instance from ``nb.losses``. By default what the output
        implies: sigmoid the first, softmax the second, identity the third, exp the last.
    epochs : int, default 50
        Passes over the data.
    batch_size : int or None, default 128
        Examples per step; the last batch of an epoch may be shorter. None, or as many as there are:
        full-batch gradient descent.
    shuffle : bool or callable, default True
        Draw a new order of the examples for every epoch; a callable is called for each, and returns
        the order: an array (n_samples,) of row numbers.
    seed : int or None, default 0
        Draws the orders and the dropout masks, on the host. None is a new draw each time.
    sample_weight : array-like (n_samples,), optional
        Weights >= 0, not all 0; the loss of a batch is the weighted mean over its examples. One of
        weight 0 is as if it were not there, and a batch of nothing but such is left out: no step
        is taken, and momentum and penalties do nothing. ``engine="cuda"`` cannot leave a batch
        out, and refuses as many of them as make one.
    validation_data : tuple (X, y) or (X, y, sample_weight), optional
        Its loss is taken after every epoch.
    early_stopping : EarlyStopping, optional
        When to stop, and whether the best parameters come back.
    callbacks : callable or iterable of callables
        Each is called as ``callback(state)`` after every epoch, with a ``TrainingState``;
        ``state.stop()`` ends the training.
    l1, l2 : float, default 0.0
        Penalties l1 sum(abs(W)) + l2 / 2 sum(W^2) on the weights.
    penalty_per_sample : bool, default False
        Divide the penalties by the number of a batch's examples, or by the sum of their weights, as
        scikit-learn's ``alpha`` is.
    loss_by_rows : bool, default False
        Average the losses of an epoch's batches by their numbers of rows, as scikit-learn's
        ``loss_curve_`` does, instead of by the sums of their weights.
    clip_value, clip_norm : float, optional
        Clip each element of the gradient to [-clip_value, clip_value]; scale the whole gradient
        down to the norm clip_norm.
    engine : {"auto", "reference", "cpu", "cuda"}, default "auto"
        How the steps run; every engine gives the same numbers, to rounding. ``"cpu"`` is the faster
        one there. It compiles its kernels with Numba when a kind of network is first trained, which
        takes seconds, and keeps them in ``~/.cache/nnbackend``. ``"cuda"`` plans a network's steps
        on the GPU, fuses their kernels and replays them as CUDA graphs; it has not run on a GPU
        yet. Its kernels take float32 numbers below 1.2e-38 as 0. ``"auto"`` is ``"cpu"`` for a
        network on the CPU and a training of more than some seconds, else ``"reference"``.
    precision : {"float32", "tf32", "bfloat16"}, default "float32"
        Of the matrix products in a float32 network; sums and parameters are float32 in any case.
        ``"tf32"`` and ``"bfloat16"`` round their operands to 10 and 7 bits behind the point, which
        tensor cores multiply several times faster; they need ``engine="cuda"``. With ``"float32"``
        nothing is ever computed in less.
    optimizer_state : OptimizerState, optional
        ``history.optimizer_state`` of the training that this one continues, with the same optimizer
        and network: step number, moments and velocity go on from there.
    checkpoint : path-like, optional
        A folder, of this training alone, to write checkpoints into: parameters, optimizer, random
        numbers, position in the epoch and history, in files that ``load`` reads as models, too,
        with the parameters of that moment. One is written whenever it is due, at the end, and when
        Ctrl-C or SIGTERM comes in the main thread, which end the training between two steps:
        SIGTERM then ends the process with exit code 143, or goes to the handler that there was.
        None is written where a callback raises.
    checkpoint_every : float or timedelta, default one minute
        Epochs, fractions of them included, or time.
    checkpoints_kept : int, default 3
        How many stay, the newest; older ones are deleted.
    resume : bool, default False
        Go on from the newest whole checkpoint in the folder; where there is none, begin. Pass what
        the training began with; only ``epochs`` may grow, and ``engine`` change (``"auto"`` is the
        one that the training began with). On the same machine, with the same versions and engine,
        the result is that of a training that was never broken off, bit for bit; unless a schedule's
        length is that of the training, which more epochs stretch, or batches that are brought
        differ. Data larger than memory are compared by a sample of rows, callables by their names.
        Callbacks hear of the epochs to come.
    communicator : mpi4py.MPI.Intracomm, optional
        The processes of a data-parallel training, started with ``mpiexec``. Each calls ``train``
        with the same network and data, and works on its part of the rows of every batch; gradients
        are summed over all before the update, so that the result is that of one process up to
        rounding. Callbacks run, and checkpoints are written, in the process of rank 0 alone. If one
        fails, each raises an error.

    Returns
    -------
    History

    Raises
    ------
    InputError
        If an argument is not as said; the network is unchanged then. Of batches that are brought, a
        later one may be wrong: the steps before it are kept. Also if another thread is training the
        network.
    CheckpointError
        If a checkpoint cannot be written, or training cannot go on from those that there are.
    DistributedError
        If another process failed, or was given other data or options.
    DeviceMemoryError
        If the memory of a GPU does not suffice; the message says what was needed.
    DivergenceError
        If the loss, the validation loss or a parameter becomes NaN or infinite; the network keeps
        the parameters that the last finite epoch ended with, or those of the best epoch where
        ``early_stopping`` restores it.

    Examples
    --------
    >>> import nnbackend as nb
    >>> X, y = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0, 1, 1, 0]
    >>> net = nb.Network([2, 8, 1], hidden="tanh", seed=1)
    >>> history = nb.train(net, X, y, optimizer=nb.Adam(0.05), epochs=200, batch_size=None)
    >>> net.predict(X)
    array([0, 1, 1, 0])
    >>> history.loss[-1] < 0.1 < history.loss[0]
    True
    """
    asked: dict[str, Any] = {
        "optimizer": optimizer, "loss": loss, "epochs": epochs, "batch_size": batch_size,
        "shuffle": shuffle,
        "seed": seed, "early_stopping": early_stopping, "callbacks": callbacks, "l1": l1, "l2": l2,
        "penalty_per_sample": penalty_per_sample, "loss_by_rows": loss_by_rows,
        "clip_value": clip_value, "clip_norm": clip_norm,
        "engine": engine, "precision": precision, "optimizer_state": optimizer_state,
        "checkpoint": checkpoint, "checkpoint_every": checkpoint_every,
        "checkpoints_kept": checkpoints_kept, "resume": resume,
    }  # fmt: skip
    options = TrainingOptions(**asked)
    interruption = Interruption()
    with ExitStack() as stack:
        # When all else is closed, SIGTERM is passed on, after an error, too.
        stack.push(interruption.forward)
        team = stack.enter_context(together(communicator))
        loop = _prepared(
            stack, net, (X, y, sample_weight), validation_data, options, interruption, team
        )
        return loop.run()


def _prepared(
    stack: ExitStack,
    net: Network,
    given: tuple[Any, Any, Any],
    validation_data: Any,
    options: TrainingOptions,
    interruption: Interruption,
    team: Team | None,
) -> Loop:
    """Return the loop that runs a training; the stack closes what it needs."""
    if not isinstance(net, Network):
        raise InputError(f"net: expected a nnbackend.Network, got {type(net).__name__}")
    if team is not None:
        options.require_shared()
    folder = checkpoint_folder(options, team)
    if folder is not None:
        stack.callback(folder.close)
    stack.enter_context(net.being_trained())
    device = get_device(net.device)
    objective = net.objective(
        options.loss, options.l1, options.l2, penalty_per_sample=options.penalty_per_sample
    )
    memory = Memory(net.preparation, objective, options.optimizer, options.batch_size)
    stack.enter_context(device.activate())
    stack.enter_context(memory.explained())
    examples, form, size = examples_of(net, memory, objective.loss, given, options, team)
    validation = validation_of(memory, objective.loss, validation_data)
    check_early_stopping(options.early_stopping, validation)
    problem = Problem(
        objective, options.optimizer, size, options.clip_value, options.clip_norm,
        options.precision, options.loss_by_rows,
    )  # fmt: skip
    found = find_checkpoint(folder, net, options, team)
    name = _engine_name(examples, problem, options, device, found)
    make_engine = get_engine(name, options.precision, device)
    shuffle, dropout = map(np.random.default_rng, np.random.SeedSequence(options.seed).spawn(2))
    engine = make_engine(Start(problem, device, net.parameters, form, dropout, team))
    set_optimizer_state(engine, options.optimizer_state, problem, device)
    loop = Loop(net, engine, problem, examples, validation, options, shuffle, interruption, team)
    if options.checkpoint is not None or team is not None:
        # Before signals are noted alone: of a source it reads rows, which may take long.
        identity = identity_of(net, options, problem, examples, validation, name)
        stack.enter_context(interruption)
        keep_and_share(loop, folder, options.checkpoint_every, identity, found)
    return loop


def _engine_name(
    examples: Examples,
    problem: Problem,
    options: TrainingOptions,
    device: Device,
    found: Checkpoint | None,
) -> str:
    """Return the name of the engine that is to run; what it is named by is checked later."""
    engine = options.engine
    if found is not None and engine == "auto":
        # What that stands for depends on the number of epochs, which may have grown.
        engine = found.engine_name
    if isinstance(examples, Feed):
        if engine not in ("auto", "reference"):
            raise InputError(
                f"engine: expected 'auto' or 'reference' with an iterable of batches, got "
                f"{engine!r}; pass arrays X and y for it"
            )
        return "reference"
    if isinstance(examples, Resident) and examples.n_without_weight and engine == "cuda":
        raise InputError(
            "sample_weight: expected fewer weights of 0 than examples in a batch with "
            f"engine='cuda', got {examples.n_without_weight} that are 0; leave those examples out, "
            "or use engine='reference'"
        )
    if isinstance(examples, Stream) and engine == "cuda":
        raise InputError(
            "engine: expected 'auto' or 'reference' with data that is read in blocks, got 'cuda', "
            "whose steps are planned for data on the GPU"
        )
    if engine != "auto":
        return engine
    return default_engine(device, reference_seconds(problem, examples.n_samples, options.epochs))
