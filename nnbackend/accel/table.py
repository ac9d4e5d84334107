"""What is taken over: one entry for each method or function."""

from __future__ import annotations

from nnbackend.accel import networks, searches
from nnbackend.accel.patching import Takeover

__all__ = ["TAKEOVERS"]

_NETWORKS = "sklearn.neural_network"
_SELECTION = "sklearn.model_selection"

TAKEOVERS = (
    Takeover(_NETWORKS, "MLPClassifier.fit", networks.fit),
    Takeover(_NETWORKS, "MLPClassifier.partial_fit", networks.partial_fit_classes),
    Takeover(_NETWORKS, "MLPClassifier.predict", networks.predict),
    Takeover(_NETWORKS, "MLPClassifier.predict_proba", networks.predict_proba),
    Takeover(_NETWORKS, "MLPRegressor.fit", networks.fit),
    Takeover(_NETWORKS, "MLPRegressor.partial_fit", networks.partial_fit),
    Takeover(_NETWORKS, "MLPRegressor.predict", networks.predict),
    Takeover(_SELECTION, "GridSearchCV.fit", searches.fit, is_around=True),
    Takeover(_SELECTION, "RandomizedSearchCV.fit", searches.fit, is_around=True),
    # cross_val_score calls it, in scikit-learn's own module, too.
    Takeover(_SELECTION, "cross_validate", searches.validate, is_around=True),
    Takeover(_SELECTION, "cross_val_predict", searches.validate, is_around=True),
)
