"""How long after its end a run of Etlworks shows, beside round robin with the same requests: printed."""

import pytest

from tests.platforms.etlworks.world import HOUR, START, lives, read

pytestmark = pytest.mark.bench

FLOWS, PER_MINUTE, HOURS = 500, 120.0, 14.0
COLD, WARM = (START, START + HOUR / 2), (START + 10 * HOUR, START + HOURS * HOUR)
KINDS = {
    "scheduled": "with a schedule, every 1 to 6 hours",
    "even": "without one, every 1 to 6 hours",
    "chance": "without one, by chance as often",
    "few": "without one, a tenth of the flows has nine tenths of the runs",
}


@pytest.mark.parametrize("kind", KINDS)
def test_runs_show_sooner_than_in_turns(kind: str) -> None:
    world = lives(kind, flows=FLOWS, seed=3, hours=HOURS)
    ours, turns = (read(world, hours=HOURS, per_minute=PER_MINUTE, turns=turns) for turns in (False, True))
    print(
        f"\n{FLOWS} flows {KINDS[kind]}; {PER_MINUTE:.0f} requests a minute; seconds from the end of a run, p50 and p95"
    )
    for name, (since, until) in {"first 30 minutes": COLD, "hours 10 to 14": WARM}.items():
        for who, seen in {"planned": ours, "round robin": turns}.items():
            p50, p95 = (seen.percentile(share, since=since, until=until) for share in (0.5, 0.95))
            print(f"  {name:16} {who:11} {p50:4.0f} {p95:4.0f}   {seen.missed} of {len(seen.delays)} overtaken unseen")
    assert ours.requests <= turns.requests * 1.01
