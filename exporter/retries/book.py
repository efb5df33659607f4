"""Retrying as it stands, in memory, and the door to its ledger.

Memory follows the commits and is never ahead of them.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from exporter.metrics.projection import Projection
from exporter.model import DeadLetter
from exporter.platform import Platform
from exporter.retries.model import Decision, Override, OverrideAction, Retry, Scope
from exporter.retries.policy import Rules
from exporter.store import retries as script
from exporter.store.ingest import Committed, Key
from exporter.store.ledger import Ledger
from exporter.store.retries import Claim, Claimed, Refusal, Remembered
from exporter.tallies import Tallies
from exporter.world import World

#: Closed retries remembered for the status page, beside those of open dead letters.
RECENT_MAX = 200
#: A dead letter that opened within the settling time may be seen so many seconds later.
SETTLING_SLACK = 900.0


def new_id() -> str:
    return secrets.token_hex(8)


class RetryBook:
    """What every retrier, the web and the commands see of retrying. Make one with ``load``."""

    def __init__(
        self,
        ledger: Ledger,
        world: World,
        platforms: Mapping[str, Platform],
        rules: Rules,
        *,
        projection: Projection | None = None,
    ) -> None:
        """``platforms`` by source."""
        self.rules = rules
        self.overrides: dict[str, Override] = {}
        self.decisions: dict[Key, Decision] = {}  # of dead letters, as last decided
        self._ledger = ledger
        self._world = world
        self._platforms = platforms
        self._projection = projection
        self._lineage: dict[Key, str] = {}
        self._by_root: dict[Key, dict[str, Retry]] = {}
        self._open: dict[str, dict[str, Retry]] = {source: {} for source in platforms}
        self._decided: dict[Key, tuple[str, str, str]] = {}
        self._full_at: dict[str, float] = {}
        self._changing = asyncio.Lock()

    async def load(self, now: float) -> None:
        """Start from what the ledger remembers."""
        remembered: Remembered = await self._ledger.transact("load_retries", script.remember(now, self._roots_by))
        self._lineage, self._decided, self._full_at = remembered.lineage, remembered.decided, remembered.full_at
        self.overrides = {override.id: override for override in remembered.overrides}
        for retry in remembered.retries:
            self._keep(retry)
        if self._projection is not None:
            for source in self._platforms:
                self._projection.open_retries(
                    source, [policy.name for policy in self.rules.policies if policy.action == "retry"]
                )
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

    def find(self, retry_id: str) -> Retry | None:
        return next((retry for retry in self.everything() if retry.id == retry_id), None)

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

    def pace_at(self, source: str) -> float:
        """When the pace next allows a call."""
        pace = self.rules.source(source).pace
        return self._full_at.get(source, 0.0) - (pace.burst - 1) / pace.rate

    def room(self, source: str, now: float) -> int:
        """How many calls the pace allows now."""
        pace, in_flight = self.rules.source(source).pace, sum(1 for r in self.open_of(source) if r.in_flight)
        tokens = pace.burst - max(0.0, self._full_at.get(source, 0.0) - now) * pace.rate
        return max(0, min(int(tokens + 1e-6), pace.in_flight - in_flight))

    def approved_groups(self) -> frozenset[tuple[str, str]]:
        """Policies and groups of which a retry that a person approved has worked."""
        return frozenset(
            (retry.policy, retry.group)
            for retries in self._by_root.values()
            for retry in retries.values()
            if retry.approved_by is not None and retry.outcome == "succeeded"
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

    async def claim(self, claim: Claim, *, now: float) -> Claimed | Refusal:
        result = await self._ledger.transact("claim_retry", script.claim(claim, now=now))
        if isinstance(result, Claimed):
            if claim.approval is not None:
                self.overrides.pop(claim.approval, None)
            if not result.retry.shadow:
                self._full_at[result.retry.source] = result.full_at
            self._keep(result.retry)
            self._count(result.tallies)
        return result

    async def save(self, retries: Sequence[Retry], *, now: float, kind: str, who: str = "engine") -> None:
        """Write what became of these; nothing is done for none."""
        if retries:
            traced = {source for source, rules in self._ledger.rules.items() if rules.traced}
            tallies = await self._ledger.transact(
                "save_retry", script.save(retries, now=now, kind=kind, who=who, traced=traced)
            )
            for retry in retries:
                self._keep(retry)
                for run_id in retry.new_runs:
                    self._lineage.setdefault((retry.source, run_id), retry.root)
            self._count(tallies)

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

    async def recurred(self, retry: Retry, *, now: float) -> None:
        self._keep(await self._ledger.transact("save_retry", script.recur(retry, now=now)))

    async def decide(self, source: str, decisions: Mapping[Key, Decision], *, now: float) -> int:
        """Remember what is decided of all open dead letters of a source; returns how many decisions changed."""
        changed = {key: d for key, d in decisions.items() if self._decided.get(key) != d.label}
        gone = [key for key in self._decided if key[0] == source and key not in decisions]
        if changed or gone:
            tallies = await self._ledger.transact(
                "decide", script.decide(changed, gone, now=now, policies_hash=self.rules.hash)
            )
            self._decided |= {key: decision.label for key, decision in changed.items()}
            for key in gone:
                del self._decided[key]
            self._count(tallies)
        self.decisions = {k: d for k, d in self.decisions.items() if k[0] != source} | dict(decisions)
        return len(changed)

    async def put(self, overrides: Sequence[Override], *, now: float) -> None:
        await self._ledger.transact("override", script.put_overrides(overrides, now=now))
        self.overrides |= {override.id: override for override in overrides}

    async def end(self, overrides: Sequence[Override], *, who: str, now: float) -> None:
        await self._ledger.transact("override", script.end_overrides(overrides, who=who, now=now))
        for override in overrides:
            self.overrides.pop(override.id, None)

    async def prune(self, *, now: float, before: float) -> None:
        """Forget what is past retention, in the ledger (what ended ``before``) and in memory (what holds no more)."""
        keep = self._roots_by(self._lineage)
        await self._ledger.transact("prune", script.prune(before=before, keep=keep))
        recent = {(retry.source, retry.root) for retry in self.everything()[:RECENT_MAX]}
        opened = {(r.source, r.root) for retries in self._open.values() for r in retries.values()}
        self._by_root = {key: found for key, found in self._by_root.items() if key in keep | recent | opened}
        self.overrides = {override.id: override for override in self.holding(now)}

    async def audit_of(self, identity: str) -> list[dict[str, Any]]:
        """Every record about a retry or a dead letter, oldest first."""
        return await self._ledger.transact("audit", script.history(identity))

    def show(self, now: float) -> None:
        """Bring the gauges to what is so now."""
        if self._projection is not None:
            holding = self.holding(now)
            for source, retries in self._open.items():
                lowering = [o for o in holding if o.source in ("", source) and o.action is OverrideAction.LOWER]
                mode = self.rules.mode_of(source, lowering)
                paused = self.is_paused(source, now)
                self._projection.show_retries(source, mode=mode, paused=paused, retries=retries.values())

    # How it is kept

    def _keep(self, retry: Retry) -> None:
        self._by_root.setdefault((retry.source, retry.root), {})[retry.id] = retry
        of_source = self._open.setdefault(retry.source, {})
        if retry.is_open:
            of_source[retry.id] = retry
        else:
            of_source.pop(retry.id, None)

    def _count(self, tallies: Tallies) -> None:
        if tallies:
            self._ledger.on_commit(Committed(tallies=tallies))

    def _root(self, source: str, letter: DeadLetter, lineage: Mapping[Key, str]) -> str:
        descended = None if letter.run_id is None else lineage.get((source, letter.run_id))
        if descended is not None:
            return descended
        retrying = self._platforms[source].retrying
        return letter.id if retrying is None else retrying.root(letter)

    def _roots_by(self, lineage: Mapping[Key, str]) -> set[Key]:
        """Of which roots (source, root) dead letters are open."""
        return {
            (source, self._root(source, letter, lineage))
            for source, known in self._world.sources.items()
            for letter in known.dead_letters.values()
        }
