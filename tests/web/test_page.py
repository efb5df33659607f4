"""What the page says on a bad night, where its links lead, what can be done on it, and what it costs."""

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from exporter.model import Workflow
from exporter.platforms import PLATFORMS
from tests.chromium import chromium
from tests.e2e.deployment import Deployment
from tests.servers import real
from tests.web.night import DASHBOARDS, night, sign_in
from tests.web.test_browser import made
from tests.web.test_page_groups import Person, ingest, put, signed_in

__all__ = ["made"]
HERE = Path(__file__)
RUNBOOKS = HERE.parents[2] / "docs" / "runbooks"


@pytest.fixture
async def bad(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with night(tmp_path) as made:
        yield made


# What it says


async def test_the_verdict_of_a_bad_night(bad: Deployment) -> None:
    person = await signed_in(bad)
    verdict = person.text.split("Retries:")[0]
    assert re.search(r"make : 1 workflow failing, 1 stopped, \d+ dead letters in 5 groups;", verdict)
    assert "qlik : 1 workflow stuck;" in verdict
    assert re.search(r"etlworks : cannot be read \(.*503.*\) runbook ;", verdict)
    assert 'href="runbooks/AutomationSourceDown"' in person.page.split("Retries:")[0]
    assert "7 dead letters wait for you." in verdict
    assert "sources fine" not in verdict


async def test_trouble_is_told_in_words(bad: Deployment) -> None:
    text = (await signed_in(bad)).text
    for said in (
        "Order sync on",
        "3 failures in a row",
        "stopped by its platform: too many errors Switch on",
        "a run has not ended for 3 hours Stop the run",
    ):
        assert said in text.replace("Order sync dashboard", "Order sync on"), said
    for code in ("dead_letters", "no_policy", "wait:", "hold:", "None", "nan", "60000"):
        assert code not in text, code


async def test_a_database_that_takes_nothing_comes_first(made: Deployment) -> None:
    await made.sweep()
    person = Person(made)
    await person.go("./")
    assert "database" not in person.text
    file = Path(made.config.store.url.removeprefix("sqlite:///"))
    file.rename(file.with_name("away.db"))
    await person.go("./")
    file.with_name("away.db").rename(file)
    verdict = person.page.split('class="verdict bad"')[1].split("</p>")[0]
    assert "the database cannot be written" in verdict
    assert 'href="runbooks/AutomationStoreDown"' in verdict


async def test_who_holds_a_source_is_a_column_once_somebody_does(made: Deployment) -> None:
    await made.sweep()
    person = Person(made)
    assert "Held by" not in await person.go("./")
    made.service.sources["make"].holder = "replica-2"
    await person.go("./")
    assert '<td data-name="Held by"><bdi>replica-2</bdi></td>' in person.page
    assert '<th scope="col">Held by</th>' in person.page


# Where its links lead


async def test_workflows_lead_to_their_dashboard_and_their_runbook(bad: Deployment) -> None:
    person = await signed_in(bad)
    await person.unfold()
    links = set(re.findall(r'href="([^"]*)"', person.page))
    failing = next(w for w in bad.service.world.sources["make"].workflows.values() if w.name == "Order sync")
    asked = (
        f"var-job=automation-exporter&amp;var-source=make&amp;var-workflow=Order+sync&amp;var-workflow_id={failing.id}"
    )
    assert f"{DASHBOARDS}/d/automation-workflow?{asked}" in links
    named = {link.removeprefix("runbooks/") for link in links if link.startswith("runbooks/")}
    assert named >= {"AutomationWorkflowFailing", "AutomationWorkflowBlocked", "AutomationWorkflowStuck"}
    assert {name for name in named if not (RUNBOOKS / f"{name}.md").is_file()} == set()
    [qlik] = [link for link in links if link.endswith("/history") and "automations" in link][:1]
    assert qlik.startswith(bad.config.sources["qlik"].url)
    assert f"{bad.config.sources['make'].url}/{failing.workspace_id}/scenarios/{failing.id}/edit" in links
    section: Any = bad.config.sources["make"]
    assert section.team_ids == []  # the platform said which team it is
    assert "Order sync on Make · dashboard · runbook" in person.text


def test_every_runbook_that_a_page_may_name_is_there() -> None:
    found = set[str]()
    for file in (HERE.parents[2] / "exporter" / "web").glob("*.py"):
        found.update(re.findall(r'"(Automation[A-Za-z]+)"', file.read_text()))
    assert len(found) > 10
    assert {name for name in found if not (RUNBOOKS / f"{name}.md").is_file()} == set()


@pytest.mark.parametrize(
    ("platform", "section", "page"),
    [
        ("make", {"team_ids": [7], "token": "t"}, "https://one.example/7/scenarios/a%2Fb/edit"),
        ("make", {"organization_id": 9, "token": "t"}, None),
        ("qlik", {"token": "t"}, "https://one.example/automations/a%2Fb/history"),
        ("n8n", {"token": "t"}, "https://one.example/workflow/a%2Fb"),
        ("etlworks", {"token": "t"}, None),
        ("cognaize", {"token": "t"}, None),
    ],
)
def test_a_platform_names_the_page_of_a_workflow_where_it_is_known(
    platform: str, section: dict[str, Any], page: str | None
) -> None:
    declared = PLATFORMS[platform]
    config = declared.config.model_validate({"platform": platform, "url": "https://one.example", **section})
    assert declared.workflow_url(config, Workflow(id="a/b", at=0.0)) == page


async def test_what_was_done_is_a_page(bad: Deployment) -> None:
    person = await signed_in(bad)
    retry = bad.service.book.everything()[0]
    await person.go(f"./retries/{retry.id}")
    for said in ("What became of it", "Audit", "about to be sent", "being sent", "engine", "policy: transient"):
        assert said in person.text, said
    assert "1700" not in person.text  # no moment is a number
    await person.go(f"{bad.url}/retries/make/{retry.dead_letter_id}")
    assert f"make/{retry.dead_letter_id}" in person.text
    await person.follow("Status")
    assert person.at == bad.url + "/"
    await person.follow("each of them")
    assert "Approve 1 dead letter" in person.text
    assert "the ERP is back" in person.text
    await person.follow("make/")
    assert "It was not retried yet." in person.text
    assert "ann approved until: 2023-" in person.text
    assert "waits for approval policy: money" in person.text
    for code in ("decision:", "reason:", "snapshot", "policies:", "wait: "):
        assert code not in person.text, code
    letter = bad.service.book.everything()[-1].dead_letter_id
    for path in ("none", f"none/{letter}", f"qlik/{letter}"):  # of another source nothing is shown
        await person.go(f"{bad.url}/retries/{path}")
        assert person.status == 404, path
    for path in ("retries/none", "retries/make/none", "retries/none/none", "operations/none", "retries/%ff/%00"):
        async with bad.session.get(f"{bad.url}/{path}") as response:
            assert response.status == 404, path
            assert "Nothing is known of" in await response.text() or "no operation" in await response.text()


async def test_a_dead_letter_that_is_closed_and_was_never_retried_still_has_its_page(made: Deployment) -> None:
    [letter] = await put(made, 1, groups=1)
    known = made.service.world.sources["make"].dead_letters[letter]
    await ingest(made, [structs.replace(known, resolved_at=made.clock.now())])
    person = Person(made)
    await person.go(f"./retries/make/{letter}")
    assert person.status == 200
    assert "waits for approval" in person.text
    assert "What happens" not in person.text  # nothing does any more


# What can be done


async def test_only_what_is_granted_is_offered_and_is_planned_before_it_is_confirmed(bad: Deployment) -> None:
    person = await signed_in(bad)
    make: Any = bad.fleet.simulators["make"]
    await person.follow("Switch on")
    assert "Switch on 1 workflow?" in person.text
    assert "Make switched it off at" in person.text
    assert not any(key[0] == "POST" for key in make.requests if isinstance(key, tuple))
    await person.press("Switch on these", why="the vendor is back")
    assert "To be switched on: 1." in person.text
    assert "until then you can cancel it" in person.text
    assert "Switch on 1 workflow by status page, just now" in person.text
    assert ">Switch on</a>" not in person.page  # it is under way
    await bad.repair(30)
    await bad.repair()
    await person.go("./")
    assert "1 of 1: 1 done" in person.text
    await person.follow("Stop the run")
    assert "stop the run, which has been running for 3 h" in person.text
    await person.press("Stop these")
    assert "To be stopped: 1." in person.text


async def test_a_group_is_discarded_as_the_list_that_was_shown(bad: Deployment) -> None:
    person = await signed_in(bad)
    make: Any = bad.fleet.simulators["make"]
    workflow = make.add_workflow(name="Duplicates")
    await bad.sweep("workflows")
    letters = [make.add_dead_letter(workflow) for _ in range(3)]
    await bad.sweep("dead_letters")
    await bad.retry("make")
    group = next(one for one in bad.service.operations.groups() if letters[0] in one.letters)
    await person.go(f"{bad.url}/confirm?action=discard&group={group.id}")
    assert "Discard 3 dead letters?" in person.text
    assert "deleted on their platform, for good" in person.text
    assert "delete it on Make: what it stored is lost" in person.text
    late = make.add_dead_letter(workflow)
    await bad.sweep("dead_letters")
    await person.press("Discard these", why="duplicates")
    assert "To be discarded: 3." in person.text
    await bad.repair(30)
    await bad.repair()
    assert {name: make.world.dead_letters[name].state for name in letters} == dict.fromkeys(letters, "deleted")
    assert make.world.dead_letters[late].state != "deleted"


async def test_nobody_who_only_looks_is_offered_anything(bad: Deployment) -> None:
    person = Person(bad)
    await person.go("./")
    await person.unfold()
    for offered in ("Switch on", "Stop the run", "Retry now", "Discard", "Hold", "Pause all", "<button"):
        assert offered not in person.page, offered


# Loading again


@pytest.mark.slow
@real("chromium")
@pytest.mark.parametrize("unfolds", [False, True], ids=["folded", "unfolded"])
async def test_loading_again_by_itself_loses_nothing(made: Deployment, tmp_path: Path, unfolds: bool) -> None:
    """Neither what is unfolded nor where one has scrolled to; and without a script. It takes the 30 seconds it says."""
    await put(made, 400, groups=40)
    async with chromium(tmp_path, width=390, height=844) as tab:
        await sign_in(tab, made.url)
        if unfolds:
            await tab.submit("[...document.querySelectorAll('h3 a')][20].click()")
        assert "loads itself again every 30 seconds" in await tab.text()
        await tab.read("window.isOld = true, scrollTo(0, 900)")
        await made.clock.advance(60.0)
        before = await tab.text()
        await tab.loads(seconds=60.0)
        assert await tab.read("window.isOld") is None
        assert await tab.text() != before
        assert await tab.read("document.querySelectorAll('[aria-expanded=true]').length") == unfolds
        assert await tab.read("scrollY") == 900
        assert await tab.read("document.scripts.length") == 0
        assert tab.complaints == []


@real("chromium")
async def test_what_is_unfolded_is_where_one_looks(made: Deployment, tmp_path: Path) -> None:
    await put(made, 400, groups=40)
    async with chromium(tmp_path, width=390, height=844) as tab:
        await sign_in(tab, made.url)
        await tab.submit("[...document.querySelectorAll('h3 a')][20].click()")
        assert await tab.read("document.querySelectorAll('[aria-expanded=true]').length") == 1
        top = await tab.read("scrollY")
        assert top > 400
        await tab.submit("location.reload()")
        assert abs(await tab.read("scrollY") - top) < 50


# What it costs


@pytest.mark.parametrize("groups", [1, 40])
async def test_a_thousand_letters_are_shown_within_50_ms(made: Deployment, groups: int) -> None:
    """Also unfolded, with what can be done to each group."""
    await put(made, 1000, groups=groups)
    person = await signed_in(made)
    ids = re.findall(r'id="g-(\w+)"', person.page)[:10]
    for path in ("./", "./?open=" + ",".join(ids)):
        assert min([await _cost(person, path) for _ in range(5)]) < 0.05
        assert len(person.page.encode()) < 100_000


async def _cost(person: Person, path: str) -> float:
    """Seconds of this process, the reading of the answer included."""
    began = time.process_time()
    await person.go(path)
    return time.process_time() - began
