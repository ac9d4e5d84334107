"""scikit-learn programs, faster without a change: its neural networks computed by nnbackend.

``python -m nnbackend.accel script.py`` runs a program so; ``--report`` prints at the end which
calls were taken over, which were not and why, and their seconds. In a program or notebook,
``nnbackend.accel.install()`` or ``%load_ext nnbackend.accel`` do it, and ``uninstall()`` ends it.

``fit``, ``partial_fit``, ``predict`` and ``predict_proba`` of ``sklearn.neural_network``'s
``MLPClassifier`` and ``MLPRegressor`` are replaced in these classes. The classes remain
scikit-learn's, and so do all estimators, also those that were made or pickled before or will be
used without nnbackend: fits leave in them what scikit-learn's own leaves, the optimizer included.

What nnbackend does not take is left to scikit-learn: a subclass that overrides private methods, a
sparse ``y``, a large sparse ``X``, arrays of other libraries with ``array_api_dispatch``, a second
``fit`` with ``warm_start`` and ``early_stopping``; and calls of fewer than five steps, such as
``partial_fit`` with few rows, which take no longer there. So is all input that nnbackend refuses:
scikit-learn raises its own error, or computes what it can.

``GridSearchCV``, ``RandomizedSearchCV``, ``cross_validate``, ``cross_val_score`` (counted as
``cross_validate``, which it calls) and ``cross_val_predict`` train these networks side by side, in
threads of this process, whatever ``n_jobs`` says; a pipeline may end with them. Their seconds
contain those of the fits. Networks without a ``random_state`` draw from NumPy's one generator in
changing order, as in threads of joblib. Left to scikit-learn are searches with other estimators
among the candidates, those of L-BFGS alone, and all where the program has chosen a backend with
``joblib.parallel_config``.

Other processes that joblib starts (``n_jobs=2`` with its default backend) compute with
scikit-learn's own methods: what is sent to them is a plain estimator of scikit-learn. They use
nnbackend, and count their calls by themselves, if they start with
``joblib.parallel_config("loky", initializer=nnbackend.accel.install)`` (joblib 1.6). Threads
(``joblib.parallel_config("threading")``) and forked processes use it as they are.

Read ``table.py`` first: what is taken over; then ``patching.py``: how.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnbackend.accel.patching import Patches

__all__ = [
    "install",
    "load_ipython_extension",
    "patch_sklearn",
    "report",
    "uninstall",
    "unload_ipython_extension",
    "unpatch_sklearn",
]


@functools.cache
def _patches() -> Patches:
    # Imported when it is used: importing nnbackend.accel loads no scikit-learn.
    import sklearn

    from nnbackend.accel.patching import Patches

    try:
        from nnbackend.accel.table import TAKEOVERS
    except (AttributeError, KeyError, TypeError) as error:
        # The program has to run all the same.
        warnings.warn(
            f"nnbackend.accel does not know the networks of scikit-learn {sklearn.__version__} "
            f"({type(error).__name__}: {error}): nothing is taken over; update nnbackend",
            RuntimeWarning,
            stacklevel=3,
        )
        return Patches(())
    return Patches(TAKEOVERS)


def install() -> None:
    """Take over scikit-learn's neural networks; nothing if that is done.

    Examples
    --------
    >>> import nnbackend.accel
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> nnbackend.accel.install()
    >>> X, y = load_iris(return_X_y=True)
    >>> mlp = MLPClassifier((8,), solver="lbfgs", max_iter=2000, random_state=0).fit(X, y)
    >>> nnbackend.accel.uninstall()
    >>> print(nnbackend.accel.report())  # doctest: +ELLIPSIS
    nnbackend.accel took over 1 of 1 calls
    <BLANKLINE>
    taken over             calls    seconds
      MLPClassifier.fit        1      ...
    """
    _patches().install()


def uninstall() -> None:
    """Put scikit-learn's own methods back; nothing if that is done."""
    _patches().uninstall()


def report() -> str:
    """Return what became of the calls since ``install``, as text.

    Returns
    -------
    str
        Calls and their seconds: those that were taken over, those left to scikit-learn and why,
        and those that ended with an error.
    """
    return _patches().records.text()


# The names that scikit-learn-intelex has made known.
patch_sklearn = install
unpatch_sklearn = uninstall


def load_ipython_extension(ipython: Any) -> None:
    """Do what ``%load_ext nnbackend.accel`` asks for."""
    del ipython
    install()


def unload_ipython_extension(ipython: Any) -> None:
    """Do what ``%unload_ext nnbackend.accel`` asks for."""
    del ipython
    uninstall()
