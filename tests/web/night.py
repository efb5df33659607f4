"""A bad night, for the page to tell of: something of everything that it can show. And the states it is looked at in."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from exporter.model import DeadLetter, Error, ErrorClass
from exporter.model.operations import OperationAction
from exporter.retries.operations import Selection
from tests.chromium import Page
from tests.e2e.deployment import Deployment, deployment
from tests.web.test_browser import TOKEN
from tests.web.test_page_groups import SOFT, ingest, put

HOUR = 3600.0
DASHBOARDS = "https://grafana.example"
POLICIES = [
    {"name": "never-data", "match": {"error.class": ["validation"]}, "action": "escalate"},
    {"name": "money", "match": {"error.class": ["timeout"]}, "action": "retry", "approve": "each", "retry": SOFT},
    {"name": "transient", "match": {"error.class": ["network"]}, "action": "retry", "retry": SOFT},
]


@asynccontextmanager
async def night(folder: Path, *, letters: int = 60, groups: int = 3, token: bool = True) -> AsyncIterator[Deployment]:
    """Failing, overdue, stopped and stuck workflows; dead letters in groups; retries; a source that cannot be read."""
    changes: dict[str, Any] = {
        "server": {"listen": "127.0.0.1:0"} | ({"admin_token": TOKEN} if token else {}),
        "retries": {"mode": "enforce", "policies": POLICIES},
        "slo": {"dashboard_url": DASHBOARDS},
    }
    options = {"make": {"api_limit": 60_000}}
    platforms = ["make", "qlik", "etlworks"]
    async with deployment(folder, platforms=platforms, workflows=0, options=options, changes=changes) as made:
        grants = {"make": {"grant": ["discard", "reactivate", "fix-and-retry"]}, "qlik": {"grant": ["stop"]}}
        sources = {
            name: section.model_copy(update=grants.get(name, {})) for name, section in made.config.sources.items()
        }
        made.config = made.config.model_copy(update={"sources": sources})
        await made.restart()
        make: Any = made.fleet.simulators["make"]
        qlik: Any = made.fleet.simulators["qlik"]
        failing, stopped = (make.add_workflow(name=name) for name in ("Order sync", "Payments to the ledger"))
        slow = qlik.add_workflow(name="Invoices of the day")
        await made.sweep()
        for result in ("success", "failure", "failure", "failure"):
            now = made.clock.now()
            make.add_run(failing, started_at=now - 60, ended_at=now - 30, result=result)
            await made.live(120, step=60)
        make.stop_workflow(stopped, "Too many consecutive errors")
        qlik.add_run(slow, started_at=made.clock.now() - 3 * HOUR, ended_at=None)
        make.plan_retries("success", "failure", "success")
        for _ in range(3):
            make.add_dead_letter(failing)
        await made.live(900, step=30, retry=True)
        made.fleet.simulators["etlworks"].faults.unavailable = 1.0
        await made.live(300, step=60, retry=True)
        await put(made, letters, groups=groups, name="Synchronise the orders of the shop with the warehouse")
        now = made.clock.now()
        kinds = ((ErrorClass.VALIDATION, "no such field: customer"), (ErrorClass.TIMEOUT, "no answer in 40 s"))
        await ingest(
            made,
            [
                DeadLetter(
                    id=f"{kind}{n}",
                    workflow_id=failing,
                    opened_at=now - HOUR - n,
                    error=Error(error_class=kind, type="DataError", message=said),
                )
                for kind, said in kinds
                for n in range(4)
            ],
        )
        await made.retry()
        waiting = next(group for group in made.service.operations.groups() if group.awaits_approval)
        await made.service.operations.begin(
            OperationAction.APPROVE, Selection(ids=[("make", waiting.letters[0])]), who="ann", why="the ERP is back"
        )
        await made.retry()
        yield made


async def sign_in(page: Page, url: str) -> None:
    await page.open(url + "/sign-in")
    await page.submit(f"document.querySelector('[name=token]').value = {TOKEN!r}; document.forms[0].submit()")
