"""Whether a source's webhooks report everything: each counted run is judged once, a while after it was counted.

The judgement is durable (a cursor moves in the transaction of the tally), so no miss is counted twice or forgotten.
While webhooks miss nothing, the poller may look less often; one miss, and it looks at its normal pace again.
"""

from collections import deque

from exporter.source import Source
from exporter.store.ledger import Ledger

#: A webhook may come this much (seconds) after the run was counted before it is missed.
GRACE = 300.0
#: Judgements older than this (seconds) no longer count for the ratio.
WINDOW = 3600.0
#: Reliable webhooks stretch a poll interval by at most this factor.
SLOWDOWN_MAX = 4.0


class Reliability:
    """The judgements of one source's webhooks."""

    def __init__(self, source: Source, ledger: Ledger) -> None:
        self._source = source
        self._ledger = ledger
        self._judged: deque[tuple[float, int, int, int]] = deque()  # when, reported, missed, lost
        self._slow_down()

    async def judge_once(self, now: float) -> tuple[int, int]:
        """Judge the runs whose grace is over; returns how many were reported and how many missed.

        ``now`` is the platform's clock, by which runs are counted. The ratio is about those of which a webhook was
        to be expected, and is not known while there are none.
        """
        reported, missed, lost = await self._ledger.judge_webhooks(self._source.name, until=now - GRACE)
        if reported or missed:
            self._judged.append((now, reported, missed, lost))
        while self._judged and not now - WINDOW <= self._judged[0][0] <= now:  # later: somebody has set that clock
            self._judged.popleft()
        all_reported, _, all_lost = self._totals()
        if all_reported + all_lost:
            self._source.metrics.webhook_reliability().set(all_reported / (all_reported + all_lost))
        else:
            self._source.metrics.forget_webhook_reliability()
        self._slow_down()
        return reported, missed

    def _slow_down(self) -> None:
        """Let the poll interval be stretched as far as the webhooks can be relied on, for each of the workflows."""
        reported, missed, _ = self._totals()
        self._source.slowdown = slowdown(reported=reported, missed=missed)
        self._source.metrics.poll_slowdown().set(self._source.slowdown)

    def _totals(self) -> tuple[int, int, int]:
        """Reported, missed and lost."""
        return (
            sum(reported for _, reported, _, _ in self._judged),
            sum(missed for _, _, missed, _ in self._judged),
            sum(lost for _, _, _, lost in self._judged),
        )


def slowdown(*, reported: int, missed: int) -> float:
    """How far webhooks may stretch the interval: not at all until they reported 50 runs, nor if they missed one."""
    if missed or reported < 50:
        return 1.0
    return 2.0 if reported < 200 else SLOWDOWN_MAX
