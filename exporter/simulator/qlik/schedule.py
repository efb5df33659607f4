"""What starts an automation of the Qlik simulator, and how its runs tend to end."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What starts a generated automation, and how its runs tend to end, as shares of all runs."""

    rng: random.Random
    seconds: float
    regular: bool  # False: as often on average, but at any time, as triggers and webhooks come
    failure: float
    warning: float
    error_classes: tuple[str, ...]
    cancelled: float = 0.005
    quota: float = 0.005

    def gap(self) -> float:
        return self.seconds if self.regular else max(1.0, self.rng.expovariate(1 / self.seconds))

    def draw(self) -> tuple[str, str | None]:
        """A result and, where it is a failure, its error class."""
        chance, error_class = self.rng.random(), self.rng.choice(self.error_classes)
        for result in ("failure", "warning", "cancelled", "quota"):
            share: float = getattr(self, result)
            if chance < share:
                return result, error_class if result == "failure" else None
            chance -= share
        return "success", None
