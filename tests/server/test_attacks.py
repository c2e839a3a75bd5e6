"""Each attack of one client, and another client's verdicts meanwhile; times: `make bench-tenants`."""

from tests.server.attacks import ATTACKS, GIVE_UP_S, VICTIMS, measured

SOON_MS = 15_000  # on a machine that is busy with other tests; far below what an attack could hold up


async def test_no_attack_changes_the_verdicts_of_another_client_or_keeps_it_waiting() -> None:
    rows = [row async for row in measured(list(ATTACKS), requests=VICTIMS, rounds=1, engine_s=0.02)]
    assert [row.attack for row in rows if not row.same_verdicts] == []
    assert [(row.attack, row.p99_ms) for row in rows if row.p99_ms > SOON_MS] == []
    assert SOON_MS < GIVE_UP_S * 1000 and len(rows) == len(ATTACKS)
