"""The simulator says of the same story what a real n8n says of it, field by field.

What the real one said is kept in `recorded.json`: the simulator is held against it in every run of the tests, the real
server by `make test-n8n`, which also writes it anew (`--update`).
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.n8n.scenario import tell
from tests.n8n.stands import real_stand, simulated_stand

RECORDED = Path(__file__).parent / "recorded.json"


def as_text(record: list[dict[str, Any]]) -> str:
    """One line for each thing that was said, so that a difference is a line."""
    lines = []
    for entry in record:
        for key, value in entry.items():
            told = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
            lines += [f"{entry['step']}: {key}: {json.dumps(item, sort_keys=True)}" for item in told if key != "step"]
    return "\n".join(lines) + "\n"


def recorded() -> str:
    return as_text(json.loads(RECORDED.read_text()))


async def test_the_simulator_tells_the_story_as_the_real_server_did() -> None:
    async with simulated_stand() as stand:
        assert as_text(await tell(stand)).splitlines() == recorded().splitlines()


@pytest.mark.n8n
async def test_the_real_server_still_tells_it_so(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    async with real_stand(tmp_path / "n8n") as stand:
        record = await tell(stand)
    if request.config.getoption("--update"):
        lines = ",\n".join(json.dumps(entry) for entry in record)
        RECORDED.write_text(f"[\n{lines}\n]\n")
    assert as_text(record).splitlines() == recorded().splitlines()
