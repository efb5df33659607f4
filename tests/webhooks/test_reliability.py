"""Whether webhooks can be relied on is said of those workflows only whose webhooks ever reported such a run."""

from pathlib import Path

from exporter.webhooks.reliability import GRACE, WINDOW
from tests.e2e.deployment import deployment
from tests.e2e.test_truth import ROOMY

RATIO = "automation_exporter_webhook_reliability_ratio"


async def test_where_no_webhook_ever_came_none_is_missed(tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=["etlworks"], options=ROOMY) as made:
        [judge] = made.service.reliability.values()

        async def judged() -> tuple[dict[tuple[str, ...], float], int]:
            _, missed = await judge.judge_once(made.clock.now())
            return await made.samples(RATIO), missed

        await made.sweep()
        await judged()
        await made.live(900, step=60)
        await made.clock.advance(GRACE)
        ratio, missed = await judged()
        assert missed > 0
        assert ratio == {}, "polled only, and nobody promised a webhook"
        await made.live(900, step=60, deliver=True)
        await made.clock.advance(GRACE)
        assert list((await judged())[0].values()) == [1.0]
        await made.live(600, step=60)  # from now on they are lost
        await made.clock.advance(GRACE)
        assert 0 < (await judged())[0]["etlworks",] < 0.9
        await made.clock.advance(WINDOW + 1)
        assert (await judged())[0] == {}, "of no run, no share is known"
