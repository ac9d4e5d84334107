"""Run a plan on a CUDA GPU with CuPy's memory, kernels and graphs, and cuBLASLt's products."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.core.types import Array
from nnbackend.device import import_cupy
from nnbackend.engines.cuda.cublaslt import CublasLt, CublasLtError
from nnbackend.engines.cuda.plan import Buffer, Epilogue, Kernel, Launch, Matrix, Product, Vector
from nnbackend.errors import MissingDependencyError

if TYPE_CHECKING:
    from nnbackend.device import Device

__all__ = ["CudaExecutor", "signatures"]

_LOGGER = logging.getLogger("nnbackend")

# The size that cuBLAS recommends on Hopper; smaller GPUs use less of it.
_WORKSPACE_BYTES = 32 * 2**20

# Every buffer is aligned to this many bytes; CuPy aligns its own to 512.
_ALIGNMENT = 256
_RELU = (Epilogue.RELU_BIAS, Epilogue.RELU_AUX_BIAS, Epilogue.DRELU_BGRAD)
_GELU = (Epilogue.GELU_AUX_BIAS, Epilogue.DGELU_BGRAD)

_SCALARS: dict[str, Callable[[Any], Any]] = {
    "int": np.int32,
    "int64": np.int64,
    "float": np.float32,
    "double": np.float64,
}


def signatures(source: str) -> dict[str, list[str]]:
    """Return the parameter types of every kernel in a source, with ``real`` resolved."""
    real = re.search(r"typedef (\w+) real;", source)
    found = {}
    for name, text in re.findall(r'extern "C" __global__ void .*?(\w+)\(\s*([^)]*)\)\s*{', source):
        kinds = [parameter.rsplit(None, 1)[0].strip() for parameter in text.split(",")]
        found[name] = [real[1] if real and kind == "real" else kind for kind in kinds]
    return found


class CudaExecutor:
    """Buffers, kernels and products on one GPU, in a separate stream.

    If cuBLASLt cannot be loaded, CuPy's ``matmul`` computes products. No graph can capture it, so
    launches go out one by one then.

    Parameters
    ----------
    device : Device
        The GPU.
    precision : str
        The precision of products; without cuBLASLt, only that of the data is possible.

    Attributes
    ----------
    buffers : dict of str to array
        The buffers by the names that launches use.
    shared_bytes : int
        The largest shared memory of a block.
    """

    def __init__(self, device: Device, precision: str) -> None:
        self._cupy = cupy = import_cupy()
        self.buffers: dict[str, Array] = {}
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._copies = cupy.cuda.Stream(non_blocking=True)
        self._pinned: dict[int, np.ndarray[Any, Any]] = {}
        self._copied, self._used = ([cupy.cuda.Event() for _ in range(2)] for _ in range(2))
        self._relu_agrees: dict[tuple[Epilogue, str], bool] = {}
        self._device, self._precision = device, precision
        self._products: dict[Product, Callable[[], None]] = {}
        attributes = cupy.cuda.Device(device.index).attributes
        self.shared_bytes = int(attributes["MaxSharedMemoryPerBlockOptin"])

    @cached_property
    def _lt(self) -> CublasLt | None:
        """cuBLASLt, loaded at the first product; None if it cannot be loaded."""
        try:
            self._workspace = self._cupy.empty(_WORKSPACE_BYTES, self._cupy.uint8)
            return CublasLt(self._workspace.data.ptr, _WORKSPACE_BYTES)
        except CublasLtError as error:
            if self._precision in ("tf32", "bfloat16"):
                raise MissingDependencyError(
                    f"precision={self._precision!r} needs cuBLASLt on {self._device} ({error}); "
                    "install the CUDA libraries with: pip install 'cupy-cuda13x[ctk]', or use "
                    "'float32'"
                ) from error
            _LOGGER.warning(
                "nnbackend: without cuBLASLt (%s) every product is launched on its own", error
            )
            return None

    @property
    def captures(self) -> bool:
        """Whether a graph can capture a list of launches."""
        return self._lt is not None

    def allocate(self, buffers: Mapping[str, Buffer]) -> None:
        """Allocate buffers, filled with zeros."""
        # Allocate in the caller's stream: CuPy's pool never gives the memory of one stream to
        # another, and this executor's stream ends with the training.
        for name, buffer in buffers.items():
            self.buffers[name] = self._cupy.zeros(buffer.size, buffer.dtype)

    def adopt(self, name: str, array: Array) -> None:
        """Use an array of the device as a buffer; copy it if it is not contiguous or aligned."""
        array = self._cupy.ascontiguousarray(array)
        # Products are planned for aligned operands, but a view may begin anywhere.
        is_aligned = array.data.ptr % _ALIGNMENT == 0
        self.buffers[name] = array if is_aligned else array.copy()

    def upload(self, name: str, values: np.ndarray[Any, Any]) -> None:
        """Write host values to the beginning of a buffer."""
        buffer = self.buffers[name]
        host = np.ascontiguousarray(values, buffer.dtype)
        buffer[: host.size].reshape(host.shape).set(host, stream=self._stream)

    @contextlib.contextmanager
    def staged(self, stage: int, X: Any, rows: Any) -> Iterator[None]:
        """Copy rows of a host matrix to a staging buffer for the launches within the context.

        The copy overlaps with the launches that use the other buffer.
        """
        buffer = self.buffers[f"stage{stage}"]
        if stage not in self._pinned:
            # Copies from pinned memory need no further staging, and do not block the host.
            memory = self._cupy.cuda.alloc_pinned_memory(buffer.nbytes)
            self._pinned[stage] = np.frombuffer(memory, buffer.dtype, buffer.size)
            # Copy after all earlier launches, such as filling the buffer with zeros.
            self._used[stage].record(self._stream)
        # Wait for the last copy from this host memory.
        self._copied[stage].synchronize()
        n_rows = len(X[rows]) if isinstance(rows, slice) else len(rows)
        host = self._pinned[stage][: n_rows * X.shape[1]]
        out = host.reshape(n_rows, X.shape[1])
        if isinstance(rows, slice):
            out[...] = X[rows]
        else:
            # With mode="raise", NumPy would write to a buffer first.
            np.take(X, rows, axis=0, out=out, mode="clip")
        self._copies.wait_event(self._used[stage])
        buffer[: host.size].set(host, stream=self._copies)
        self._copied[stage].record(self._copies)
        self._stream.wait_event(self._copied[stage])
        yield
        self._used[stage].record(self._stream)

    def load(self, source: str) -> None:
        """Compile kernels; CuPy keeps them on disk."""
        self._signatures = signatures(source)
        module = self._cupy.RawModule(code=source, options=("-std=c++17",))
        self._functions = {name: module.get_function(name) for name in self._signatures}
        for function in self._functions.values():
            # Reading an attribute loads the kernel now, since loading must not happen in a capture.
            function.num_regs  # noqa: B018

    def allow_shared(self, kernel: str, n_bytes: int) -> None:
        """Allow a kernel to use ``n_bytes`` of dynamic shared memory."""
        self._functions[kernel].max_dynamic_shared_size_bytes = n_bytes

    @contextlib.contextmanager
    def ordered(self) -> Iterator[None]:
        """Run in the executor's stream, after earlier and before later work of the caller's."""
        caller = self._cupy.cuda.get_current_stream()
        self._stream.wait_event(caller.record())
        with self._stream:
            try:
                yield
            finally:
                caller.wait_event(self._stream.record())

    def offers(self, product: Product) -> bool:
        """Whether cuBLASLt has a product with its epilogue, and gives the reference's numbers.

        Its documentation does not define the result for NaN, nor the gradient at 0. The tanh in its
        GELU is an approximation that is too coarse for true float32.
        """
        if self._lt is None:
            return product.epilogue is Epilogue.NONE
        if product.epilogue in _GELU and product.precision != "tf32":
            return False
        # Assume addresses aligned to 256 bytes, as those of all buffers are.
        operands = (product.A, product.B, product.out, product.vector, product.aux)
        addresses = {entry.buffer: 2**20 for entry in operands if entry is not None}
        try:
            if self._lt.prepare(product, addresses) is None:
                return False
        except CublasLtError as error:
            _LOGGER.warning("nnbackend: cuBLASLt refuses %s: %s", product.epilogue.value, error)
            return False
        key = (product.epilogue, product.precision)
        if product.epilogue in _RELU and key not in self._relu_agrees:
            with self.ordered():
                self._relu_agrees[key] = self._tries_relu(product)
            if not self._relu_agrees[key]:
                _LOGGER.info("nnbackend: cuBLASLt's %s differs at 0 or NaN", product.epilogue.value)
        return self._relu_agrees.get(key, True)

    def _tries_relu(self, product: Product) -> bool:
        """Whether ReLU and its derivative equal those of the core on rows of 0, -1, 2 and NaN."""
        xp, n, dtype = self._cupy, 32, product.out.dtype
        values = xp.asarray([0.0, -1.0, 2.0, np.nan], dtype)
        trial = {
            "rows": xp.repeat(xp.tile(values, n // 4), n),
            "eye": xp.eye(n, dtype=dtype).reshape(-1),
            "out": xp.zeros(n * n, dtype),
            "vector": xp.zeros(n, dtype),
            "aux": xp.zeros(n * 128 // 8, xp.uint8),
        }
        addresses = {name: int(array.data.ptr) for name, array in trial.items()}
        rows, eye, out = (Matrix(name, n, n, n, 0, dtype) for name in ("rows", "eye", "out"))
        keeps = product.epilogue is not Epilogue.RELU_BIAS
        forward = Product(
            rows,
            eye,
            out,
            precision=product.precision,
            epilogue=Epilogue.RELU_AUX_BIAS if keeps else Epilogue.RELU_BIAS,
            vector=Vector("vector", n, 0, dtype),
            aux=Matrix("aux", n, n, 128, 0, "bit") if keeps else None,
        )
        expected = xp.where(values < 0, 0, values)
        backward = replace(forward, transpose_B=True, epilogue=Epilogue.DRELU_BGRAD)
        for step in (forward, backward) if keeps else (forward,):
            prepared = self._lt.prepare(step, addresses) if self._lt is not None else None
            if prepared is None:
                return False
            prepared.run(self._stream.ptr)
            found = trial["out"].reshape(n // 4, 4, n)
            agrees = (found == expected[:, None]) | xp.isnan(found) & xp.isnan(expected)[:, None]
            if not bool(xp.all(agrees)):
                return False
            # Pass a gradient of ones back: only the ones for 2 should come through.
            trial["rows"][...] = 1
            expected = xp.asarray([0.0, 0.0, 1.0, 0.0], dtype)
        return True

    def graph(self, launches: Sequence[Launch]) -> Callable[[], None]:
        """Return a function that runs the launches in order, as one graph if possible."""
        calls = [self._call(launch) for launch in launches]

        def run() -> None:
            for call in calls:
                call()

        if not self.captures:
            return run
        # The returned function must not refer to the executor, which holds it: such a cycle would
        # keep the device's memory until the next garbage collection.
        stream = self._stream
        stream.begin_capture()
        try:
            run()
        finally:
            graph = stream.end_capture()
        return lambda: graph.launch(stream=stream)

    def run(self, launches: Sequence[Launch]) -> None:
        """Run the launches once."""
        for launch in launches:
            self._call(launch)()

    def _call(self, launch: Launch) -> Callable[[], None]:
        if isinstance(launch, Kernel):
            return self._kernel(launch)
        if launch not in self._products:
            call = self._product(launch)
            # Run a product once now: it chooses its kernels then, which must not be in a capture.
            call()
            self._products[launch] = call
        return self._products[launch]

    def _kernel(self, launch: Kernel) -> Callable[[], None]:
        function, kinds = self._functions[launch.name], self._signatures[launch.name]
        arguments = tuple(
            np.uintp(self._address(argument))
            if isinstance(argument, Matrix | Vector)
            else _SCALARS[kind](argument)
            for argument, kind in zip(launch.arguments, kinds, strict=True)
        )
        return lambda: function(
            launch.grid, launch.block, arguments, shared_mem=launch.shared_bytes
        )

    def _address(self, place: Matrix | Vector) -> int:
        buffer = self.buffers[place.buffer]
        address: int = buffer.data.ptr + place.offset * buffer.dtype.itemsize
        return address

    def _product(self, product: Product) -> Callable[[], None]:
        if self._lt is None:
            A, B = self._view(product.A), self._view(product.B)
            A, B = A.T if product.transpose_A else A, B.T if product.transpose_B else B
            out, matmul = self._view(product.out), self._cupy.matmul
            return lambda: matmul(A, B, out=out)
        addresses = {name: int(buffer.data.ptr) for name, buffer in self.buffers.items()}
        prepared = self._lt.prepare(product, addresses)
        if prepared is None:
            raise CublasLtError(f"cuBLASLt has no {product.precision} product for {product}")
        stream = self._stream
        return lambda: prepared.run(stream.ptr)

    def _view(self, matrix: Matrix) -> Array:
        buffer = self.buffers[matrix.buffer]
        size = buffer.dtype.itemsize
        return self._cupy.ndarray(
            (matrix.rows, matrix.columns),
            buffer.dtype,
            buffer.data + matrix.offset * size,
            strides=(matrix.ld * size, size),
        )
