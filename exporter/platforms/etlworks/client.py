"""One Etlworks account, read: which calls, in which order.

``workflows``: the schedules, then the flows with their definitions, which is heavy and therefore rare. The schedules
are remembered per flow, for the other stream. ``runs``: one status call per flow that may have something new (see
``reading``), and one for each further run that has to be followed by its id.

A flow that never ran is answered like a flow nobody knows, with 500 or 404: of a flow that was never seen to run that
is no fault.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from exporter.model import Listing, Observation, ResolvedBy, Run, State
from exporter.model.fold import resolve
from exporter.platform import BadItem, Fault, Known, Page, RunKey, StreamName
from exporter.platforms.etlworks import mapping
from exporter.platforms.etlworks.check import check
from exporter.platforms.etlworks.config import EtlworksConfig
from exporter.platforms.etlworks.executions import EXECUTION, Executions
from exporter.platforms.etlworks.listing import (
    FLOW,
    FLOWS,
    SCHEDULES,
    fault,
    flow_parts,
    not_there,
    schedules_of_flows,
    stops,
    watched_flow,
)
from exporter.platforms.etlworks.mapping import Execution
from exporter.platforms.etlworks.planning import Flow, Plan, plan, room
from exporter.platforms.etlworks.reading import (
    FlowReading,
    FlowState,
    Stop,
    stops_from_cursor,
    stops_to_cursor,
)
from exporter.platforms.etlworks.schedule import Schedule, from_cursor, to_cursor
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

FLOWS_PER_SWEEP_MAX = 300
#: Dead letters of flows that are gone, looked into in one sweep.
DETAILS_PER_SWEEP_MAX = 20
#: So many flows in a row that cannot be read at all mean that the platform is down.
BROKEN_FLOWS_MAX = 5
#: Marks of cancelled runs that webhooks led to are kept this long (seconds); sweeps take them over much sooner.
MARK_SECONDS = 86_400.0


class EtlworksClient:
    """Reads one source. All memory between sweeps is in the cursors:

    - stream ``workflows``: per flow its schedules, and under ``""`` when the schedules were read;
    - stream ``runs``: per flow its ``FlowState``;
    - stream ``complete``: per flow the runs that were called canceled when a webhook led to them.
    """

    def __init__(self, config: EtlworksConfig, api: Api) -> None:
        self._config = config
        self._api = api
        self._executions = Executions(api)

    def sweep(self, stream: StreamName, known: Known, now: float) -> AsyncIterator[Page]:
        """Read ``workflows`` or ``runs`` once."""
        if stream is StreamName.WORKFLOWS:
            return self._sweep_workflows(known)
        return self._sweep_runs(known, now)

    # Workflows.

    async def _sweep_workflows(self, known: Known) -> AsyncIterator[Page]:
        schedules: dict[str, list[Schedule]] | None = None
        read_at = self._api.platform_now()
        try:
            schedules, faults = await schedules_of_flows(self._api)
        except ApiError as error:
            if stops(error):
                raise
            faults = [fault(error)]  # what was known of the schedules goes on to hold
        yield Page(faults=faults)
        watched: set[str] = set()
        at, complete = read_at, False
        async for part in flow_parts(self._api, self._config.flows):
            at, complete = part.at, part.complete
            observations: list[Observation] = []
            cursors: dict[str, Any] = {}
            faults = list(part.faults)
            for record in part.items:
                try:
                    item = mapping.flow(record)
                except BadItem as bad:
                    faults.append(Fault(kind="bad_item", detail=f"GET {FLOWS}: {bad}"))
                    continue
                if item.id in watched or not watched_flow(self._config, item.id, item.name):
                    continue
                watched.add(item.id)
                was = known.cursor(StreamName.WORKFLOWS, item.id)
                own = from_cursor(was) if schedules is None else tuple(schedules.get(item.id, ()))
                observations.append(mapping.workflow(item, schedules=own, at=part.at))
                if own is not None and to_cursor(own) != was:
                    cursors[item.id] = to_cursor(own)
            yield Page(observations=observations, cursors=cursors, faults=faults, items=len(part.items))
        if complete:
            gone: dict[str, Any] = {
                key: None for key in known.cursors(StreamName.WORKFLOWS) if key and key not in watched
            }
            cursors = gone if schedules is None else {**gone, "": read_at}
            yield Page(observations=[Listing(at=at, workflow_ids=frozenset(watched))], cursors=cursors)
            async for page in self._settle_dead_letters(known, watched):
                yield page

    async def _settle_dead_letters(self, known: Known, listed: set[str]) -> AsyncIterator[Page]:
        """Close the dead letters of flows that are gone for good: nothing is left that a retry could start."""
        flows = {letter.workflow_id for letter in known.dead_letters.values()}
        gone = sorted(flow for flow in flows if flow not in listed and flow not in known.workflows)
        for flow_id in gone[:DETAILS_PER_SWEEP_MAX]:
            try:
                await self._api.get(FLOW, lane=Lane.DEAD_LETTERS, ids={"flow_id": flow_id})
            except ApiError as error:
                if stops(error):
                    raise
                if not_there(error):
                    at = self._api.platform_now()
                    letters = [letter for letter in known.dead_letters.values() if letter.workflow_id == flow_id]
                    yield Page(observations=[resolve(one, by=ResolvedBy.MANUAL, at=at) for one in letters])
                else:
                    yield Page(faults=[fault(error, flow_id)])

    # Runs.

    async def _sweep_runs(self, known: Known, now: float) -> AsyncIterator[Page]:
        self._executions.begin()
        open_runs: dict[str, list[Run]] = {}
        for run in known.open_runs.values():
            open_runs.setdefault(run.workflow_id, []).append(run)
        flows = {*known.workflows, *open_runs}
        stale = [key for key in known.cursors(StreamName.RUNS) if key not in flows]
        if stale:
            yield Page(cursors=dict.fromkeys(stale))
        chosen = self._plan(known, open_runs, now)
        if not (chosen.due or chosen.idle):
            await self._try_credential()
        due = chosen.due[: max(1, FLOWS_PER_SWEEP_MAX - len(chosen.idle))]
        waiting = len(chosen.due) - len(due)
        broken = 0
        for flow_id in (*due, *chosen.idle):
            page, error = await self._read_flow(flow_id, known, open_runs.get(flow_id, ()))
            yield page
            broken = 0 if error is None else broken + 1
            if error is not None and broken == BROKEN_FLOWS_MAX:
                raise error
        if waiting > 0:
            detail = f"GET {EXECUTION}: {waiting} more flows wait for the next sweep"
            yield Page(faults=[Fault(kind="truncated", detail=detail)])
        elif chosen.unread:
            detail = f"GET {EXECUTION}: {chosen.unread} flows that were never read wait for the next sweep"
            yield Page(faults=[Fault(kind="truncated", detail=detail)])

    async def _try_credential(self) -> None:
        """No flow is known: reading nothing must not pass for having read everything."""
        try:
            await self._api.get(SCHEDULES, lane=Lane.SWEEPS, params={"limit": 1, "offset": 0})
        except ApiError as error:
            if stops(error) or error.kind is not ErrorKind.AUTH:
                raise

    def _plan(self, known: Known, open_runs: Mapping[str, Sequence[Run]], now: float) -> Plan:
        workflows = known.workflows
        flows: list[Flow] = []
        for flow_id in {*workflows, *open_runs}:
            known_flow, is_open = workflows.get(flow_id), flow_id in open_runs
            if not watched_flow(self._config, flow_id, known_flow.name if known_flow else None):
                continue
            if known_flow is not None and known_flow.at == 0.0 and not is_open:
                continue  # only webhooks told of it: not listed yet, or left out by its name
            schedules = from_cursor(known.cursor(StreamName.WORKFLOWS, flow_id)) or ()
            flows.append(Flow(id=flow_id, state=_state(known, flow_id, now), schedules=schedules, open=is_open))
        every = self._config.poll.interval
        return plan(
            flows,
            read_at=_moment(known.cursor(StreamName.WORKFLOWS)),
            now=now,
            every=every,
            room=min(FLOWS_PER_SWEEP_MAX, room(self._api.budget.rate, every=every)),
        )

    async def _read_flow(self, flow_id: str, known: Known, open_runs: Sequence[Run]) -> tuple[Page, ApiError | None]:
        """Read the newest run of one flow, and what else has to be followed.

        Returns the error if the flow could not be read at all.
        """
        reading = self._reading(flow_id, known, open_runs)
        never_ran = reading.state.run is None and not open_runs
        lane = Lane.RUNNING if open_runs else Lane.SWEEPS
        faults: list[Fault] = []
        try:
            reading.take_newest(await self._execution(flow_id, lane=lane))
        except BadItem as bad:
            faults.append(Fault(kind=ErrorKind.BAD_PAYLOAD, detail=f"GET {EXECUTION}: {bad}", workflow_id=flow_id))
        except ApiError as error:
            if stops(error):
                raise
            if never_ran and not_there(error):
                reading.take_nothing()
            else:
                faults.append(fault(error, flow_id))
            if not not_there(error):
                down = None if error.kind is ErrorKind.AUTH else error
                return Page(cursors={flow_id: reading.cursor()}, faults=faults), down
        for run_id in reading.to_follow():
            faults += await self._follow(reading, flow_id, run_id)
        if reading.may_hide_failure():
            await self._look_for_failure(reading, flow_id)
        at = self._api.platform_now()
        rescheduled = reading.rescheduled(known.workflows.get(flow_id), at)
        observations = reading.observations if rescheduled is None else [*reading.observations, rescheduled]
        return Page(observations=observations, cursors={flow_id: reading.cursor()}, faults=faults), None

    def _reading(self, flow_id: str, known: Known, open_runs: Sequence[Run]) -> FlowReading:
        now = self._api.platform_now()
        state = _state(known, flow_id, now)
        state.tried = now
        return FlowReading(
            state=state,
            open_runs=open_runs,
            schedules=from_cursor(known.cursor(StreamName.WORKFLOWS, flow_id)),
            schedules_read_at=_moment(known.cursor(StreamName.WORKFLOWS)),
            now=now,
        )

    async def _follow(self, reading: FlowReading, flow_id: str, run_id: str) -> list[Fault]:
        """Read one run by its id."""
        try:
            reading.take(await self._execution(flow_id, lane=Lane.RUNNING, audit_id=run_id))
        except BadItem as bad:
            return [Fault(kind="bad_item", detail=f"GET {EXECUTION}: {bad}", workflow_id=flow_id)]
        except ApiError as error:
            if stops(error):
                raise
            if not_there(error):
                reading.take_lost(run_id)
            return [fault(error, flow_id, of_item=True)]
        return []

    async def _look_for_failure(self, reading: FlowReading, flow_id: str) -> None:
        """Ask for the newest run that failed. Not every version knows the parameter: no answer is no fault."""
        try:
            reading.take_failure(await self._execution(flow_id, lane=Lane.SWEEPS, status="error"))
        except BadItem:
            pass
        except ApiError as error:
            if stops(error):
                raise

    async def _execution(self, flow_id: str, *, lane: Lane, audit_id: str = "", status: str = "") -> Execution:
        """The newest run of a flow, the newest of a status, or the one with this id.

        A finished run without its end is read once more. Raises ``ApiError``, ``BadItem``.
        """
        params = {key: value for key, value in (("auditId", audit_id), ("status", status)) if value}
        answer = await self._executions.get(flow_id, lane=lane, params=params)
        item = mapping.execution(answer.data, flow_id=flow_id, latest=self._api.latest())
        if audit_id and item.run.id != audit_id:
            raise BadItem("another execution than the one that was asked for")
        if item.run.state is State.FINISHED and item.run.ended_at is None:
            try:
                again = await self._executions.get(flow_id, lane=lane, params={"auditId": item.run.id})
                whole = mapping.execution(again.data, flow_id=flow_id, latest=self._api.latest())
            except (ApiError, BadItem):
                return item
            return whole if whole.run.id == item.run.id and whole.run.ended_at is not None else item
        return item

    # Runs that webhooks named.

    async def complete(self, keys: Sequence[RunKey], known: Known, now: float) -> AsyncIterator[Page]:
        """Read these runs. Errors of the connection are raised at the end, so that they are tried again."""
        down: ApiError | None = None
        for key in keys:
            flow_id = key.workflow_id
            if flow_id is None:
                continue
            known_flow = known.workflows.get(flow_id)
            name = known_flow.name if known_flow else None
            if not watched_flow(self._config, flow_id, name):
                continue
            reading = self._reading(flow_id, known, ())
            try:
                item = await self._execution(flow_id, lane=Lane.RUNNING, audit_id=key.run_id)
                reading.take(item)
            except BadItem as bad:
                yield Page(faults=[Fault(kind="bad_item", detail=f"GET {EXECUTION}: {bad}", workflow_id=flow_id)])
                continue
            except ApiError as error:
                if stops(error):
                    raise
                if not not_there(error) and error.kind is not ErrorKind.AUTH:
                    down = error
                yield Page(faults=[fault(error, flow_id)])
                continue
            if not watched_flow(self._config, flow_id, item.flow_name or name):
                continue  # never listed, because of its name
            before = _marks(known, flow_id)
            marks = before | reading.state.cancelled
            cursors = {flow_id: stops_to_cursor(marks)} if marks != before else {}
            yield Page(observations=reading.observations, cursors=cursors)
        old = [
            flow_id
            for flow_id in known.cursors("complete")
            if all(stop.until + MARK_SECONDS < now for stop in _marks(known, flow_id).values())
        ]
        if old:
            yield Page(cursors=dict.fromkeys(old))
        if down is not None:
            raise down

    # Trying it out.

    def check(self) -> AsyncIterator[str]:
        return check(self._api, self._config)


def _moment(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _marks(known: Known, flow_id: str) -> dict[str, Stop]:
    return stops_from_cursor(known.cursor("complete", flow_id))


def _state(known: Known, flow_id: str, now: float) -> FlowState:
    """What is remembered of a flow, with the cancelled runs that webhooks led to.

    Nothing was read later than now, whatever a clock that was wrong has written.
    """
    state = FlowState.from_cursor(known.cursor(StreamName.RUNS, flow_id))
    state.read, state.tried = min(state.read, now), min(state.tried, now)
    state.cancelled = _marks(known, flow_id) | state.cancelled
    return state
