"""Carries the CUDA engine's plans out on the CPU: kernels as C++, products by NumPy.

It stands in for ``CudaExecutor``, so that the engine as a whole can be held to the reference on a
machine without a GPU. What a plan must not rely on is made to show: buffers begin as NaN where the
executor on a GPU promises nothing, and blocks run in another order at every launch.
"""

import contextlib

import numpy as np
from cuda_emulation import compile_cuda

from nnbackend.engines.cuda.plan import Epilogue, Kernel

__all__ = ["HostExecutor", "from_bfloat16", "multiply"]


class HostExecutor:
    """The executor of ``nnbackend.engines.cuda`` on NumPy arrays.

    ``epilogues`` are those that it offers products with.
    """

    captures = True
    shared_bytes = 227 * 1024
    epilogues = frozenset(Epilogue)
    # Of the orders in which blocks and threads run.
    seed = 0

    def __init__(self, device, precision):
        del device
        self.precision = precision
        self.buffers = {}
        self.n_launches = 0
        self.n_graphs = 0

    def allocate(self, buffers):
        for name, buffer in buffers.items():
            self.buffers[name] = np.zeros(buffer.size, buffer.dtype)
            # Activations and the like are written before they are read.
            if buffer.dtype in ("float32", "float64") and name[0] in "ADHMXZ":
                self.buffers[name][:] = np.nan

    def adopt(self, name, array):
        self.buffers[name] = np.ascontiguousarray(array)

    def upload(self, name, values):
        self.buffers[name][: values.size] = values.reshape(-1)

    @contextlib.contextmanager
    def staged(self, stage, X, rows):
        chosen = X[rows]
        self.buffers[f"stage{stage}"][: chosen.size] = chosen.reshape(-1)
        yield
        self.buffers[f"stage{stage}"][:] = np.nan

    def load(self, source):
        self.module = compile_cuda(source)

    def allow_shared(self, kernel, n_bytes):
        del kernel
        assert n_bytes <= 227 * 1024

    @contextlib.contextmanager
    def ordered(self):
        yield

    def offers(self, product):
        return product.epilogue is Epilogue.NONE or product.epilogue in self.epilogues

    def graph(self, launches):
        self.n_graphs += 1
        return lambda: self.run(launches)

    def run(self, launches):
        for launch in launches:
            self.n_launches += 1
            if isinstance(launch, Kernel):
                self._launch(launch)
            else:
                assert launch.precision == self.precision
                # A GPU does not warn.
                with np.errstate(over="ignore", invalid="ignore"):
                    multiply(self.buffers, launch)

    def _launch(self, kernel):
        arguments = [
            argument
            if isinstance(argument, int | float)
            else (self.buffers[argument.buffer], argument.offset)
            for argument in kernel.arguments
        ]
        for argument in kernel.arguments:
            if not isinstance(argument, int | float):
                self._check(argument)
        self.module.launch(
            kernel.name,
            kernel.grid,
            kernel.block,
            arguments,
            shared_bytes=kernel.shared_bytes,
            order=self.seed + self.n_launches,
        )

    def _check(self, place):
        """Assert that a matrix or vector lies within its buffer, and has its type."""
        buffer = self.buffers[place.buffer]
        names = {"uint16": "bfloat16"}
        dtype = names.get(buffer.dtype.name, buffer.dtype.name)
        assert place.dtype == dtype, place
        assert place.offset + _extent(place) <= buffer.size, place


def _extent(place):
    if hasattr(place, "rows"):
        assert place.ld >= place.columns
        return (place.rows - 1) * place.ld + place.columns
    return place.size


def from_bfloat16(bits):
    """Return bfloat16 numbers, given as their bits, in float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _view(buffers, matrix):
    buffer = buffers[matrix.buffer]
    assert matrix.offset + _extent(matrix) <= buffer.size, matrix
    size = buffer.itemsize
    return np.lib.stride_tricks.as_strided(
        buffer[matrix.offset :], (matrix.rows, matrix.columns), (matrix.ld * size, size)
    )


def _vector(buffers, vector):
    return buffers[vector.buffer][vector.offset : vector.offset + vector.size]


def multiply(buffers, product):
    """Carry out a product and its epilogue, as the documentation of ``Epilogue`` says."""
    A, B, out = (_view(buffers, matrix) for matrix in (product.A, product.B, product.out))
    if product.precision == "bfloat16":
        assert A.dtype == B.dtype == np.uint16
        A, B = from_bfloat16(A), from_bfloat16(B)
    # No product reads what it writes.
    assert product.out.buffer not in (product.A.buffer, product.B.buffer)
    A, B = A.T if product.transpose_A else A, B.T if product.transpose_B else B
    epilogue = product.epilogue
    T = A @ B
    assert T.shape == out.shape
    assert T.dtype == out.dtype
    if product.vector is not None:
        vector = _vector(buffers, product.vector)
        assert vector.dtype == out.dtype
    if epilogue in (
        Epilogue.BIAS, Epilogue.RELU_BIAS, Epilogue.RELU_AUX_BIAS, Epilogue.GELU_AUX_BIAS
    ):  # fmt: skip
        T = T + vector
    if epilogue is Epilogue.RELU_AUX_BIAS:
        _bits(buffers, product)[:] = np.packbits(_padded(T > 0, product), axis=1, bitorder="little")
    if epilogue in (Epilogue.RELU_BIAS, Epilogue.RELU_AUX_BIAS):
        T = np.maximum(T, 0)
    if epilogue is Epilogue.GELU_AUX_BIAS:
        _view(buffers, product.aux)[:] = T
        T = T * _gate(T)[0]
    if epilogue is Epilogue.DRELU_BGRAD:
        bits = np.unpackbits(_bits(buffers, product), axis=1, bitorder="little")
        T = np.where(bits[:, : T.shape[1]] > 0, T, 0)
    if epilogue is Epilogue.DGELU_BGRAD:
        Z = _view(buffers, product.aux)
        gate, slope = _gate(Z)
        T = T * (gate + Z * gate * (1 - gate) * slope)
    if epilogue in (Epilogue.DRELU_BGRAD, Epilogue.DGELU_BGRAD):
        vector[:] = T.sum(axis=0)
    if epilogue is Epilogue.BGRAD_B:
        assert not product.transpose_B
        vector[:] = B.sum(axis=0)
    out[:] = T


def _bits(buffers, product):
    aux = product.aux
    assert aux.dtype == "bit"
    assert aux.ld % 128 == 0
    assert (aux.rows, aux.columns) == (product.out.rows, product.out.columns)
    return buffers[aux.buffer][: aux.rows * aux.ld // 8].reshape(aux.rows, aux.ld // 8)


def _padded(flags, product):
    return np.pad(flags, ((0, 0), (0, product.aux.ld - flags.shape[1])))


def _gate(Z):
    scale, cubic = 2 * np.sqrt(2 / np.pi).astype(Z.dtype), Z.dtype.type(0.044715)
    gate = 1 / (1 + np.exp(-scale * Z * (1 + cubic * Z * Z)))
    return gate, scale * (1 + 3 * cubic * Z * Z)
