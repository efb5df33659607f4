"""Credentials and rights: what is refused, what that costs, and what ``check`` says of it; and what only admins see."""

import pytest
from pydantic import SecretStr

from exporter.model import Unit, Usage
from exporter.simulator.core import Faults
from exporter.simulator.qlik import OWNER
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.qlik.tenant import START, Tenant, counting, tenant

HOUR = 3600.0


# Credentials and rights


async def test_a_refused_key_ends_both_sweeps_and_is_not_asked_for_each_automation() -> None:
    async with tenant(workflows=10) as made:
        await made.sweep("workflows")
        made.api._auth = type(made.api._auth)(SecretStr("wrong"))  # type: ignore[call-arg]
        for stream in ("workflows", "runs", "quota"):
            with counting(made) as spent, pytest.raises(ApiError) as problem:
                await made.sweep(stream)
            assert problem.value.kind is ErrorKind.AUTH
            assert sum(spent.values()) == 1
            assert "wrong" not in str(problem.value).replace("wrong or expired", "")


async def test_an_oauth_client_fetches_a_token_renews_it_in_time_and_again_when_refused() -> None:
    oauth = {"client_id": "demo-client", "client_secret": "demo-secret"}
    token = "POST /oauth/token"
    async with tenant(workflows=4) as made:
        made.reconfigure(oauth=oauth)
        await made.sweep()
        assert made.simulator.requests[token] == 1
        await made.pass_time(4.5 * HOUR)
        await made.sweep()
        assert made.simulator.requests[token] == 1
        await made.pass_time(1 * HOUR)  # of the six hours a token lives
        await made.sweep()
        assert made.simulator.requests[token] == 2
        made.simulator.revoke_tokens()
        await made.pass_time(60)
        await made.sweep()
        assert made.simulator.requests[token] == 3
        assert not [code for (_, code) in made.endpoints if code not in ("200", "401")]
        assert sum(count for (_, code), count in made.endpoints.items() if code == "401") == 1
        assert made.known.counts() == made.really()


async def test_an_oauth_client_that_is_refused_is_an_auth_failure_that_names_no_secret() -> None:
    async with tenant(workflows=1) as made:
        made.reconfigure(oauth={"client_id": "demo-client", "client_secret": "mistyped"})
        with pytest.raises(ApiError) as problem:
            await made.sweep("workflows")
        assert problem.value.kind is ErrorKind.AUTH
        assert "mistyped" not in str(problem.value)


async def test_an_automation_whose_runs_may_not_be_listed_is_named_in_every_sweep_and_asked_for_when_it_runs() -> None:
    async with tenant(workflows=0) as made:
        made.simulator.add_api_key("key-of-two", user_id="two", spaces=["shared"])
        theirs = made.simulator.add_workflow(owner_id=OWNER, space_id="shared")
        own = made.simulator.add_workflow(owner_id="two")
        made.reconfigure(token="key-of-two")
        for workflow_id in (theirs, own):
            made.simulator.add_run(workflow_id, started_at=START - 9, ended_at=START - 1)
        await made.sweep()
        (fault,) = made.new_faults()
        assert (fault.kind, fault.workflow_id) == (ErrorKind.AUTH, theirs)
        with counting(made) as spent:
            await made.sweep()
        assert [fault.workflow_id for fault in made.new_faults()] == [theirs]  # it is unread all the same
        assert sum(spent.values()) == 1
        for workflow_id in (theirs, own):
            made.simulator.add_run(workflow_id, started_at=START + 1, ended_at=START + 9)
        await made.pass_time(60)
        await made.sweep()
        assert [fault.workflow_id for fault in made.new_faults()] == [theirs]
        assert made.known.counts() == {(theirs, "success"): 1, (own, "success"): 1}  # the listing tells of the last run


# Usage


async def test_usage_is_this_months_as_the_platform_counts_it() -> None:
    async with tenant(workflows=5) as made:
        await made.sweep()
        await made.pass_time(HOUR)
        with counting(made) as spent:
            await made.sweep("quota")
        assert sum(spent.values()) == 5
        really = {"runs": 0, "duration": 0, "bandwidthIn": 0, "bandwidthOut": 0}
        for amounts in made.simulator.world.usage.values():
            really = {name: total + amounts[name] for name, total in really.items()}
        now = made.clock.now()
        assert made.known.usage == {
            usage.kind: usage
            for usage in (
                Usage(kind="runs", unit=Unit.RUNS, at=now, used=really["runs"]),
                Usage(kind="duration", unit=Unit.SECONDS, at=now, used=really["duration"]),
                Usage(kind="bandwidth_in", unit=Unit.BYTES, at=now, used=really["bandwidthIn"]),
                Usage(kind="bandwidth_out", unit=Unit.BYTES, at=now, used=really["bandwidthOut"]),
                Usage(kind="concurrent_runs_per_automation", unit=Unit.RUNS, at=now, limit=10.0),
            )
        }


async def test_usage_without_a_number_is_a_fault_and_no_usage() -> None:
    async with tenant(workflows=2) as made:
        await made.sweep()
        await made.pass_time(HOUR)
        made.simulator.faults = Faults(null_numbers=1.0)
        await made.sweep("quota")
        assert set(made.known.usage) == {"concurrent_runs_per_automation"}
        assert [fault.kind for fault in made.new_faults()] == ["bad_item"] * 4


async def test_that_usage_is_for_admins_is_said_once() -> None:
    async with tenant(workflows=2) as made:
        made.simulator.add_api_key("key-of-two", user_id="two")
        made.reconfigure(token="key-of-two")
        faults = []
        for _ in range(3):
            await made.sweep("quota")
            faults.append([fault.kind for fault in made.new_faults()])
            made.restart()
        assert faults == [[ErrorKind.AUTH], [], []]
        made.simulator.add_api_key("key-of-two", user_id="two", admin=True)
        await made.sweep("quota")
        assert "runs" in made.known.usage
        assert not made.known.cursors("quota")


# Trying it out


async def check(made: Tenant) -> list[str]:
    return [line async for line in made.client.check()]


async def test_check_says_what_works_for_an_admin() -> None:
    async with tenant(workflows=4) as made:
        assert await check(made) == [
            "ok: credential accepted",
            "ok: limit 1000 requests a minute (Qlik's tier 1)",
            "workflows: 4",
            "ok: runs can be listed",
            "ok: runs can be read one by one",
            "ok: usage can be read",
        ]


async def test_check_says_which_rights_are_missing() -> None:
    async with tenant(workflows=0) as made:
        theirs = made.simulator.add_workflow(owner_id="somebody-else", space_id="shared")
        made.simulator.add_run(theirs, started_at=START - 9, ended_at=START - 1)
        admins = await check(made)
        assert [line.split(":")[0] for line in admins] == ["ok", "ok", "workflows", "ok", "note", "ok"]
        made.simulator.add_api_key("key-of-two", user_id="two", spaces=["shared"])
        made.reconfigure(token="key-of-two")
        others = await check(made)
        assert [line.split(":")[0] for line in others] == ["ok", "ok", "workflows", "problem", "ok", "note"]
        assert "admin.automation-runs" in others[3]


async def test_check_says_that_nothing_is_seen_or_left() -> None:
    async with tenant(workflows=2) as made:
        made.reconfigure(exclude=["*"])
        assert [line for line in await check(made) if line.startswith("problem")] == [
            "problem: include and exclude leave none of 2 automations"
        ]
        made.simulator.add_api_key("key-of-nobody", user_id="nobody")
        made.reconfigure(token="key-of-nobody")
        assert [line for line in await check(made) if "sees no automations" in line]


async def test_check_fails_with_a_refused_credential() -> None:
    async with tenant(workflows=2) as made:
        made.reconfigure(token="mistyped")
        with pytest.raises(ApiError) as problem:
            await check(made)
        assert problem.value.kind is ErrorKind.AUTH
        assert "mistyped" not in str(problem.value)
