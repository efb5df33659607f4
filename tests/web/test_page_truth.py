"""The page says nothing that is not so: on a new install, with platforms or the database away, in every mode."""

import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from exporter.config.retries import SourceRetriesConfig
from exporter.model import DeadLetter, Error, ErrorClass
from exporter.model.operations import OperationAction
from exporter.model.retries import OverrideAction, RetryState, Scope
from exporter.retries.operations import Selection
from tests.e2e.deployment import Deployment, deployment
from tests.web.test_browser import TOKEN, made
from tests.web.test_page_groups import SOFT, Person, ingest, other, put, signed_in

__all__ = ["made"]
DAY = 86400.0


def verdict(person: Person) -> str:
    """The first thing that is said, as one line."""
    found = re.search(r'<p class="verdict \w+">(.*?)</p>', person.page)
    assert found is not None
    return " ".join(re.sub(r"<[^>]*>", "", found[1]).split())


def grade(person: Person) -> str:
    return person.page.split('class="verdict ')[1].split('"')[0]


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(tmp_path, platforms=["make", "qlik"], workflows=2, changes=LISTEN) as made:
        yield made


LISTEN = {"server": {"listen": "127.0.0.1:0", "admin_token": TOKEN}}


# Reading


async def test_on_a_new_install_nothing_is_known_yet(two: Deployment) -> None:
    person = Person(two)
    await person.go("./")
    assert verdict(person) == "make: not read yet; qlik: not read yet; nothing is known yet that waits for you."
    assert grade(person) == "wait"
    assert "Dead letters: none known yet" in person.text
    assert "Workflows in trouble None known yet." in person.text
    assert "fine" not in person.text
    assert "ago" not in person.text
    assert "quota, workflows, runs, dead letters: not read yet" in person.text
    assert re.findall(r'<td data-name="(?:Workflows|Failing|Dead letters)" class="n">([^<]*)', person.page) == [""] * 6
    await two.drive(two.service.pollers["make"].sweep_once("workflows"))
    await person.go("./")
    assert "make: not read completely yet; qlik: not read yet;" in verdict(person)
    await two.sweep()
    await person.go("./")
    assert verdict(person) == "2 sources fine; nothing waits for you."
    assert grade(person) == "good"
    assert "Dead letters: none" in person.text
    assert "known yet" not in person.text


async def test_platforms_that_never_answered_are_not_fine(two: Deployment) -> None:
    for simulator in two.fleet.simulators.values():
        simulator.faults.unavailable = 1.0
    await two.sweep()
    person = Person(two)
    await person.go("./")
    assert re.fullmatch(
        r"make: workflows cannot be read \(.*503.*\) runbook; qlik: cannot be read \(.*503.*\) runbook; "
        r"nothing is known yet that waits for you\.",
        verdict(person),
    )
    assert grade(person) == "bad"


async def test_one_reading_that_failed_is_not_a_source_that_is_away(two: Deployment) -> None:
    await two.sweep()
    two.fleet.simulators["make"].faults.unavailable = 1.0
    await two.live(60, step=60)
    person = Person(two)
    await person.go("./")
    assert re.search(r"make: the last reading of workflows failed \(.*503.*\) runbook;", verdict(person)), verdict(
        person
    )
    assert grade(person) == "wait"
    assert re.search(r"503.*, last read \d+ seconds ago", person.text)
    await two.live(1800, step=300)
    await person.go("./")
    assert re.search(r"make: workflows cannot be read", verdict(person))
    assert grade(person) == "bad"
    two.fleet.simulators["make"].faults.unavailable = 0.0
    await two.live(60, step=60)
    await person.go("./")
    assert verdict(person) == "2 sources fine; nothing waits for you."


async def test_a_source_that_nobody_reads_any_more_says_since_when(two: Deployment) -> None:
    await two.sweep()
    await two.clock.advance(7200)
    person = Person(two)
    await person.go("./")
    assert re.search(r"make: quota last read 2 hours ago runbook, 1 workflow overdue;", verdict(person))
    assert grade(person) == "bad"


async def test_a_refused_credential_leads_to_its_own_runbook(two: Deployment) -> None:
    make = two.config.sources["make"].model_copy(update={"token": SecretStr("of-another-zone")})
    two.config = two.config.model_copy(update={"sources": {**two.config.sources, "make": make}})
    await two.restart()
    await two.sweep()
    person = Person(two)
    await person.go("./")
    assert re.match(r"1 source fine; make: cannot be read \(.*401 auth.*\) runbook;", verdict(person))
    assert "of-another-zone" not in person.page
    assert 'href="runbooks/AutomationCredentialFailing"' in person.page


async def test_many_sources_in_trouble_are_counted(tmp_path: Path) -> None:
    platforms = ["make", "qlik", "etlworks", "cognaize", "n8n"]
    async with deployment(tmp_path, platforms=platforms, workflows=0, changes=LISTEN) as made:
        person = Person(made)
        await person.go("./")
        assert verdict(person).count("not read yet") == 4
        assert "; 1 more source not fine;" in verdict(person)


# The database


@contextmanager
def away(made: Deployment, *tables: str) -> Iterator[None]:
    """These tables are, as after somebody else's hand."""
    file = made.config.store.url.removeprefix("sqlite:///")
    with sqlite3.connect(file) as database:
        for table in tables:
            database.execute(f"ALTER TABLE {table} RENAME TO away_{table}")
    try:
        yield
    finally:
        with sqlite3.connect(file) as database:
            for table in tables:
                database.execute(f"ALTER TABLE away_{table} RENAME TO {table}")


async def test_without_the_database_every_page_says_so_and_none_breaks(made: Deployment) -> None:
    [letter] = await put(made, 1, groups=1)
    person = await signed_in(made)
    tables = ("audit", "retries", "operations", "operation_items", "overrides")
    with away(made, *tables):
        await person.go(f"{made.url}/retries/make/{letter}")
        assert person.status == 200
        assert "The audit cannot be read" in person.text
        assert "Order sync 0" in person.text  # what is in memory is shown
        for path in ("retries/none", "operations/none"):
            await person.go(f"{made.url}/{path}")
            assert person.status == 503, path
            assert "The database cannot be read" in person.text
            assert 'href="../runbooks/AutomationStoreDown"' in person.page
        await person.go(made.url)
        assert person.status == 200
        await person.press("Pause all")
        assert "Retries are paused" not in person.text
        assert "paused: make" not in person.text
        assert 'role="status"' in person.page  # and why it was not
        await person.unfold()
        await person.follow("Approve 1")
        await person.press("Approve these")
        assert "Approved:" not in person.text
        assert 'role="status"' in person.page
    assert made.service.book.operations == {}


# Retrying


MODES = {
    "off": ("off: nothing is sent.", 0),
    "shadow": ("shadow: everything is decided, nothing is sent.", 0),
    "approve": ("on approval: nothing is sent that no person has approved.", 3),
    "enforce": ("automatic: sent as the policies say.", 0),
}


@pytest.mark.parametrize("mode", MODES)
async def test_each_mode_says_what_is_sent_and_offers_what_can_be_done(tmp_path: Path, mode: str) -> None:
    said, waiting = MODES[mode]
    async with other(tmp_path, mode, retry=SOFT) as made:
        make: Any = made.fleet.simulators["make"]
        workflow = make.add_workflow(name="Order sync")
        await made.sweep()
        for _ in range(3):
            make.add_dead_letter(workflow)
        await made.sweep()
        await made.retry()
        person = await signed_in(made)
        assert f"Retries: {said}" in person.text
        yours = f"{waiting} dead letters wait for you." if waiting else "nothing waits for you."
        assert verdict(person) == f"1 source fine; make: 3 dead letters in 1 group; {yours}"
        can_send = mode in ("approve", "enforce")
        assert ("Pause all" in person.text) is can_send
        await person.unfold()
        for offered in ("Retry now", "Approve 3"):
            assert (offered in person.text) is (can_send if offered == "Retry now" else mode == "approve"), offered
        if mode == "off":
            assert "not retried: retrying is off" in person.text
        if mode == "shadow":
            await made.live(120, step=30, retry=True)
            await person.go("./")
            assert "shadow: nothing was sent" in person.text
            assert make.retry_calls.total() == 0


async def test_without_a_policy_nothing_is_retried_and_the_page_says_so(tmp_path: Path) -> None:
    changes = {**LISTEN, "retries": {"mode": "enforce"}}
    async with deployment(tmp_path, platforms=["make"], workflows=0, changes=changes) as made:
        await made.sweep()
        person = Person(made)
        await person.go("./")
        assert "There is no policy yet, so nothing is retried by itself." in person.text


async def test_a_source_that_was_lowered_says_so_until_somebody_resumes_it(tmp_path: Path) -> None:
    async with other(tmp_path, "enforce", retry=SOFT) as made:
        await put(made, 3, groups=1)
        person = await signed_in(made)
        assert "lowered" not in person.text
        control, now = made.service.memory.control, made.clock.now()
        word = control.word(
            OverrideAction.LOWER,
            scope=Scope.SOURCE,
            source="make",
            until=now + DAY,
            who="engine",
            why="too many failed",
        )
        await made.service.book.put([word], now=now)
        await made.retry()
        await person.go("./")
        assert (
            "make : on approval: nothing is sent that no person has approved; lowered by engine: too many failed"
            in person.text
        )
        assert 'href="runbooks/AutomationRetriesLowered"' in person.page
        await person.follow("Resume")
        assert "Of make only what a person approves is sent; that ends as well." in person.text
        await person.press("Resume retries")
        assert "Retries go on." in person.text
        assert "lowered" not in person.text


async def test_a_budget_is_told_with_what_it_means(tmp_path: Path) -> None:
    async with other(tmp_path, "enforce", retry=SOFT) as made:
        await made.sweep()
        person = Person(made)
        await person.go("./")
        assert "Requests a minute : what this service may ask of the platform" in person.text
        assert "Retry budget" not in person.text
        rules = SourceRetriesConfig.model_validate({"budget": {"cap": 20, "floor": "30/1h"}})
        retries = made.config.retries.model_copy(update={"sources": {"make": rules}})
        made.config = made.config.model_copy(update={"retries": retries})
        await made.restart()
        await made.sweep()
        await made.live(360, step=60, retry=True)
        await person.go(made.url)
        budgets = re.findall(r'<td data-name="Retry budget" class="n">([^<]*)', person.page)
        assert re.fullmatch(r"[1-9][\d.]* of 20", budgets[0]), budgets
        assert budgets[1] == ""  # that has none
        assert "Retry budget : how many more retries may fail before the next one has to wait" in person.text


async def test_a_pause_is_told_with_who_and_until_when(tmp_path: Path) -> None:
    async with other(tmp_path, "enforce", retry=SOFT) as made:
        await made.sweep()
        person = await signed_in(made)
        await made.service.memory.control.pause("qlik", seconds=600, who="ann", why="<the> vendor works on it")
        await person.go("./")
        assert "paused: qlik by ann until 22:23 UTC: <the> vendor works on it." in person.text
        await person.press("Pause all")
        assert "paused: make, qlik by status page until 22:13 on 15 November UTC." in person.text
        await made.clock.advance(86_401)
        await person.go("./")
        assert "paused" not in person.text


# What waits for a person


async def test_what_a_person_has_to_say_is_counted_and_what_settles_itself_is_not(tmp_path: Path) -> None:
    async with other(tmp_path, "enforce", retry=SOFT) as made:
        make: Any = made.fleet.simulators["make"]
        workflow = make.add_workflow(name="Order sync")
        await made.sweep()
        make.plan_retries("success")
        make.add_dead_letter(workflow)
        while not made.service.book.everything():
            await made.live(15, step=15, retry=True)
        await _open(made, RetryState.IN_DOUBT)
        person = await signed_in(made)
        assert "nothing waits for you." in verdict(person)
        assert "unknown outcome: the call may or may not have worked" in person.text
        assert "It had an effect" in person.text  # whoever knows may say so
        await _open(made, RetryState.HELD)
        await person.go("./")
        assert "1 dead letter waits for you." in verdict(person)
        assert "unknown outcome: a person has to say" in person.text
        assert person.text.index("Waits for you") < person.text.index("It had an effect")


async def _open(made: Deployment, state: RetryState) -> None:
    """Have the one retry as if nobody knew what became of it."""
    [retry], now = made.service.book.everything(), made.clock.now()
    assert retry.is_open
    await made.service.book.save([replace(retry, state=state, doubt_at=now)], now=now, kind=state)


async def test_what_somebody_put_aside_waits_for_nobody(tmp_path: Path) -> None:
    async with other(tmp_path, "enforce", retry=SOFT) as made:
        ids = await put(made, 3, groups=1)
        held = Selection(ids=[("make", ids[0])])
        await made.service.operations.begin(OperationAction.QUARANTINE, held, who="ann", why="known")
        await made.retry()
        person = Person(made)
        await person.go("./")
        assert "nothing waits for you." in verdict(person)
        assert "Waits for you" not in person.text
        await person.unfold()
        assert "in quarantine" in person.text


async def test_a_group_is_headed_by_what_is_so_of_most_of_it(made: Deployment) -> None:
    ids = await put(made, 4, groups=1)
    one = Selection(ids=[("make", ids[-1])])  # the oldest
    await made.service.operations.begin(OperationAction.APPROVE, one, who="ann")
    await made.retry()
    person = Person(made)
    await person.go("./")
    head = person.page.split("<h3>")[1].split("</h3>")[0]
    assert "waits for approval" in head
    assert "approved" not in head
    await person.unfold()
    assert "3 × waits for approval; 1 × approved: begins soon" in person.text


async def test_what_a_platform_dates_in_the_future_is_not_just_now(made: Deployment) -> None:
    await made.sweep()
    error = Error(error_class=ErrorClass.NETWORK, type="E", message="m")
    dates = {"ahead": made.clock.now() + 7200, "never": 0.0, "wild": 1.7e15}
    await ingest(made, [DeadLetter(id=name, workflow_id=name, opened_at=at, error=error) for name, at in dates.items()])
    await made.retry()
    person = await signed_in(made)
    assert person.status == 200
    assert "oldest 2 hours ahead of our clock" in person.text
    assert "just now" not in person.text.split("Workflows in trouble")[0]
    for name in dates:
        await person.go(f"{made.url}/retries/make/{name}")
        assert person.status == 200
    await person.go(f"{made.url}/retries/make/wild")
    assert "1700000000000000 seconds after 1970" in person.text


# Coming back


async def test_who_acts_comes_back_to_what_was_unfolded(made: Deployment) -> None:
    await put(made, 6, groups=2)
    person = await signed_in(made)
    await person.follow("<b>3 ×")
    unfolded = person.at
    await person.follow("Hold")
    await person.follow("Back")
    assert person.at == unfolded
    await person.follow("Hold")
    await person.press("Hold these")
    assert person.at == unfolded
    assert "Held: 3." in person.text
    await person.press("Pause all")
    assert person.at == unfolded
    await person.follow("its 3 dead letters")
    group = person.at
    await person.follow("Release")
    await person.follow("Back")
    assert person.at == group
    stranger = Person(made)
    await stranger.go(unfolded)
    await stranger.follow("Sign in")
    token = {"token": TOKEN}
    await stranger.press("Sign in", **token)
    assert stranger.at == unfolded


@pytest.mark.parametrize(
    "at",
    [
        "//evil.example",
        "https://evil.example",
        "/",
        "../x",
        "groups/../../x",
        "?open=\r\nX: y",
        "\\evil",
        "javascript:1",
    ],
)
async def test_nobody_is_sent_away_from_here(made: Deployment, at: str) -> None:
    await put(made, 1, groups=1)
    person = await signed_in(made)
    csrf = re.findall(r'name="csrf" value="([^"]*)"', person.page)[0]
    data = {"csrf": csrf, "at": at}
    post = made.session.post(f"{made.url}/act/pause", data=data, headers=person.headers, allow_redirects=False)
    async with post as response:
        assert response.headers["Location"] == "../"
    async with made.session.get(made.url + "/sign-in", params={"at": at}) as response:
        assert 'name="at"' not in await response.text()
