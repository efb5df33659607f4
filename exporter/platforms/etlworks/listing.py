"""Listings of flows and schedules, page by page, and how the errors of calls are to be taken."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.platform import BadItem, Fault, in_turns, selected
from exporter.platforms.etlworks import mapping
from exporter.platforms.etlworks.config import EtlworksConfig
from exporter.platforms.etlworks.mapping import identity
from exporter.platforms.etlworks.schedule import Schedule
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

PAGE_ITEMS = 200
PAGES_PER_SWEEP_MAX = 500

FLOWS = "/rest/v1/flows"
FLOW = "/rest/v1/flows/{flow_id}"
SCHEDULES = "/rest/v1/schedules"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A page of a listing. ``complete`` is True on the last one if nothing is missing."""

    items: Sequence[Any] = ()
    at: float = 0.0  # when it was read, on the platform's clock
    faults: Sequence[Fault] = ()
    complete: bool = False


def flow_parts(api: Api, flows: Sequence[str]) -> AsyncIterator[Part]:
    """All flows, or those a user named one by one: cheaper than everybody's definitions."""
    return _pinned(api, flows) if flows else listing_parts(api, FLOWS)


async def _pinned(api: Api, flows: Sequence[str]) -> AsyncIterator[Part]:
    complete = True
    for flow_id in flows:
        try:
            answer = await api.get(FLOW, lane=Lane.SWEEPS, ids={"flow_id": flow_id})
        except ApiError as error:
            if stops(error):
                raise
            complete = complete and error.kind is ErrorKind.NOT_FOUND
            yield Part(faults=[fault(error, flow_id)])
        else:
            yield Part(items=[answer.data], at=answer.at)
    yield Part(at=api.platform_now(), complete=complete)


async def listing_parts(api: Api, path: str) -> AsyncIterator[Part]:
    """A listing, page by page where the platform pages: it does where it tells the total in a header, or gives exactly
    as many as were asked for.

    The next page begins after as many items as are known, so what is inserted meanwhile repeats some and hides none.
    A listing that ends before its total is not complete.
    """
    ids: set[str] = set()
    for _ in range(PAGES_PER_SWEEP_MAX):
        answer = await api.get(path, lane=Lane.SWEEPS, params={"limit": PAGE_ITEMS, "offset": len(ids)})
        items = answer.data
        if not isinstance(items, list):
            raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=f"GET {path}", detail="not a list")
        named = {identity(item.get("id")) for item in items if isinstance(item, dict)}
        fresh = {key for key in named if key is not None} - ids
        ids |= fresh
        total = _total(answer.headers.get("X-Total-Count", ""))
        if total is None:
            everything = len(items) != PAGE_ITEMS
        else:
            everything = len(ids) >= total or (not items and bool(ids))  # it may count what nobody may see
        faults: list[Fault] = []
        if not everything and not fresh:
            of = "" if total is None else f" of {total}"
            detail = f"GET {path}: the listing repeats itself after {len(ids)}{of} items"
            faults.append(Fault(kind=ErrorKind.BAD_PAYLOAD, detail=detail))
        given, told = 0, items if fresh or everything else []
        async for part in in_turns(told):
            given += len(part)
            last = given == len(told)
            yield Part(items=part, at=answer.at, complete=everything and last, faults=faults if last else ())
        if everything or not fresh:
            return
    yield Part(faults=[Fault(kind="truncated", detail=f"GET {path}: more than {PAGES_PER_SWEEP_MAX} pages")])


async def schedules_of_flows(api: Api) -> tuple[dict[str, list[Schedule]], list[Fault]]:
    """The schedules of each flow. Raises ``ApiError`` unless the listing was read completely."""
    found: dict[str, dict[str, Schedule]] = {}
    faults: list[Fault] = []
    complete = False
    async for part in listing_parts(api, SCHEDULES):
        complete = part.complete
        faults += part.faults
        for record in part.items:
            try:
                flow_id, schedule = mapping.schedule(record)
            except BadItem as bad:
                faults.append(Fault(kind="bad_item", detail=f"GET {SCHEDULES}: {bad}"))
            else:
                found.setdefault(flow_id, {})[schedule.id] = schedule
    if not complete:
        detail = "the listing changed while it was read"
        raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=f"GET {SCHEDULES}", detail=detail)
    return {flow: [own[key] for key in sorted(own)] for flow, own in found.items()}, faults


def watched_flow(config: EtlworksConfig, flow_id: str, name: str | None) -> bool:
    return (not config.flows or flow_id in config.flows) and selected(config, flow_id, name)


def _total(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def stops(error: ApiError) -> bool:
    """Whether an error concerns the credential, and so every call of this source."""
    refused = error.status == 401 or error.endpoint.startswith("POST ")  # the only calls that post fetch tokens
    return error.kind is ErrorKind.RATE_LIMITED or (error.kind is ErrorKind.AUTH and refused)


def not_there(error: ApiError) -> bool:
    """Whether this is how the platform says that it has no such flow or execution: 404, or 500 without more."""
    return error.kind is ErrorKind.NOT_FOUND or error.status == 500


def fault(error: ApiError, flow_id: str | None = None, *, of_item: bool = False) -> Fault:
    return Fault(kind=error.kind, detail=str(error), workflow_id=flow_id, of_item=of_item)
