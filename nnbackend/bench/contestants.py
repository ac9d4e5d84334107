"""The table of all contestants of ``nnbackend bench``, by name."""

from __future__ import annotations

from nnbackend.bench.contestant import Contestant
from nnbackend.bench.limit import Limit
from nnbackend.bench.own import NNBackend, own_name, with_engine
from nnbackend.bench.peer_jax import JAX, JAXScan
from nnbackend.bench.peer_numpy import ScikitLearn, Textbook
from nnbackend.bench.peer_torch import Torch, TorchCompiled, TorchGraph
from nnbackend.engines import ENGINES

__all__ = ["CONTESTANTS", "LIMIT", "OWN"]

LIMIT = "limit"
OWN = tuple(own_name(engine) for engine in ("auto", *sorted(ENGINES)))

CONTESTANTS: dict[str, type[Contestant]] = {
    "nnbackend": NNBackend,
    **{own_name(engine): with_engine(engine) for engine in ENGINES},
    "textbook": Textbook,
    "sklearn": ScikitLearn,
    "torch": Torch,
    "torch-graph": TorchGraph,
    "torch-compiled": TorchCompiled,
    "jax": JAX,
    "jax-scan": JAXScan,
    LIMIT: Limit,
}
