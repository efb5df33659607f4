"""What starts workflows: schedules, callers, failures of others, and people who try, stop and retry them."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from exporter.simulator.n8n.model import ERRORS, SECOND, Execution, Plan, Workflow

if TYPE_CHECKING:
    from exporter.simulator.n8n.world import World

#: From the end of an execution until its error workflow starts, and how long that takes (milliseconds).
REPORT_AFTER, REPORT_TAKES = 20, 200


class People:
    """Schedules, callers and the people around them."""

    def __init__(self, world: "World", *, tried: float, told: Callable[[Execution, int], bool]) -> None:
        """``told`` learns of each failure whose error workflow runs, and says whether its message gets through."""
        self._world = world
        self._tried = tried
        self._told = told

    def schedule_starts(self, workflow: Workflow) -> None:
        """One that was built through the API keeps its interval to the second."""
        if workflow.interval is not None:
            share = 1.0 if workflow.interpreted else workflow.rng.random()
            first = self._world.now + round(workflow.interval * share * SECOND)
            self._world.schedule(first, self._start, workflow)

    def saw_end_of(self, execution: Execution, at: int) -> None:
        """Some failures are retried after a while."""
        rng, rate = execution.workflow.rng, execution.workflow.retry_rate
        if rng.random() < rate and execution.status == "error" and not execution.gone:
            self._world.schedule(at + round(rng.uniform(60, 1200) * SECOND), self._retry, execution)

    def report(self, execution: Execution, at: int) -> None:
        """Run its error workflow, if there is a published one."""
        handler = self._world.workflows.get(execution.workflow.settings.get("errorWorkflow", ""))
        if handler is None or not handler.active or execution.mode == "manual":
            return
        if execution.mode != "error" or handler is not execution.workflow:
            self._world.schedule(at + REPORT_AFTER, self._report, handler, execution)

    def _report(self, when: int, handler: Workflow, execution: Execution) -> None:
        if self._world.down or handler.deleted:
            return
        delivered = when < self._world.born or self._told(execution, when + REPORT_TAKES)
        failure = None if delivered else ERRORS["network"]
        self._world.start(handler, "error", at=when, plan=Plan(works=REPORT_TAKES, failure=failure))

    def _start(self, when: int, workflow: Workflow) -> None:
        if workflow.deleted or workflow.interval is None:
            return
        world, rng = self._world, workflow.rng
        jitter = 1.0 if workflow.interpreted else 0.7 + 0.6 * rng.random()
        world.schedule(when + round(workflow.interval * jitter * SECOND), self._start, workflow)
        if not workflow.active or workflow.archived or world.down:
            return
        planned_for = when // SECOND * SECOND if workflow.mode == "trigger" else None
        execution = world.start(workflow, workflow.mode, at=when, planned_for=planned_for)
        if rng.random() < workflow.cancel_rate and execution.plan.works:
            world.schedule(when + execution.plan.works // 2, self._stop, execution)
        if rng.random() < self._tried:
            world.start(workflow, "manual", at=when)

    def _stop(self, _when: int, execution: Execution) -> None:
        if not execution.over and not self._world.down:
            self._world.stop(execution)

    def _retry(self, when: int, execution: Execution) -> None:
        if not execution.gone and not self._world.down and not self._world.healed(execution):
            self._world.retry(execution, at=when, by_api=False)
