"""What starts workflows by itself, and what people do with them: stopping, trying in the editor, retrying failures."""

from typing import TYPE_CHECKING

from exporter.simulator.n8n.model import SECOND, Execution, Workflow

if TYPE_CHECKING:
    from exporter.simulator.n8n.world import World


class People:
    """Schedules, callers and the people around them."""

    def __init__(self, world: "World", *, tried: float) -> None:
        self._world = world
        self._tried = tried

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
