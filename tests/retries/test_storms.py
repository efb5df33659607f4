"""What a storm of dead letters may cost, and what has to be saved of it: small storms; large ones are benchmarks."""

from dataclasses import replace

import pytest

from exporter.model.rails import POLICY_RAMP
from tests.retries.storms import HOUR, STORMS, Storm, by_backoff, by_cron, by_engine

BY_NAME = {storm.name: storm for storm in STORMS}


def small(name: str, letters: int, **changes: float) -> Storm:
    return replace(BY_NAME[name], letters=letters, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("storm", [small("S1", 60), small("S6", 40, outage=6 * HOUR)], ids=lambda storm: storm.name)
async def test_after_an_outage_all_of_it_is_saved_at_little_cost(storm: Storm) -> None:
    told = await by_engine(storm, lasts=storm.outage + 3 * HOUR)
    assert told.recovered == told.recoverable == storm.letters, (str(told), told.waits)
    assert told.wasted <= 10, told
    assert told.last_hours is not None
    assert told.last_hours <= 2.0, told


@pytest.mark.parametrize(("name", "most"), [("S2", 15), ("S7", POLICY_RAMP[0] + 12)])
async def test_what_no_retry_can_save_costs_a_few_calls_and_not_a_few_for_each(name: str, most: int) -> None:
    told = await by_engine(small(name, 40), lasts=6 * HOUR)
    assert told.wasted == told.calls <= most, told


@pytest.mark.parametrize("name", ["S3", "S4", "S5"])
async def test_where_retrying_mostly_pays_as_much_is_saved_as_by_trying_each_three_times(name: str) -> None:
    storm = small(name, 30)
    told, other = await by_engine(storm, lasts=30 * HOUR), by_backoff(storm)
    # The luck of a try is the same for both, whenever it is made.
    assert told.recovered >= other.recovered, (str(told), str(other), told.waits)
    assert told.wasted <= other.wasted, (str(told), str(other))


def test_a_script_wastes_what_the_table_says() -> None:
    """What ours is compared with is no straw man: it saves everything where nothing is wrong."""
    well = small("S4", 100)
    for told in (by_cron(well), by_backoff(well)):
        assert told.recovered == told.recoverable == 100
    out = small("S1", 100)
    assert by_cron(out).recovered < by_backoff(out).recovered < 60
    assert by_backoff(small("S2", 100)).wasted == 300
