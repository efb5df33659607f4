"""What tests may want to happen to the coming retries of a simulated platform, call by call."""

from dataclasses import dataclass
from typing import Literal

from aiohttp import web


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPlan:
    """What becomes of one retry call that the platform is about to accept."""

    outcome: str | None = None  # how its execution ends, in the simulator's own words; None: as the world would have it
    #: ``lost``: accepted, but nothing happens. ``cut``: it happens, and the connection ends without an answer.
    #: ``error``: it happens, and the answer is 500. ``beaten``: somebody else does it a moment before, and the call is
    #: one of work under way.
    fate: Literal["done", "lost", "cut", "error", "beaten"] = "done"
    delay: float = 0.0  # seconds until it takes effect, beyond the usual


def planned(plan: str | RetryPlan) -> RetryPlan:
    """A plan, or the one that an outcome alone stands for."""
    return RetryPlan(outcome=plan) if isinstance(plan, str) else plan


def cut(request: web.Request) -> web.Response:
    """End the connection; nobody will receive this answer."""
    if request.transport is not None:
        request.transport.close()
    return web.Response(status=500)
