"""What people may say about retries, for the web and the commands alike. Each word is a row of the ledger, with an end.

Here is what is said of all or of one; what is done to many dead letters at once is an operation.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.clock import Clock
from exporter.model import DeadLetter
from exporter.model.decision import Ladder
from exporter.model.groups import group_id
from exporter.model.policy import Rules
from exporter.model.retries import Decision, Override, OverrideAction, Reason, Retry, RetryState, Scope
from exporter.model.subject import Subject, facts_of
from exporter.model.words import in_words
from exporter.retries import protocol
from exporter.retries.book import RetryBook, new_id
from exporter.retries.deciding import Decider
from exporter.source import Source

#: A pause ends by itself after so long (seconds) unless another end is given.
PAUSE_SECONDS = 86400.0
#: Overrides of one dead letter that let it pass once.
LETS_PASS = (OverrideAction.APPROVE, OverrideAction.RETRY_NOW)
NOTHING_HOLDS = "nothing holds it"
#: Overrides of one dead letter that a person may take back with ``release``.
_RELEASED = (OverrideAction.HOLD, OverrideAction.QUARANTINE, *LETS_PASS)


class ControlError(Exception):
    """What was asked for makes no sense now: one line. ``status`` is how HTTP says it."""

    def __init__(self, detail: str, *, status: int = 409) -> None:
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An open dead letter and the decision about it."""

    subject: Subject
    ladder: Ladder
    group: str  # its id

    @property
    def key(self) -> str:
        return f"{self.subject.source}/{self.subject.letter.id}"


def _found(subject: Subject, ladder: Ladder) -> Found:
    return Found(subject=subject, ladder=ladder, group=group_id(subject.source, subject.letter))


class Control:
    """Says it: to the ledger, and wakes the retrier that heeds it."""

    def __init__(
        self,
        book: RetryBook,
        sources: Mapping[str, Source],
        clock: Clock,
        *,
        names: Collection[str] | None = None,
        deciders: Mapping[str, Decider] | None = None,
    ) -> None:
        """``names`` are the sources that may be named, where there are more than those whose platform is known.

        ``deciders`` are those of running retriers: what they last decided is so. Without them it is decided when asked.
        """
        self._book = book
        self._sources = sources
        self._names = sources if names is None else names
        self._clock = clock
        self._decide = deciders is None
        self._deciders = {n: Decider(book, s) for n, s in sources.items()} if deciders is None else deciders
        self._seen: list[Found] = []
        self._before: dict[tuple[str, str], Found] = {}  # the same, to keep what has not changed
        self._seen_of: list[tuple[int, list[DeadLetter]]] | None = None  # what that was made from

    # What is so

    def everything(self, source: str | None = None) -> list[Found]:
        """Every open dead letter with the decision about it, oldest first.

        Of all sources it is the very same list while nothing has changed: looking again costs nothing.
        """
        if self._decide or source is not None:
            return self._everything(source)
        made_of = [
            (decider.revision, list(self._sources[name].known.dead_letters.values()))
            for name, decider in self._deciders.items()
        ]
        if made_of != self._seen_of:
            self._seen = self._everything(None)
            self._before = {(one.subject.source, one.subject.letter.id): one for one in self._seen}
            stands = all(decider.stands for decider in self._deciders.values())
            self._seen_of = made_of if stands else None  # what is not decided yet is not kept
        return self._seen

    def _everything(self, source: str | None) -> list[Found]:
        now, found = self._clock.now(), list[Found]()
        for name, decider in self._deciders.items():
            if source in (None, name):
                if self._decide:
                    decider.turn_at_once(now)
                known = self._sources[name].known.dead_letters
                stood = {subject.letter.id: (subject, ladder) for subject, ladder in decider.standing()}
                for letter in known.values():
                    subject, ladder = stood.get(letter.id) or decider.ladder(letter, now)
                    had = self._before.get((name, letter.id))
                    same = had is not None and had.subject is subject and had.ladder is ladder
                    found.append(had if had is not None and same else _found(subject, ladder))
        return sorted(found, key=lambda one: (one.subject.letter.opened_at, one.subject.source, one.subject.letter.id))

    def one(self, source: str, letter_id: str) -> Found:
        """One open dead letter with every check of the decision about it."""
        letter = self.source(source).known.dead_letters.get(letter_id)
        if letter is None:
            raise ControlError(f"{source} has no open dead letter {letter_id}", status=404)
        subject, ladder = self._deciders[source].ladder(letter, self._clock.now())
        return _found(subject, ladder)

    def source(self, name: str) -> Source:
        """A source by its name. Raises ``ControlError``."""
        if name not in self._sources:
            raise ControlError(f"there is no source {name}", status=404)
        return self._sources[name]

    @property
    def sources(self) -> Collection[str]:
        """Their names."""
        return self._sources.keys()

    def is_paused(self, source: str) -> bool:
        return self._book.overrides.is_paused(source, self._clock.now())

    def is_lowered(self, source: str) -> bool:
        """Whether only what a person approves is sent, though the config says more."""
        holding = self._book.overrides.holding(self._clock.now())
        return any(o.action is OverrideAction.LOWER and o.source in ("", source) for o in holding)

    def now(self) -> float:
        return self._clock.now()

    def awaiting(self, policy: str) -> list[tuple[str, str]]:
        """The dead letters that wait for approval under a policy now, frozen as a list."""
        decisions = [(found, found.ladder.decision) for found in self.everything()]
        keys = [
            (f.subject.source, f.subject.letter.id) for f, d in decisions if d.awaits_approval and d.policy == policy
        ]
        if not keys:
            raise ControlError(f"nothing waits for approval under {policy}", status=404)
        return keys

    # What is said

    async def pause(self, source: str | None, *, seconds: float | None, who: str, why: str = "") -> dict[str, Any]:
        """Send nothing, for one source or for all, until it is resumed or the time is up."""
        self._check_source(source)
        now = self._clock.now()
        until = now + (PAUSE_SECONDS if seconds is None else seconds)
        scope = Scope.ENGINE if source is None else Scope.SOURCE
        await self._put(scope, OverrideAction.PAUSE, source=source or "", until=until, who=who, why=why)
        return {"paused": source or "all sources", "until": until}

    async def resume(self, source: str | None, *, who: str) -> dict[str, Any]:
        """End the pauses, and what lowered the mode, of one source; of all, without one."""
        self._check_source(source)
        ended = [
            override
            for override in self._book.overrides.holding(self._clock.now())
            if override.action in (OverrideAction.PAUSE, OverrideAction.LOWER)
            and override.scope in (Scope.ENGINE, Scope.SOURCE)
            and (source is None or override.source == source)
        ]
        await self._book.end(ended, who=who, now=self._clock.now())
        self.said(*self._sources)
        still = source is not None and self._book.overrides.is_paused(source, self._clock.now())
        return {"resumed": source or "all sources", "ended": len(ended), "still_paused": still}

    async def release(
        self, keys: Sequence[tuple[str, str]], *, sent: bool = True, who: str, why: str = "", operation: str = ""
    ) -> dict[tuple[str, str], dict[str, Any]]:
        """Take back what holds dead letters, and settle retries of them that are held or in doubt.

        What was used up counts no longer. ``sent`` is whether an open retry may have had an effect; if a person knows
        that it had none, it does not count. The retrier heeds it once it has read the platform again, after the time
        (``settles``) up to which an effect may still show. Of each key: what was done, or ``refused`` and why.
        """
        now, answers = self._clock.now(), dict[tuple[str, str], dict[str, Any]]()
        ended, words = list[Override](), list[Override]()
        settled: list[tuple[tuple[str, str], Retry]] = []
        for key in keys:
            source, letter_id = key
            retry = self._unsettled(source, letter_id)
            root, holding, exhausted = self._kept(key, retry, now)
            if retry is None and not holding and not exhausted:
                answers[key] = {"refused": NOTHING_HOLDS}
                continue
            ended += holding
            if exhausted or any(override.action is OverrideAction.QUARANTINE for override in holding):
                words.append(
                    self.word(OverrideAction.RELEASE, source=source, key=root, who=who, why=why, operation=operation)
                )
            answers[key] = {"released": f"{source}/{letter_id}", "ended": len(holding)}
            if retry is not None:
                settled.append((key, retry))
        await self._book.put(words, now=now)
        await self._book.end(ended, who=who, now=now)
        for key, retry in settled:
            after = await self._book.change(
                retry, lambda r: protocol.released(r, sent=sent, who=who, now=now), now=now, kind="released", who=who
            )
            settles = max(now, protocol.horizon(retry))
            answers[key] |= {"retry": retry.id, "outcome": after.outcome or after.word, "settles": settles}
        self.said(*{source for source, _ in keys})
        return answers

    def not_held(self, key: tuple[str, str], found: Found | None) -> str | None:
        """Why a dead letter, as it was ``found``, or a retry cannot be released; None if it can."""
        retry = self._unsettled(*key)
        try:
            _, holding, exhausted = self._kept(key, retry, self._clock.now(), found)
        except ControlError as exc:
            return str(exc)
        return None if retry is not None or holding or exhausted else NOTHING_HOLDS

    def _kept(
        self, key: tuple[str, str], retry: Retry | None, now: float, found: Found | None = None
    ) -> tuple[str, list[Override], bool]:
        """The root of a dead letter, what holds it that a person may take back, and whether its retries are used up."""
        exhausted, source = False, key[0]
        if retry is not None:
            root = retry.root
        else:
            found = found or self.one(*key)
            root = found.subject.root
            exhausted = any(rung.refuses and rung.reason is Reason.EXHAUSTED for rung in found.ladder.rungs)
        said = self._book.overrides.of_root(source, root)
        holding = [o for o in said if o.action in _RELEASED and o.holds(now) and not o.snapshot.get("repair")]
        return root, holding, exhausted

    # How

    def word(
        self,
        action: OverrideAction,
        *,
        scope: Scope = Scope.ROOT,
        source: str,
        key: str = "",
        until: float | None = None,
        who: str,
        why: str = "",
        starts_at: float = 0.0,
        snapshot: dict[str, Any] | None = None,
        operation: str = "",
    ) -> Override:
        """What a person says now."""
        return Override(
            id=new_id(),
            scope=scope,
            source=source,
            key=key,
            action=action,
            until=until,
            who=who,
            why=why,
            created_at=self._clock.now(),
            starts_at=starts_at,
            snapshot=snapshot or {},
            operation=operation,
        )

    async def _put(
        self,
        scope: Scope,
        action: OverrideAction,
        *,
        source: str,
        until: float | None,
        who: str,
        why: str,
    ) -> None:
        word = self.word(action, scope=scope, source=source, until=until, who=who, why=why)
        await self._book.put([word], now=self._clock.now())
        self.said(*([source] if source else self._sources))

    def _unsettled(self, source: str, identity: str) -> Retry | None:
        """A retry that is held or in doubt, by its own id or by its dead letter's."""
        states = (RetryState.HELD, RetryState.IN_DOUBT)
        for retry in self._book.open_of(source):
            if identity in (retry.id, retry.dead_letter_id) and retry.state in states:
                return retry
        return None

    def _check_source(self, source: str | None) -> None:
        if source is not None and source not in self._names:
            known = ", ".join(self._names)
            raise ControlError(f"there is no source {source}; one of {known}", status=404)

    def said(self, *sources: str) -> None:
        """Have what was said heeded soon."""
        self._book.show(self._clock.now())
        for source in sources:
            if source in self._sources:
                self._sources[source].retries_due.set()


def decision_facts(decision: Decision | None) -> dict[str, Any] | None:
    """A decision as plain values."""
    if decision is None:
        return None
    return {
        "decision": decision.verb.value,
        "reason": decision.reason.value,
        "policy": decision.policy,
        "mode": decision.mode.value,
        "words": in_words(decision),
        "detail": decision.detail,
        "next_at": decision.next_at,
        "awaits_approval": decision.awaits_approval,
    }


def ladder_facts(found: Found, rules: Rules, now: float) -> dict[str, Any]:
    """One dead letter, what each policy says of it, every check and the decision, as plain values."""
    subject, ladder = found.subject, found.ladder
    facts, words = facts_of(subject, now), {True: "matches", False: "does not match", None: "is undetermined"}
    return {
        "source": subject.source,
        "workflow": workflow_name(subject),
        "group": group_id(subject.source, subject.letter),
        **letter_facts(subject.letter),
        "decision": decision_facts(ladder.decision),
        "words": in_words(ladder.told),
        "policies": [
            {"policy": policy.name, "matches": words[policy.owns(facts)], "action": policy.action.value}
            for policy in rules.policies
        ],
        "ladder": [
            {"reason": rung.reason.value, "refuses": rung.refuses, "detail": rung.detail, "next_at": rung.next_at}
            for rung in ladder.rungs
        ],
    }


def workflow_name(subject: Subject) -> str:
    """What people call the workflow of a dead letter."""
    workflow = subject.workflow
    return subject.letter.workflow_id if workflow is None or workflow.name is None else workflow.name


def retry_facts(retry: Retry) -> dict[str, Any]:
    """A retry as plain values."""
    return {
        "id": retry.id,
        "source": retry.source,
        "workflow_id": retry.workflow_id,
        "dead_letter_id": retry.dead_letter_id,
        "run_id": retry.run_id,
        "root": retry.root,
        "ordinal": retry.ordinal,
        "policy": retry.policy,
        "shadow": retry.shadow,
        "approved_by": retry.approved_by,
        "state": None if retry.outcome is not None or retry.shadow else retry.state.value,
        "outcome": None if retry.outcome is None else retry.outcome.value,
        "claimed_at": retry.claimed_at,
        "sent_at": retry.sent_at,
        "closed_at": retry.closed_at,
        "new_runs": list(retry.new_runs),
        "recurred": retry.recurred,
        "detail": retry.detail,
    }


def letter_facts(letter: DeadLetter) -> dict[str, Any]:
    """What a person needs to recognise a dead letter by."""
    error = letter.error
    return {
        "id": letter.id,
        "workflow_id": letter.workflow_id,
        "run_id": letter.run_id,
        "opened_at": letter.opened_at,
        "error_class": None if error is None else error.error_class.value,
        "error_type": None if error is None else error.type,
        "error_message": None if error is None else error.message,
    }
