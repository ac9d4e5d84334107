"""What is taken over: one entry for each method or function."""

from __future__ import annotations

from nnbackend.accel import networks
from nnbackend.accel.patching import Takeover

__all__ = ["TAKEOVERS"]

_NETWORKS = "sklearn.neural_network"

TAKEOVERS = (
    Takeover(_NETWORKS, "MLPClassifier.fit", networks.fit),
    Takeover(_NETWORKS, "MLPClassifier.partial_fit", networks.partial_fit_classes),
    Takeover(_NETWORKS, "MLPClassifier.predict", networks.predict),
    Takeover(_NETWORKS, "MLPClassifier.predict_proba", networks.predict_proba),
    Takeover(_NETWORKS, "MLPRegressor.fit", networks.fit),
    Takeover(_NETWORKS, "MLPRegressor.partial_fit", networks.partial_fit),
    Takeover(_NETWORKS, "MLPRegressor.predict", networks.predict),
)
