"""A walk through a listing that moves while it is read never claims to have read what it has not."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.platforms.cognaize import listing
from exporter.platforms.cognaize.listing import FULL_SCAN_SECONDS, PAGE_ROWS, PAGES_PER_SWEEP_MAX, Walk
from exporter.platforms.cognaize.mapping import Order, Rows

NOW = 1_768_456_800.0
ORDERS: tuple[Order, ...] = ("oldest_first", "newest_first", "unordered")


class Shelf:
    """A listing of processes, each no more than its creation time. ``disturb`` runs before each answer."""

    def __init__(self, order: Order, moments: list[float]) -> None:
        self.order, self.moments = order, sorted(moments)
        self.disturb: Callable[[], None] = lambda: None
        self.asked: list[int] = []

    def add(self, count: int) -> None:
        """Processes created after all others; the first ones ever while the first sweep is still to come."""
        newest = self.moments[-1] if self.moments else NOW if self.asked else NOW - 20_000
        self.moments += [newest + 10.0 * (number + 1) for number in range(count)]

    def forget(self, count: int) -> None:
        del self.moments[:count]

    async def find(self, number: int) -> Rows:
        self.disturb()
        self.asked.append(number)
        listed = self.moments if self.order != "newest_first" else self.moments[::-1]
        if self.order == "unordered":
            listed = sorted(listed, key=lambda moment: (moment * 0.6180339887) % 1)
        page = tuple(listed[number * PAGE_ROWS : (number + 1) * PAGE_ROWS])
        return Rows(number=number, size=PAGE_ROWS, total=len(listed), items=page, moments=page)


async def walk(shelf: Shelf, cursor: Any, read: set[float], *, now: float = NOW) -> tuple[Any, bool]:
    """One sweep: adds what it read, returns the cursor it left and whether it was cut short."""
    made = Walk(find=shelf.find, cursor=cursor, now=now, backfill_seconds=0.0)
    async for rows, mark in made.pages():
        read.update(rows.items)
        cursor = mark or cursor
    return cursor, made.truncated


@pytest.mark.parametrize("order", ["oldest_first", "newest_first"])
async def test_rows_forgotten_while_we_read_leave_the_cursor_where_it_was(order: Order) -> None:
    shelf = Shelf(order, [])
    shelf.add(1000)
    cursor, _ = await walk(shelf, None, set())
    shelf.add(1000)
    read: set[float] = set()
    turns = iter(range(100))
    shelf.disturb = lambda: shelf.forget(150) if next(turns) == 4 else None
    assert (await walk(shelf, cursor, read))[0]["since"] < shelf.moments[-1], "it does not claim what it cannot know"
    shelf.disturb = lambda: None
    cursor, _ = await walk(shelf, cursor, read)
    assert cursor["since"] == shelf.moments[-1]
    assert set(shelf.moments[-1000:]) <= read


@given(
    order=st.sampled_from(ORDERS),
    begin=st.integers(0, 700),
    sweeps=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 40), st.booleans()), min_size=1, max_size=5),
    seed=st.integers(0, 9),
)
@settings(max_examples=60)
async def test_what_is_added_after_the_first_sweep_is_read_however_the_listing_grows_and_moves(
    order: Order, begin: int, sweeps: list[tuple[int, int, bool]], seed: int
) -> None:
    """Rows are added between sweeps and while they run, and the oldest are forgotten between sweeps."""
    random, shelf = Random(seed), Shelf(order, [])
    shelf.add(begin)
    read: set[float] = set()
    cursor, _ = await walk(shelf, None, read)
    added: list[float] = []
    for number, forgotten, moving in sweeps:
        shelf.add(number)
        added += shelf.moments[len(shelf.moments) - number :] if number else []
        shelf.forget(min(forgotten, len(shelf.moments) - len(added)))
        before = set(added)
        shelf.disturb = (lambda: shelf.add(random.randrange(4))) if moving else (lambda: None)
        known = len(shelf.moments)
        cursor, truncated = await walk(shelf, cursor, read)
        shelf.disturb = lambda: None
        added += shelf.moments[known:]
        assert not truncated
        if order != "unordered":
            assert before <= read
        assert len(shelf.asked) <= PAGES_PER_SWEEP_MAX * (len(sweeps) + 1)
    for turn in (1, 2):  # where nothing is sorted, as many may come as go: the next full scan finds them
        cursor, _ = await walk(shelf, cursor, read, now=NOW + turn * (FULL_SCAN_SECONDS + 1))
    assert set(added) <= read


@pytest.mark.parametrize("order", ["oldest_first", "newest_first"])
async def test_a_walk_cut_short_claims_no_more_than_it_read_even_if_rows_are_forgotten_before_it_goes_on(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, read = Shelf(order, []), set[float]()
    shelf.add(1000)
    cursor, _ = await walk(shelf, None, read)
    shelf.add(1000)
    monkeypatch.setattr(listing, "PAGES_PER_SWEEP_MAX", 5)
    cursor, truncated = await walk(shelf, cursor, read)
    assert truncated
    unread = sorted(set(shelf.moments[-1000:]) - read)
    assert unread
    assert cursor["since"] < unread[0]
    shelf.forget(700)
    monkeypatch.undo()
    cursor, truncated = await walk(shelf, cursor, read)
    assert not truncated
    assert set(shelf.moments[-1000:]) <= read


async def test_without_an_order_what_came_behind_us_while_we_read_is_found_by_the_next_sweep() -> None:
    shelf, read = Shelf("unordered", []), set[float]()
    shelf.add(450)
    cursor, _ = await walk(shelf, None, read)
    shelf.add(1)
    turns = iter(range(100))
    shelf.disturb = lambda: shelf.add(40) if next(turns) == 3 else None
    cursor, _ = await walk(shelf, cursor, read, now=NOW + 60)
    assert set(shelf.moments) - read, "some came on pages that had been read"
    shelf.disturb = lambda: None
    await walk(shelf, cursor, read, now=NOW + 120)
    assert set(shelf.moments) <= read


@pytest.mark.parametrize("order", ["oldest_first", "newest_first"])
async def test_a_listing_that_turns_out_to_be_in_no_order_is_read_as_a_whole(order: Order) -> None:
    shelf = Shelf(order, [])
    shelf.add(450)
    cursor, _ = await walk(shelf, None, set())
    assert cursor["order"] == order
    shelf.order = "unordered"
    read: set[float] = set()
    cursor, _ = await walk(shelf, cursor, read)
    assert read == set(shelf.moments)
    assert cursor["order"] == "unordered"


async def test_without_an_order_a_listing_that_did_not_grow_is_left_alone_for_a_while() -> None:
    shelf = Shelf("unordered", [])
    shelf.add(450)
    cursor, _ = await walk(shelf, None, set())
    cursor, _ = await walk(shelf, cursor, set(), now=NOW + 60)
    shelf.asked.clear()
    await walk(shelf, cursor, set(), now=NOW + 120)
    assert shelf.asked == [0]
    shelf.asked.clear()
    await walk(shelf, cursor, set(), now=NOW + 700)
    assert len(shelf.asked) == 5


@pytest.mark.parametrize("junk", [None, [], "text", 5, {}])
async def test_a_cursor_of_another_shape_is_as_good_as_none(junk: Any) -> None:
    shelf = Shelf("newest_first", [])
    shelf.add(450)
    read: set[float] = set()
    cursor, _ = await walk(shelf, junk, read)
    assert cursor["since"] == shelf.moments[-1]
    assert shelf.moments[-1] in read
