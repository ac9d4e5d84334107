"""Train on data four times as large as the memory that a process is given.

    python tests/larger_than_memory.py [--limit 512] [--factor 4] [--kind parquet] [--cgroup]

writes the data (parquet, memmap or zarr) into a temporary folder, starts a process with that
limit, in MiB, and lets it standardize and train for two epochs. The limit is the kernel's: on
private memory, reserved or used (RLIMIT_DATA); or, with --cgroup, on all that is in use, the files'
pages included (a memory cgroup of version 1, which needs root). It prints the peak of the process's
memory, and how fast it trained.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

N_FEATURES = 64
ROWS_PER_BLOCK = 2**16
CGROUP = "/sys/fs/cgroup/memory/nnbackend-test"


def blocks(n_rows):
    rng = np.random.default_rng(0)
    for start in range(0, n_rows, ROWS_PER_BLOCK):
        n = min(ROWS_PER_BLOCK, n_rows - start)
        X = rng.standard_normal((n, N_FEATURES), np.float32)
        yield start, X, (X[:, 0] + X[:, 1] > 0).astype(np.int64)


def write(kind, folder, n_rows):
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        for start, X, y in blocks(n_rows):
            columns = {f"x{i}": X[:, i] for i in range(N_FEATURES)}
            path = os.path.join(folder, f"part-{start:012d}.parquet")
            pq.write_table(pa.table({**columns, "y": y}), path, compression="none")
        return
    y_all = np.empty(n_rows, np.int64)
    shape = (n_rows, N_FEATURES)
    if kind == "memmap":
        X_all = np.lib.format.open_memmap(os.path.join(folder, "X.npy"), "w+", np.float32, shape)
    else:
        import zarr

        X_all = zarr.create_array(
            os.path.join(folder, "X.zarr"), shape=shape, chunks=(8192, N_FEATURES), dtype="f4"
        )
    for start, X, y in blocks(n_rows):
        X_all[start : start + len(X)] = X
        y_all[start : start + len(X)] = y
    np.save(os.path.join(folder, "y.npy"), y_all)


def forget(folder):
    """Drop the files' pages, so that those of the process to come are counted as its own."""
    for where, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(where, name), os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def source(kind, folder, nb, buffer_bytes):
    if kind == "parquet":
        return nb.sources.Parquet(folder, "y", buffer_bytes=buffer_bytes)
    y = np.load(os.path.join(folder, "y.npy"))
    if kind == "memmap":
        X = np.load(os.path.join(folder, "X.npy"), mmap_mode="r")
    else:
        import zarr

        X = zarr.open_array(os.path.join(folder, "X.zarr"), mode="r")
    return nb.sources.Arrays(X, y, buffer_bytes=buffer_bytes)


def status():
    """Return peak and private memory in MiB, as Linux knows them."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return {name: int(fields[name].split()[0]) / 1024 for name in ("VmHWM", "VmData", "RssAnon")}


def child(kind, folder, limit, in_cgroup):
    if in_cgroup:
        with open(os.path.join(CGROUP, "tasks"), "w") as file:
            file.write(str(os.getpid()))
    else:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    import nnbackend as nb

    data = source(kind, folder, nb, limit // 16)
    net = nb.Network([N_FEATURES, 64, 1], hidden="relu").standardize(data)
    history = nb.train(net, data, epochs=2, batch_size=256, engine="native")
    print(json.dumps({"loss": history.loss, "seconds": history.epoch_seconds, **status()}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=512, help="MiB of memory")
    parser.add_argument("--factor", type=float, default=4.0, help="size of the data in limits")
    parser.add_argument("--kind", choices=["parquet", "memmap", "zarr"], default="parquet")
    parser.add_argument("--cgroup", action="store_true")
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    limit = options.limit * 2**20
    if options.child:
        child(options.kind, options.child, limit, options.cgroup)
        return
    n_rows = int(options.factor * limit) // (4 * N_FEATURES)
    with tempfile.TemporaryDirectory() as folder:
        write(options.kind, folder, n_rows)
        if options.cgroup:
            forget(folder)
            os.makedirs(CGROUP, exist_ok=True)
            with open(os.path.join(CGROUP, "memory.limit_in_bytes"), "w") as file:
                file.write(str(limit))
        start = time.monotonic()
        command = [sys.executable, __file__, *sys.argv[1:], "--child", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - start
        if options.cgroup:
            with open(os.path.join(CGROUP, "memory.max_usage_in_bytes")) as file:
                usage = int(file.read()) / 2**20
            os.rmdir(CGROUP)
            print(f"the cgroup's peak, pages of files included: {usage:.0f} MiB")
    if done.returncode:
        sys.exit(f"failed with {done.returncode}:\n{done.stderr}")
    facts = json.loads(done.stdout)
    size = n_rows * 4 * N_FEATURES / 2**20
    print(
        f"{options.kind}: {n_rows:,} rows x {N_FEATURES} float32, {size:.0f} MiB of features under "
        f"a limit of {options.limit} MiB: losses {facts['loss']}, {seconds:.0f} s; peak resident "
        f"{facts['VmHWM']:.0f} MiB; private at the end: {facts['VmData']:.0f} MiB reserved, "
        f"{facts['RssAnon']:.0f} used; {2 * n_rows / sum(facts['seconds']):,.0f} rows/s in training"
    )


if __name__ == "__main__":
    main()
