"""The incident of the demo: what two workflows of Make call is down for a while, and works again."""

from exporter.clock import Clock
from exporter.simulator.make import MakeSimulator

#: How long a run takes (seconds).
RUN_SECONDS = 2.0


class Incident:
    """Two workflows that run when they are told to. One is retried as its policy says, the other after an approval."""

    def __init__(self, make: MakeSimulator, clock: Clock) -> None:
        self._make, self._clock = make, clock
        self._errors = {
            make.add_workflow(name="Payment import", reports="all"): "ConnectionError",
            make.add_workflow(name="Invoice export", reports="all"): "ModuleTimeoutError",
        }
        self._lost: list[str] = []
        self.down = False

    @property
    def source(self) -> str:
        """The name of the source that reads them, which is the platform's in the demo."""
        return self._make.name

    @property
    def failed(self) -> int:
        """How many runs."""
        return len(self._lost)

    @property
    def workflows(self) -> frozenset[str]:
        return frozenset(self._errors)

    def run(self) -> None:
        """A run of each ends now. What fails is a dead letter, whose retries fail as well while it is down."""
        now = round(self._clock.now(), 3)
        for workflow, error in self._errors.items():
            result = "failure" if self.down else "success"
            run = self._make.add_run(workflow, started_at=now - RUN_SECONDS, ended_at=now, result=result, error=error)
            if self.down:
                lost = self._make.add_dead_letter(workflow, run_id=run, error=error, outcomes=("failure",))
                self._lost.append(lost)

    def repair(self) -> None:
        """From now on runs and retries work."""
        self.down = False
        for letter in self._lost:
            self._make.world.dead_letters[letter].outcomes = ("success",)
