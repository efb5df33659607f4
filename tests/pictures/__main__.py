"""`make pictures`: the pictures of the docs, made anew from the running thing: `dashboards`, `status`, or both."""

import asyncio
import base64
import sys
import tempfile
from pathlib import Path
from typing import Any

from exporter.simulator.fleet import DEMO_RETRIES
from tests.chromium import chromium
from tests.dashboards.history import history
from tests.dashboards.reading import FILES
from tests.pictures.drawn import draw
from tests.servers import eventually
from tests.web.night import night, sign_in

IMAGES = Path(__file__).parents[2] / "docs" / "images"
TOKEN = "letmein-please"
HOURS = 6.0


def unattended(policy: dict[str, Any]) -> dict[str, Any]:
    """A policy of the demo that asks nobody."""
    return {key: value for key, value in policy.items() if key not in ("approve", "group_by")}


async def make(folder: Path) -> None:
    changes = {
        "server": {"listen": "127.0.0.1:0", "admin_token": TOKEN},
        "retries": {"mode": "enforce", "policies": [unattended(policy) for policy in DEMO_RETRIES["policies"]]},
    }
    async with history(folder, hours=HOURS, workflows=6, changes=changes) as lived:

        async def scraped() -> bool:
            return bool(await lived.server.query("up == 1"))

        await eventually(scraped)
        [(worst, _)] = await lived.server.query(
            'topk(1, sum by (workflow_id) (automation_runs_total{result="failure"}))'
        )
        for file in FILES:
            await draw(
                file,
                lived,
                IMAGES / f"{file.stem}.png",
                workflow_id=worst["workflow_id"],
                __range="5h",
                __range_s="18000",
            )


async def status(folder: Path) -> None:
    """The status page on a bad night."""
    async with night(folder) as made:
        for name, width, height, dark in (("status", 1280, 1000, False), ("status-phone", 390, 844, True)):
            async with chromium(folder, width=width, height=height, dark=dark) as page:
                await sign_in(page, made.url)
                shot = await page.call("Page.captureScreenshot", format="png")
                (IMAGES / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


async def drawn_all(folder: Path) -> None:
    wanted = sys.argv[1:] or ["dashboards", "status"]
    for name in wanted:
        (folder / name).mkdir()
        await {"dashboards": make, "status": status}[name](folder / name)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(drawn_all(Path(folder)))
    sys.stdout.write(f"{IMAGES}: {', '.join(sorted(path.name for path in IMAGES.glob('*.png')))}\n")
