"""A sample of the fault matrix; all of it: `make bench-faults`."""

import random

from tests.server.faults import cases, measured

SAMPLE = 24


def test_the_matrix_has_three_hundred_combinations() -> None:
    assert len(set(cases())) >= 300


async def test_no_fault_loses_an_answer_or_leaves_anything_behind() -> None:
    chosen = random.Random(0).sample(list(cases()), SAMPLE)
    rows = [row async for row in measured(chosen)]
    assert [row for row in rows if not row.answer_intact] == []
    assert [row for row in rows if row.sockets_left or row.tasks_left] == []
    assert len(rows) == SAMPLE
