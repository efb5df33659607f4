"""A login nobody documents: its fields, form or JSON, its header, and tokens that end after ten hours."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp.test_utils import TestServer

from exporter.platforms.cognaize.config import CognaizeConfig
from exporter.simulator.cognaize import CognaizeSimulator
from tests.platforms.cognaize.test_client import LOGIN, START, HastyClock, Source

KEYCLOAK = (("grant_type", "password"), ("client_id", "ai-client"))


@asynccontextmanager
async def source(section: dict[str, Any], **options: Any) -> AsyncIterator[Source]:
    clock = HastyClock(START)
    simulator = CognaizeSimulator(clock=clock, workflows=1, **options)
    async with TestServer(simulator.app()) as server:
        base = str(server.make_url("")).rstrip("/")
        whole = {"platform": "cognaize", "url": base, **section}
        if "login" in section:
            whole |= {"token_url": f"{base}/auth/token", "password": "demo-password"}
        made = Source(simulator, clock, CognaizeConfig.model_validate(whole))
        try:
            yield made
        finally:
            await made.api.close()


@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize("fields", [("login", "password"), ("email", "password"), ("username", "secret")])
@pytest.mark.parametrize(("header", "word"), [("Authorization", "Bearer"), ("x-auth", ""), ("X-Token", "Key")])
async def test_a_login_is_sent_as_the_config_says(form: bool, fields: tuple[str, str], header: str, word: str) -> None:
    extra = KEYCLOAK if form else ()
    section = {
        "login": "demo",
        "login_request": {
            "encoding": "form" if form else "json",
            "login_field": fields[0],
            "password_field": fields[1],
            "fields": dict(extra),
        },
        "token_header": header,
        "token_word": word,
    }
    options = {"token": None, "login_form": form, "login_fields": fields, "login_extra": extra}
    async with source(section, header=header, word=word, **options) as made:
        assert await made.sweep() == []
        assert made.asked()[LOGIN] == 1


async def test_a_token_that_lives_ten_hours_is_renewed_before_it_ends() -> None:
    async with source({"login": "demo"}, token=None) as made:
        await made.sweep()
        await made.clock.advance(7.5 * 3600)
        await made.sweep()
        assert made.asked()[LOGIN] == 1
        await made.clock.advance(1.0 * 3600)  # 80 % of its life
        await made.sweep()
        assert made.asked()[LOGIN] == 1


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        ({"login_field": "a", "password_field": "a"}, "must differ"),
        ({"fields": {"login": "x"}}, "must not stand in fields"),
        ({"encoding": "xml"}, "'json' or 'form'"),
    ],
)
def test_a_login_that_cannot_be_sent_is_an_error_of_the_config(request_: dict[str, Any], problem: str) -> None:
    section = {"platform": "cognaize", "url": "https://c.example", "token": "t", "login_request": request_}
    with pytest.raises(ValueError, match=problem):
        CognaizeConfig.model_validate(section)


async def test_check_says_when_a_token_given_by_hand_ends() -> None:
    claims = base64.urlsafe_b64encode(orjson.dumps({"exp": START + 36_000})).decode().rstrip("=")
    token = f"e30.{claims}.c2ln"
    async with source({"token": token}, token=token) as made:
        lines = [line async for line in made.client.check()]
    assert any(line.startswith("problem: the token ends in 10.0 hours") for line in lines)
    assert token not in "".join(lines)


@pytest.mark.parametrize(("status", "gone"), [(404, True), (412, False)])
async def test_a_precondition_that_is_not_met_is_not_a_process_that_is_gone(status: int, gone: bool) -> None:
    async with source({"token": "demo-token"}, unknown_process=status) as made:
        for _ in range(40):
            await made.clock.advance(60)
            await made.sweep()
            if made.known.open_runs or made.known.dead_letters:
                break
        runs = dict(made.known.open_runs)
        letters = dict(made.known.dead_letters)
        assert runs or letters
        for run_id in {*runs, *(letter.run_id or "" for letter in letters.values())}:
            made.simulator.delete_run(run_id)
        for _ in range(20):
            await made.clock.advance(60)
            await made.sweep()
        still = (set(runs) & set(made.known.open_runs)) | (set(letters) & set(made.known.dead_letters))
        assert bool(still) is not gone
