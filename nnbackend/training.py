"""Training: what is asked for is checked, and made into a loop over epochs."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import numpy as np

from nnbackend import __version__
from nnbackend.checkpoints import (
    Checkpoint,
    CheckpointFolder,
    Keeper,
    checked_interval,
    options_of,
    read_checkpoint,
    require_same_options,
)
from nnbackend.checks import positive_integer, real
from nnbackend.core.losses import Loss
from nnbackend.core.optimizers import Adam, Optimizer, OptimizerState
from nnbackend.core.optimizers import optimizer as get_optimizer
from nnbackend.device import Device, get_device
from nnbackend.distributed import Team, together
from nnbackend.engines import (
    Data,
    Engine,
    PartialEngine,
    Problem,
    default_engine,
    get_engine,
    reference_seconds,
)
from nnbackend.errors import CheckpointError, InputError
from nnbackend.feed import Examples, Feed, Resident, data_digest
from nnbackend.files import write_atomically
from nnbackend.floating_point import own_errors
from nnbackend.history import Callback, EarlyStopping, History, TrainingState
from nnbackend.interruption import Interruption
from nnbackend.loop import Generators, Loop
from nnbackend.memory import Memory
from nnbackend.network import Network
from nnbackend.persistence import STANDARDIZATIONS, to_bytes
from nnbackend.sources import as_source
from nnbackend.stream import Stream

__all__ = ["Callback", "EarlyStopping", "History", "TrainingState", "train"]

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
    interruption = Interruption()
    with ExitStack() as stack:
        # When all else is closed, SIGTERM is passed on, after an error, too.
        stack.push(interruption.forward)
        team = stack.enter_context(together(communicator))
        if not isinstance(net, Network):
            raise InputError(f"net: expected a nnbackend.Network, got {type(net).__name__}")
        chosen = Adam(1e-3) if optimizer is None else get_optimizer(optimizer)
        epochs = positive_integer("epochs", epochs)
        if batch_size is not None:
            batch_size = positive_integer("batch_size", batch_size)
        _check_randomness(shuffle, seed, keeps=checkpoint is not None, has_team=team is not None)
        clip_value, clip_norm = _bound("clip_value", clip_value), _bound("clip_norm", clip_norm)
        _check_flags(
            penalty_per_sample=penalty_per_sample, loss_by_rows=loss_by_rows, resume=resume
        )
        hooks = _callbacks(callbacks, team)
        every = checked_interval(checkpoint_every)
        folder = _folder(checkpoint, checkpoints_kept, resume, team)
        if folder is not None:
            stack.callback(folder.close)
        stack.enter_context(net.being_trained())
        device = get_device(net.device)
        objective = net.objective(loss, l1, l2, penalty_per_sample=penalty_per_sample)
        memory = Memory(net, objective, chosen, batch_size)
        stack.enter_context(device.activate())
        stack.enter_context(memory.explained())
        examples, form, size = _examples(
            net, memory, objective.loss, (X, y, sample_weight), batch_size, shuffle, team
        )
        validation = _validation(memory, objective.loss, validation_data)
        _check_early_stopping(early_stopping, validation)
        problem = Problem(objective, chosen, size, clip_value, clip_norm, precision, loss_by_rows)
        found = _found(folder, net, team, checkpoint=checkpoint is not None, resume=resume)
        engine = _engine_name(examples, problem, engine, device, epochs, found)
        make_engine = get_engine(engine, precision, device)
        generators = Generators.of(seed)
        runner = make_engine(problem, device, net.parameters, form, generators.dropout, team)
        _set_optimizer_state(runner, optimizer_state, problem, device)
        loop = Loop(
            net, runner, problem, examples, validation, early_stopping, hooks, epochs, generators,
            interruption, team,
        )  # fmt: skip
        if checkpoint is not None or team is not None:
            _check_parts(loop.partial, problem, device)
            # Before signals are noted alone: of a source it reads rows, which may take long.
            options = _options(
                net, problem, examples, validation, shuffle, seed, early_stopping, engine
            )
            stack.enter_context(interruption)
            _keep_and_share(loop, folder, every, options, found)
        loop.run()
    return loop.history


def _check_flags(**flags: Any) -> None:
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise InputError(f"{name}: expected True or False, got {flag!r}")


def _check_randomness(shuffle: Any, seed: Any, *, keeps: bool, has_team: bool) -> None:
    """Check what decides the order of the examples."""
    if seed is not None:
        positive_integer("seed", seed, minimum=0)
    elif has_team:
        raise InputError(
            "seed: expected a number with a communicator, so that all processes draw alike, got "
            "None"
        )
    if not (isinstance(shuffle, bool) or callable(shuffle)):
        raise InputError(f"shuffle: expected True, False or a callable, got {shuffle!r}")
    if callable(shuffle) and (keeps or has_team):
        other = "checkpoint" if keeps else "communicator"
        raise InputError(
            f"shuffle: expected True or False with a {other}, got a callable, whose state "
            "nnbackend does not know"
        )


def _folder(path: Any, keep: int, resume: bool, team: Team | None) -> CheckpointFolder | None:
    """Return the folder of the checkpoints, in the one process that writes them."""
    if path is None:
        if resume:
            raise InputError("resume: expected checkpoint, the folder to go on from, got None")
        return None
    if team is not None and team.rank > 0:
        return None
    folder = CheckpointFolder(path, keep)
    if not resume and folder.files():
        folder.close()
        raise CheckpointError(
            f"checkpoint: expected a folder without checkpoints, got {folder.path!r}, which holds "
            "some; pass resume=True to go on from them, or choose another folder"
        )
    return folder


def _examples(
    net: Network,
    memory: Memory,
    loss: Loss,
    given: tuple[Any, Any, Any],
    batch_size: int | None,
    shuffle: Any,
    team: Team | None,
) -> tuple[Examples, Data, int]:
    """Return the examples, a ``Data`` of the form of theirs, and the size of a batch."""
    X, y, sample_weight = given
    source = as_source(X, y, sample_weight)
    if source is not None:
        if batch_size is None:
            raise InputError(
                "batch_size: expected a number with data that is read in blocks, got None"
            )
        if callable(shuffle):
            raise InputError(
                "shuffle: expected True or False with data that is read in blocks, got a callable"
            )
        stream = Stream(net, source, loss, batch_size, shuffle)
        net.learn_feature_names(source)
        return stream, stream.form().rows(0, 0), min(batch_size, stream.n_samples)
    if y is None:
        if sample_weight is not None:
            raise InputError(
                "sample_weight: expected None without y, got weights; a batch that X yields "
                "has its own: (X, y, sample_weight)"
            )
        if team is not None:
            raise InputError(
                "X: expected arrays or a source of nb.sources with a communicator, got "
                f"{type(X).__name__}: whether all processes are brought the same batches cannot be "
                "known"
            )
        nothing = net.parameters[:0]
        return Feed(net, X, loss), Data(nothing, nothing), 1
    data = memory.prepare(X, y, loss, sample_weight)
    net.learn_feature_names(X)
    size = min(batch_size or data.n_samples, data.n_samples)
    return Resident(data, size, shuffle), data, size


def _set_optimizer_state(engine: Engine, given: Any, problem: Problem, device: Device) -> None:
    if given is not None:
        state = _checked_state(given, problem, device)
        engine.set_state(engine.state._replace(optimizer=state))


def _check_parts(engine: PartialEngine | None, problem: Problem, device: Device) -> None:
    """Check that the state of an engine can be kept."""
    if engine is None and problem.objective.structure.has_dropout:
        raise InputError(
            f"checkpoint: expected engine='reference' for a network with dropout on {device}, got "
            "'cuda', which keeps the state of its random numbers on the GPU"
        )


def _options(
    net: Network,
    problem: Problem,
    examples: Examples,
    validation: Data | None,
    shuffle: Any,
    seed: Any,
    early_stopping: EarlyStopping | None,
    engine: str,
) -> dict[str, str]:
    """Return as text what decides the outcome: a training that goes on has the same."""
    to_numpy = get_device(net.device).to_numpy
    return options_of(
        layer_sizes=net.layer_sizes,
        hidden=net.hidden,
        output=net.output,
        dropout=net.dropout,
        dtype=net.dtype,
        optimizer=problem.optimizer,
        loss=problem.objective.loss,
        l1=problem.objective.l1,
        l2=problem.objective.l2,
        penalty_per_sample=problem.objective.penalty_per_sample,
        batch_size=problem.batch_size,
        clip_value=problem.clip_value,
        clip_norm=problem.clip_norm,
        precision=problem.precision,
        engine=engine,
        shuffle=shuffle,
        seed=seed,
        early_stopping=early_stopping,
        data=examples.digest(to_numpy),
        validation_data=None if validation is None else data_digest(validation, to_numpy),
        feature_names=net.feature_names,
        # Checkpoints written before there was this option do not have it.
        **({"loss_by_rows": True} if problem.loss_by_rows else {}),
        **{name: _columns_digest(getattr(net, name), to_numpy) for name in STANDARDIZATIONS},
    )


def _columns_digest(columns: Any, to_numpy: Callable[[Any], Any]) -> str:
    if columns is None:
        return "none"
    return hashlib.sha256(b"".join(to_numpy(x).tobytes() for x in columns)).hexdigest()


def _found(
    folder: CheckpointFolder | None,
    net: Network,
    team: Team | None,
    *,
    checkpoint: bool,
    resume: bool,
) -> Checkpoint | None:
    """Return the checkpoint to go on from, the same in all processes."""
    found = folder.newest(net) if folder is not None and resume else None
    if team is None:
        return found
    team.agree(options_of(checkpoint=checkpoint, resume=resume))
    content = team.share(lambda: None if found is None else found.to_bytes(net))
    return _checkpoint_of(content, net) if content is not None and team.rank > 0 else found


def _keep_and_share(
    loop: Loop,
    folder: CheckpointFolder | None,
    every: float | timedelta,
    options: dict[str, str],
    found: Checkpoint | None,
) -> None:
    """Have a loop write checkpoints, go on from one, and share its steps with other processes."""
    net, team = loop.net, loop.team
    if found is not None:
        require_same_options(found.options, options)
    if team is not None:
        device = get_device(net.device)
        digest = hashlib.sha256(device.to_numpy(net.parameters).tobytes()).hexdigest()
        asked = {**options, **options_of(epochs=loop.epochs), "initial parameters": digest}
        team.agree({**asked, "versions": f"nnbackend {__version__}, numpy {np.__version__}"})
        team.allocate(device, net.n_parameters, net.dtype)
    if folder is not None:
        # A network that cannot be stored is found out before it is trained.
        to_bytes(net)
        loop.keeper = Keeper(folder, every, options, loop.steps)
    if found is not None:
        _LOGGER.info(
            "nnbackend: going on after epoch %d, step %d", found.history.n_epochs, found.position
        )
        loop.resume(found)


def _checkpoint_of(content: bytes, net: Network) -> Checkpoint:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "checkpoint")
        write_atomically(path, content)
        return read_checkpoint(path, net)


def _bound(name: str, value: float | None) -> float | None:
    return None if value is None else real(name, value, above=0.0)


def _engine_name(
    examples: Examples,
    problem: Problem,
    engine: Any,
    device: Device,
    epochs: int,
    found: Checkpoint | None,
) -> str:
    """Return the name of the engine that is to run; what it is named by is checked later."""
    if found is not None and engine == "auto":
        # What that stands for depends on the number of epochs, which may have grown.
        engine = found.options.get("engine", "").strip("'")
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
        return engine  # type: ignore[no-any-return]
    return default_engine(device, reference_seconds(problem, examples.n_samples, epochs))


def _checked_state(state: Any, problem: Problem, device: Device) -> OptimizerState:
    """Return an optimizer's state on the device; raise if it is not one of this problem."""
    if not isinstance(state, OptimizerState):
        raise InputError(
            "optimizer_state: expected the optimizer_state of a History, got "
            f"{type(state).__name__}"
        )
    names = problem.optimizer.state_names
    shapes = [tuple(array.shape) for array in state.arrays]
    expected = [(problem.objective.structure.n_parameters,)] * len(names)
    if shapes != expected:
        raise InputError(
            f"optimizer_state: expected {len(names)} arrays of {expected[:1] or 'no'} numbers, as "
            f"{problem.optimizer.name} has for this network, got shapes {shapes}"
        )
    return OptimizerState(state.step, tuple(map(device.place, state.arrays)))


def _validation(memory: Memory, loss: Loss, validation_data: Any) -> Data | None:
    if validation_data is None:
        return None
    if not isinstance(validation_data, tuple | list) or len(validation_data) not in (2, 3):
        raise InputError(
            "validation_data: expected a tuple (X, y) or (X, y, sample_weight), got "
            + (
                f"{len(validation_data)} entries"
                if isinstance(validation_data, tuple | list)
                else type(validation_data).__name__
            )
        )
    X, y, weight = (*validation_data, None)[:3]
    names = ("validation_data[0]", "validation_data[1]", "validation_data[2]")
    return memory.prepare(X, y, loss, weight, names)


def _callbacks(callbacks: Any, team: Team | None) -> tuple[Callback, ...]:
    """Return the callbacks that are called in this process."""
    given = tuple(callbacks) if isinstance(callbacks, Iterable) else (callbacks,)
    for callback in given:
        if not callable(callback):
            raise InputError(
                f"callbacks: expected a callable or several, called as callback(state), got "
                f"{callback!r}"
            )
    return given if team is None or team.rank == 0 else ()


def _check_early_stopping(early_stopping: Any, validation: Data | None) -> None:
    if early_stopping is None:
        return
    if not isinstance(early_stopping, EarlyStopping):
        raise InputError(
            f"early_stopping: expected an EarlyStopping or None, got {early_stopping!r}"
        )
    if validation is None and early_stopping.monitor == "validation_loss":
        raise InputError(
            "early_stopping: expected validation_data to watch its loss, got None; pass it, or use "
            "EarlyStopping(monitor='loss')"
        )
