"""What tests run on: always the CPU, and the GPU where CuPy can use one; and with which engine."""

import numpy as np
import pytest

from nnbackend.device import device_of, get_device
from nnbackend.errors import DeviceError

__all__ = ["CUDA_MARKS", "needs_cuda", "on_each_device", "on_each_engine", "to_host"]


def _why_not_cuda():
    try:
        get_device("cuda")
    except DeviceError as error:
        return str(error)
    return ""


_REASON = _why_not_cuda()
CUDA_MARKS = (pytest.mark.cuda, pytest.mark.skipif(bool(_REASON), reason=_REASON))

on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA_MARKS)])

on_each_engine = pytest.mark.parametrize("engine", ["reference", "native"])


def needs_cuda(test):
    """Mark a test as one for machines with a GPU."""
    for mark in CUDA_MARKS:
        test = mark(test)
    return test


def to_host(x):
    """Return an array of any device as a NumPy array of its own memory."""
    return np.array(device_of(x).to_numpy(x))
