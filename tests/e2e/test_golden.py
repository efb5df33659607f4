"""One golden scrape: all ledger metrics of a known world. `pytest --update` writes it anew; the diff is the review."""

from pathlib import Path

import pytest

from tests.e2e.deployment import deployment
from tests.e2e.test_truth import ROOMY

GOLDEN = Path(__file__).with_name("golden.prom")


async def test_the_scrape_of_a_known_world_is_the_golden_one(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    async with deployment(tmp_path, options=ROOMY, workflows=2, seed=7) as made:
        await made.sweep()
        await made.live(900, step=30, deliver=True)
        await made.settle()
        text = b"".join(made.service.projection.registry.render(openmetrics=False)).decode()
    lines = [line for line in text.splitlines() if not line.startswith("# HELP")]
    shown = "\n".join(sorted(lines, key=_family)) + "\n"
    if request.config.getoption("--update"):
        GOLDEN.write_text(shown)
    assert shown == GOLDEN.read_text(), "if the change is meant, run this test with --update and read the diff"


def _family(line: str) -> tuple[str, str]:
    """Families in order, and in each its series by their labels; sorting is stable, so buckets stay in theirs."""
    if line.startswith("#"):
        return line.split(" ")[2], ""
    name, _, labels = line.partition("{")
    for suffix in ("_bucket", "_sum", "_count"):
        name = name.removesuffix(suffix)
    return name, labels.split("}")[0].partition(',le="')[0]
