"""When scheduled automations run next.

Only an automation read alone says so, and reading one takes more rights than listing all. So each is asked for once its
next run is due, a few in a sweep, and seldom; what a listing shows in between is what was last said, as long as that
lies ahead. Nothing of it is durable: a new process asks again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from exporter.model import Workflow
from exporter.platforms.qlik import mapping
from exporter.platforms.qlik.calls import REQUESTS_PER_MINUTE, Calls, is_final, stops_sweep
from exporter.platforms.qlik.config import QlikConfig
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError

#: The share of the calls that one poll interval allows which may go to schedules; at least one.
SHARE = 0.05
#: Seconds until one is asked for again, and where that was refused.
AGAIN_SECONDS = 900.0
REFUSED_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """What was said of the next run (None: nothing), and when to ask again."""

    next_run_at: float | None
    ask_at: float


class Schedules:
    """The schedules of one tenant."""

    def __init__(self, config: QlikConfig, calls: Calls) -> None:
        self._calls = calls
        poll = config.poll
        per_minute = (poll.requests_per_minute or REQUESTS_PER_MINUTE) * poll.budget_share
        self.per_sweep_max = max(1, int(SHARE * per_minute * poll.interval / 60.0))
        self._said: dict[str, _Said] = {}

    def next_run_at(self, workflow: Workflow) -> float | None:
        """The next planned run, as far as it is known and ahead. One that has passed is nobody's word any more."""
        said = self._said.get(workflow.id)
        if said is None or said.next_run_at is None or workflow.trigger != "schedule" or not workflow.enabled:
            return None
        return said.next_run_at if said.next_run_at > workflow.at else None

    async def read(self, workflows: Mapping[str, Workflow], now: float) -> None:
        """Ask for those that are due, those that wait longest first. A failure costs no more than the answer."""
        planned = {key for key, w in workflows.items() if w.trigger == "schedule" and w.enabled}
        self._said = {key: said for key, said in self._said.items() if key in planned}
        due = [(said.ask_at, key) for key, said in self._said.items() if said.ask_at <= now]
        due += [(0.0, key) for key in planned - self._said.keys()]
        for _, key in sorted(due)[: self.per_sweep_max]:
            next_run_at, again = None, AGAIN_SECONDS
            try:
                next_run_at = mapping.next_run_at(await self._calls.automation(key, lane=Lane.SWEEPS), at=now)
            except ApiError as error:
                if stops_sweep(error) or not is_final(error):
                    return
                again = REFUSED_SECONDS
            self._said[key] = _Said(next_run_at=next_run_at, ask_at=max(next_run_at or 0.0, now + again))
