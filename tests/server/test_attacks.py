"""Each attack of one client, and another client's verdicts meanwhile; times: `make bench-tenants`."""

from bench.tenants import quieter
from tests.server.attacks import ATTACKS, GIVE_UP_S, VICTIMS, measured

SOON_MS = 15_000  # on a machine that is busy with other tests; far below what an attack could hold up


async def test_no_attack_changes_the_verdicts_of_another_client_or_keeps_it_waiting() -> None:
    rows = [row async for row in measured(list(ATTACKS), requests=VICTIMS, rounds=1, engine_s=0.02)]
    assert [row.attack for row in rows if not row.same_verdicts] == []
    assert [(row.attack, row.p99_ms) for row in rows if row.p99_ms > SOON_MS] == []
    assert SOON_MS < GIVE_UP_S * 1000 and len(rows) == len(ATTACKS)


def test_of_two_measurements_that_of_the_quieter_machine_counts_whatever_the_attack_did() -> None:
    def row(attack: str, alone: float, under: float) -> dict[str, object]:
        return {"attack": attack, "engine_ms": 20, "alone_p99_ms": alone, "p99_ms": under}

    before = [row("a", 50, 100), row("b", 80, 90)]
    assert quieter([row("a", 60, 61), row("b", 60, 300), row("c", 9, 9)], before) == [
        row("a", 50, 100),
        row("b", 60, 300),
        row("c", 9, 9),
    ]
