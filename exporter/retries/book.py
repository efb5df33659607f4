"""Retrying as it stands, in memory, and the door to its ledger.

Memory follows the commits, as the ledger publishes them, and is never ahead of them.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from exporter.model import SUCCEEDED, DeadLetter
from exporter.model.ledger import Committed, Key
from exporter.model.operations import OperationState
from exporter.model.policy import GateRules, Rules
from exporter.model.rails import GateState, Purse, Rails, Setback, set_back
from exporter.model.retries import ENGINE, Answer, Decision, Outcome, Override, OverrideAction, Retry
from exporter.model.subject import Refused
from exporter.retries import protocol
from exporter.retries.override_book import OverrideBook
from exporter.retries.rails_book import RailsBook
from exporter.retries.repair_book import RepairBook
from exporter.source import Source
from exporter.store import audit
from exporter.store import rails as kept
from exporter.store import retries as script
from exporter.store.ledger import Ledger
from exporter.store.reserving import Refusal, Reservation, reserve
from exporter.store.retries import Decided, Evidence, Remembered
from exporter.view.projection import Projection

#: Closed retries remembered for the status page, beside those of open dead letters.
RECENT_MAX = 200
#: A dead letter that opened within the settling time may be seen so many seconds later.
SETTLING_SLACK = 900.0
#: A retry may have been claimed so long (seconds) before it closed.
GROUP_SLACK = 7 * 86400.0
#: It is noted every so often (seconds) that a source is decided about; after a longer break nothing could be tried.
BEAT, SLEPT_MIN = 300.0, 600.0
#: Decisions looked through before others get a chance to run.
DECIDED_AT_ONCE = 500
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
        self.overrides = OverrideBook()
        self.decisions: dict[Key, Decision] = {}  # of dead letters, as last decided
        self._ledger = ledger
        self._sources = sources
        self._projection = projection
        self._lineage: dict[Key, str] = {}
        self._unmade: dict[str, set[str]] = {}  # open dead letters that no call of ours can have made
        self._by_root: dict[Key, dict[str, Retry]] = {}
        self._histories: dict[Key, tuple[Retry, ...]] = {}  # the same, in order
        self._approved: dict[str, frozenset[tuple[str, str]]] = {}
        self._rails = RailsBook(sources, rules)
        self._refused: dict[Key, Refused] = {}
        self._unwritten: dict[str, dict[str, Decision]] = {}  # by source: what was decided and could not be stored
        self._escalated: set[Key] = set()  # source, and root and reason: a person was told
        self._beats: dict[str, float] = {}
        self.operations: dict[str, OperationState] = {}
        self.repairs = RepairBook()
        self._open: dict[str, dict[str, Retry]] = {source: {} for source in sources}
        self._decided: dict[Key, Decided] = {}
        self._worked_at: dict[tuple[str, str], float] = {}  # by policy and group: the last approved one that worked
        self._failed_at: dict[tuple[str, str], float] = {}  # the last that failed, or did not last
        self._lowered_at: dict[str, float] = {}  # by source
        self._changing = asyncio.Lock()

    async def load(self, now: float, *, decides: bool = True) -> None:
        """Start from what the ledger remembers; ``decides``: and go on deciding about all of its sources."""
        asks = any(policy.approve == "first_of_group" for policy in self.rules.policies)
        groups_since = now - GROUP_APPROVAL_SECONDS - GROUP_SLACK if asks else None
        remembered: Remembered = await self._ledger.transact(
            "load_retries", script.remember(now, self._roots_by, groups_since=groups_since)
        )
        self._lineage, self._decided = remembered.lineage, remembered.decided
        self.overrides.keep(remembered.overrides)
        self._lowered_at, self.operations = remembered.lowered_at, remembered.operations
        self.repairs.apply(remembered.repairs)
        self._refused, self._escalated = remembered.kept.refused, remembered.kept.escalated
        self._rails.load(remembered.kept, remembered.full_at)
        for source in self._sources if decides else ():
            await self._go_on(source, remembered.kept.turns.get(source), now)
        for retry in remembered.retries:
            self._keep(retry)
        for retry in remembered.of_groups:
            self._note_group(retry)
        if self._projection is not None:
            for source in self._sources:
                self._projection.open_retries(source, self.rules.policies)
                self._projection.show_open_retries(source, self._open[source].values())
                self._projection.open_repairs(source, self._sources[source].section.grant)
            self.show(now)

    # What is asked of it

    def root_of(self, source: str, letter: DeadLetter) -> str:
        """What a dead letter descends from, across the runs that retries created."""
        return self._root(source, letter, self._lineage)

    async def take_over(self, source: str, now: float) -> None:
        """Go on where another process, which decided about a source so far, has left off."""
        decided, last = await self._ledger.transact_about(source, "load_retries", script.resume(source))
        self._decided = {key: one for key, one in self._decided.items() if key[0] != source} | decided
        for of_turns in (self._unmade, self._beats, self._unwritten):
            of_turns.pop(source, None)
        self._rails.take_over(source)
        await self._go_on(source, last, now)

    async def _go_on(self, source: str, last: float | None, now: float) -> None:
        """Go on deciding about a source, which was ``last`` done some while ago."""
        rules = self.rules.source(source)
        if last is not None and now - last > SLEPT_MIN:
            await self._ledger.transact("load_retries", kept.slept(source, now - last, now))
            for letter, decided in self._decided.items():
                if letter[0] == source and decided.waits_since is None:
                    self._decided[letter] = replace(decided, waited=decided.waited + now - last)
        if rules.budget is not None and not self._rails.has_purse(source):
            await self._ledger.transact("load_retries", kept.put_purse(source, Purse(at=now)))
        if rules.storm is not None:
            since = now - self._sources[source].ahead - rules.storm.within
            ends = await self._ledger.transact("load_retries", script.ends_of_runs(source, since))
            self._rails.note_ends(source, ends)

    def history(self, source: str, root: str) -> Sequence[Retry]:
        """The retries of one root, in order; the very same object while nothing has changed."""
        found = self._histories.get((source, root))
        return () if found is None else found

    def decided(self, source: str, letter_id: str) -> Decided | None:
        """What was last decided of a dead letter, and how long it could not have been tried."""
        return self._decided.get((source, letter_id))

    def refused(self, source: str, letter_id: str) -> Refused | None:
        """Why the last look at a dead letter refused."""
        return self._refused.get((source, letter_id))

    def rails(self, source: str, now: float) -> Rails:
        """How the rails of a source stand; the very same object while nothing has changed."""
        opened, approved = self._open[source].values(), self.approved_groups(source, now)
        return self._rails.of(source, now, opened=opened, approved=approved)

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

    def approved_groups(self, source: str, now: float) -> frozenset[tuple[str, str]]:
        """Policies and groups of which a retry that a person approved has worked lately, and nothing failed since.

        Neither was the source lowered since. The very same object while nothing has changed.
        """
        lowered = max(self._lowered_at.get(source, 0.0), self._lowered_at.get("", 0.0))
        found = frozenset(
            group
            for group, at in self._worked_at.items()
            if 0.0 <= now - at <= GROUP_APPROVAL_SECONDS and at > max(lowered, self._failed_at.get(group, 0.0))
        )
        if found != self._approved.get(source):
            self._approved[source] = found
        return self._approved[source]

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

    async def reserve(self, wanted: Reservation, *, now: float) -> Retry | Refusal:
        """Make a retry an intent, and return it as it is written; why not, if the ledger forbids it by now."""
        result = await self._ledger.transact("claim_retry", reserve(wanted, now=now))
        return result if isinstance(result, Refusal) else result.retries[0]

    async def save(self, retries: Sequence[Retry], *, now: float, kind: str, who: str = "engine") -> None:
        """Write what became of these; nothing is done for none."""
        if retries:
            evidence = {retry.id: self._evidence(retry, now) for retry in retries if retry.outcome is not None}
            saving = script.save(retries, now=now, kind=kind, who=who, traced=self._traced(), evidence=evidence)
            await self._ledger.transact("save_retry", saving)

    def _traced(self) -> set[str]:
        return {source for source, rules in self._ledger.rules.items() if rules.traced}

    def _evidence(self, retry: Retry, now: float) -> Evidence:
        """What the verdict of a retry is weighed by."""
        source, rules = self._sources[retry.source], self.rules.source(retry.source)
        policy = next((policy for policy in self.rules.policies if policy.name == retry.policy), None)
        return Evidence(
            gate=GateRules() if policy is None else policy.gate,
            storm=bool(self._rails.storm(retry.source, now)),
            well_at=source.last_ended(retry.workflow_id, SUCCEEDED),
            failed_at=retry.opened_at + source.ahead,
            budget=None if rules.budget is None else rules.budget.cap,
        )

    async def set_back(self, source: str, key: str, *, retry_after: float | None, now: float) -> Setback:
        """Leave a source (key "") or one of its workflows alone for a while; longer each time."""
        state = set_back(self._rails.setback(source, key), retry_after=retry_after, now=now)
        await self._ledger.transact("save_retry", kept.put_setbacks(source, {key: state}))
        return state

    def set_back_until(self, source: str, key: str, now: float) -> float:
        """Until when what is kept under this key is set back."""
        setback = self._rails.setback(source, key)
        return 0.0 if setback is None else setback.holds_until(now)

    def earned(self, source: str) -> int:
        """Successful runs of a source that its budget does not hold yet."""
        return self._rails.earned(source)

    def rejected_in_a_row(self, source: str) -> int:
        """How many different dead letters the platform refused to retry, one after the other, up to now."""
        ended = [retry for retry in self.everything() if retry.source == source and retry.answered_at is not None]
        roots: set[str] = set()
        for retry in sorted(ended, key=lambda retry: retry.answered_at or 0.0, reverse=True):
            if retry.answer is not Answer.REJECTED:
                break
            roots.add(retry.root)
        return len(roots)

    async def refuse(self, source: str, letter_id: str, refused: Refused | None) -> None:
        """Remember why a look at a dead letter refused; None: it no longer does."""
        if refused is not None or (source, letter_id) in self._refused:
            await self._ledger.transact("save_retry", kept.put_refused(source, {letter_id: refused}))

    async def ran_after_all(self, retries: Sequence[Retry], *, now: float) -> None:
        """Refused calls that ran all the same use up their retries."""
        await self._ledger.transact("save_retry", script.ran_after_all(retries, now=now))

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
            changing = script.change(
                retry.id,
                change,
                now=now,
                kind=kind,
                who=who,
                traced=self._traced(),
                evidence=self._evidence(before, now),
            )
            await self._ledger.transact("save_retry", changing)
            return self._by_root[retry.source, retry.root][retry.id]

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

    async def decide(self, source: str, changed: Mapping[str, Decision], gone: Sequence[str], *, now: float) -> int:
        """Remember what is decided otherwise of dead letters of a source; returns how many labels changed.

        What cannot be stored is tried again with what changes next.
        """
        unwritten = self._unwritten.setdefault(source, {})
        unwritten |= changed
        for letter_id in gone:
            unwritten.pop(letter_id, None)
        changed = unwritten
        for letter_id, decision in changed.items():
            self.decisions[source, letter_id] = decision
        for letter_id in gone:
            self.decisions.pop((source, letter_id), None)
        said: dict[Key, tuple[Decision, Decided]] = {}
        for number, (letter_id, decision) in enumerate(changed.items(), start=1):
            if number % DECIDED_AT_ONCE == 0:
                await asyncio.sleep(0)
            before = self._decided.get((source, letter_id))
            waits_since = None if decision.ages else now
            if before is not None:
                if before.label == decision.label and (before.waits_since is None) == decision.ages:
                    continue
                waits_since = None if decision.ages else before.waits_since or now
            waited = 0.0 if before is None else before.waited
            if before is not None and decision.ages and before.waits_since is not None:
                waited += max(0.0, now - before.waits_since)
            decided = Decided(label=decision.label, waited=waited, waits_since=waits_since)
            said[source, letter_id] = decision, decided
        ended = [(source, letter_id) for letter_id in gone if (source, letter_id) in self._decided]
        escalated = self._to_escalate(source, changed)
        if said or ended or escalated:
            writing = script.decide(said, ended, now=now, policies_hash=self.rules.hash, escalated=escalated)
            await self._ledger.transact("decide", writing)
        self._unwritten[source] = {}
        counted = 0
        for key, (decision, decided) in said.items():
            had = self._decided.get(key)
            counted += had is None or had.label != decision.label
            self._decided[key] = decided
        for key in ended:
            del self._decided[key]
        return counted

    async def beat(self, source: str, *, now: float) -> None:
        """Note now and then that the dead letters of a source are decided about."""
        if not 0 <= now - self._beats.get(source, 0.0) < BEAT:
            await self._ledger.transact("decide", kept.beat(source, now))
            self._beats[source] = now

    def _to_escalate(self, source: str, changed: Mapping[str, Decision]) -> dict[Key, str]:
        """Of whom a person is to be told (source, and root and reason), and the policy it is about."""
        found: dict[Key, str] = {}
        for letter_id, decision in changed.items():
            letter = self._sources[source].known.dead_letters.get(letter_id)
            if decision.escalates is not None and letter is not None:
                key = source, kept.escalation(self.root_of(source, letter), decision.escalates)
                if key not in self._escalated:
                    found[key] = decision.policy
        return found

    async def put(self, overrides: Sequence[Override], *, now: float) -> None:
        await self._ledger.transact("override", script.put_overrides(overrides, now=now))

    async def end(self, overrides: Sequence[Override], *, who: str, now: float) -> None:
        await self._ledger.transact("override", script.end_overrides(overrides, who=who, now=now))

    async def redate(self, source: str, *, now: float) -> None:
        """Shorten the waits that were set while our clock was ahead of what it is now to what they were meant to be."""
        full_at = self._rails.redated_pace(source, now)
        if full_at is not None:
            await self._ledger.transact("save_retry", script.set_pace(source, full_at))
        for retry in self.open_of(source):
            if protocol.redated(retry, now=now) is not retry:
                await self.change(retry, lambda r: protocol.redated(r, now=now), now=now, kind="clock set back")
        early = [override for override in self.overrides if override.created_at > now + protocol.SKEW]
        if early:
            meant = [override.redated(now) for override in early]
            await self._ledger.transact("override", script.redate_overrides(meant, now=now))
        gates, purse = self._rails.redated_gates(source, now), self._rails.redated_purse(source, now)
        if gates or purse is not None:
            await self._ledger.transact("save_retry", kept.redate(source, gates, purse))
        self._lowered_at = {key: min(now, at) for key, at in self._lowered_at.items()}
        self._failed_at = {key: min(now, at) for key, at in self._failed_at.items()}

    async def prune(self, *, now: float, before: float) -> None:
        """Forget what is past retention, in the ledger (what ended ``before``) and in memory (what holds no more)."""
        keep = self._roots_by(self._lineage)
        await self._ledger.transact("prune", script.prune(before=before, keep=keep))
        for source, old in self._rails.served_before(before).items():
            await self._ledger.transact("prune", kept.prune(source, old))
            self._rails.forget(source, old)
        recent = {(retry.source, retry.root) for retry in self.everything()[:RECENT_MAX]}
        opened = {(r.source, r.root) for retries in self._open.values() for r in retries.values()}
        self._by_root = {key: found for key, found in self._by_root.items() if key in keep | recent | opened}
        self._histories = {key: found for key, found in self._histories.items() if key in self._by_root}
        self.overrides.keep(self.overrides.holding(now))

    async def is_known(self, identity: str) -> bool:
        """Whether there ever was a retry or a dead letter of this name (ID or SOURCE/ID), as far as it was kept."""
        source, _, letter_id = identity.partition("/")
        known = audit.is_known(source, letter_id) if letter_id else audit.is_known("", identity)
        return await self._ledger.transact("audit", known)

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
            holding = self.overrides.holding(now)
            for source in self._open:
                lowering = [o for o in holding if o.source in ("", source) and o.action is OverrideAction.LOWER]
                mode = self.rules.mode_of(source, lowering)
                paused = self.overrides.is_paused(source, now)
                lowered = mode is not self.rules.mode_of(source) and any(o.who == ENGINE for o in lowering)
                self._projection.show_retry_mode(source, mode=mode, paused=paused, lowered=lowered)

    def show_rails(self, source: str, gates: Mapping[tuple[str, GateState], int] | None, now: float) -> None:
        """Bring the gauges of the rails of a source to what is so now; ``gates`` are None while nobody knows them."""
        if self._projection is not None:
            rails = self.rails(source, now)
            storm = None if self.rules.source(source).storm is None else bool(rails.storm)
            self._projection.show_rails(source, storm=storm, tokens=rails.tokens, gates=gates)

    # How it is kept

    def apply(self, committed: Committed) -> None:
        """Follow one commit, and have the gauges of open retries follow it."""
        for retry in committed.retries:
            self._keep(retry)
        for key, root in committed.lineage.items():
            self._lineage.setdefault(key, root)
        for override in committed.overrides:
            self.overrides.put(override)
            if override.action is OverrideAction.LOWER:
                before = self._lowered_at.get(override.source, 0.0)
                self._lowered_at[override.source] = max(before, override.created_at)
        for ended in committed.ended_overrides:
            self.overrides.end(ended)
        self._rails.apply(committed)
        for letter, refused in committed.refused.items():
            if refused is None:
                self._refused.pop(letter, None)
            else:
                self._refused[letter] = refused
        for escalated, holds in committed.escalated.items():
            (self._escalated.add if holds else self._escalated.discard)(escalated)
        self.operations |= committed.operations
        self.repairs.apply(committed.repairs)
        for outcome in committed.outcomes:
            self._rails.note_runs(outcome.batch.source, outcome.changes, self._lineage.keys())
        if self._projection is not None:
            for source in {retry.source for retry in committed.retries}:
                self._projection.show_open_retries(source, self._open[source].values())

    def _may_be_made(self, source: str, letter: DeadLetter) -> bool:
        """Whether it is not known yet what a dead letter descends from: nothing was sent for it so far."""
        is_known = letter.run_id is None or (source, letter.run_id) in self._lineage
        return not is_known and all(retry.shadow for retry in self.history(source, self.root_of(source, letter)))

    def _keep(self, retry: Retry) -> None:
        key = (retry.source, retry.root)
        of_root = self._by_root.setdefault(key, {})
        of_root[retry.id] = retry
        self._histories[key] = tuple(sorted(of_root.values(), key=lambda one: (one.claimed_at, one.ordinal)))
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
