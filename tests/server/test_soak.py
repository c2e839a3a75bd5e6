"""A short soak; the long one: `make bench-soak`."""

import sys

import pytest

from bench.soak import slope_kb
from tests.server.soak import Row, soaked


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_hundreds_of_requests_of_every_kind_are_answered_counted_and_let_go() -> None:
    rows = [row async for row in soaked(400)]
    assert (rows[-1].requests, rows[-1].lost, rows[-1].miscounted, rows[-1].in_flight) == (400, 0, 0, 0)
    assert rows[-1].sockets <= rows[0].sockets + 16
    assert rows[-1].threads <= rows[0].threads + 4


def test_the_slope_of_memory_is_that_of_the_second_half() -> None:
    rows = [Row(1000 * i, 50_000 + max(0, i - 10) * 7, 9, 5, 0, 0, 0) for i in range(20)]
    assert slope_kb(rows) == pytest.approx(70)
