"""What the suites have in common: the devices, and the engines that differ on each."""

from __future__ import annotations

import pytest

import nnbackend as nb
from nnbackend.bench.own import own_contestants
from nnbackend.device import get_device

DEVICES = [info.name for info in nb.devices()]
PLACES = [
    (device, engine)
    for device in DEVICES
    for engine in own_contestants(get_device(device)).values()
]


def pytest_generate_tests(metafunc):
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize(
            ("device", "engine"), PLACES, ids=[f"{device}-{engine}" for device, engine in PLACES]
        )
    elif "device" in metafunc.fixturenames:
        metafunc.parametrize("device", DEVICES)


@pytest.fixture
def timed(benchmark):
    """Time a function on a device, to the end of what it launches there."""

    def run(group, device, function, rounds=5, **extra):
        place = get_device(device)

        def call():
            function()
            place.synchronize()

        benchmark.group = group
        benchmark.extra_info.update(device=device, **extra)
        call()
        if rounds is None:
            benchmark(call)
        else:
            benchmark.pedantic(call, rounds=rounds, warmup_rounds=1)

    return run
