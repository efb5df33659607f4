"""What tests may want to happen to the coming repairs of a simulated platform, call by call: see ``retries`` too."""

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Concatenate, Literal, ParamSpec, TypeVar

from aiohttp import web

from exporter.simulator.retries import cut

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairPlan:
    """What becomes of one call that discards, fixes, reactivates or stops something."""

    #: ``refused``: with ``status``, and nothing happens. ``lost``: taken, but nothing happens. ``some``: of several
    #: only the first is done, and the answer does not tell. ``unheard``: the connection ends and nothing happens.
    #: ``cut``: it happens, and the connection ends without an answer. ``error``: it happens, and the answer is 500.
    fate: Literal["done", "refused", "lost", "some", "unheard", "cut", "error"] = "done"
    status: int = 403


PLAN = web.RequestKey("repair_plan", RepairPlan)


class RepairPlans:
    """The plans of the coming repairs, in order; ``refused`` makes the platform's own refusal of a status."""

    def __init__(self, refused: Callable[[int, str], Exception]) -> None:
        self._refused = refused
        self._plans: deque[RepairPlan] = deque()

    def add(self, *plans: RepairPlan) -> None:
        self._plans.extend(plans)

    def around(
        self, handler: Callable[Concatenate[web.Request, P], Awaitable[T]]
    ) -> Callable[Concatenate[web.Request, P], Awaitable[T | web.Response]]:
        """The handler of a repair, to which its plan happens."""

        async def planned(request: web.Request, /, *args: P.args, **kwargs: P.kwargs) -> T | web.Response:
            plan = request[PLAN] = self._plans.popleft() if self._plans else RepairPlan()
            if plan.fate == "refused":
                raise self._refused(plan.status, "Not now.")
            if plan.fate == "unheard":
                return cut(request)
            answer = await handler(request, *args, **kwargs)
            if plan.fate == "error":
                raise self._refused(500, "Internal error.")
            return cut(request) if plan.fate == "cut" else answer

        return planned


def fate(request: web.Request) -> str:
    """What is to become of this repair."""
    return request[PLAN].fate if PLAN in request else "done"
