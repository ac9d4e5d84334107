"""Models on disk."""

from __future__ import annotations

import os
from typing import Any

from nnbackend.device import Device, get_device
from nnbackend.io.container import Contents, read_file
from nnbackend.io.files import checked_path, write_atomically
from nnbackend.io.format import read_model, to_bytes
from nnbackend.model.network import Network
from nnbackend.model.stack import Stack

__all__ = ["read", "save"]


def save(net: Any, path: str | os.PathLike[str]) -> None:
    """Write a network to a safetensors file, whole or not at all.

    The file holds parameters, structure, standardization, encoding, feature and class names, the
    versions of nnbackend and NumPy, and a checksum of all that. It does not depend on the network's
    device. The state of an optimizer is not part of a model.

    Parameters
    ----------
    net : Network
        The network; a registered activation is stored by its name. Also a fitted ``MLPClassifier``
        or ``MLPRegressor``, or a Pipeline of a ``TableEncoder``, a ``StandardScaler``, or both, and
        one of them: it is stored as ``from_sklearn`` gives it, and loaded as a network. Also a
        fitted ``EnsembleClassifier`` or ``EnsembleRegressor``, or such a Pipeline with one of them:
        all members go into the file, and what is loaded is such an ensemble, or Pipeline, again.
    path : path-like
        The file; its folder has to exist. An existing file is replaced, with its mode and, where
        that is permitted, its owner. Links are followed; pipes and devices are written to.

    Raises
    ------
    InputError
        If the network cannot be stored: a parameter is not finite, or an activation is not
        registered; or if the file cannot be written.

    Examples
    --------
    >>> import nnbackend as nb, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> nb.save(nb.Network([2, 3, 1]), path)
    >>> nb.load(path)
    Network([2, 3, 1], hidden='relu', output='sigmoid', dtype='float32', device='cpu')
    """
    write_atomically(path, to_bytes(net))


def read(path: str | os.PathLike[str], device: str | Device = "cpu") -> Network | Stack:
    """Read a network, or the networks of an ensemble, from a file; see ``nb.load``."""
    target = get_device(device)
    return read_model(Contents(read_file(path), checked_path(path)), target)
