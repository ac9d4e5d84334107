"""cuBLASLt in NumPy, on the addresses that it is given."""

import ctypes

import numpy as np
from numpy.lib.stride_tricks import as_strided

from nnbackend.core.activations import ACTIVATIONS

__all__ = ["Emulation"]

NUMPY_TYPES = {0: np.float32, 1: np.float64, 14: np.uint16}


class Emulation:
    """cuBLASLt on the host: its functions as the layer calls them, matrices in column order.

    Epilogues are read bit by bit, as the header composes them.
    """

    def __init__(self, status=0, states=(0, 0)):
        self.status = status
        self.states = states
        self.objects = {}
        self.calls = []

    def __getattr__(self, name):
        for ending, function in {
            "SetAttribute": self.set_attribute,
            "Create": self.create,
            "Destroy": self.destroy,
            "GetStatusName": lambda status: f"STATUS_{status}".encode(),
            "GetHeuristic": self.heuristic,
            "Matmul": self.matmul,
        }.items():
            if name.endswith(ending):
                return function
        raise AttributeError(name)

    def create(self, reference, *arguments):
        reference._obj.value = max(self.objects, default=0) + 1
        self.objects[reference._obj.value] = {"arguments": arguments}
        return 0

    def destroy(self, pointer):
        del self.objects[pointer.value]
        return 0

    def set_attribute(self, handle, attribute, reference, size):
        assert ctypes.sizeof(reference._obj) == size
        self.attributes(handle)[attribute] = reference._obj.value
        return 0

    def attributes(self, handle):
        return self.objects[handle._as_parameter_.value]

    def heuristic(self, _lt, _operation, _A, _B, C, D, preference, requested, results, count):
        assert C is D
        self.preference = self.attributes(preference)
        assert requested == len(results)
        for index, state in enumerate(self.states):
            results[index].state = state
            results[index].algo.data[0] = index
        count._obj.value = len(self.states)
        return self.status

    def matmul(
        self, _lt, operation, alpha, A, layout_A, B, layout_B, beta, C, layout_C, D, layout_D,
        algorithm, workspace, workspace_bytes, stream,
    ):  # fmt: skip
        assert (C, layout_C) == (D, layout_D)
        scale_type = self.attributes(operation)["arguments"][1]
        assert type(alpha._obj) is type(beta._obj) is (ctypes.c_float, ctypes.c_double)[scale_type]
        assert beta._obj.value == 0
        self.calls.append((algorithm._obj.data[0], workspace, workspace_bytes, stream))
        wanted = self.attributes(operation)
        epilogue = wanted[7]
        op_A = self._values(A, layout_A)
        op_B = self._values(B, layout_B)
        op_A = op_A.T if wanted[3] else op_A
        op_B = op_B.T if wanted[4] else op_B
        out = self._view(D, layout_D)
        m, n = out.shape
        assert (op_A.shape[0], op_B.shape[1], op_A.shape[1]) == (m, n, op_B.shape[0])
        T = alpha._obj.value * (op_A @ op_B)
        bias = _at(wanted[8], out.dtype, (m,), (1,)) if 8 in wanted else None
        if epilogue & 4:
            T = T + bias[:, None]
        if epilogue & 128:
            ld = wanted[12]
            is_relu = epilogue & (2 | 8)
            assert ld >= m
            assert ld % (128 if is_relu else 8) == 0
            if is_relu:
                bytes_ = _at(wanted[11], np.uint8, (ld // 8, n), (1, ld // 8))
                aux = np.unpackbits(bytes_, axis=0, bitorder="little")
            else:
                aux = _at(wanted[11], out.dtype, (m, n), (1, ld))
        if epilogue & 2:
            if epilogue & 128:
                aux[:m] = self.is_open(T)
                bytes_[:] = np.packbits(aux, axis=0, bitorder="little")
            T = self.relu(T)
        if epilogue & 32:
            aux[:] = T
            T = ACTIVATIONS["gelu"].function(np, T)
        if epilogue & 8:
            T = np.where(aux[:m], T, 0)
        if epilogue & 64:
            T = T * ACTIVATIONS["gelu"].derivative(np, aux.astype(np.float64), None)
        if epilogue & 16:
            bias[:] = T.sum(axis=1)
        if epilogue & 256:
            assert not wanted[3], "BGRADA is offered for A as it lies"
            bias[:] = op_A.sum(axis=1)
        out[:] = T
        return 0

    def is_open(self, T):
        return T > 0

    def relu(self, T):
        return np.maximum(T, 0)

    def _view(self, address, handle):
        data_type, rows, columns, ld = self.attributes(handle)["arguments"]
        return _at(address, NUMPY_TYPES[data_type], (rows, columns), (1, ld))

    def _values(self, address, handle):
        stored = self._view(address, handle)
        if stored.dtype == np.uint16:
            return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return stored.astype(np.float64)


def _at(address, dtype, shape, strides):
    """Return the array at an address, of strides in elements."""
    size = np.dtype(dtype).itemsize
    n_elements = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * (n_elements * size)).from_address(address)
    return as_strided(np.frombuffer(memory, dtype), shape, [size * stride for stride in strides])
