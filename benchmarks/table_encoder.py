"""Speed and memory of ``nnbackend.TableEncoder`` on Parquet files larger than a buffer.

A folder with 5 columns of categories and 5 of numbers, a twentieth of them gaps, is written in row
groups of 100 000 rows. The encoder is fitted to all of it in one pass, and then all rows are
encoded, block by block. Beside it: what scikit-learn's ``ColumnTransformer`` (impute, scale,
one-hot) takes for the first rows of the same table, all of them in memory. Each way runs in a
process of its own, of which the growth of the resident memory is stated, imports and a first small
fit not counted. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import nnbackend as nb
from nnbackend.bench.environment import environment
from nnbackend.cli.terminal import to_json
from nnbackend.io.files import write_atomically

ROWS = 10_000_000
ROWS_IN_MEMORY = 1_000_000
ROW_GROUP = 100_000
BUFFER_BYTES = 2**28
N_VALUES = (4, 12, 40, 90, 300)
NUMBERS = [f"number{i}" for i in range(5)]
CATEGORIES = [f"category{i}" for i in range(5)]
WAYS = ("nnbackend, from files", "nnbackend, in memory", "scikit-learn, in memory")


def write(path: Path, n_rows: int) -> None:
    """Write the table."""
    rng = np.random.default_rng(0)
    schema = pa.schema(
        [(name, pa.float64()) for name in NUMBERS] + [(name, pa.string()) for name in CATEGORIES]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, n_rows, ROW_GROUP):
            n = min(ROW_GROUP, n_rows - start)
            columns = [rng.lognormal(sigma=0.5 + i, size=n) for i in range(len(NUMBERS))]
            for n_values in N_VALUES:
                words = pa.array([f"value {i}" for i in range(n_values)])
                # Few values are frequent.
                codes = (n_values * rng.random(n) ** 3).astype(np.int32)
                columns.append(pa.DictionaryArray.from_arrays(codes, words).cast(pa.string()))
            masks = [pa.array(rng.random(n) < 0.05) for _ in columns]
            arrays = [
                pa.compute.if_else(mask, None, pa.array(column))
                for mask, column in zip(masks, columns, strict=True)
            ]
            writer.write_table(pa.table(arrays, schema=schema))


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


def measured(act: Callable[[], Any]) -> tuple[Any, float, int]:
    """Return what a function returns, its seconds, and by how much memory grew meanwhile."""
    before = most = resident()
    is_done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not is_done.is_set():
            most = max(most, resident())
            sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    start = perf_counter()
    try:
        result = act()
    finally:
        seconds = perf_counter() - start
        is_done.set()
        thread.join()
    return result, seconds, max(most, resident()) - before


def streamed(path: Path) -> dict[str, Any]:
    """Fit to a source, and encode it."""
    source = nb.sources.Parquet(path, None, buffer_bytes=BUFFER_BYTES)
    nb.TableEncoder().fit(pq.ParquetFile(path).read_row_group(0))
    next(source.tables(0, 1000))
    encoder, seconds, memory = measured(lambda: nb.TableEncoder().fit(source))
    encoded = encoder.transform(source)

    def encode() -> None:
        for _ in encoded.blocks(0):
            pass

    _, transform_seconds, transform_memory = measured(encode)
    return {
        "rows": source.n_samples,
        "inputs": encoded.n_features,
        "fit": {"seconds": seconds, "memory": memory},
        "transform": {"seconds": transform_seconds, "memory": transform_memory},
    }


def in_memory(path: Path, n_rows: int, way: str) -> dict[str, Any]:
    """Fit to the first rows as a frame of pandas, and encode them."""
    groups = pq.ParquetFile(path)
    n_groups = min(-(-n_rows // ROW_GROUP), groups.num_row_groups)
    frame = groups.read_row_groups(range(n_groups)).slice(0, n_rows).to_pandas()

    def new() -> Any:
        if way.startswith("nnbackend"):
            return nb.TableEncoder()
        numbers = make_pipeline(
            SimpleImputer(strategy="median", add_indicator=True), StandardScaler()
        )
        categories = OneHotEncoder(
            handle_unknown="ignore", min_frequency=10, max_categories=100, sparse_output=False
        )
        return make_column_transformer((numbers, NUMBERS), (categories, CATEGORIES))

    new().fit(frame[:1000]).transform(frame[:1000])
    encoder, seconds, memory = measured(lambda: new().fit(frame))
    result, transform_seconds, transform_memory = measured(lambda: encoder.transform(frame))
    return {
        "rows": len(frame),
        "inputs": result.shape[1],
        "fit": {"seconds": seconds, "memory": memory},
        "transform": {"seconds": transform_seconds, "memory": transform_memory},
    }


def row(way: str, result: dict[str, Any]) -> str:
    """Return a row of the table."""
    cells = [way, f"{result['rows']:,}", f"{result['inputs']}"]
    for step in ("fit", "transform"):
        cells.append(f"{result['rows'] / result[step]['seconds'] / 1e6:.2f} million rows/s")
        cells.append(f"{result[step]['memory'] / 2**20:.0f} MiB")
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N")
    parser.add_argument("--rows-in-memory", type=int, default=ROWS_IN_MEMORY, metavar="N")
    parser.add_argument("--folder", type=Path, help="where to write the table; by default it is "
                        "removed afterwards")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write all as JSON")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in ("rows", "rows_in_memory"):
        if getattr(options, name) < 1000:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1000")
    if options.way is not None:
        path = options.folder / "table.parquet"
        is_streamed = options.way == WAYS[0]
        result = streamed(path) if is_streamed else in_memory(
            path, options.rows_in_memory, options.way
        )  # fmt: skip
        print(json.dumps(result))
        return 0
    record: dict[str, Any] = {
        "format": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {
            "rows": options.rows,
            "rows_in_memory": options.rows_in_memory,
            "row_group": ROW_GROUP,
            "buffer_bytes": BUFFER_BYTES,
        },
        "results": {},
    }
    columns = ["way", "rows", "inputs", "fit", "its memory", "transform", "its memory"]
    print(f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}", sep="\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "table.parquet", options.rows)
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
            command += ["--rows-in-memory", str(options.rows_in_memory)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            record["results"][way] = result = json.loads(done.stdout)
            print(row(way, result), flush=True)
    record["environment"] = environment()
    if options.output is not None:
        write_atomically(options.output, to_json(record, indent=1).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
