"""Collect all that decides the outcome of a training, and compare it when a training resumes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from nnbackend.data.examples import Data, Examples, data_digest
from nnbackend.device import get_device
from nnbackend.engines import Problem
from nnbackend.io.format import STANDARDIZATIONS
from nnbackend.model.network import Network
from nnbackend.training.errors import CheckpointError
from nnbackend.training.options import TrainingOptions

__all__ = ["as_json", "as_text", "identity_of", "require_same"]

# The one entry that is stored but may change.
_FREE = "engine"
# The digests of what the training takes, which other entries decide with the caller's data.
_DIGESTS = ("data", "validation_data")


def identity_of(
    net: Network,
    options: TrainingOptions,
    problem: Problem,
    examples: Examples,
    validation: Data | None,
    engine: str,
) -> dict[str, Any]:
    """Return all that decides the outcome, by name: options, network, and digests of the data."""
    to_numpy = get_device(net.device).to_numpy
    return {
        **options.deciding(),
        # Store the values that defaults stand for: the loss that the output implies, a batch of
        # all examples.
        "loss": problem.objective.loss,
        "batch_size": problem.batch_size,
        "engine": engine,
        "layer_sizes": net.layer_sizes,
        "hidden": net.hidden,
        "output": net.output,
        "dropout": net.dropout,
        "dtype": net.dtype,
        "feature_names": net.feature_names,
        "data": examples.digest(to_numpy),
        "validation_data": None if validation is None else data_digest(validation, to_numpy),
        **{name: _columns_digest(getattr(net, name), to_numpy) for name in STANDARDIZATIONS},
        # Version 0.1.0 had none.
        **({} if net.encoding is None else {"data_encoding": net.encoding.to_json()}),
    }


def _columns_digest(columns: Any, to_numpy: Callable[[Any], Any]) -> str:
    if columns is None:
        return "none"
    return hashlib.sha256(b"".join(to_numpy(x).tobytes() for x in columns)).hexdigest()


def as_text(values: Mapping[str, Any]) -> dict[str, str]:
    """Return values as texts that are equal in every process."""
    return {name: _text(value) for name, value in values.items()}


def _text(value: Any) -> str:
    # Remove addresses, which the default repr of a user's object contains.
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def as_json(value: Any) -> Any:
    """Return a value as JSON can hold it: an object as the name of its class and its fields."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(entry) for entry in value]
    if is_dataclass(value) and not isinstance(value, type):
        entries = {entry.name: getattr(value, entry.name) for entry in fields(value)}
        return {"class": type(value).__qualname__, **as_json(entries)}
    return _text(value)


def require_same(found: Mapping[str, Any], asked: Mapping[str, Any], *, is_text: bool) -> None:
    """Raise a CheckpointError that names the first difference, if there is any.

    Parameters
    ----------
    found : mapping
        The identity in a checkpoint.
    asked : mapping
        The identity of the training that resumes, from ``identity_of``.
    is_text : bool
        Whether the values of ``found`` are text, as version 0.1.0 wrote them, rather than JSON.
    """
    now: Mapping[str, Any] = as_text(asked) if is_text else as_json(asked)
    defaults: Mapping[str, Any] = TrainingOptions().deciding()
    defaults = as_text(defaults) if is_text else as_json(defaults)
    # Compare the data last, so that a different standardization or encoding, which changes the
    # data's digest, is reported by its own name.
    for name in sorted({*found, *now} - {_FREE}, key=lambda name: (name in _DIGESTS, name)):
        # An option that a later version added had its default value.
        was = found.get(name, defaults.get(name, "nothing"))
        different = _first_difference(name, was, now.get(name, "nothing"))
        if different is not None:
            where, before, after = different
            raise CheckpointError(
                f"expected to go on with the same {where} ({before}), got {after}; "
                "only epochs and engine may change: pass what the training began with, or choose "
                "another folder",
                argument="checkpoint",
            )


def _first_difference(name: str, was: Any, now: Any) -> tuple[str, str, str] | None:
    """Return the name of the first difference, and both values as short texts."""
    if was == now:
        return None
    if isinstance(was, dict) and isinstance(now, dict) and was.get("class") == now.get("class"):
        for key in sorted({*was, *now}):
            found = _first_difference(f"{name}.{key}", was.get(key), now.get(key))
            if found is not None:
                return found
    texts = was, now
    if not (isinstance(was, str) and isinstance(now, str)):
        texts = _shown(was), _shown(now)
    # Begin a little before the first difference.
    pairs = enumerate(zip(*texts, strict=False))
    start = max(0, next((i for i, (a, b) in pairs if a != b), 0) - 40)
    return name, *(_excerpt(text, start) for text in texts)  # type: ignore[return-value]


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "class" in value:
        entries = (f"{key}={_shown(entry)}" for key, entry in value.items() if key != "class")
        return f"{value['class']}({', '.join(entries)})"
    return repr(value)


def _excerpt(text: str, start: int, length: int = 120) -> str:
    end = start + length
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"
