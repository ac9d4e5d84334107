"""Limit: the contestant that computes only the matrix products of a step."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nnbackend.bench.contestant import Contestant, Parameters, UnsupportedError
from nnbackend.device import get_device

if TYPE_CHECKING:
    from nnbackend.engines.cuda.cublaslt import CublasLt, Prepared
    from nnbackend.engines.cuda.plan import Product

__all__ = ["Limit"]


class Limit(Contestant):
    """The matrix products of a step into existing arrays, which no step can avoid.

    On a GPU, a CUDA graph of an epoch launches them through cuBLASLt, each with the fastest of the
    proposed algorithms. Without cuBLASLt, ``cupy.matmul`` launches them one by one; ``versions``
    says which was used.
    """

    title = "products alone"
    kinds = ("cpu", "cuda")
    # The size that NVIDIA recommends from Hopper on.
    workspace_bytes: ClassVar[int] = 32 << 20

    @property
    def epochs_per_call(self) -> int:
        """Several full-batch steps on a GPU, so that the cost of a launch is small."""
        return 64 if self.device != "cpu" and self.workload.n_batches == 1 else 1

    def load(self) -> None:
        """Load the device's namespace and, on a GPU, cuBLASLt."""
        self._place = get_device(self.device)
        self._xp = self._place.xp
        self._place.place(np.zeros(1, np.float32))
        self._how = "numpy.matmul"
        self._lt = self._cublaslt() if self._place.kind == "cuda" else None
        if self._lt is None and self.precision != "float32":
            raise UnsupportedError(f"computes products in {self.precision} with cuBLASLt alone")

    def _cublaslt(self) -> CublasLt | None:
        from nnbackend.engines.cuda.cublaslt import CublasLt, CublasLtError

        with self._place.activate():
            self._workspace = self._xp.empty(self.workspace_bytes, dtype=self._xp.uint8)
            try:
                lt = CublasLt(self._workspace.data.ptr, self.workspace_bytes)
            except CublasLtError as error:
                self._how = f"cupy.matmul, launched one by one, since {error}"
                return None
        self._how = f"cuBLASLt {lt.library.cublasLtGetVersion()}, launched by a CUDA graph"
        return lt

    def versions(self) -> dict[str, str]:
        """Return the version of the array library, and what computes the products."""
        library = self._xp.__name__.rpartition(".")[2]
        return {library: sys.modules[library].__version__, "products": self._how}

    def prepare(self, X: Any, y: Any, parameters: Parameters) -> None:
        """Allocate the operands and the results of all products."""
        del X, y, parameters
        rng = np.random.default_rng(0)
        arrays: dict[str, Any] = {}
        products = self._plan()
        with self._place.activate():
            for product in products:
                for operand in (product.A, product.B):
                    if operand.buffer not in arrays:
                        values = rng.standard_normal((operand.rows, operand.ld), dtype=np.float32)
                        if operand.dtype == "bfloat16":
                            # A bfloat16 is the upper half of a float32.
                            values = (values.view(np.uint32) >> 16).astype(np.uint16)
                        arrays[operand.buffer] = self._place.place(values)
                shape = (product.out.rows, product.out.ld)
                arrays[product.out.buffer] = self._xp.empty(shape, dtype=self._xp.float32)
            if self._lt is None:
                self._products = [
                    (
                        arrays[each.A.buffer].T if each.transpose_A else arrays[each.A.buffer],
                        arrays[each.B.buffer].T if each.transpose_B else arrays[each.B.buffer],
                        arrays[each.out.buffer],
                    )
                    for each in products
                ]
            else:
                # Keep the arrays alive, which the graph does not.
                self._arrays = arrays
                self._stream = self._xp.cuda.Stream(non_blocking=True)
                self._place.synchronize()
                step = [self._fastest(self._lt, each) for each in products]
                n_steps = self.workload.n_batches * self.epochs_per_call
                self._graph = self._captured(step * n_steps)

    def _plan(self) -> list[Product]:
        """Return the products of a step.

        Each layer has its own matrices, so that operands lie in memory as in a real step.
        """
        from nnbackend.engines.cuda.plan import Matrix, Product

        batch, precision = self.workload.batch_size, self.precision
        operands = "bfloat16" if precision == "bfloat16" else "float32"
        # cuBLASLt reads rows faster that begin at multiples of 16 bytes.
        multiple = 1 if self._lt is None else 8

        def matrix(name: str, rows: int, columns: int, dtype: str = "float32") -> Matrix:
            return Matrix(name, rows, columns, -(-columns // multiple) * multiple, dtype=dtype)

        forward, backward = [], []
        for layer, (n_in, n_out) in enumerate(pairwise(self.workload.layer_sizes)):
            A = matrix(f"A{layer}", batch, n_in, operands)
            W = matrix(f"W{layer}", n_in, n_out, operands)
            dZ = matrix(f"dZ{layer}", batch, n_out, operands)
            Z, dW = matrix(f"Z{layer}", batch, n_out), matrix(f"dW{layer}", n_in, n_out)
            forward.append(Product(A, W, Z, precision=precision))
            if layer > 0:
                dA = matrix(f"dA{layer}", batch, n_in)
                backward.append(Product(dZ, W, dA, transpose_B=True, precision=precision))
            backward.append(Product(A, dZ, dW, transpose_A=True, precision=precision))
        return [*forward, *backward[::-1]]

    def _fastest(self, lt: CublasLt, product: Product) -> Prepared:
        """Return a product that uses the fastest of its proposed algorithms."""
        pointers = {name: array.data.ptr for name, array in self._arrays.items()}
        prepared = lt.prepare(product, pointers)
        if prepared is None:
            raise UnsupportedError(f"cuBLASLt has no algorithm for {product}")

        def seconds(algorithm: int) -> float:
            prepared.choose(algorithm)
            # The first run loads the kernel, which a capture does not allow.
            prepared.run(self._stream.ptr)
            graph = self._captured([prepared] * 20)
            times = []
            for _ in range(3):
                start = perf_counter()
                graph.launch(self._stream)
                self._stream.synchronize()
                times.append(perf_counter() - start)
            return min(times)

        prepared.choose(min(range(prepared.algorithms), key=seconds))
        return prepared

    def _captured(self, launches: Sequence[Prepared]) -> Any:
        with self._stream:
            self._stream.begin_capture()
            for prepared in launches:
                prepared.run(self._stream.ptr)
            return self._stream.end_capture()

    def reset(self) -> None:
        """Do nothing, since products have no state."""

    def run(self, epochs: int) -> float:
        """Compute the products of every step."""
        with self._place.activate():
            if self._lt is None:
                matmul = np.matmul if self._place.kind == "cpu" else self._xp.matmul
                for _ in range(epochs * self.workload.n_batches):
                    for a, b, out in self._products:
                        matmul(a, b, out=out)
                self._place.synchronize()
            else:
                for _ in range(epochs // self.epochs_per_call):
                    self._graph.launch(self._stream)
                self._stream.synchronize()
        return math.nan

    def parameters(self) -> Parameters:
        """Raise an UnsupportedError, since products learn nothing."""
        raise UnsupportedError("learns nothing")
