"""deploy/systemd: judged by systemd's own tools, and run for real as far as that goes without a systemd."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from exporter.cli.service import STOP_SECONDS_MAX
from tests.deploy import facts
from tests.deploy.facts import CONFIG, DEPLOY
from tests.servers import PATIENCE_SECONDS, eventually, real

UNIT = DEPLOY / "systemd/automation-exporter.service"
#: `systemd-analyze security`, in tenths: 12 with systemd 252; what is left is mostly that it uses the network.
EXPOSURE_MAX = 15
#: Become a program that may have no memory both writable and executable, as MemoryDenyWriteExecute= has it.
DENYING = """
import ctypes, os, sys
PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1
if ctypes.CDLL(None).prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
    sys.exit(77)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
NOT_HERE = 77


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.M):
        found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with a program that exists: systemd looks for it."""
    [command] = settings()["ExecStart"]
    file = tmp_path / UNIT.name
    file.write_text(UNIT.read_text().replace(command.split()[0], sys.executable))
    return file


def systemd_analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)


@real("systemd-analyze")
def test_systemd_reads_the_unit_without_a_complaint(installed: Path) -> None:
    done = systemd_analyze("verify", "--man=no", installed)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    installed.write_text(installed.read_text().replace("RestartSec=", "RestartSeconds="))
    assert "RestartSeconds" in systemd_analyze("verify", "--man=no", installed).stderr


@real("systemd-analyze")
def test_it_is_exposed_to_little(installed: Path) -> None:
    done = systemd_analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX}", "--no-pager", installed)
    print(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout


def test_its_user_is_one_that_sysusers_makes(tmp_path: Path) -> None:
    has = settings()
    line = (DEPLOY / "systemd/sysusers.conf").read_text().splitlines()[-1]
    assert line.split()[:2] == ["u", has["User"][0]]
    assert has["User"] == has["Group"]
    if shutil.which("systemd-sysusers") is None:
        return
    (tmp_path / "etc").mkdir()
    command = ["systemd-sysusers", f"--root={tmp_path}", str(DEPLOY / "systemd/sysusers.conf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    if os.geteuid() == 0:
        assert done.returncode == 0, done.stderr
        assert f"{has['User'][0]}:" in (tmp_path / "etc/passwd").read_text()


def test_paths_and_secrets_are_those_of_the_config() -> None:
    has = settings()
    [command] = has["ExecStart"]
    assert command.endswith(f"/automation-exporter run --config {CONFIG}")
    [state], [folder] = has["StateDirectory"], has["WorkingDirectory"]
    assert folder == f"/var/lib/{state}"
    assert f"url: sqlite:///{folder}/" in facts.config_text("systemd")
    credentials = dict(line.split(":") for line in has["LoadCredential"])
    assert set(credentials) == facts.secrets_of("systemd")
    assert credentials == {name: f"{CONFIG.parent}/secrets/{name}" for name in credentials}


def test_it_is_restarted_but_not_for_ever_and_has_time_to_stop() -> None:
    has = settings()
    assert (has["Restart"], has["StartLimitBurst"], has["StartLimitIntervalSec"]) == (["on-failure"], ["5"], ["5min"])
    # Five tries that end at once have to fall into the interval, or the limit is never reached.
    assert int(has["RestartSec"][0].rstrip("s")) * 5 < 5 * 60
    assert int(has["TimeoutStopSec"][0].rstrip("s")) > STOP_SECONDS_MAX
    # The program says nothing to systemd, so systemd must not wait for it.
    speaks = any("NOTIFY_SOCKET" in file.read_text() for file in (facts.ROOT / "exporter").rglob("*.py"))
    assert has["Type"] == ["notify" if speaks else "exec"]


async def test_it_runs_with_credentials_and_without_executable_memory_reloads_and_stops(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for name in facts.secrets_of("systemd"):
        (credentials / name).write_text("0123456789abcdef\n")
    [state] = settings()["WorkingDirectory"]
    text = (
        facts.config_text("systemd").replace(state, str(tmp_path)).replace("https://eu1.make.com", "http://127.0.0.1:9")
    )
    config = tmp_path / "config.yaml"
    config.write_text(re.sub(r"(listen: 127\.0\.0\.1):\d+", r"\1:0", text))
    log = tmp_path / "log"
    with log.open("w") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", DENYING, "-m", "exporter", "run", "--config", str(config)),
            cwd=facts.ROOT,
            env={**os.environ, "CREDENTIALS_DIRECTORY": str(credentials)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    async def ports(times: int) -> list[str]:
        assert process.returncode in (None, NOT_HERE), log.read_text()
        found = re.findall(r"msg=running .*?port=(\d+)", log.read_text())
        return found if len(found) >= times or process.returncode is not None else []

    try:
        found = await eventually(lambda: ports(1)) if await _started(process) else []
        if not found:
            pytest.skip("this kernel cannot deny executable memory (PR_SET_MDWE, Linux 6.3)")
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{found[0]}/-/healthy") as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGHUP)
        await eventually(lambda: ports(2))
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), PATIENCE_SECONDS) == 0
        assert "0123456789abcdef" not in log.read_text()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _started(process: asyncio.subprocess.Process) -> bool:
    """Whether it became the exporter; otherwise it has ended with the code for that."""

    async def became() -> str:
        if process.returncode is not None:
            return "ended"
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        return "" if b"PR_SET_MDWE" in words else "started"

    return await eventually(became) == "started"
