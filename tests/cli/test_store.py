"""A real service whose database is filled up, locked, taken away and put back while senders go on."""

import contextlib
import re
import sqlite3
import time
from pathlib import Path

import aiohttp
import pytest

from tests.cli.test_commands import Process, command, config, get, simulated
from tests.servers import eventually
from tests.store.test_trouble import fill, small_disk


class Sender:
    """Somebody who sends events to a service and remembers which were taken."""

    def __init__(self, port: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.taken: set[str] = set()
        self.sent = 0
        self.slowest = 0.0

    async def send(self) -> int:
        self.sent += 1
        run_id, now = f"sent{self.sent}", time.time()
        event = {"event": "run.finished", "workflow_id": "w", "run_id": run_id, "result": "success"}
        event |= {"started_at": now - 2, "ended_at": now - 1, "occurred_at": now}  # type: ignore[dict-item]
        headers = {"Authorization": "Bearer hook-token"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/webhooks/q", json=event, headers=headers) as response,
        ):
            self.slowest = max(self.slowest, time.time() - now)
            if response.status == 202:
                self.taken.add(run_id)
            else:
                assert response.headers["Retry-After"]
            return response.status

    async def refused(self) -> bool:
        return await self.send() == 503

    async def is_down(self) -> bool:
        ready, why = await get(f"{self.url}/-/ready")
        scraped = (await get(f"{self.url}/metrics"))[1]
        return ready == 503 and '"source":""' in why and "automation_exporter_store_up 0.0" in scraped

    async def is_up(self) -> bool:
        ready = (await get(f"{self.url}/-/ready"))[0] == 200
        return ready and "automation_exporter_store_up 1.0" in (await get(f"{self.url}/metrics"))[1]


def errors(service: Process) -> list[str]:
    return re.findall(r"^.*level=error.*$", service.output, re.M)


def stored(file: Path) -> set[str]:
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    with contextlib.closing(connection):
        return {row[0] for row in connection.execute("SELECT run_id FROM runs WHERE run_id LIKE 'sent%'")}


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["stopped", "killed"])
async def test_whatever_happens_to_the_database_what_was_acknowledged_is_there_afterwards(
    tmp_path: Path, killed: bool
) -> None:
    with small_disk(tmp_path / "small", size="8m") as disk:
        folder = disk / "data"
        folder.mkdir()
        file = folder / "x.db"
        async with simulated(tmp_path, "make") as url:
            path = config(tmp_path, url, platform="make", organization_id=9)
            path.write_text(path.read_text().replace(f"{tmp_path}/x.db", str(file)))
            async with command(tmp_path, "run", "--config", str(path)) as service:
                sender = Sender(await service.found(r"msg=running .*port=(\d+)"))
                assert await eventually(sender.is_up, seconds=60)
                assert await sender.send() == 202

                ballast = fill(disk)
                assert await eventually(sender.refused, seconds=60, every=0)
                assert await sender.is_down()
                ballast.unlink()
                assert await eventually(sender.is_up, seconds=60)
                assert await sender.send() == 202

                other = sqlite3.connect(file, isolation_level=None)
                other.execute("BEGIN IMMEDIATE")
                assert await sender.refused()
                assert await sender.is_down()
                other.execute("ROLLBACK")
                other.close()
                assert await eventually(sender.is_up, seconds=60)
                assert await sender.send() == 202

                folder.rename(disk / "elsewhere")
                assert [await sender.send() for _ in range(20)] == [503] * 20
                assert await sender.is_down()
                (disk / "elsewhere").rename(folder)
                assert await eventually(sender.is_up, seconds=60)
                assert await sender.send() == 202

                file.rename(file.with_name("moved.db"))
                assert await sender.refused()
                assert await sender.is_down()
                assert len(errors(service)) == 4
                assert "Traceback" not in service.output
                assert len(re.findall("the store works again", service.output)) == 3
                assert "sweep failing" not in service.output
                assert sender.slowest < 10.0
                if killed:
                    service.process.kill()
                    await service.process.wait()
                else:
                    assert await service.stop() == 0
        assert sender.taken <= stored_with_log(file)


def stored_with_log(file: Path) -> set[str]:
    """What is in the database that was moved, once the log that was left behind is put beside it again."""
    moved = file.with_name("moved.db")
    log = Path(f"{file}-wal")
    if log.exists():
        log.rename(f"{moved}-wal")
    return stored(moved)
