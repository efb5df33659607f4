"""Retrying as it stands, in memory, and the door to its ledger.

Memory follows the commits, as the ledger publishes them, and is never ahead of them.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from exporter.model import DeadLetter
from exporter.model.ledger import Committed, Key
from exporter.model.policy import Rules
from exporter.model.retries import Decision, Outcome, Override, OverrideAction, Retry, Scope
from exporter.retries import protocol
from exporter.source import Source
from exporter.store import audit
from exporter.store import retries as script
from exporter.store.ledger import Ledger
from exporter.store.retries import Refusal, Remembered, Reservation
from exporter.view.projection import Projection

#: Closed retries remembered for the status page, beside those of open dead letters.
RECENT_MAX = 200
#: A dead letter that opened within the settling time may be seen so many seconds later.
SETTLING_SLACK = 900.0
#: A retry may have been claimed so long (seconds) before it closed.
GROUP_SLACK = 7 * 86400.0
#: An approval of a group ends after so long (seconds).
GROUP_APPROVAL_SECONDS = 7 * 86400.0


def new_id() -> str:
    return secrets.token_hex(8)


class RetryBook:
    """What every retrier, the web and the commands see of retrying. Make one with ``load``."""

    def __init__(
        self,
        ledger: Ledger,
        sources: Mapping[str, Source],
        rules: Rules,
        *,
        projection: Projection | None = None,
    ) -> None:
        self.rules = rules
        self.overrides: dict[str, Override] = {}
        self.decisions: dict[Key, Decision] = {}  # of dead letters, as last decided
        self._ledger = ledger
        self._sources = sources
        self._projection = projection
        self._lineage: dict[Key, str] = {}
        self._unmade: dict[str, set[str]] = {}  # open dead letters that no call of ours can have made
        self._by_root: dict[Key, dict[str, Retry]] = {}
        self._open: dict[str, dict[str, Retry]] = {source: {} for source in sources}
        self._decided: dict[Key, tuple[str, str, str]] = {}
        self._worked_at: dict[tuple[str, str], float] = {}  # by policy and group: the last approved one that worked
        self._failed_at: dict[tuple[str, str], float] = {}  # the last that failed, or did not last
        self._lowered_at: dict[str, float] = {}  # by source
        self._full_at: dict[str, float] = {}
        self._changing = asyncio.Lock()

    async def load(self, now: float) -> None:
        """Start from what the ledger remembers."""
        asks = any(policy.approve == "first_of_group" for policy in self.rules.policies)
        groups_since = now - GROUP_APPROVAL_SECONDS - GROUP_SLACK if asks else None
        remembered: Remembered = await self._ledger.transact(
            "load_retries", script.remember(now, self._roots_by, groups_since=groups_since)
        )
        self._lineage, self._decided, self._full_at = remembered.lineage, remembered.decided, remembered.full_at
        self.overrides = {override.id: override for override in remembered.overrides}
        self._lowered_at = remembered.lowered_at
        for retry in remembered.retries:
            self._keep(retry)
        for retry in remembered.of_groups:
            self._note_group(retry)
        if self._projection is not None:
            for source in self._sources:
                self._projection.open_retries(
                    source, [policy.name for policy in self.rules.policies if policy.action == "retry"]
                )
                self._projection.show_open_retries(source, self._open[source].values())
            self.show(now)

    # What is asked of it

    def root_of(self, source: str, letter: DeadLetter) -> str:
        """What a dead letter descends from, across the runs that retries created."""
        return self._root(source, letter, self._lineage)

    def history(self, source: str, root: str) -> list[Retry]:
        """The retries of one root, in order."""
        found = self._by_root.get((source, root), {}).values()
        return sorted(found, key=lambda retry: (retry.claimed_at, retry.ordinal))

    def open_of(self, source: str) -> list[Retry]:
        """The open retries of a source, oldest first."""
        return sorted(self._open.get(source, {}).values(), key=lambda retry: retry.claimed_at)

    def everything(self) -> list[Retry]:
        """Every retry in memory, newest first: open ones, those of open dead letters, recent ones."""
        found = [retry for retries in self._by_root.values() for retry in retries.values()]
        return sorted(found, key=lambda retry: retry.claimed_at, reverse=True)

    def named(self, identity: str) -> list[Retry]:
        """The retries in memory that an id stands for, newest first."""
        return [retry for retry in self.everything() if retry.is_named(identity)]

    def holding(self, now: float) -> list[Override]:
        return [override for override in self.overrides.values() if override.holds(now)]

    def has_root_override(self, source: str, root: str, *actions: OverrideAction) -> bool:
        """Whether one of these was said of a root and has not ended."""
        return any(o.source == source and o.key == root and o.action in actions for o in self.overrides.values())

    def is_paused(self, source: str, now: float) -> bool:
        return any(
            override.action is OverrideAction.PAUSE
            and override.scope in (Scope.ENGINE, Scope.SOURCE)
            and override.source in ("", source)
            for override in self.holding(now)
        )

    def pace_at(self, source: str, now: float) -> float:
        """When the pace next allows a call."""
        return self.rules.source(source).pace.next_at(self._full(source, now))

    def room(self, source: str, now: float) -> int:
        """How many calls the pace allows now."""
        pace, in_flight = self.rules.source(source).pace, sum(1 for r in self.open_of(source) if r.in_flight)
        tokens = pace.burst - max(0.0, self._full(source, now) - now) * pace.rate
        return max(0, min(int(tokens + 1e-6), pace.in_flight - in_flight))

    def approved_groups(self, source: str, now: float) -> frozenset[tuple[str, str]]:
        """Policies and groups of which a retry that a person approved has worked lately, and nothing failed since.

        Neither was the source lowered since.
        """
        lowered = max(self._lowered_at.get(source, 0.0), self._lowered_at.get("", 0.0))
        return frozenset(
            group
            for group, at in self._worked_at.items()
            if 0.0 <= now - at <= GROUP_APPROVAL_SECONDS and at > max(lowered, self._failed_at.get(group, 0.0))
        )

    def settling(self, source: str, now: float) -> list[Retry]:
        """Retries whose success is so young that the same failure would mean it did not last."""
        return [
            retry
            for (of, _), retries in self._by_root.items()
            for retry in retries.values()
            if of == source and retry.outcome == "succeeded" and not retry.recurred
            if now - (retry.closed_at or 0.0) <= retry.settle + SETTLING_SLACK
        ]

    # What it writes

    async def reserve(self, wanted: Reservation, *, now: float) -> Refusal | None:
        """Make a retry an intent; why not, if the ledger forbids it by now."""
        result = await self._ledger.transact("claim_retry", script.reserve(wanted, now=now))
        return result if isinstance(result, Refusal) else None

    async def save(self, retries: Sequence[Retry], *, now: float, kind: str, who: str = "engine") -> None:
        """Write what became of these; nothing is done for none."""
        if retries:
            traced = {source for source, rules in self._ledger.rules.items() if rules.traced}
            await self._ledger.transact("save_retry", script.save(retries, now=now, kind=kind, who=who, traced=traced))

    async def change(
        self, retry: Retry, change: Callable[[Retry], Retry], *, now: float, kind: str = "", who: str = "engine"
    ) -> Retry:
        """Change an open retry as it is by now, and return it: it may have changed since it was read.

        One that is closed by now stays as it is. Without a ``kind`` the audit calls it what the retry became.
        """
        async with self._changing:
            before = self._by_root[retry.source, retry.root][retry.id]
            if not before.is_open:
                return before
            after = change(before)
            await self.save([after], now=now, kind=kind or after.outcome or after.state, who=who)
            return after

    async def trace(self, source: str, *, now: float, theirs: float) -> None:
        """Have every dead letter that a call of ours may have made descend from the root of that call.

        To be done before anything is decided of it. ``theirs`` is now on the platform's clock.
        """
        known = self._sources[source].known.dead_letters
        before = self._unmade.get(source, set()) & known.keys()
        new = [letter for letter in known.values() if letter.id not in before and self._may_be_made(source, letter)]
        if new:
            began, calls = await self._ledger.transact(
                "load_retries", script.calls_near(source, new, offset=now - theirs)
            )
            makers = {x.run_id: protocol.maker(x, began.get(x.run_id), calls) for x in new if x.run_id is not None}
            made_by = {run_id: call for run_id, call in makers.items() if call is not None}
            if made_by:
                await self._ledger.transact("save_retry", script.descend(source, made_by, now=now))
        self._unmade[source] = {letter.id for letter in new} | before

    async def recurred(self, retry: Retry, *, now: float) -> None:
        await self._ledger.transact("save_retry", script.recur(retry, now=now))

    async def decide(self, source: str, decisions: Mapping[Key, Decision], *, now: float) -> int:
        """Remember what is decided of all open dead letters of a source; returns how many decisions changed."""
        changed = {key: d for key, d in decisions.items() if self._decided.get(key) != d.label}
        gone = [key for key in self._decided if key[0] == source and key not in decisions]
        if changed or gone:
            await self._ledger.transact("decide", script.decide(changed, gone, now=now, policies_hash=self.rules.hash))
            self._decided |= {key: decision.label for key, decision in changed.items()}
            for key in gone:
                del self._decided[key]
        self.decisions = {k: d for k, d in self.decisions.items() if k[0] != source} | dict(decisions)
        return len(changed)

    async def put(self, overrides: Sequence[Override], *, now: float) -> None:
        await self._ledger.transact("override", script.put_overrides(overrides, now=now))

    async def end(self, overrides: Sequence[Override], *, who: str, now: float) -> None:
        await self._ledger.transact("override", script.end_overrides(overrides, who=who, now=now))

    async def redate(self, source: str, *, now: float) -> None:
        """Shorten the waits that were set while our clock was ahead of what it is now to what they were meant to be."""
        full_at = self._full(source, now)
        if full_at < self._full_at.get(source, 0.0):
            await self._ledger.transact("save_retry", script.set_pace(source, full_at))
        for retry in self.open_of(source):
            if protocol.redated(retry, now=now) is not retry:
                await self.change(retry, lambda r: protocol.redated(r, now=now), now=now, kind="clock set back")
        early = [override for override in self.overrides.values() if override.created_at > now + protocol.SKEW]
        if early:
            meant = [override.redated(now) for override in early]
            await self._ledger.transact("override", script.redate_overrides(meant, now=now))
        self._lowered_at = {key: min(now, at) for key, at in self._lowered_at.items()}
        self._failed_at = {key: min(now, at) for key, at in self._failed_at.items()}

    async def prune(self, *, now: float, before: float) -> None:
        """Forget what is past retention, in the ledger (what ended ``before``) and in memory (what holds no more)."""
        keep = self._roots_by(self._lineage)
        await self._ledger.transact("prune", script.prune(before=before, keep=keep))
        recent = {(retry.source, retry.root) for retry in self.everything()[:RECENT_MAX]}
        opened = {(r.source, r.root) for retries in self._open.values() for r in retries.values()}
        self._by_root = {key: found for key, found in self._by_root.items() if key in keep | recent | opened}
        self.overrides = {override.id: override for override in self.holding(now)}

    async def audit_of(self, identity: str) -> list[dict[str, Any]]:
        """Every record about a retry or a dead letter (ID or SOURCE/ID), oldest first."""
        source, _, letter_id = identity.partition("/")
        if source not in self._sources or not letter_id:
            return await self._ledger.transact("audit", audit.history(identity))
        records = await self._ledger.transact("audit", audit.history(letter_id))
        return [record for record in records if record.get("source") == source]

    def show(self, now: float) -> None:
        """Bring the gauges to what is so now."""
        if self._projection is not None:
            holding = self.holding(now)
            for source in self._open:
                lowering = [o for o in holding if o.source in ("", source) and o.action is OverrideAction.LOWER]
                mode = self.rules.mode_of(source, lowering)
                paused = self.is_paused(source, now)
                self._projection.show_retry_mode(source, mode=mode, paused=paused)

    # How it is kept

    def apply(self, committed: Committed) -> None:
        """Follow one commit, and have the gauges of open retries follow it."""
        for retry in committed.retries:
            self._keep(retry)
        for key, root in committed.lineage.items():
            self._lineage.setdefault(key, root)
        for override in committed.overrides:
            self.overrides[override.id] = override
            if override.action is OverrideAction.LOWER:
                before = self._lowered_at.get(override.source, 0.0)
                self._lowered_at[override.source] = max(before, override.created_at)
        for ended in committed.ended_overrides:
            self.overrides.pop(ended, None)
        self._full_at |= committed.full_at
        if self._projection is not None:
            for source in {retry.source for retry in committed.retries}:
                self._projection.show_open_retries(source, self._open[source].values())

    def _full(self, source: str, now: float) -> float:
        """When the bucket of the pace is full again: at most what filling it takes from now, whatever was noted."""
        return self.rules.source(source).pace.full(self._full_at.get(source, 0.0), now)

    def _may_be_made(self, source: str, letter: DeadLetter) -> bool:
        """Whether it is not known yet what a dead letter descends from: nothing was sent for it so far."""
        is_known = letter.run_id is None or (source, letter.run_id) in self._lineage
        return not is_known and all(retry.shadow for retry in self.history(source, self.root_of(source, letter)))

    def _keep(self, retry: Retry) -> None:
        self._by_root.setdefault((retry.source, retry.root), {})[retry.id] = retry
        self._note_group(retry)
        of_source = self._open.setdefault(retry.source, {})
        if retry.is_open:
            of_source[retry.id] = retry
        else:
            of_source.pop(retry.id, None)

    def _note_group(self, retry: Retry) -> None:
        """Remember what its end says of its group: an approval that worked, or a failure that ends such."""
        if retry.shadow or retry.closed_at is None:
            return
        if retry.recurred or retry.outcome in (Outcome.FAILED, Outcome.EXPIRED):
            noted = self._failed_at
        elif retry.outcome is Outcome.SUCCEEDED and retry.approved_by is not None:
            noted = self._worked_at
        else:
            return
        group = (retry.policy, retry.group)
        noted[group] = max(noted.get(group, 0.0), retry.closed_at)

    def _root(self, source: str, letter: DeadLetter, lineage: Mapping[Key, str]) -> str:
        descended = None if letter.run_id is None else lineage.get((source, letter.run_id))
        if descended is not None:
            return descended
        retrying = self._sources[source].platform.retrying
        return letter.id if retrying is None else retrying.root(letter)

    def _roots_by(self, lineage: Mapping[Key, str]) -> set[Key]:
        """Of which roots (source, root) dead letters are open."""
        return {
            (source, self._root(source, letter, lineage))
            for source, one in self._sources.items()
            for letter in one.known.dead_letters.values()
        }
