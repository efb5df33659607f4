"""Secrets replaced while the service runs: taken over at the first refusal, without an error and without a restart."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from exporter.clock import ManualClock
from exporter.config import Config, ConfigError, parse
from exporter.config.shown import shown
from exporter.log import scrub
from exporter.platforms import PLATFORMS
from exporter.source import make_api
from exporter.webhooks.rotation import LOOK_SECONDS, Rotation
from exporter.wire import schemes
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind
from tests.webhooks.service import receiving
from tests.webhooks.test_receiver import event, post

NOW = 1_772_440_000.0
FIXED = dict.fromkeys(("qlik", "etlworks", "cognaize", "n8n"), "token_file") | {
    "make": "organization_id: 9, token_file"
}
LOGINS = {
    "qlik": "oauth: {client_id: me, client_secret_file: FILE}",
    "etlworks": "login: me, password_file: FILE",
    "cognaize": "token_url: URL/login, login: me, password_file: FILE",
}


def mounted(folder: Path) -> Callable[[str], Path]:
    """A secret as Kubernetes mounts it: a link to a folder that is pointed elsewhere; returns how to rotate it."""
    versions = itertools.count()

    def rotate(value: str) -> Path:
        version = folder / f"..{next(versions)}"
        version.mkdir(parents=True)
        (version / "secret").write_text(value + "\n")
        fresh = folder / "..new"
        fresh.symlink_to(version.name)
        fresh.replace(folder / "..data")
        if not (folder / "secret").is_symlink():
            (folder / "secret").symlink_to("..data/secret")
        return folder / "secret"

    return rotate


class Strict:
    """A platform that takes one secret only, as a bearer token or for a login."""

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self.refused = 0
        self.token = 0

    def rotate(self, secret: str) -> None:
        self.secret, self.token = secret, self.token + 1

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            body = await request.json()
            if body.get("password", body.get("client_secret")) != self.secret:
                self.refused += 1
                return web.json_response({"message": "wrong"}, status=401)
            token = f"bought-{self.token}"
            return web.json_response({"token": token, "access_token": token})
        word = request.headers.get("X-N8N-API-KEY") or request.headers.get("Authorization", "").partition(" ")[2]
        if word not in (self.secret, f"bought-{self.token}"):
            self.refused += 1
            return web.json_response({"message": "no"}, status=401)
        return web.json_response({"ok": True})


@asynccontextmanager
async def reading(name: str, credential: str, platform: Strict) -> AsyncIterator[Api]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", platform.answer)
    async with TestServer(app) as server:
        url = str(server.make_url("")).rstrip("/")
        config = config_of(f"s: {{platform: {name}, url: '{url}', {credential.replace('URL', url)}}}")
        section = config.sources["s"]
        api = make_api(section, PLATFORMS[name], ManualClock(NOW))
        try:
            yield api
        finally:
            await api.close()


def config_of(sources: str) -> Config:
    return parse(f"sources: {{{sources}}}", {})


@pytest.mark.parametrize("name", PLATFORMS)
async def test_a_token_replaced_in_its_file_is_used_from_the_first_refusal_on(name: str, tmp_path: Path) -> None:
    rotate, platform = mounted(tmp_path), Strict("first-token-0001")
    file = rotate("first-token-0001")
    async with reading(name, f"{FIXED[name]}: {file}", platform) as api:
        assert (await api.get("/x", lane=Lane.SWEEPS)).data == {"ok": True}
        platform.rotate("second-token-0002")
        rotate("second-token-0002")
        assert (await api.get("/x", lane=Lane.SWEEPS)).data == {"ok": True}
        assert (await api.get("/x", lane=Lane.SWEEPS)).data == {"ok": True}
        assert platform.refused == 1
    assert scrub("a second-token-0002 b") == "a [secret] b"


@pytest.mark.parametrize("name", LOGINS)
async def test_a_password_replaced_in_its_file_is_used_from_the_first_refusal_on(name: str, tmp_path: Path) -> None:
    rotate, platform = mounted(tmp_path), Strict("first-password-1")
    file = rotate("first-password-1")
    async with reading(name, LOGINS[name].replace("FILE", str(file)), platform) as api:
        await api.get("/x", lane=Lane.SWEEPS)
        platform.rotate("second-password-2")
        rotate("second-password-2")
        assert (await api.get("/x", lane=Lane.SWEEPS)).data == {"ok": True}
    assert scrub("second-password-2") == "[secret]"


@pytest.mark.parametrize("left", [None, "", "first-token-0001", "with a space", "not ascii \u00fc", "two\nlines"])
async def test_a_file_without_another_usable_token_is_an_auth_error_and_looked_at_again(
    left: str | None, tmp_path: Path
) -> None:
    file, platform = tmp_path / "token", Strict("first-token-0001")
    file.write_text("first-token-0001")
    async with reading("etlworks", f"token_file: {file}", platform) as api:
        platform.rotate("second-token-0002")
        if left is None:
            file.unlink()
        else:
            file.write_text(left)
        with pytest.raises(ApiError) as refused:
            await api.get("/x", lane=Lane.SWEEPS)
        assert refused.value.kind is ErrorKind.AUTH
        assert platform.refused == 1
        file.write_text("second-token-0002")
        assert (await api.get("/x", lane=Lane.SWEEPS)).data == {"ok": True}


async def test_many_calls_refused_at_once_read_the_file_once(tmp_path: Path) -> None:
    file, platform = tmp_path / "token", Strict("first-token-0001")
    file.write_text("first-token-0001")
    async with reading("etlworks", f"token_file: {file}", platform) as api:
        platform.rotate("second-token-0002")
        file.write_text("second-token-0002")
        answers = await asyncio.gather(*(api.get("/x", lane=Lane.SWEEPS) for _ in range(4)))
    assert [answer.data for answer in answers] == [{"ok": True}] * 4


def test_what_is_no_secret_may_come_from_a_file_too_and_a_secret_stays_masked(tmp_path: Path) -> None:
    (tmp_path / "login").write_text("me\n")
    (tmp_path / "password").write_text("first-password-1\n")
    files = f"login_file: {tmp_path}/login, password_file: {tmp_path}/password"
    config = config_of(f"s: {{platform: etlworks, url: 'http://localhost', {files}}}")
    section: Any = config.sources["s"]
    assert section.login == "me"
    assert "first-password-1" not in shown(config, {}, {}) + repr(config)
    assert config.secrets() == ["first-password-1"]
    (tmp_path / "password").write_text("\n")
    with pytest.raises(ConfigError, match="password"):
        config_of(f"s: {{platform: etlworks, url: 'http://localhost', {files}}}")


# Webhooks


def hook(kind: str, file: Path) -> Any:
    webhook = kind.replace("FILE", str(file))
    text = f"s: {{platform: cognaize, url: 'http://localhost', token: abcd, webhook: {{{webhook}}}}}"
    return config_of(text).sources["s"].webhook


@pytest.mark.parametrize("files", ["FILE", "[FILE, FILE]"])
async def test_a_webhook_secret_replaced_in_its_file_is_taken_over(files: str, tmp_path: Path) -> None:
    rotate, clock = mounted(tmp_path / "m"), ManualClock(NOW)
    config = hook(f"scheme: header, header: X-Token, secret_file: {files}", rotate("first-secret-0001"))
    rotation = Rotation(config)
    async with receiving(
        tmp_path / "t.db", scheme=config.build(), clock=clock, refreshed=rotation.refreshed
    ) as service:

        async def status(secret: str) -> int:
            return (await post(service, event(), {"X-Token": secret})).status

        assert await status("first-secret-0001") == 202
        assert await status("third-secret-0003") == 401
        rotate("second-secret-0002")
        await clock.advance(LOOK_SECONDS)
        assert await status("second-secret-0002") == 202
        assert await status("first-secret-0001") == 401
    assert scrub("second-secret-0002") == "[secret]"


async def test_failed_proofs_look_at_the_file_rarely(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("first-secret-0001")
    rotation = Rotation(hook("scheme: bearer, token_file: FILE", file))
    assert await rotation.refreshed(NOW) is None
    file.write_text("second-secret-0002")
    assert await rotation.refreshed(NOW + LOOK_SECONDS / 2) is None
    scheme = await rotation.refreshed(NOW + LOOK_SECONDS)
    assert scheme == schemes.Bearer(tokens=("second-secret-0002",))
    file.write_text("  ")  # no secret at all
    assert await rotation.refreshed(NOW + 2 * LOOK_SECONDS) is None
    file.unlink()
    assert await rotation.refreshed(NOW + 3 * LOOK_SECONDS) is None
    file.write_text("third-secret-0003")
    assert await rotation.refreshed(NOW - 1000) == schemes.Bearer(tokens=("third-secret-0003",))  # our clock stepped
