"""What people may say about retries, for the web and the commands alike. Each word is a row of the ledger, with an end.

Whatever a person says can only be said of what is there now: an approval is a frozen list of dead letters as they are,
and void for those that change.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.clock import Clock
from exporter.model import DeadLetter
from exporter.model.decision import Ladder, Subject, climb, snapshot_of
from exporter.model.retries import Decision, Mode, Override, OverrideAction, Reason, Retry, RetryState, Scope
from exporter.retries import protocol
from exporter.retries.book import RetryBook, new_id
from exporter.retries.subjects import subjects
from exporter.source import Source

#: A pause and an approval end by themselves after so long (seconds) unless another end is given.
PAUSE_SECONDS = 86400.0
APPROVAL_SECONDS = 86400.0
#: Overrides of one dead letter that let it pass once.
_LETS_PASS = (OverrideAction.APPROVE, OverrideAction.RETRY_NOW)
#: Overrides of one dead letter that a person may take back with ``release``.
_RELEASED = (OverrideAction.HOLD, OverrideAction.QUARANTINE, *_LETS_PASS)


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

    @property
    def key(self) -> str:
        return f"{self.subject.source}/{self.subject.letter.id}"


class Control:
    """Says it: to the ledger, and wakes the retrier that heeds it."""

    def __init__(
        self, book: RetryBook, sources: Mapping[str, Source], clock: Clock, *, names: Collection[str] | None = None
    ) -> None:
        """``names`` are the sources that may be named, where there are more than those whose platform is known."""
        self._book = book
        self._sources = sources
        self._names = sources if names is None else names
        self._clock = clock

    # What is so

    def everything(self, source: str | None = None) -> list[Found]:
        """Every open dead letter with the whole ladder of the decision about it, oldest first."""
        now, found = self._clock.now(), list[Found]()
        for name, one in self._sources.items():
            if source in (None, name):
                for subject in subjects(self._book, one, now=now):
                    found.append(Found(subject=subject, ladder=climb(subject, self._book.rules, now)))
        return sorted(found, key=lambda one: (one.subject.letter.opened_at, one.key))

    def one(self, source: str, letter_id: str) -> Found:
        if source not in self._sources:
            raise ControlError(f"there is no source {source}", status=404)
        for found in self.everything(source):
            if found.subject.letter.id == letter_id:
                return found
        raise ControlError(f"{source} has no open dead letter {letter_id}", status=404)

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
            for override in self._book.holding(self._clock.now())
            if override.action in (OverrideAction.PAUSE, OverrideAction.LOWER)
            and override.scope in (Scope.ENGINE, Scope.SOURCE)
            and (source is None or override.source == source)
        ]
        await self._book.end(ended, who=who, now=self._clock.now())
        self._said(*self._sources)
        still = source is not None and self._book.is_paused(source, self._clock.now())
        return {"resumed": source or "all sources", "ended": len(ended), "still_paused": still}

    async def approve(self, keys: Sequence[tuple[str, str]], *, who: str, why: str = "") -> dict[str, Any]:
        """Let these dead letters, as they are now, be retried once, each by the policy that owns it now."""
        return await self._let_pass(OverrideAction.APPROVE, keys, who=who, why=why)

    async def retry_now(self, key: tuple[str, str], *, who: str, why: str = "") -> dict[str, Any]:
        """Have one dead letter retried now: past its backoff and hours, not past any guard."""
        return await self._let_pass(OverrideAction.RETRY_NOW, [key], who=who, why=why)

    async def hold(self, key: tuple[str, str], *, seconds: float | None, who: str, why: str = "") -> dict[str, Any]:
        """Keep one dead letter from being retried; for good, without a time."""
        return await self._keep(OverrideAction.HOLD, key, seconds=seconds, who=who, why=why)

    async def quarantine(self, key: tuple[str, str], *, who: str, why: str = "") -> dict[str, Any]:
        """Never retry one dead letter by itself, until it is released."""
        return await self._keep(OverrideAction.QUARANTINE, key, seconds=None, who=who, why=why)

    async def release(self, key: tuple[str, str], *, sent: bool = True, who: str, why: str = "") -> dict[str, Any]:
        """Take back what holds a dead letter, and settle a retry that is held or in doubt.

        ``sent`` is whether that retry may have had an effect; if a person knows that it had none, it does not count.
        The retrier heeds it once it has read the platform again, after the time (``settles``) up to which an effect
        may still show.
        """
        source, letter_id = key
        now = self._clock.now()
        retry = self._unsettled(source, letter_id)
        root = retry.root if retry is not None else self.one(source, letter_id).subject.root
        ended = [
            override
            for override in self._book.holding(now)
            if override.source == source and override.key == root and override.action in _RELEASED
        ]
        if retry is None and not ended:
            raise ControlError(f"nothing holds {letter_id}")
        if any(override.action is OverrideAction.QUARANTINE for override in ended):
            await self._put(Scope.ROOT, OverrideAction.RELEASE, source=source, key=root, until=None, who=who, why=why)
        await self._book.end(ended, who=who, now=now)
        answer: dict[str, Any] = {"released": f"{source}/{letter_id}", "ended": len(ended)}
        if retry is not None:
            after = await self._book.change(
                retry, lambda r: protocol.released(r, sent=sent, who=who, now=now), now=now, kind="released", who=who
            )
            settles = max(now, protocol.horizon(retry))
            answer |= {"retry": retry.id, "outcome": after.outcome or after.word, "settles": settles}
        self._said(source)
        return answer

    # How

    async def _let_pass(
        self, action: OverrideAction, keys: Sequence[tuple[str, str]], *, who: str, why: str
    ) -> dict[str, Any]:
        found = [self.one(*key) for key in dict.fromkeys(keys)]
        now, until = self._clock.now(), self._clock.now() + APPROVAL_SECONDS
        words: list[Override] = []
        for one in found:
            subject, ladder = one.subject, one.ladder
            if subject.traits is None:
                raise ControlError(f"{one.key}: this platform knows no retry")
            if ladder.decision.mode.rank < Mode.APPROVE.rank:
                raise ControlError(f"{one.key}: the mode is {ladder.decision.mode}; nothing is sent in it")
            held = next((rung for rung in ladder.rungs if rung.reason is Reason.HELD and rung.refuses), None)
            if held is not None:
                raise ControlError(f"{one.key}: {held.detail}; release it first")
            if action is OverrideAction.APPROVE and ladder.owner is None:
                raise ControlError(f"{one.key}: no policy owns it; ask for a retry of it instead")
            words.append(
                Override(
                    id=new_id(),
                    scope=Scope.ROOT,
                    source=subject.source,
                    key=subject.root,
                    action=action,
                    until=until,
                    who=who,
                    why=why,
                    created_at=now,
                    snapshot=snapshot_of(subject, ladder.owner, action),
                )
            )
        roots = {(word.source, word.key) for word in words}
        before = [o for o in self._book.holding(now) if o.action in _LETS_PASS and (o.source, o.key) in roots]
        await self._book.end(before, who=who, now=now)  # said twice, it still is one retry
        await self._book.put(words, now=now)
        self._said(*{word.source for word in words})
        keys_said = [one.key for one in found]
        return {"action": action.value, "dead_letters": keys_said, "until": until}

    async def _keep(
        self, action: OverrideAction, key: tuple[str, str], *, seconds: float | None, who: str, why: str
    ) -> dict[str, Any]:
        found, now = self.one(*key), self._clock.now()
        until = None if seconds is None else now + seconds
        await self._put(Scope.ROOT, action, source=key[0], key=found.subject.root, until=until, who=who, why=why)
        return {"action": action.value, "dead_letters": [found.key], "until": until}

    async def _put(
        self,
        scope: Scope,
        action: OverrideAction,
        *,
        source: str,
        key: str = "",
        until: float | None,
        who: str,
        why: str,
    ) -> None:
        now = self._clock.now()
        override = Override(
            id=new_id(), scope=scope, source=source, key=key, action=action, until=until, who=who, why=why,
            created_at=now,
        )  # fmt: skip
        await self._book.put([override], now=now)
        self._said(*([source] if source else self._sources))

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

    def _said(self, *sources: str) -> None:
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
        "detail": decision.detail,
        "next_at": decision.next_at,
        "awaits_approval": decision.awaits_approval,
    }


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
