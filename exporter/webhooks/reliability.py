"""Whether a source's webhooks tell of everything: each counted run is judged once, a while after it was counted.

The judgement is durable (a cursor moves in the transaction of the tally), so no miss is counted twice or forgotten.
While webhooks miss nothing, the poller may look less often; one miss, and it looks at its normal pace again.
"""

from collections import deque

from exporter.polling.planner import slowdown
from exporter.store.ledger import Ledger
from exporter.view.own import OwnMetrics

#: A webhook may come this much (seconds) after the run was counted before it is missed.
GRACE = 300.0
#: Judgements older than this (seconds) no longer count for the ratio.
WINDOW = 3600.0


class Reliability:
    """The judgements of one source's webhooks."""

    def __init__(self, *, source: str, platform: str, ledger: Ledger, own: OwnMetrics) -> None:
        self._source = source
        self._ledger = ledger
        self._own, self._labels = own, (platform, source)
        self._slowdown = own.poll_slowdown.labels(platform, source)
        self._slowdown.set(1.0)
        self._judged: deque[tuple[float, int, int]] = deque()  # when, told of, missed

    async def judge_once(self, now: float) -> tuple[int, int]:
        """Judge the runs whose grace is over; returns how many were told of and how many missed.

        ``now`` is the platform's clock, by which runs are counted.
        """
        told, missed = await self._ledger.judge_webhooks(self._source, until=now - GRACE)
        if told or missed:
            self._judged.append((now, told, missed))
        while self._judged and not now - WINDOW <= self._judged[0][0] <= now:  # later: somebody has set that clock
            self._judged.popleft()
        all_told, all_missed = self._totals()
        if all_told + all_missed:
            self._own.webhook_reliability.labels(*self._labels).set(all_told / (all_told + all_missed))
        self._slowdown.set(self.slowdown())
        return told, missed

    def slowdown(self) -> float:
        """The factor by which the poll interval may be stretched now."""
        told, missed = self._totals()
        return slowdown(told=told, missed=missed)

    def _totals(self) -> tuple[int, int]:
        return sum(told for _, told, _ in self._judged), sum(missed for _, _, missed in self._judged)
