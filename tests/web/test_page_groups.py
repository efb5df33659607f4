"""Dead letters by group on the status page: what it says of them, how they are approved and held, how fast it is."""

import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from msgspec import structs

from exporter.model import DeadLetter, Error, ErrorClass, Workflow
from exporter.model.ledger import Batch
from tests.e2e.deployment import Deployment, deployment
from tests.e2e.test_retries import POLICY
from tests.web.test_browser import TOKEN, made

__all__ = ["made"]
SOFT = {"retries": 3, "backoff": {"first": "1m", "factor": 2, "jitter": 0.0}}


@asynccontextmanager
async def other(folder: Path, mode: str, **changes: Any) -> AsyncIterator[Deployment]:
    """Make with nothing in it but what a test puts there, under one policy."""
    section = {"mode": mode, "policies": [{**POLICY, **changes}]}
    server = {"listen": "127.0.0.1:0", "admin_token": TOKEN}
    async with deployment(
        folder,
        platforms=["make", "qlik"],
        workflows=0,
        options={"make": {"api_limit": 60_000}},
        changes={"server": server, "retries": section},
    ) as made:
        yield made


async def ingest(made: Deployment, observations: Sequence[Any]) -> None:
    """As if the platform had said so."""
    now = made.clock.now()
    await made.service.ledger.ingest(Batch(source="make", observations=list(observations), now=now, started_at=now))


async def put(made: Deployment, number: int, *, groups: int, name: str = "Order sync") -> list[str]:
    """So many dead letters in so many groups, decided about once."""
    await made.sweep()
    now = made.clock.now()
    words_of = ["".join(chr(97 + int(digit)) for digit in f"{group:04}") for group in range(groups)]
    letters = [
        DeadLetter(
            id=f"{number:032x}",
            workflow_id=f"w{number % groups}",
            opened_at=now - 3 * 3600 - number,
            error=Error(
                error_class=ErrorClass.NETWORK,
                type="ConnectionError",
                message=f"no route to {words_of[number % groups]}",
            ),
        )
        for number in range(number)
    ]
    workflows = [Workflow(id=f"w{group}", at=now, name=f"{name} {group}") for group in range(groups)]
    await ingest(made, [*workflows, *letters])
    await made.retry()
    return [letter.id for letter in letters]


class Person:
    """Somebody at a browser without script, who has signed in."""

    def __init__(self, made: Deployment, cookie: str = "") -> None:
        self.made = made
        self.headers = {"Cookie": cookie} if cookie else {}
        self.at = made.url + "/"
        self.page = ""
        self.answered: dict[str, str] = {}
        self.status = 0

    def loads_again(self) -> str:
        """Where the page loads itself from; "" if it stands still."""
        return self.answered.get("Refresh", "").removeprefix("30; url=")

    async def go(self, to: str) -> str:
        self.at = urljoin(self.at, to)
        async with self.made.session.get(self.at, headers=self.headers) as response:
            self.at, self.page = str(response.url), await response.text()
            self.answered, self.status = dict(response.headers), response.status
        return self.page

    async def follow(self, text: str) -> str:
        """The first link that begins with this text."""
        found = re.search(rf'<a [^>]*href="([^"]*)"[^>]*>(?:<bdi>)?{re.escape(text)}', self.page)
        assert found is not None, f"there is no link {text!r}"
        return await self.go(unescape(found[1]))

    async def unfold(self) -> str:
        """Every group of the first page."""
        return await self.go(self.made.url + "/?open=" + ",".join(re.findall(r'id="g-(\w+)"', self.page)))

    async def press(self, button: str, **fields: str) -> str:
        form = next((f for f in re.findall(r"<form .*?</form>", self.page) if f"<button>{button}</button>" in f), None)
        assert form is not None, f"there is no button {button!r}"
        hidden = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', form)
        data = {name: unescape(value) for name, value in hidden} | fields
        action = re.search(r'action="([^"]*)"', form)
        assert action is not None
        url = urljoin(self.at, unescape(action[1]))
        async with self.made.session.post(url, data=data, headers=self.headers, allow_redirects=False) as response:
            assert response.status == 303, await response.text()
            return await self.go(urljoin(url, response.headers["Location"]))

    @property
    def text(self) -> str:
        """What is to be read, as one line."""
        body = re.sub(r"</?bdi>", "", self.page.split("<body>")[1])
        return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def unfolded(person: Person) -> list[str]:
    """The groups that are."""
    return re.findall(r'id="g-(\w+)"><h3><a [^>]*aria-expanded="true"', person.page)


async def signed_in(made: Deployment) -> Person:
    async with made.session.get(made.url + "/sign-in") as response:
        csrf = (await response.text()).split('name="csrf" value="')[1].split('"')[0]
    data = {"csrf": csrf, "token": TOKEN}
    async with made.session.post(made.url + "/sign-in", data=data, allow_redirects=False) as response:
        person = Person(made, response.headers["Set-Cookie"].split(";")[0])
    await person.go("./")
    return person


# The verdict


async def test_the_verdict_comes_first_and_says_what_is_fine_what_is_not_and_what_waits(tmp_path: Path) -> None:
    async with other(tmp_path, "off") as made:
        person = Person(made)
        await made.sweep()
        await made.retry()
        await person.go("./")
        assert "2 sources fine; nothing waits for you." in person.text
        await put(made, 41, groups=3)
        await person.go("./")
        assert "1 source fine; make : 41 dead letters in 3 groups; nothing waits for you." in person.text
        assert person.text.index("nothing waits for you") < person.text.index("Order sync")
        assert "Waits for you" not in person.text


async def test_what_waits_for_a_person_is_counted_and_named(made: Deployment) -> None:
    await put(made, 6, groups=2)
    await ingest(
        made, [DeadLetter(id="odd", workflow_id="w0", opened_at=1.0, error=Error(error_class=ErrorClass.AUTH))]
    )
    await made.retry()
    person = Person(made)
    await person.go("./")
    assert "6 dead letters wait for you." in person.text  # no policy covers the seventh
    assert "6 dead letters of the policy transient wait for approval" in person.text
    assert "Sign in to act." in person.text
    assert "not retried: no policy covers it" in person.text


async def test_a_source_that_cannot_be_read_is_named_with_its_reason(made: Deployment) -> None:
    await made.sweep()
    make: Any = made.fleet.simulators["make"]
    make.faults.unavailable = 1.0
    await made.live(600, step=120)
    person = Person(made)
    await person.go("./")
    assert re.search(r"make : \S+( \S+)? cannot be read \(.*503.*\) runbook ; nothing waits for you", person.text), (
        person.text
    )


# Groups


async def test_groups_are_folded_and_speak_in_words(made: Deployment) -> None:
    await put(made, 30, groups=3)
    person = await signed_in(made)
    assert person.page.count('aria-expanded="false"') == 3
    assert 'aria-expanded="true"' not in person.page
    assert "10 × Order sync 0" in person.text
    assert "waits for approval oldest 3 hours ago" in person.text
    assert "Oldest, newest" not in person.text
    await person.follow("<b>10 ×")
    assert "Oldest, newest 3 hours ago, 3 hours ago" in person.text
    assert "not retried yet" in person.text
    for code in ("wait: mode", "hold: no_policy", "in_doubt", "WAIT", "no_policy"):
        assert code not in person.text


async def test_a_group_that_is_unfolded_stays_so_and_the_page_may_stand_still(made: Deployment) -> None:
    await put(made, 30, groups=3)
    person = Person(made)
    await person.go("./")
    assert person.loads_again() == "./"
    first, second = re.findall(r'id="g-(\w+)"', person.page)[:2]
    await person.follow("<b>10 ×")
    for _ in range(2):  # loaded again, by itself too, it is the same
        assert unfolded(person) == [first]
        assert person.loads_again() == f"./?open={first}"
        await person.go(person.loads_again())
    await person.go(f"./?open={first},{second},nonsense,%ff<script>")
    assert unfolded(person) == [first, second]
    await person.follow("<b>10 ×")  # folds the first
    assert unfolded(person) == [second]
    await person.follow("fold everything")
    assert unfolded(person) == []
    await person.follow("let it stand still")
    assert not person.loads_again()
    await person.follow("<b>10 ×")
    assert unfolded(person) == [first]
    assert not person.loads_again()
    await person.follow("let it load itself again")
    assert person.loads_again() == f"./?open={first}"
    await person.follow("let it stand still")
    await person.follow("fold everything")  # it still stands still
    assert unfolded(person) == []
    assert not person.loads_again()


async def test_of_too_many_unfolded_groups_the_one_asked_for_is_among_them(made: Deployment) -> None:
    await put(made, 24, groups=12)
    person = Person(made)
    await person.go("./")
    await person.follow("let it stand still")
    for identity in re.findall(r'id="g-(\w+)"', person.page):
        [toggle] = re.findall(rf'id="g-{identity}"><h3><a href="([^"]*)"', person.page)
        await person.go(unescape(toggle))
        assert identity in unfolded(person)
        assert len(unfolded(person)) <= 11
    assert len(unfolded(person)) >= 10


@pytest.mark.parametrize("groups", [1, 3, 1000])
async def test_a_thousand_letters_take_less_than_100_kb_and_each_is_reached(made: Deployment, groups: int) -> None:
    ids = await put(made, 1000, groups=groups, name="Synchronise the orders of the shop with the warehouse")
    person = await signed_in(made)
    assert len(person.page.encode()) < 100_000
    assert "1,000 dead letters wait for you" in person.text
    found: Counter[str] = Counter()
    queue, seen = ["./"], set[str]()
    while queue and len(found) < len(ids):
        await person.go(made.url + "/")
        await person.go(queue.pop(0))
        assert len(person.page.encode()) < 100_000
        if "/groups/" not in person.at:
            ids_here = re.findall(r'id="g-(\w+)"', person.page)[:10]
            kept = "&" if "?" in person.at else "?"
            await person.go(f"{person.at}{kept}open={','.join(ids_here)}")
            assert len(person.page.encode()) < 100_000
        if "/groups/" in person.at:
            found.update(re.findall(r'data-name="Dead letter"><bdi>(\w+)', person.page))
        ways = re.findall(r'href="((?:groups)?(?:/\w+)?(?:\?from=\d+)?|\w{10}\?from=\d+)"', person.page)
        for way in (urljoin(person.at, unescape(way)).removesuffix("?from=0") for way in ways):
            if way not in seen and ("/groups/" in way or "from=" in way) and len(seen) < 25:
                seen.add(way)
                queue.append(way)
    assert set(found.values()) == {1}
    if groups < 1000:
        assert sorted(found) == ids
    else:
        assert len(found) > 20  # one a group; the pages of groups are gone through below
        listed: set[str] = set()
        for first in range(0, 1000, 30):
            listed |= set(re.findall(r'id="g-(\w+)"', await person.go(made.url + f"/groups?from={first}")))
        assert len(listed) == 1000


async def test_a_group_that_is_gone_and_numbers_that_are_none_are_answered(made: Deployment) -> None:
    await put(made, 3, groups=1)
    person = Person(made)
    for path, status in (
        ("/groups/nothing", 404),
        ("/groups/%ff", 404),
        ("/groups?from=-1", 200),
        ("/groups?from=99999", 200),
        ("/groups?from=\u0663", 200),
        ("/groups?open=%00", 200),
    ):
        async with made.session.get(made.url + path) as response:
            assert response.status == status, path
    await person.go("/groups")
    await person.unfold()
    await person.follow("its 3 dead letters")
    assert "3 × Order sync 0" in person.text


async def test_every_link_and_form_is_relative(made: Deployment) -> None:
    await put(made, 3, groups=1)
    person = await signed_in(made)
    pages = [
        person.page,
        await person.unfold(),
        await person.follow("its 3 dead letters"),
        await person.follow("Approve 3"),
    ]
    for page in pages:
        for address in re.findall(r'(?:href|action|src)="([^"]*)"', page):
            assert not address.startswith("/"), address


# What is done


async def test_looking_does_nothing_and_what_comes_later_is_not_part_of_it(made: Deployment) -> None:
    ids = await put(made, 12, groups=1)
    person = await signed_in(made)
    await person.unfold()
    await person.follow("Approve 12")
    assert "Approve 12 dead letters?" in person.text
    assert "Order sync 0 (make): no route to aaaa" in person.text
    assert f"make/{ids[-1]}" in person.text
    assert "and 7 more" in person.text
    assert made.service.book.operations == {}
    late = structs.replace(
        made.service.world.sources["make"].dead_letters[ids[0]], id="late", opened_at=made.clock.now()
    )
    gone = structs.replace(made.service.world.sources["make"].dead_letters[ids[1]], resolved_at=made.clock.now())
    await ingest(made, [late, gone])
    await made.retry()
    question = person.page
    await person.press("Approve these", why="the CRM is back")
    assert "Approved: 11." in person.text
    assert "1 of them changed meanwhile" in person.text
    assert "until then you can cancel it" in person.text
    [state] = made.service.book.operations.values()
    assert {item.dead_letter_id for item in state.items} == set(ids) - {ids[1]}
    assert "ids" not in state.operation.selected
    assert state.operation.why == "the CRM is back"
    person.page = question  # pressed twice
    await person.press("Approve these")
    assert "confirmed already" in person.text
    assert len(made.service.book.operations) == 1


async def test_an_operation_shows_its_progress_and_can_be_cancelled(made: Deployment) -> None:
    make: Any = made.fleet.simulators["make"]
    workflow = make.add_workflow(name="Order sync")
    await made.sweep()
    make.plan_retries(*["success"] * 5)
    letters = [make.add_dead_letter(workflow) for _ in range(5)]
    await made.live(120, step=15, retry=True)
    person = await signed_in(made)
    await person.unfold()
    await person.follow("Approve 5")
    await person.press("Approve these")
    progress = re.search(r'<progress aria-label="Approve 5 dead letters" max="5" value="(\d)"></progress>', person.page)
    assert progress is not None
    assert progress[1] == "0"
    assert "begins at" in person.text
    await person.press("Cancel the rest")
    assert "Cancelled: 5." in person.text
    assert "cancelled by status page" in person.text
    await made.live(60, step=15, retry=True)
    assert sum(make.retry_calls.values()) == 0
    await person.go("./")
    await person.unfold()
    await person.follow("Approve 5")
    await person.press("Approve these")
    await made.live(600, step=15, retry=True)
    await made.service.operations.settle_once()
    await person.go("./")
    assert re.search(r'max="5" value="5"></progress> 5 of 5: 5 succeeded', person.page), person.text
    assert "Cancel the rest" not in person.text
    assert {make.retry_calls[letter] for letter in letters} == {1}


async def test_a_group_is_held_and_released(made: Deployment) -> None:
    await put(made, 4, groups=1)
    person = await signed_in(made)
    await person.unfold()
    await person.follow("Hold")
    await person.press("Hold these", why="ask Ann first")
    assert "Held: 4." in person.text
    await made.retry()
    await person.go("./")
    assert "held by status page: ask Ann first" in person.text
    assert "nothing waits for you" in person.text
    await person.unfold()
    assert ">Hold</a>" not in person.page
    await person.unfold()
    await person.follow("Release")
    assert "Release 4 dead letters?" in person.text
    await person.press("Release these")
    assert "Released: 4." in person.text
    await made.retry()
    await person.go("./")
    assert "4 dead letters wait for you" in person.text


async def test_what_cannot_come_true_is_said_before_it_is_confirmed(tmp_path: Path) -> None:
    async with other(tmp_path, "off") as made:
        await put(made, 4, groups=1)
        person = await signed_in(made)
        assert ">Approve" not in person.page
        assert ">Retry now" not in person.page
        group = made.service.operations.groups()[0].id
        for query, said in (
            (f"action=retry&group={group}", "the mode is off; nothing is sent in it"),
            (f"action=release&group={group}", "nothing holds any of them"),
            ("action=approve&group=none", "there is no group none"),
            ("action=approve&policy=none", "there is no policy none"),
            ("action=approve&id=make/none", "make has no open dead letter none"),
            ("action=approve&id=%ff", "there is no source"),
            ("action=approve", "name what is meant"),
            ("action=discard&policy=transient", "discard is not granted: add it to sources.make.grant in the config"),
            ("action=quarantine&policy=x", "there is no action quarantine"),
            ("", "there is no action"),
        ):
            await person.go(made.url + f"/confirm?{query}")
            assert person.at == made.url + "/"
            assert said in person.text
        assert made.service.book.operations == {}


async def test_only_the_session_that_was_asked_can_confirm(made: Deployment) -> None:
    await put(made, 4, groups=1)
    asked, stranger = await signed_in(made), await signed_in(made)
    await asked.unfold()
    await asked.follow("Approve 4")
    stranger.page, stranger.at = asked.page, asked.at
    form = re.findall(r'name="(csrf|asked)" value="([^"]*)"', asked.page)
    act = made.url + "/act/begin"
    for headers in ({}, stranger.headers):
        async with made.session.post(act, data=dict(form), headers=headers, allow_redirects=False) as response:
            assert response.status == (403 if headers else 303)
    foreign = {**asked.headers, "Origin": "https://evil.example"}
    async with made.session.post(act, data=dict(form), headers=foreign, allow_redirects=False) as response:
        assert response.status == 403
    await stranger.go("./")
    csrf = stranger.page.split('name="csrf" value="')[1].split('"')[0]
    data = {"csrf": csrf, "asked": dict(form)["asked"]}
    async with made.session.post(act, data=data, headers=stranger.headers, allow_redirects=False) as response:
        assert response.status == 303
    assert made.service.book.operations == {}
    async with made.session.get(made.url + "/confirm?action=approve", allow_redirects=False) as response:
        assert response.headers["Location"] == "./sign-in"


async def test_a_gate_and_what_retries_came_to_are_told_in_words(tmp_path: Path) -> None:
    gate = {"ramp": [1, 2, 5], "cool": {"first": "30m"}}
    async with other(tmp_path, "enforce", retry=SOFT, gate=gate) as made:
        make: Any = made.fleet.simulators["make"]
        workflow = make.add_workflow(name="Order sync")
        await made.sweep()
        make.plan_retries("success", "success")
        for _ in range(12):
            make.add_dead_letter(workflow)
        person = Person(made)
        for _ in range(40):
            await made.live(15, step=15, retry=True)
            await person.go("./")
            await person.unfold()
            if "step 2 of 3" in person.text:
                break
        assert "up to 2 at once (step 2 of 3)" in person.text
        assert re.search(r"retries of this error succeed \d of \d times, after a median of \d+", person.text)
        make.plan_retries(*["failure"] * 40)
        for _ in range(60):
            await made.live(15, step=15, retry=True)
            await person.go("./")
            await person.unfold()
            if "cools off, until" in person.text:
                break
        assert re.search(r"its (group|policy) cools off, until \d\d:\d\d", person.text), person.text
        assert re.search(r"retrying it failed; it cools off until \d\d:\d\d", person.text)
        assert "Last retry failed" in person.text


# Speed


async def test_many_letters_are_grouped_once_and_cheaply(made: Deployment) -> None:
    await put(made, 3_000, groups=60)
    operations = made.service.operations
    began = time.process_time()
    groups = operations.groups()
    built = time.process_time() - began
    assert len(groups) == 60
    assert built < 0.25
    began = time.process_time()
    assert operations.groups() is groups  # nothing has changed
    assert time.process_time() - began < max(0.02, built / 2)
    person = Person(made)
    began = time.process_time()
    await person.go("./")
    assert time.process_time() - began < 0.5
    await made.clock.advance(61.0)
    assert operations.groups() is not groups  # the trend
    later = operations.groups()
    await ingest(made, [structs.replace(made.service.world.sources["make"].dead_letters[f"{7:032x}"], resolved_at=1.0)])
    assert sum(len(group.letters) for group in operations.groups()) == 2_999
    assert operations.groups() is not later
