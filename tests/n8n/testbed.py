"""A real n8n for tests: installed once outside the clone, started on loopback, stopped or killed by its process id.

    python -m tests.n8n.testbed install    node and n8n from npm into N8N_DIR, as `make test-n8n` does
    python -m tests.n8n.testbed installed  whether that has been done: ends with 0, or with 1 and the reason

`N8N_DIR` is by default a folder in the user's cache; it takes 2.3 GB and some minutes, needs npm, a C++ compiler, make
and python3, and nothing but the npm registry. Only `install` writes there: each server has a folder of its own. A
server makes no call to the outside: whatever of n8n would is switched off.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.servers import LOG_TAIL_LINES, eventually, free_port

#: Later versions may pin packages that the registry does not have; this one is known to install, and to behave.
N8N = "2.41.1"
#: n8n wants node 24. The npm package `node` brings the program, and its headers.
NODE = "24.21.0"
SCOPES = (
    "workflow:create", "workflow:read", "workflow:update", "workflow:delete", "workflow:list", "workflow:activate",
    "workflow:deactivate", "execution:read", "execution:list", "execution:retry", "execution:stop", "execution:delete",
    "insights:read", "tag:list", "project:list",
)  # fmt: skip
#: What n8n would otherwise do besides its work: phone home, look for news, fetch templates.
QUIET = {
    **dict.fromkeys(
        (
            "N8N_DIAGNOSTICS_ENABLED", "N8N_VERSION_NOTIFICATIONS_ENABLED", "N8N_TEMPLATES_ENABLED",
            "N8N_PERSONALIZATION_ENABLED", "N8N_HIRING_BANNER_ENABLED", "N8N_COMMUNITY_PACKAGES_ENABLED",
            "N8N_LICENSE_AUTO_RENEW_ENABLED", "N8N_DYNAMIC_BANNERS_ENABLED", "N8N_AI_ENABLED", "N8N_SECURE_COOKIE",
        ),
        "false",
    ),
    "N8N_ONBOARDING_FLOW_DISABLED": "true",
    "N8N_DISABLE_UI": "true",
    "N8N_DISABLED_MODULES": "mcp-registry,instance-ai,agents,chat-hub",
    "DO_NOT_TRACK": "1",
}  # fmt: skip
#: Packages that are replaced by empty ones: one fetches its sources from elsewhere, the others are half a gigabyte of
#: web page and AI nodes.
STUBS: Mapping[str, Mapping[str, Any]] = {
    "@confluentinc/kafka-javascript": {},
    "n8n-editor-ui": {},
    "@n8n/n8n-nodes-langchain": {"n8n": {"n8nNodesApiVersion": 1, "credentials": [], "nodes": []}},
}
INHERITED = ("N8N_", "OTEL_", "EXECUTIONS_", "DB_")
#: n8n waits for its executions this long after SIGTERM, and is then ended (seconds).
STOP_SECONDS = 60.0
#: A server that is up answers within so many seconds, a starting one perhaps never.
READY_SECONDS = 5.0


def folder() -> Path:
    """Where n8n is, or would be installed."""
    given = os.environ.get("N8N_DIR")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(cache) / "automation-exporter" / "n8n"


def _node() -> Path:
    return folder() / "node" / "node_modules" / "node" / "bin" / "node"


def missing() -> str | None:
    """Why no n8n can be started here, or None if one can."""
    stamp = folder() / "installed.json"
    if not stamp.is_file():
        return f"no n8n in {folder()}: `make test-n8n` installs it with npm (2.3 GB, some minutes)"
    if json.loads(stamp.read_text()) != _versions():
        return f"another version of n8n in {folder()}: `make test-n8n` installs {N8N}"
    return None


def _versions() -> dict[str, str]:
    return {"n8n": N8N, "node": NODE}


# ----------------------------------------------------------------------------------------------------------- install


def install() -> str | None:
    """Install what is missing; what stands against it, in one line."""
    if missing() is None:
        return None
    for program in ("npm", "c++", "make", "python3"):
        if shutil.which(program) is None:
            return f"{program} is missing: n8n cannot be installed"
    home = folder()
    try:
        _npm(home / "node", {"private": True}, "--no-save", f"node@{NODE}")
        app = home / "app"
        overrides = {name: f"file:./{_stub(app, name, more)}" for name, more in STUBS.items()}
        package = {"name": "n8n-testbed", "private": True, "dependencies": {"n8n": N8N}, "overrides": overrides}
        _npm(app, package, "--ignore-scripts", "--prefer-offline")
        # The one native module that has no program in the registry. It speaks Node-API; -O0 takes a third of the time.
        headers = next((home / "node").glob("node_modules/**/node-linux-*/include/node/node_api.h")).parents[2]
        build = ["npm", "exec", "--offline=false", "--yes", "--", "node-gyp", "rebuild", "--jobs=2"]
        told = {"npm_config_nodedir": str(headers), "CFLAGS": "-O0", "CXXFLAGS": "-O0"}
        _run(build, app / "node_modules" / "sqlite3", **told)
    except subprocess.CalledProcessError as error:
        return f"n8n could not be installed: `{' '.join(error.cmd)}` ended with {error.returncode} (log: {home}/log)"
    (home / "installed.json").write_text(json.dumps(_versions()))
    return None


def _stub(app: Path, name: str, more: Mapping[str, Any]) -> Path:
    place = Path("stubs") / name.replace("/", "_")
    for part in ("dist", "mcp"):
        (app / place / part).mkdir(parents=True, exist_ok=True)
    package = {"name": name, "version": N8N, "main": "index.js", **more}
    (app / place / "package.json").write_text(json.dumps(package))
    (app / place / "index.js").write_text("module.exports = {};\n")
    (app / place / "mcp" / "core.js").write_text("module.exports = { McpServer: class {} };\n")  # imported, never used
    (app / place / "dist" / "index.html").write_text("<html></html>\n")
    return place


def _npm(where: Path, package: Mapping[str, Any], *arguments: str) -> None:
    where.mkdir(parents=True, exist_ok=True)
    (where / "package.json").write_text(json.dumps(package))
    _run(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", *arguments], where)


def _run(command: list[str], where: Path, **told: str) -> None:
    path = f"{_node().parent}:{os.environ['PATH']}" if _node().exists() else os.environ["PATH"]
    with (folder() / "log").open("ab") as log:
        env = {**os.environ, "PATH": path, "npm_config_update_notifier": "false", **told}
        subprocess.run(command, cwd=where, env=env, check=True, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


# --------------------------------------------------------------------------------------------------------------- run


@dataclass(slots=True, kw_only=True)
class N8n:
    """One instance with its own folder. It can be stopped, killed and started again on what it had stored."""

    home: Path
    port: int
    session: aiohttp.ClientSession
    key: str = ""
    process: asyncio.subprocess.Process | None = None
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, **settings: str) -> None:
        """Start it with these settings beside the quiet ones; ready when its API answers."""
        self.settings = settings
        outer = {key: value for key, value in os.environ.items() if not key.startswith(INHERITED)}
        env = {
            **outer,
            **QUIET,
            "PATH": f"{_node().parent}:{os.environ['PATH']}",
            "N8N_USER_FOLDER": str(self.home),
            "N8N_LISTEN_ADDRESS": "127.0.0.1",
            "N8N_HOST": "127.0.0.1",
            "N8N_PORT": str(self.port),
            "WEBHOOK_URL": f"{self.url}/",
            "N8N_RUNNERS_BROKER_PORT": str(free_port()),
            "DB_TYPE": "sqlite",
            "GENERIC_TIMEZONE": "UTC",
            "NODE_ENV": "production",
            **settings,
        }
        program = folder() / "app" / "node_modules" / "n8n" / "bin" / "n8n"
        with (self.home / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                str(_node()), str(program), "start", env=env, cwd=self.home, stdout=log, stderr=log,
                stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        await eventually(self._ready)
        if not self.key:
            await self._set_up()

    async def stop(self) -> None:
        """SIGTERM, and its end."""
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self.process.wait()
            except TimeoutError:
                await self.kill()

    async def kill(self) -> None:
        """What n8n calls a crash."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
            await self.process.wait()

    async def call(self, method: str, path: str, body: Any = None, *, key: bool = True) -> tuple[int, Any]:
        """The status and the body of an answer; text where it is no JSON."""
        headers = {"X-N8N-API-KEY": self.key} if key and self.key else {}
        async with self.session.request(method, self.url + path, json=body, headers=headers) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if "json" in answer.content_type else text

    async def _ready(self) -> bool:
        """Its database is there before its routes are."""
        assert self.process is not None
        if self.process.returncode is not None:
            raise RuntimeError(f"n8n ended with {self.process.returncode} before it was ready")
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            # What it is asked while it starts may never be answered.
            async with asyncio.timeout(READY_SECONDS):
                status, _ = await self.call("GET", "/healthz/readiness")
                if status == 200:
                    status, _ = await self.call("GET", "/api/v1/workflows?limit=1")
                    return status in (200, 401)
        return False

    async def _set_up(self) -> None:
        """An owner and an API key, as a person makes them in the browser once."""
        owner = {"email": "owner@example.test", "firstName": "Test", "lastName": "Owner"}

        async def owned() -> bool:
            password = secrets.token_urlsafe(12) + "A1"
            status, _ = await self.call("POST", "/rest/owner/setup", {**owner, "password": password})
            return status == 200

        await eventually(owned)
        given = {"label": "tests", "expiresAt": None, "scopes": list(SCOPES)}
        status, answer = await self.call("POST", "/rest/api-keys", given)
        if status != 200:
            raise RuntimeError(f"n8n gave no API key: {status} {answer}")
        self.key = answer["data"]["rawApiKey"]
        self.session.cookie_jar.clear()  # the owner's cookie opens the API as well


@contextlib.asynccontextmanager
async def n8n(home: Path, **settings: str) -> AsyncIterator[N8n]:
    """A running n8n with an owner and an API key, whose data is in ``home``; it ends with the block."""
    home.mkdir(parents=True, exist_ok=True)
    # The cookie of the owner is for an address, which the usual jar does not take.
    jar = aiohttp.CookieJar(unsafe=True)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(cookie_jar=jar, timeout=timeout) as session:
        server = N8n(home=home, port=free_port(), session=session)
        try:
            await server.start(**settings)
            yield server
        except BaseException as error:
            lines = (home / "log").read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
            error.add_note("\n".join(["n8n logged last:", *lines]))
            raise
        finally:
            await server.kill()


def main(arguments: list[str]) -> int:
    reason = missing()
    if arguments == ["installed"]:
        if reason is not None:
            print(reason)
        return reason is not None
    if arguments != ["install"]:
        print("usage: python -m tests.n8n.testbed install | installed", file=sys.stderr)
        return 2
    if reason is not None:
        print(f"installing n8n {N8N} into {folder()}: once, some minutes and 2.3 GB", flush=True)
        reason = install()
    if reason is not None:
        print(f"{reason}; the tests that need it are skipped", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
