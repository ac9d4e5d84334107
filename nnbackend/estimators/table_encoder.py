"""``TableEncoder``: tables as they come - text, gaps, dates - as inputs of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from nnbackend.checks import positive_integer
from nnbackend.data.deciding import EncodingOptions, Survey
from nnbackend.data.door import look
from nnbackend.data.encoded import Encoded
from nnbackend.data.encoding import TableEncoding, described
from nnbackend.data.source import Source
from nnbackend.errors import InputError
from nnbackend.floating_point import own_errors
from nnbackend.io.skl2onnx import register
from nnbackend.io.sklearn import EncodingEstimator

__all__ = ["TableEncoder"]


class TableEncoder(EncodingEstimator, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turn the columns of a table into inputs of a network, each by what it holds.

    - Numbers: x becomes (x - median) / (third - first quartile), and then 3 asinh(z / 3), which
      grows like a logarithm far out, so that outliers do not drown the rest. A gap is computed as
      the median, and marked in a column of its own.
    - Booleans: -1 and 1; a gap is 0, and marked.
    - Text: one column per value; rare values share one, and so do gaps. A value that is new at
      prediction becomes zeros.
    - Dates and times: the year, the position in year, week and day as sine and cosine, and the
      date itself for a trend; of these what varies.
    - Constant columns, and text or row numbers with a value of their own in every row, are left
      out: ``summary()`` says which, and why.

    Parameters
    ----------
    columns : dict of str to str, optional
        What columns become, where that is not to be decided by what they hold: ``"number"``,
        ``"category"``, ``"boolean"``, ``"date"`` or ``"drop"``, by name.
    squash : bool, default True
        Whether heavy tails of numbers are squashed. If not, x becomes
        (x - mean) / (standard deviation), as of ``StandardScaler``.
    min_frequency : int, optional
        In how many rows a value of a category has to be for a column of its own. By default in 10,
        or in a hundredth of the rows if that is less, but in 2.
    max_categories : int, default 100
        The most values of a category with a column of their own.
    dtype : dtype, default numpy.float64
        The dtype of the result: float32 or float64.

    Attributes
    ----------
    encoding_ : TableEncoding
        What each column becomes: immutable, and made of text and numbers alone. ``nb.save`` writes
        it with a network.
    n_features_in_ : int
        The number of columns of the training table.
    feature_names_in_ : array of str
        Their names, where it had names that are text.

    Raises
    ------
    InputError
        If a column holds anything but numbers, booleans, text and dates, or an infinite number; if
        it is missing, or of another kind, at prediction.

    See Also
    --------
    Network.encode_with : A network that takes tables.

    Notes
    -----
    Fitting passes over the rows once, so a source (``nb.sources.Parquet``) may be larger than
    memory. Beside a buffer it takes up to 1 MiB per column of numbers or dates, and the words of
    each column of text, 100 000 at most. Medians and quartiles are exact up to 65 536 rows, and
    beyond those of a sample of so many rows, which depends on the number of the rows alone.

    References
    ----------
    A robust scale and a smooth squash are RealMLP's, whose formula is another: Holzmueller et al.,
    "Better by Default", 2024, arXiv:2407.04491.

    Examples
    --------
    >>> import nnbackend as nb
    >>> X = [[1.5, "blue"], [None, "red"], [2.5, "blue"], [2.0, "red"]]
    >>> encoder = nb.TableEncoder().fit(X)
    >>> encoder.get_feature_names_out().tolist()
    ['x0', 'x0=missing', 'x1=blue', 'x1=red']
    >>> encoder.transform([[2.0, "green"]])
    array([[0., 0., 0., 0.]])

    Of a source, which may be larger than memory, it makes one that a network trains on:

    >>> import tempfile
    >>> import pyarrow as pa
    >>> import pyarrow.parquet as pq
    >>> table = pa.table({"size": [1.5, None, 2.5], "paint": ["red", "red", None], "y": [0, 1, 1]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pq.write_table(table, f"{folder}/1.parquet")
    ...     source = nb.sources.Parquet(folder, target="y")
    ...     encoder = nb.TableEncoder().fit(source)
    ...     encoded = encoder.transform(source)
    ...     net = nb.Network([encoded.n_features, 8, 1], output="sigmoid")
    ...     history = nb.train(net, encoded, epochs=2, batch_size=2)
    >>> net.feature_names
    ('size', 'size=missing', 'paint=red', 'paint=(missing)')
    """

    if TYPE_CHECKING:
        encoding_: TableEncoding
        n_features_in_: int
        feature_names_in_: np.ndarray[Any, Any]

    def __init__(
        self,
        columns: Mapping[str, str] | None = None,
        *,
        squash: bool = True,
        min_frequency: int | None = None,
        max_categories: int = 100,
        dtype: Any = np.float64,
    ) -> None:
        self.columns = columns
        self.squash = squash
        self.min_frequency = min_frequency
        self.max_categories = max_categories
        self.dtype = dtype

    @own_errors
    def fit(self, X: Any, y: Any = None) -> TableEncoder:
        """Learn what each column becomes.

        Parameters
        ----------
        X : frame of pandas or polars, pyarrow.Table, array (n_samples, n_features), or source
            The table.
        y : ignored

        Returns
        -------
        TableEncoder
        """
        del y
        survey = Survey(self._options())
        if isinstance(X, Source):
            names: tuple[Any, ...] | None = X.feature_names
            for rows in X.tables():
                survey.update(rows.X)
        else:
            given = look("X", X)
            names = given.columns
            survey.update(given.table())
        self.encoding_ = survey.encoding()
        self.n_features_in_ = len(self.encoding_.columns)
        if names is not None and all(isinstance(name, str) for name in names):
            self.feature_names_in_ = np.asarray(names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        return self

    @own_errors
    def transform(self, X: Any) -> Any:
        """Return the inputs of a network.

        Parameters
        ----------
        X : frame of pandas or polars, pyarrow.Table, array (n_samples, n_features), or source
            A frame is read by name: its columns may be in any order, and further ones are ignored.

        Returns
        -------
        array (n_samples, n_features_out)
            Or a frame, with ``set_output``. Of a source, a source whose rows are encoded as they
            are read, with the same targets and weights: ``nb.train`` takes it.
        """
        check_is_fitted(self)
        if isinstance(X, Source):
            return Encoded(X, self.encoding_, self._dtype())
        given = look("X", X)
        shape: Any = getattr(X, "shape", ())
        if given.columns is None and len(shape) == 2 and shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        return self.encoding_.apply(self.encoding_.table(given), self._dtype())

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray[Any, Any]:
        """Return the names of the columns that ``transform`` returns.

        Parameters
        ----------
        input_features : sequence of str, optional
            The names of the training table's columns, which are known.
        """
        check_is_fitted(self)
        if input_features is not None:
            known = self.encoding_.raw_names
            if list(input_features) != list(getattr(self, "feature_names_in_", known)):
                raise ValueError("input_features is not equal to feature_names_in_")
        return np.asarray(self.encoding_.output_names, dtype=object)

    def summary(self) -> str:
        """Return what columns became and which were dropped, a line for each kind."""
        check_is_fitted(self)
        lines = described(self.encoding_.columns)
        width = max(len(description) for description, _ in lines)
        return "\n".join(f"{description:{width}}  {names}" for description, names in lines)

    def _options(self) -> EncodingOptions:
        columns = {} if self.columns is None else self.columns
        if not isinstance(columns, Mapping):
            raise InputError(
                f"expected a dict such as {{'zip': 'category'}}, got {type(columns).__name__}",
                argument="columns",
            )
        if self.min_frequency is not None:
            positive_integer("min_frequency", self.min_frequency)
        positive_integer("max_categories", self.max_categories)
        self._dtype()
        return EncodingOptions(
            columns={str(name): becomes for name, becomes in columns.items()},
            squash=bool(self.squash),
            min_frequency=self.min_frequency,
            max_categories=self.max_categories,
        )

    def _dtype(self) -> np.dtype[Any]:
        try:
            dtype = np.dtype(self.dtype)
        except TypeError:
            dtype = np.dtype(object)
        if dtype not in (np.float32, np.float64):
            raise InputError(f"expected float32 or float64, got {self.dtype!r}", argument="dtype")
        result: np.dtype[Any] = dtype
        return result

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        # The option decides.
        tags.transformer_tags.preserves_dtype = []
        return tags


register(TableEncoder)
