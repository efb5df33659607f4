"""Trying an Etlworks source out: the credential, and each right that is needed."""

from collections.abc import AsyncIterator

from exporter.platform import BadItem
from exporter.platforms.etlworks import mapping
from exporter.platforms.etlworks.config import EtlworksConfig
from exporter.platforms.etlworks.executions import Executions
from exporter.platforms.etlworks.listing import flow_parts, not_there, schedules_of_flows, watched_flow
from exporter.platforms.etlworks.repairing import REPAIRING
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError

HEALTH = "/health"


async def check(api: Api, config: EtlworksConfig) -> AsyncIterator[str]:
    flows: list[str] = []
    async for part in flow_parts(api, config.flows):
        for one in part.faults:
            yield f"problem: {one.detail}"
        for record in part.items:
            try:
                item = mapping.flow(record)
            except BadItem as bad:
                yield f"problem: {bad}"
            else:
                if watched_flow(config, item.id, item.name) and item.id not in flows:
                    flows.append(item.id)
    yield "ok: credential accepted"
    yield f"workflows: {len(flows)}"
    try:
        schedules, _ = await schedules_of_flows(api)
        yield f"ok: schedules can be read ({sum(map(len, schedules.values()))})"
    except ApiError as error:
        yield f"problem: {error}; dead letters of scheduled flows will not be seen"
    if flows:
        try:
            await Executions(api).get(flows[0], lane=Lane.SWEEPS)
            yield "ok: executions can be read"
        except ApiError as error:
            if not_there(error):
                yield f"ok: flow {flows[0]} has no execution yet"
            else:
                yield f"problem: {error}; runs of this source will not be seen"
    try:
        answer = await api.get(HEALTH, lane=Lane.SWEEPS)
        status = answer.data.get("status") if isinstance(answer.data, dict) else None
        yield f"ok: the node is {status}" if status == "UP" else "problem: the node does not say that it is UP"
    except ApiError as error:
        yield f"ok: the health of the node is not shown ({error.kind})"
    for line in REPAIRING.untold(config.grant):
        yield line
