"""An image built with buildah, without a registry, and its process run as a container runtime would run it.

The process is number 1 of its PID namespace, on the image's own files read-only, as the image's user, without
capabilities and new privileges; the volume and the config are mounted. The network is the machine's own.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import PATIENCE_SECONDS, eventually

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "automation-exporter" / "image"
BASE, NAME = "localhost/automation-exporter-base", "localhost/automation-exporter:tested"
UID = 65532
#: What a runtime does before it becomes the container's process.
_INSIDE = """
set -e
root=$1 data=$2 config=$3; shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
[ "$data" = none ] || mount --bind "$data" "$root/data"
[ "$config" = none ] || mount --bind -o ro "$config" "$root/etc/automation-exporter"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount -o remount,bind,ro "$root"
exec chroot "$root" setpriv --reuid {uid} --regid {uid} --clear-groups --no-new-privs --bounding-set=-all \
    --inh-caps=-all env -i "$@"
"""
BLOCKED, HEEDED = "SigBlk", "SigCgt"
_SIGTERM = 1 << 14


def missing() -> str | None:
    """Why no image can be built and run here, or None if it can."""
    if os.geteuid() != 0:
        return "building and running an image takes root here"
    for tool in ("buildah", "setpriv", "unshare"):
        if shutil.which(tool) is None:
            return f"{tool} is missing"
    if not (CACHE / "base").is_dir():
        return f"there is no base in {CACHE}: make image-test makes one"
    tried = subprocess.run(["unshare", "--pid", "--mount", "--fork", "true"], capture_output=True, text=True)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A built image: its files, and what it says about itself."""

    files: Path
    config: Mapping[str, Any]
    base: Path

    def command(self, words: Sequence[str], variables: Mapping[str, str]) -> list[str]:
        """What comes after `env -i`."""
        given = dict(one.split("=", 1) for one in self.config["Env"]) | dict(variables)
        pairs = [f"{name}={value}" for name, value in given.items()]
        return ["-C", self.config["WorkingDir"], *pairs, *self.config["Entrypoint"], *(words or self.config["Cmd"])]


def buildah(*words: str) -> str:
    """Raises ``AssertionError`` with what buildah said last."""
    done = subprocess.run(
        ["buildah", *words], env=_environment(), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def _environment() -> dict[str, str]:
    """Images in a folder of the tests' own, as plain folders."""
    storage = CACHE / "storage.conf"
    storage.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{CACHE}/storage"\nrunroot = "{CACHE}/run"\n')
    return {**os.environ, "CONTAINERS_STORAGE_CONF": str(storage), "BUILDAH_ISOLATION": "chroot"}


@contextlib.contextmanager
def built() -> Iterator[Image]:
    """The image, built by ``make image`` on the base of Debian's packages. The base is kept, the image is not."""
    if BASE not in buildah("images", "--format", "{{.Name}}").splitlines():
        made = buildah("from", "scratch")
        buildah("copy", "--quiet", made, str(CACHE / "base"), "/")
        buildah("config", "--env", "PIP_CERT=/etc/ssl/certs/ca-certificates.crt", made)
        buildah("commit", "--quiet", "--rm", made, BASE)
    words = ["IMAGE_TOOL=buildah", f"IMAGE={NAME}", f"ARGS=--build-arg BASE={BASE}"]
    environment = {name: value for name, value in _environment().items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "image", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    containers = [buildah("from", NAME), buildah("from", BASE)]
    try:
        files, base = (Path(buildah("mount", one)) for one in containers)
        inspected = json.loads(buildah("inspect", "--type", "image", NAME))
        yield Image(files=files, config=inspected["Docker"]["config"], base=base)
    finally:
        buildah("rm", *containers)
        buildah("rmi", "--force", NAME)
        buildah("rmi", "--prune")


@dataclass(frozen=True, slots=True)
class Container:
    process: asyncio.subprocess.Process
    pid: int
    """of the container's process 1, as it is seen from here"""

    def status(self) -> dict[str, str]:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    async def begun(self) -> None:
        """Wait until the image's entry point runs: from here on no SIGTERM may be lost."""

        async def heeds() -> bool:
            found = self.status()
            heeded = (int(found[BLOCKED], 16) | int(found[HEEDED], 16)) & _SIGTERM
            return bool(heeded) and found["Uid"].split()[0] == str(UID)

        await eventually(heeds, every=0.001)

    async def ended(self) -> tuple[int, str]:
        """Exit code and what was said, both streams."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            said = await self.process.stdout.read()
            return await self.process.wait(), said.decode()


@contextlib.asynccontextmanager
async def started(
    image: Image, *words: str, data: Path | None = None, config: Path | None = None, listen: str = ""
) -> AsyncIterator[Container]:
    """A container of the image: ``data`` is the volume at /data, ``config`` the folder at /etc/automation-exporter."""
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--pid", "--mount", "--fork", "--kill-child"),
        *("sh", "-c", _INSIDE.format(uid=UID), "sh", str(image.files), str(data or "none"), str(config or "none")),
        *image.command(words, {"AUTOMATION_EXPORTER_LISTEN": listen} if listen else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    pid = 0

    async def child() -> int:
        found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return int(found[0]) if found else 0

    try:
        pid = await eventually(child, every=0.001)
        yield Container(process, pid)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # whose change of user undoes --kill-child
                os.kill(pid or process.pid, signal.SIGKILL)
            await process.wait()


async def run(image: Image, *words: str, data: Path | None = None, config: Path | None = None) -> tuple[int, str]:
    """Run it to its end: exit code and what was said."""
    async with started(image, *words, data=data, config=config) as one:
        return await one.ended()
