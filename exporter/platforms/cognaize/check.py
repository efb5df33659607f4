"""Trying a Cognaize source out: the credential, and each thing that is read with it."""

from collections.abc import AsyncIterator

from exporter.platform import selected
from exporter.platform.credentials import expiry
from exporter.platforms.cognaize import calls, mapping
from exporter.platforms.cognaize.config import CognaizeConfig
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError


async def check(api: Api, config: CognaizeConfig) -> AsyncIterator[str]:
    rows = await calls.find(api, 0, Lane.SWEEPS)
    yield "ok: credential accepted"
    yield f"ok: {rows.total} processes can be listed"
    names = [names for item in rows.items if (names := mapping.identity(item)) is not None]
    workflow_ids = {workflow_id for _, workflow_id in names} | set(config.workflows)
    watched = [id_ for id_ in workflow_ids if selected(config, id_, config.workflows.get(id_))]
    yield f"workflows: {len(watched)}"
    if names:
        try:
            await calls.process(api, names[0][0], Lane.SWEEPS)
            yield "ok: a single process can be read"
        except ApiError as error:
            yield f"problem: a single process cannot be read; restarts will not be seen: {error}"
    expires_at = None if config.token is None else expiry(config.token.get_secret_value())
    if expires_at is not None:
        hours = (expires_at - api.platform_now()) / 3600
        yield (
            f"problem: the token ends in {hours:.1f} hours and nobody renews it: give token_url, login and password "
            "instead, or write a new one to token_file in time"
        )
    yield "note: whether the credential may restart steps is not told; it shows when one is restarted"
