"""One source's retrier: watch what is open, decide about what is dead, send what is due. The only writer of retries.

``turn_once`` does it all and says what it did; the loop around it only waits. A turn watches first: what is known of
open retries decides what may be sent next. Before a call the dead letter is read again, the intent is durable, and the
claim has read the kill switch in its own transaction; after it only the platform's state is believed.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from exporter.clock import Clock, until_due
from exporter.log import get_logger
from exporter.model import DeadLetter, Observation, ResolvedBy, Via
from exporter.model.decision import Ladder, climb
from exporter.model.fold import resolve
from exporter.model.ledger import Batch
from exporter.model.retries import ENGINE, Answer, Mode, Outcome, Override, OverrideAction, Reason, Retry, Scope, Verb
from exporter.model.subject import REFUSED_MOST, Refused, Subject, error_fingerprint
from exporter.platform.retrying import ALL_BUSY, Look, Target, meaning
from exporter.retries import protocol
from exporter.retries.book import RetryBook, new_id
from exporter.retries.deciding import Decider, Turn
from exporter.source import Source
from exporter.store.ledger import Ledger
from exporter.store.reserving import Refusal, Reservation, ordinal
from exporter.store.script import StoreError
from exporter.wire.errors import ApiError

log = get_logger(__name__)

#: Seconds between two turns.
INTERVAL = 5.0
#: A look that refused or failed is repeated so many seconds later at first, then twice as long each time.
WAIT_FIRST = 60.0
#: Seconds until a look at an open retry that failed is repeated.
LOOK_FAILED = 120.0
#: Refusals in a row, of different dead letters, after which it is not the dead letters.
REJECTED_IN_A_ROW = 5
#: Details of dead letters fetched in one turn, because a policy depends on them.
DETAILS_PER_TURN_MAX = 10
#: Dead letters a turn tries to send at most: what they teach takes part in the next.
TRIES_PER_TURN_MAX = 10
#: Intents wait so long (seconds) for others of their workflow, to share a call with them.
GATHERING = 3.0
#: A stop waits so long (seconds) for a call that is under way.
STOP_SECONDS_MAX = 4.0
#: A source whose credential was refused is lowered to approval for at most so long (seconds).
LOWERED_FOR = 86400.0
#: Under which key it is kept until when such a source is left alone.
DENIED = "\0denied"


@dataclass(slots=True, kw_only=True)
class TurnReport:
    """What one turn did."""

    looked: int = 0
    closed: int = 0
    changed: int = 0  # decisions
    sent: int = 0
    shadowed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Intent:
    """A durable intent, and what it is about."""

    retry: Retry
    letter: DeadLetter


class Retrier:
    """Retries the dead letters of one source."""

    def __init__(
        self, source: Source, ledger: Ledger, clock: Clock, *, book: RetryBook, decider: Decider | None = None
    ) -> None:
        """Raises ``ValueError`` for a source whose platform knows no retries."""
        if source.adapter is None or source.platform.retrying is None:
            raise ValueError(f"the platform of {source.name} knows no retries")
        self.source = source
        self._adapter = source.adapter
        self._traits, self._meanings = source.platform.retrying.traits, source.platform.retrying.meanings
        self._book = book
        self._known = source.known
        self._ledger = ledger
        self._clock = clock
        self.decider = decider or Decider(book, source)
        self._fetched: set[str] = set()  # dead letters whose missing detail was fetched

    # A turn

    async def turn_once(self) -> TurnReport:
        """Watch, decide, send. Raises ``StoreError`` when nothing can be remembered: then nothing is sent."""
        report = TurnReport()
        await self._resume()
        if self._known.first_sweep_at is not None:
            await self._watch(report)
            await self._lift()
            turn = await self._decide(report)
            if await self._fetch_missing():
                turn = await self._decide(report)
            await self._quarantine(turn)
            await self._send_due(turn.due, report)
            if turn.due:  # what came of it is so by now
                await self._decide(report)
        self._show()
        return report

    def _show(self) -> None:
        """Bring the gauges to what this turn came to."""
        now, swept = self._clock.now(), self._known.first_sweep_at is not None
        self._book.show(now)
        self._book.show_rails(self.source.name, self.decider.gates(now) if swept else None, now)

    async def _resume(self) -> None:
        """Whatever was under way when the last process ended, or could not write how its call went, is in doubt.

        A turn makes its calls one after the other and waits for each: at its start none is under way. Waits that were
        set while our clock was ahead come first.
        """
        now = self._clock.now()
        await self._book.redate(self.source.name, now=now)
        before = self._book.open_of(self.source.name)
        after = [protocol.resumed(retry, now=now) for retry in before]
        changed = [new for old, new in zip(before, after, strict=True) if new is not old]
        await self._book.save(changed, now=now, kind="resumed")

    # Watching

    async def _watch(self, report: TurnReport) -> None:
        """Look at the open retries that are due."""
        for retry in self._book.open_of(self.source.name):
            if protocol.is_due(retry, now=self._clock.now()):
                report.looked += 1
                report.closed += await self._look_at(retry)

    async def _look_at(self, retry: Retry) -> bool:
        """Ask the platform about one open retry; whether that closed it."""
        asked_at, letter = self._clock.now(), self._letter_of(retry)
        target = Target(letter=letter, mark=retry.mark, sent_at=retry.sent_at_theirs, handle=retry.handle)
        try:
            with self.source.span("watch retry"):
                look = await self._adapter.look(target)
        except ApiError as error:
            await self._look_later(retry, f"not seen: {error.kind}")
            return False
        except Exception as bug:  # an answer that nobody expected, say: it costs this one its look
            log.error("a look at a retry broke", source=self.source.name, retry=retry.id, error=bug)
            self.source.metrics.sweep_errors("retries", "unexpected").inc()
            await self._look_later(retry, f"not seen: {type(bug).__name__}")
            return False
        now = self._clock.now()
        # The retry first: who then sees the dead letter resolved has to find that it was us.
        after = await self._book.change(
            retry, lambda r: protocol.seen(r, look, self._traits, asked_at=asked_at, now=now), now=now
        )
        await self._observe(look.observations, look.at)
        made_new = self._traits.effect != "resume" and bool(after.new_runs)
        if after.outcome is Outcome.FAILED and made_new and letter.is_open:
            # The work lives on in the dead letter of the new run, under the same root.
            await self._observe([resolve(letter, by=ResolvedBy.SUPERSEDED, at=look.at)], look.at)
        if after.outcome is not None:
            log.info(
                "retry closed", source=self.source.name, retry=after.id, outcome=after.outcome, detail=after.detail
            )
        return after.outcome is not None

    async def _look_later(self, retry: Retry, kind: str) -> None:
        later = self._clock.now() + LOOK_FAILED
        await self._book.change(retry, lambda r: replace(r, look_at=later), now=self._clock.now(), kind=kind)

    def _letter_of(self, retry: Retry) -> DeadLetter:
        known = self._known.dead_letters.get(retry.dead_letter_id)
        if known is not None:
            return known
        return DeadLetter(
            id=retry.dead_letter_id,
            workflow_id=retry.workflow_id,
            run_id=retry.run_id,
            attempt=retry.attempt,
            opened_at=retry.opened_at,
        )

    async def _observe(self, observations: Sequence[Observation], at: float) -> None:
        """What was read by the way, at this moment of the platform, is an observation like any other."""
        if observations:
            batch = Batch(
                source=self.source.name,
                observations=observations,
                via=Via.POLL,
                now=self.source.api.platform_now(),
                started_at=at,
                stream="retries",
            )
            await self._ledger.ingest(batch)

    # Deciding

    async def _decide(self, report: TurnReport) -> Turn:
        """Decide about every open dead letter and remember it."""
        name, now = self.source.name, self._clock.now()
        if self._traits.effect != "resume":  # there a retry is another run, which may fail as a dead letter of its own
            await self._book.trace(name, now=now, theirs=self.source.api.platform_now())
        turn = await self.decider.turn(now)
        report.changed += await self._book.decide(name, turn.changed, turn.gone, now=now)
        await self._book.beat(name, now=now)
        self._fetched.difference_update(turn.gone)
        await self._note_recurrences(now)
        return turn

    async def _fetch_missing(self) -> int:
        """Fetch, once, what is not known of dead letters and decides which policy owns them.

        A look that did not come off is repeated when its refusal ends.
        """
        name, now = self.source.name, self._clock.now()
        wanted = [
            subject.letter
            for subject, ladder in self.decider.undetermined()
            if subject.letter.id not in self._fetched and any(f.startswith(("error.", "step.")) for f in ladder.missing)
        ]
        waiting = {letter.id for letter in wanted if _waits(self._book.refused(name, letter.id), now)}
        wanted = [letter for letter in wanted if letter.id not in waiting][:DETAILS_PER_TURN_MAX]
        for letter in wanted:
            await self._preflight(letter)
            if not _waits(self._book.refused(name, letter.id), self._clock.now()):
                self._fetched.add(letter.id)
        return len(wanted)

    async def _quarantine(self, turn: Turn) -> None:
        """What a policy quarantines stays so whatever the policies say later: it is written down, until a person
        releases it.
        """
        words: list[Override] = []
        for letter_id, decision in turn.changed.items():
            letter = self._known.dead_letters.get(letter_id)
            stays = decision.verb is Verb.QUARANTINE and decision.reason is Reason.POLICY
            if not stays or decision.mode.rank < Mode.APPROVE.rank or letter is None:
                continue
            root = self._book.root_of(self.source.name, letter)
            said = {override.action for override in self._book.overrides.of_root(self.source.name, root)}
            if said.isdisjoint({OverrideAction.QUARANTINE, OverrideAction.RELEASE}):
                words.append(self._word(Scope.ROOT, OverrideAction.QUARANTINE, key=root, why=decision.detail))
        if words:
            await self._book.put(words, now=self._clock.now())

    async def _note_recurrences(self, now: float) -> None:
        """Find retries whose success did not last: the same failed again soon."""
        for retry in self._book.settling(self.source.name, now):
            closed_at = retry.closed_at or now
            for letter in self._known.dead_letters_of(retry.workflow_id):
                young = closed_at <= letter.opened_at <= closed_at + retry.settle
                same = error_fingerprint(letter) == retry.fingerprint
                if young and (same or self._book.root_of(self.source.name, letter) == retry.root):
                    await self._book.recurred(retry, now=now)
                    break

    # Sending

    async def _send_due(self, due: Sequence[str], report: TurnReport) -> None:
        """Claim and send what is due, in that order; those of one workflow that are claimed together share a call."""
        letters = [self._known.dead_letters.get(letter_id) for letter_id in due[:TRIES_PER_TURN_MAX]]
        gathered: list[_Intent] = []
        for letter in sorted((x for x in letters if x is not None), key=lambda letter: letter.workflow_id):
            if gathered and not self._joins(letter, gathered):
                await self._send(gathered)
                gathered = []
            claimed = await self._try(letter, report)
            if isinstance(claimed, _Intent):
                gathered.append(claimed)
                report.sent += 1
        if gathered:
            await self._send(gathered)

    def _joins(self, letter: DeadLetter, gathered: Sequence[_Intent]) -> bool:
        first = gathered[0]
        young = self._clock.now() - first.retry.claimed_at < GATHERING
        fits = len(gathered) < self._traits.bulk_max and first.letter.workflow_id == letter.workflow_id
        alone = self._traits.serial or letter.reruns or first.letter.reruns  # what begins anew is named one by one
        return young and fits and not alone

    async def _try(self, letter: DeadLetter, report: TurnReport) -> _Intent | None:
        """Read the dead letter once more, decide once more on what is known now, and reserve it."""
        look = await self._preflight(letter)
        known = self._known.dead_letters.get(letter.id)
        if look is None or known is None:
            return None
        now = self._clock.now()
        subject = self.decider.subject(known, now)
        ladder = climb(subject, self._book.rules, now)
        if ladder.decision.verb is not Verb.RETRY or ladder.owner is None:
            return None
        wanted = self._wanted(subject, ladder, look, now)
        reserved = await self._book.reserve(wanted, now=now)
        if isinstance(reserved, Refusal):
            return None
        if reserved.shadow:
            report.shadowed += 1
            return None
        return _Intent(retry=reserved, letter=known)

    async def _preflight(self, letter: DeadLetter) -> Look | None:
        """Read how it stands right before the call; None, remembered with its reason, if that forbids it.

        Whatever goes wrong with one dead letter costs that one its turn, and no other.
        """
        before = self._book.history(self.source.name, self._book.root_of(self.source.name, letter))
        made = [retry for retry in before if not retry.shadow][-1:]
        refused = [retry for retry in made if retry.dead_letter_id == letter.id and retry.answer and retry.spared]
        try:
            mark, fixed = refused[0].mark if refused else None, self._book.repairs.fixed(self.source.name, letter.id)
            look = await self._adapter.look(Target(letter=letter, mark=mark, fixed=fixed))
        except ApiError as error:
            await self._refuse(letter, str(error))
            return None
        except Exception as bug:  # an answer that nobody expected, say
            if self._book.refused(self.source.name, letter.id) is None:
                log.error("a look at a dead letter broke", source=self.source.name, dead_letter=letter.id, error=bug)
            self.source.metrics.sweep_errors("retries", "unexpected").inc()
            await self._refuse(letter, f"looking at it broke: {type(bug).__name__}")
            return None
        await self._observe(look.observations, look.at)
        if refused and any(effort.ours is not False for effort in look.efforts):
            await self._book.ran_after_all(refused, now=self._clock.now())
        asked = look.asks is None or self._is_asked_for(letter)
        why = look.forbids(yields=self._book.rules.source(self.source.name).yields, asked=asked)
        if why is not None:
            await self._refuse(letter, why)
            return None
        await self._book.refuse(self.source.name, letter.id, None)
        return look

    def _is_asked_for(self, letter: DeadLetter) -> bool:
        """Whether a person let it pass."""
        known = self._known.dead_letters.get(letter.id)
        if known is None:
            return False
        now = self._clock.now()
        return climb(self.decider.subject(known, now), self._book.rules, now).approval is not None

    async def _refuse(self, letter: DeadLetter, why: str) -> None:
        """Leave a dead letter alone for a while, longer each time."""
        before, now = self._book.refused(self.source.name, letter.id), self._clock.now()
        streak = 1 if before is None else before.streak + 1
        seconds = min(REFUSED_MOST, WAIT_FIRST * 2.0 ** min(streak - 1, 10))
        await self._book.refuse(self.source.name, letter.id, Refused(until=now + seconds, why=why, streak=streak))

    def _wanted(self, subject: Subject, ladder: Ladder, look: Look, now: float) -> Reservation:
        """The retry that is to be made."""
        policy, letter, history = ladder.owner, subject.letter, subject.history
        assert policy is not None  # noqa: S101 (only what has an owner is retried)
        shadow = ladder.decision.mode is Mode.SHADOW
        retry = Retry(
            id=new_id(),
            source=self.source.name,
            workflow_id=letter.workflow_id,
            dead_letter_id=letter.id,
            run_id=letter.run_id,
            attempt=letter.attempt,
            opened_at=letter.opened_at,
            root=subject.root,
            ordinal=ordinal(history, shadow=shadow),
            policy=policy.name,
            policy_hash=policy.hash,
            group=ladder.group,
            shadow=shadow,
            approved_by=None if ladder.approval is None else ladder.approval.who,
            manual=ladder.manual,
            error_class="" if letter.error is None else letter.error.error_class.value,
            fingerprint=error_fingerprint(letter),
            failed_at=min([letter.opened_at, *(other.failed_at for other in history)]),
            claimed_at=now,
            send_by=now + protocol.SEND_WITHIN,
            sent_at_theirs=self.source.api.platform_now(),  # should the process end before it knows better
            deadline=policy.deadline,
            settle=policy.settle,
            warnings_fail=policy.warnings_fail,
            mark=look.mark,
            closed_at=now if shadow else None,
            detail="not sent: the mode is shadow" if shadow else "claimed",
            idle=subject.idle(now),
            operation="" if ladder.approval is None else ladder.approval.operation,
        )
        return Reservation(
            retry=retry,
            subject=subject,
            rules=self._book.rules,
            approval=ladder.approval,
            earned=self._book.earned(self.source.name),
        )

    async def _send(self, claimed: Sequence[_Intent]) -> None:
        """Make one call for these. A stop of the service waits for it a while; else what it did is in doubt."""
        call = asyncio.create_task(self._call(claimed), name=f"retry-{self.source.name}")
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            done, _ = await asyncio.wait({call}, timeout=STOP_SECONDS_MAX)
            if not done:
                call.cancel()
                await asyncio.wait({call})
            raise

    async def _call(self, claimed: Sequence[_Intent]) -> None:
        theirs = self.source.api.platform_now()
        sent = [protocol.sending(one.retry, now=self._clock.now(), theirs=theirs) for one in claimed]
        await self._book.save(sent, now=self._clock.now(), kind="sent")
        letters, send_by = [one.letter for one in claimed], min(retry.send_by for retry in sent)
        not_found = False
        try:
            with self.source.span("retry"):
                accepted = await self._adapter.send(letters, send_by=send_by)
        except ApiError as error:
            answer = meaning(error, self._meanings) if error.sent else None
            now = self._clock.now()
            after = [protocol.refused(retry, error, answer or Answer.IN_DOUBT, now=now) for retry in sent]
            await self._heed(error, answer, sent)
            not_found = error.status == 404
        except asyncio.CancelledError:
            why = "the exporter stopped in the middle of the call"
            after = [protocol.doubted(retry, now=self._clock.now(), detail=why) for retry in sent]
        except Exception as bug:  # in an adapter, say: the call may have been made
            log.error("retrying broke", source=self.source.name, error=bug)
            why = f"the call broke: {type(bug).__name__}"
            after = [protocol.doubted(retry, now=self._clock.now(), detail=why) for retry in sent]
        else:
            after = [protocol.answered(retry, accepted, now=self._clock.now()) for retry in sent]
            await self._end_lowering()
        await self._book.save(after, now=self._clock.now(), kind="called")
        if not_found:
            for one in claimed:  # perhaps it is gone
                await self._preflight(one.letter)
        for retry in after:
            state = retry.outcome or retry.state
            log.info(
                "retry", source=self.source.name, retry=retry.id, policy=retry.policy, state=state, detail=retry.detail
            )

    async def _heed(self, error: ApiError, answer: Answer | None, sent: Sequence[Retry]) -> None:
        """What a refusal says beyond this call: that all have to wait, that a credential is not accepted."""
        name, now = self.source.name, self._clock.now()
        if answer is Answer.BUSY:
            key = "" if error.status in ALL_BUSY else sent[0].workflow_id
            await self._book.set_back(name, key, retry_after=error.retry_after, now=now)
        elif answer is Answer.DENIED:
            await self._lower("the platform did not accept the credential")
            await self._lift(at_once=True)  # whether looks are refused as well decides what will tell that it is good
        elif answer is Answer.REJECTED:
            if error.status == 403:
                why = "the platform does not permit to retry it"
                roots = sorted({retry.root for retry in sent})
                words = [self._word(Scope.ROOT, OverrideAction.QUARANTINE, key=root, why=why) for root in roots]
                await self._book.put(words, now=now)
            if self._book.rejected_in_a_row(name) + len(sent) >= REJECTED_IN_A_ROW:  # it is not the dead letters
                if error.status == 403:
                    await self._lower("the platform permits no retry")
                else:
                    await self._book.set_back(name, "", retry_after=None, now=now)

    async def _lower(self, why: str) -> None:
        """Send nothing more that a person does not approve, until a call of ours is accepted or a person says so."""
        name, now = self.source.name, self._clock.now()
        await self._book.set_back(name, DENIED, retry_after=None, now=now)
        word = self._word(Scope.SOURCE, OverrideAction.LOWER, until=now + LOWERED_FOR, why=why)
        await self._book.end(self._lowering(), who=ENGINE, now=now)
        await self._book.put([word], now=now)
        log.warning("retries wait for approval", source=name, why=why)

    async def _lift(self, *, at_once: bool = False) -> None:
        """See whether a refused credential is good again: where looks were refused as well, a look tells."""
        name, now, letters = self.source.name, self._clock.now(), self._known.dead_letters
        lowering = [override for override in self._lowering() if override.holds(now)]
        waits = not at_once and now < self._book.set_back_until(name, DENIED, now)
        if not lowering or not letters or waits:
            return
        oldest = min(letters.values(), key=lambda letter: (letter.opened_at, letter.id))
        refused = any(override.snapshot.get("looks") for override in lowering)
        try:
            await self._adapter.look(Target(letter=oldest))
        except Exception as error:  # whatever it is, it is not well
            await self._book.set_back(name, DENIED, retry_after=None, now=now)
            if not refused and isinstance(error, ApiError) and error.status == 401:
                await self._book.end(lowering, who=ENGINE, now=now)
                again = [replace(override, id=new_id(), snapshot={"looks": "refused"}) for override in lowering]
                await self._book.put(again, now=now)
            return
        if refused:
            await self._end_lowering()
        else:
            await self._book.set_back(name, DENIED, retry_after=None, now=now)

    def _lowering(self) -> list[Override]:
        """What the engine lowered by itself."""
        return [
            override
            for override in self._book.overrides.shared(self.source.name)
            if override.action is OverrideAction.LOWER and override.who == ENGINE
        ]

    async def _end_lowering(self) -> None:
        lowering = self._lowering()
        if lowering:
            await self._book.end(lowering, who=ENGINE, now=self._clock.now())
            log.info("retries no longer wait for approval: the credential is accepted", source=self.source.name)

    def _word(
        self, scope: Scope, action: OverrideAction, *, key: str = "", until: float | None = None, why: str
    ) -> Override:
        return Override(
            id=new_id(),
            scope=scope,
            source=self.source.name,
            key=key,
            action=action,
            until=until,
            who=ENGINE,
            why=why,
            created_at=self._clock.now(),
        )

    # The loop around it

    async def run(self) -> None:
        """Take turns until cancelled."""
        failing = False
        while True:
            try:
                await self.turn_once()
                failing = False
            except StoreError as error:
                if not failing:
                    log.warning("no retries are sent: nothing can be stored", source=self.source.name, error=error)
                failing = True
            except Exception as bug:  # costs this turn, never the service
                log.error("retrying broke", source=self.source.name, error=bug)
            await until_due(self.source.retries_due, self._clock, INTERVAL)


def _waits(refused: Refused | None, now: float) -> bool:
    """Whether it is too early to look again."""
    return refused is not None and now < refused.until
