"""The platforms' own clients, installed outside the clone, each in a node process that makes the calls a test names.

They are the reader that neither we nor our stand-ins wrote: what they accept, send and declare is what the platforms
mean. `tests/setup-real-components` installs them; nothing of theirs is in this repository but their names and versions.
"""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import PATIENCE_SECONDS

HERE = Path(__file__).parent
NODE_MAJOR_MIN = 20


def folder() -> Path:
    """Where setup-real-components puts the clients."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "automation-exporter" / "clients"


def missing() -> str | None:
    """Why the official clients cannot be asked here, or None if they can."""
    node = shutil.which("node")
    if node is None:
        return f"node is missing: the official clients need node {NODE_MAJOR_MIN} or newer, and npm to install them"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    if not version.startswith("v") or int(version[1:].partition(".")[0]) < NODE_MAJOR_MIN:
        return f"node {version} is too old: the official clients need node {NODE_MAJOR_MIN} or newer"
    installed, wanted = folder() / "package-lock.json", HERE / "package-lock.json"
    if not installed.is_file() or installed.read_bytes() != wanted.read_bytes():
        return f"the official clients are not in {folder()}: tests/setup-real-components installs them with npm"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the client made of one call. `refused` is the HTTP status it threw, None if it threw nothing."""

    value: Any
    refused: int | None
    status: int | None
    text: str
    pages: list[Any]


@dataclass(frozen=True, slots=True)
class Official:
    """A client in its node process. It talks to whatever server a call names."""

    process: subprocess.Popen[str]

    async def call(self, url: str, token: str, call: str, *args: Any) -> Answer:
        line = json.dumps({"url": url, "token": token, "call": call, "args": args})
        # In a thread: this loop has the server to run meanwhile.
        heard = await asyncio.wait_for(asyncio.to_thread(self._ask, line), PATIENCE_SECONDS)
        answer = json.loads(heard)
        if "broken" in answer:
            raise AssertionError(f"the official client broke on {call}: {answer['broken']}")
        return Answer(
            value=answer.get("value"),
            refused=answer.get("refused"),
            status=answer.get("status"),
            text=answer.get("text", ""),
            pages=answer.get("pages", []),
        )

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline() or '{"broken": "the node process ended"}'


@contextmanager
def official(script: str) -> Iterator[Official]:
    command = ["node", str(HERE / script), str(folder() / "package.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Official(process)
        finally:
            process.kill()
