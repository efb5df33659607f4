"""How long after its end a run of Make or Qlik is counted, beside round robin with the same requests: printed.

A first start among workflows that have run before: 31 runs a minute of a thousand, a few of them every minute, half
of them once a day. Etlworks has a table of its own (``test_etlworks_freshness``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.freshness import MINUTE, USUAL, percentile, polled

pytestmark = pytest.mark.bench

LIVES = {"make": 80, "qlik": 45}  # minutes
LOGS = {"feed": False, "api_limit": 30}
WORLDS: Mapping[str, tuple[str, Mapping[int, int], int, dict[str, Any]]] = {
    "make without the feed, 31 runs a minute": ("make", USUAL, 30, LOGS),
    "make without the feed, 53 runs a minute": ("make", {1: 40, 5: 30, 15: 60, 60: 180, 1440: 690}, 30, LOGS),
    "make with the feed, 31 runs a minute": ("make", USUAL, 30, {"feed": True, "api_limit": 30}),
    "qlik, 10,000 automations, 310 runs a minute": (
        "qlik",
        {minutes: 10 * count for minutes, count in USUAL.items()},
        500,
        {},
    ),
}


@pytest.mark.parametrize("world", WORLDS)
async def test_runs_show_sooner_than_in_turns(world: str, tmp_path: Path) -> None:
    platform, kinds, per_minute, options = WORLDS[world]
    lives = LIVES[platform]
    async with polled(tmp_path, platform, kinds, per_minute=per_minute, options=options, minutes=lives) as made:
        await made.live(lives)
        asked = made.asked()
        print(
            f"\n{world}; {len(made.ids)} workflows, {per_minute} requests a minute; minutes from the end, p50 and p95"
        )
        for since, until in ((0, 30), (max(30, lives - 35), lives - 5)):
            ours, turns = made.compare(since, until)
            for who, delays in {"ours": ours, "round robin": turns}.items():
                p50, p95 = (percentile(delays, share) / MINUTE for share in (0.5, 0.95))
                print(f"  minutes {since} to {until}  {who:11} {p50:5.1f} {p95:5.1f}   {len(delays)} runs")
            if platform == "make":
                assert percentile(ours, 0.95) < percentile(turns, 0.95) / 3
        print("  requests a minute: " + ", ".join(f"{n / lives:.2f} {key}" for key, n in asked.most_common(6)))
        assert sum(asked.values()) <= 1.02 * per_minute * lives + 10
