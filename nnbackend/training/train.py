"""Train a network: check the arguments, choose the engine, and run the loop over epochs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

from nnbackend.core.losses import Loss
from nnbackend.core.optimizers import Optimizer, OptimizerState
from nnbackend.data.placement import Memory
from nnbackend.device import get_device
from nnbackend.engines import Training
from nnbackend.engines.driving import alone
from nnbackend.floating_point import own_errors
from nnbackend.model.network import Network
from nnbackend.parallel import Team, together
from nnbackend.training.arguments import (
    check_early_stopping,
    examples_of,
    validation_of,
)
from nnbackend.training.history import Callback, EarlyStopping, History
from nnbackend.training.identity import identity_of
from nnbackend.training.loop import Loop
from nnbackend.training.options import TrainingOptions
from nnbackend.training.plan import (
    Plan,
    engine_name,
    objective_of,
    problem_of,
    require_network,
)
from nnbackend.training.resuming import (
    checkpoint_folder,
    find_checkpoint,
    keep_and_share,
)
from nnbackend.training.signals import Interruption

__all__ = ["train", "training"]


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

    Data is checked once and copied to the network's device once. If a GPU has no room for the
    features, they stay on the host, and the rows of each batch are copied. The loss leaves the
    device once per epoch. Ctrl-C ends the training and keeps what was learnt so far. If you train
    in a loop, check ``history.stopped``, which is ``"interrupted"`` then.

    Parameters
    ----------
    net : Network
        The network, which is trained in place, on its own device.
    X : array-like (n_samples, n_features)
        One example per row. A data frame of pandas, polars or Arrow is read column by column, and
        its column names are kept as ``net.feature_names``. A ``numpy.memmap`` or Zarr array too
        large for memory is read in blocks; see ``nb.sources``. Without ``y``, pass a source from
        there, or an iterable of batches (X, y) or (X, y, sample_weight), such as torch's
        DataLoader. Each pass over an iterable is an epoch; ``batch_size`` and ``shuffle`` have no
        effect on it, and it needs the reference engine. If features have very different scales,
        call ``net.standardize(X)`` first, and ``net.standardize(X, y)`` for a regression.
    y : array-like
        Sigmoid: labels 0 and 1, (n_samples,) or (n_samples, n_outputs). Softmax: integer labels
        (n_samples,), or rows (n_samples, n_classes) that sum to one within 1e-3, which are then
        divided by their sums. Identity, exp: numbers, (n_samples,) or (n_samples, n_outputs).
        Gaussian, quantile: numbers, (n_samples,).
    optimizer : str or Optimizer, optional
        ``nb.SGD``, ``nb.RMSprop``, ``nb.Adagrad``, ``nb.Adam`` or ``nb.AdamW``, with a learning
        rate or a schedule of ``nb.schedules``; or the name of one, with its defaults. By default
        ``nb.Adam(1e-3)``.
    loss : str or Loss, optional
        ``binary_cross_entropy``, ``softmax_cross_entropy``, ``squared_error``, ``absolute_error``,
        ``huber``, ``poisson``, ``quantile``, ``gaussian``, or an instance from ``nb.losses``. By
        default, sigmoid implies the first, softmax the second, identity the third, exp ``poisson``,
        and the other outputs the loss of their name.
    epochs : int, default 50
        Passes over the data.
    batch_size : int or None, default 128
        Examples per step; the last batch of an epoch may be shorter. None, or the number of
        examples, gives full-batch gradient descent.
    shuffle : bool or callable, default True
        Draw a new order of the examples for every epoch. A callable is called once per epoch and
        returns the order, an array (n_samples,) of row numbers.
    seed : int or None, default 0
        The seed of the orders and the dropout masks, which are drawn on the host. None draws new
        ones each time.
    sample_weight : array-like (n_samples,), optional
        Weights >= 0, not all 0; the loss of a batch is the weighted mean over its examples.
        Examples with weight 0 have no effect. A batch of only such examples is skipped: it takes no
        step, so momentum and penalties change nothing. ``engine="cuda"`` cannot skip a batch, and
        refuses data with enough examples of weight 0 to fill one.
    validation_data : tuple (X, y) or (X, y, sample_weight), optional
        Data whose loss is computed after every epoch.
    early_stopping : EarlyStopping, optional
        The rule for when to stop, and whether to restore the best parameters.
    callbacks : callable or iterable of callables
        Functions to call as ``callback(state)`` after every epoch, with a ``TrainingState``;
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
    engine : {"auto", "native", "cuda", "reference"}, default "auto"
        The engine that runs the steps; all engines give the same numbers up to rounding.
        ``"reference"`` calls the formulas on arrays. ``"native"`` (or ``"cpu"``, its former name)
        runs whole epochs in a C library on the CPU; a formula of your own that cannot be recorded
        is called between the parts of a step. ``"cuda"`` plans a network's steps on the GPU, fuses
        their kernels and replays them as CUDA graphs; it has not run on a GPU yet. Its kernels
        treat float32 numbers below 1.2e-38 as 0. ``"auto"`` is ``"native"`` on the CPU, and
        ``"reference"`` on a GPU, with an iterable of batches, and where the library is missing,
        which a warning says.
    precision : {"float32", "tf32", "bfloat16"}, default "float32"
        The precision of the matrix products in a float32 network; sums and parameters are always
        float32. ``"tf32"`` and ``"bfloat16"`` round the operands to 10 and 7 bits behind the point,
        which tensor cores multiply several times faster; they need ``engine="cuda"``. With
        ``"float32"``, nothing is computed in lower precision.
    optimizer_state : OptimizerState, optional
        ``history.optimizer_state`` of an earlier training of this network with the same optimizer:
        continue with its step number, moments and velocity.
    checkpoint : path-like, optional
        A folder for the checkpoints of this training only. A checkpoint holds parameters,
        optimizer, random numbers, position in the epoch and history; ``load`` can read the file as
        a model with the parameters of that moment. Checkpoints are written when they are due and at
        the end, but not if a callback raises. Ctrl-C and SIGTERM in the main thread end the
        training between two steps and write one, too; SIGTERM then goes to its previous handler,
        or ends the process with exit code 143.
    checkpoint_every : float or timedelta, default one minute
        The interval, in epochs (fractions are allowed) or as a time.
    checkpoints_kept : int, default 3
        The number of checkpoints to keep; older ones are deleted.
    resume : bool, default False
        Continue from the newest undamaged checkpoint in the folder, or begin if there is none. Pass
        the same arguments as at the beginning; only ``epochs`` may grow and ``engine`` change
        (``"auto"`` means the engine of the beginning). On the same machine, with the same versions
        and engine, the result equals that of an uninterrupted training bit for bit, unless more
        epochs stretch a schedule, or an iterable yields other batches. Data larger than memory is
        compared by a sample of rows, callables by their names. Callbacks run only for the remaining
        epochs.
    communicator : mpi4py.MPI.Intracomm, optional
        The processes of a data-parallel training, started with ``mpiexec``. Each calls ``train``
        with the same network and data, and works on its part of the rows of every batch. Gradients
        are summed over all processes before the update, so the result equals that of one process
        up to rounding. Only the process of rank 0 runs callbacks and writes checkpoints. If one
        process fails, all raise an error.

    Returns
    -------
    History

    Raises
    ------
    InputError
        If an argument is invalid, or another thread is training the network; the network is
        unchanged then. If a later batch of an iterable is invalid, the steps before it are kept.
    CheckpointError
        If a checkpoint cannot be written, or training cannot resume from the existing ones.
    DistributedError
        If another process failed, or has other data or options.
    DeviceMemoryError
        If the memory of a GPU does not suffice; the message says how much was needed.
    DivergenceError
        If the loss, the validation loss or a parameter becomes NaN or infinite. The network keeps
        the parameters after the last finite epoch, or after the best epoch if ``early_stopping``
        restores it.

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
    interruption = Interruption()
    with ExitStack() as stack:
        # Pass SIGTERM on after everything else is closed, even after an error.
        stack.push(interruption.forward)
        team = stack.enter_context(together(communicator))
        # Within the team: what one process refuses ends all.
        options = TrainingOptions(**asked)
        loop = _prepared(
            stack, net, (X, y, sample_weight), validation_data, options, interruption, team
        )
        return alone(loop.run())


def training(
    net: Network,
    given: tuple[Any, Any, Any],
    options: TrainingOptions,
    validation_data: Any = None,
) -> Training[History]:
    """Return what ``train`` does, without checkpoints and other processes, as a ``Training``.

    Parameters
    ----------
    net : Network
        The network.
    given : tuple (X, y, sample_weight)
        As for ``train``.
    options : TrainingOptions
        Its options.
    validation_data : tuple, optional
        As for ``train``.
    """
    with ExitStack() as stack:
        loop = _prepared(stack, net, given, validation_data, options, Interruption(), None)
        return (yield from loop.run())


def _prepared(
    stack: ExitStack,
    net: Network,
    given: tuple[Any, Any, Any],
    validation_data: Any,
    options: TrainingOptions,
    interruption: Interruption,
    team: Team | None,
) -> Loop:
    """Return the loop that runs a training; the stack closes its resources."""
    require_network(net)
    if team is not None:
        options.require_shared()
    folder = checkpoint_folder(options, team)
    if folder is not None:
        stack.callback(folder.close)
    stack.enter_context(net.being_trained())
    device = get_device(net.device)
    objective = objective_of(net, options)
    memory = Memory(net.preparation, objective, options.optimizer, options.batch_size)
    stack.enter_context(memory.explained())
    # Leave the context before the first step: other trainings may run between two steps.
    with device.activate():
        examples, form, size = examples_of(net, memory, objective.loss, given, options, team)
        validation = validation_of(memory, objective.loss, validation_data)
        check_early_stopping(options.early_stopping, validation)
        problem = problem_of(objective, options, size)
        found = find_checkpoint(folder, net, options, team)
        name = engine_name(examples, options, device, found)
        plan = Plan(net, options, problem, examples, form, validation, name)
        loop = plan.begin(interruption, team)
    if options.checkpoint is not None or team is not None:
        # Compute this while signals still act at once: it may read rows of a source for long.
        identity = identity_of(net, options, problem, examples, validation, name)
        stack.enter_context(interruption)
        keep_and_share(loop, folder, options.checkpoint_every, identity, found)
    return loop
