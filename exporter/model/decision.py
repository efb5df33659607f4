"""Deciding about one dead letter: which policy owns it, and the first rung of the ladder that refuses. Pure.

The first policy that matches owns the dead letter, and only that one. Where a match is undetermined, the walk stops:
falling through would hand what "never retry auth errors" might own to a later "retry timeouts". Then the rungs are
climbed in the order of ``Reason``; the first that refuses is *the* reason, in log, metric, status page and ledger.

``climb`` is the one decision. The retrier asks it, remembers the answer and asks again once something has changed or
``changes_at`` has come; the reservation asks it with what the ledger says by then; ``explain`` shows all of it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from exporter.model.matchers import Facts, Matcher
from exporter.model.policy import MANUAL, Policy, Rules
from exporter.model.rails import Passenger, checks, gates_of
from exporter.model.retries import (
    AGEING,
    ENGINE,
    Action,
    Decision,
    Mode,
    Override,
    OverrideAction,
    Reason,
    RetryState,
    Scope,
    Verb,
    lowest,
)
from exporter.model.subject import Subject, facts_of, ran
from exporter.model.words import span

#: Refusals that pass with time: what waits for approval may be approved meanwhile.
PASSING = frozenset(
    {
        Reason.PAUSED,
        Reason.WINDOW,
        Reason.BACKOFF,
        Reason.NATIVE_RETRY,
        Reason.STORM,
        Reason.GATE,
        Reason.BUDGET,
        Reason.PACE,
        Reason.PREFLIGHT,
    }
)
#: Refusals that depend on all of a source, a policy or a group, and not on one dead letter.
RAILS = frozenset({Reason.STORM, Reason.GATE, Reason.BUDGET, Reason.PACE})
#: What puts a dead letter aside until a person says otherwise.
_ASIDE = frozenset({OverrideAction.HOLD, OverrideAction.QUARANTINE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One check of the ladder."""

    reason: Reason
    refuses: bool
    detail: str = ""
    verb: Verb = Verb.WAIT
    next_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """A decision and how it came about."""

    decision: Decision
    owner: Policy | None
    group: str = ""
    rungs: tuple[Rung, ...] = ()
    missing: tuple[str, ...] = ()  # fields whose value would decide which policy matches
    approval: Override | None = None  # what a person said that lets it pass
    manual: bool = False  # that was: at once
    excused: bool = (
        False  # its gate is shut, and its workflow's own runs have failed since: a failure would say nothing
    )

    @property
    def refusal(self) -> Rung | None:
        """The first rung that refuses."""
        return next((rung for rung in self.rungs if rung.refuses), None)

    @property
    def told(self) -> Decision:
        """What a person is told: where approval is missing and would change nothing, what stands in its way."""
        decision = self.decision
        if decision.reason is not Reason.MODE or decision.verb is not Verb.WAIT or decision.awaits_approval:
            return decision
        lasting = (rung for rung in self.rungs if rung.refuses and rung.reason not in PASSING | {Reason.MODE})
        found = next(lasting, None)
        if found is None:
            return decision
        return replace(decision, verb=found.verb, reason=found.reason, detail=found.detail, next_at=found.next_at)


def find_owner(policies: Sequence[Policy], facts: Facts) -> tuple[Policy | None, Policy | None]:
    """The owner, and the policy at which the walk had to stop because nobody knows whether it matches."""
    for policy in policies:
        match policy.owns(facts):
            case True:
                return policy, None
            case None:
                return None, policy
    return None, None


def group_of(owner: Policy, facts: Facts) -> str:
    """What shares a gate with a dead letter under its policy."""
    return "\0".join(str(facts.get(name)) for name in owner.group_by)


def climb(subject: Subject, rules: Rules, now: float) -> Ladder:
    """Decide about one dead letter."""
    facts = facts_of(subject, now)
    owner, undecided = find_owner(rules.policies, facts)
    subject = replace(subject, overrides=[o for o in subject.overrides if o.holds(now) and _speaks_of(o, owner)])
    mode = rules.mode_of(subject.source, subject.overrides)
    if owner is not None:
        mode = lowest(mode, owner.mode)
    wish, later = _wish(subject, owner, now)
    at_once = wish is not None and wish.action is OverrideAction.RETRY_NOW
    if owner is None and at_once:
        owner, undecided = Policy(name=MANUAL, hash=MANUAL, matcher=Matcher(), action=Action.RETRY), None
    if owner is None and undecided is None:
        decision = Decision(verb=Verb.HOLD, reason=Reason.NO_POLICY, mode=mode, detail="no policy matches")
        return Ladder(decision=decision, owner=None)
    climber = _Climber(
        subject=subject,
        rules=rules,
        owner=owner,
        undecided=undecided,
        mode=mode,
        group="" if owner is None else group_of(owner, facts),
        missing=() if undecided is None else undecided.missing(facts),
        wish=wish,
        later=later,
        now=now,
    )
    rungs = tuple(climber.rungs())
    return Ladder(
        decision=climber.decide(rungs),
        owner=owner,
        group=climber.group,
        rungs=rungs,
        missing=climber.missing,
        approval=wish,
        manual=at_once,
        excused=climber.excused,
    )


def snapshot_of(subject: Subject, owner: Policy | None, action: OverrideAction) -> dict[str, object]:
    """What a person's approval speaks of: should any of it change, the approval is void."""
    letter = subject.letter
    snapshot: dict[str, object] = {"id": letter.id, "attempt": letter.attempt, "tries": letter.tries}
    if action is OverrideAction.APPROVE:
        snapshot["policy"] = None if owner is None else owner.hash
    return snapshot


def _speaks_of(override: Override, owner: Policy | None) -> bool:
    return override.scope is not Scope.POLICY or (owner is not None and override.key == owner.name)


def _wish(subject: Subject, owner: Policy | None, now: float) -> tuple[Override | None, Override | None]:
    """What a person said that lets this dead letter pass, if it still speaks of what is there now; and what will.

    What was said before the platform refused our credential is void while the source is lowered for that.
    """
    lowered_at = max((o.created_at for o in subject.overrides if o.action is OverrideAction.LOWER), default=0.0)
    found: Override | None = None
    later: Override | None = None
    for override in subject.overrides:
        if (
            override.action not in (OverrideAction.APPROVE, OverrideAction.RETRY_NOW)
            or override.created_at < lowered_at
        ):
            continue
        if override.scope is not Scope.ROOT or override.snapshot != snapshot_of(subject, owner, override.action):
            continue
        if now < override.starts_at:
            later = override
        elif override.action is OverrideAction.RETRY_NOW:
            return override, None
        else:
            found = override
    return found, later


@dataclass(frozen=True, slots=True, kw_only=True)
class _Climber:
    """One climb: what the rungs look at."""

    subject: Subject
    rules: Rules
    owner: Policy | None
    undecided: Policy | None
    mode: Mode
    group: str
    missing: tuple[str, ...]
    wish: Override | None
    later: Override | None
    now: float

    @property
    def at_once(self) -> bool:
        return self.wish is not None and self.wish.action is OverrideAction.RETRY_NOW

    @property
    def retrying(self) -> bool:
        return self.at_once or (self.owner is not None and self.owner.action is Action.RETRY)

    @property
    def excused(self) -> bool:
        """Whether a failure would say more of the platform than of the dead letter."""
        if self.owner is None or not self.retrying:
            return False
        rails, workflow_id = self.subject.rails, self.subject.letter.workflow_id
        gates = [rails.gate(*key) for key, _, _ in gates_of(self.owner, self.group)]
        return any(gate.is_ill(rails.ill.get(workflow_id), rails.well.get(workflow_id)) for gate in gates)

    def decide(self, rungs: Sequence[Rung]) -> Decision:
        name = "" if self.owner is None else self.owner.name
        refusal = next((rung for rung in rungs if rung.refuses), None)
        if refusal is None:
            assert self.owner is not None  # noqa: S101 (an undecided owner is a refusal)
            plain = self.wish is None or self.wish.action is OverrideAction.APPROVE
            verb = Verb(self.owner.action) if plain else Verb.RETRY
            reason = Reason.DUE if verb is Verb.RETRY else Reason.POLICY
            detail = "nothing refuses" if verb is Verb.RETRY else "the policy says so"
            return Decision(
                verb=verb,
                reason=reason,
                policy=name,
                mode=self.mode,
                detail=detail,
                ages=reason is Reason.DUE,
                escalates=self._escalates((), verb),
            )
        others = {rung.reason for rung in rungs if rung.refuses and rung.reason is not Reason.MODE}
        waits = refusal.reason is Reason.MODE and refusal.verb is Verb.WAIT and self.later is None
        own = refusal.reason is Reason.HELD and any(r.is_open and r.in_flight for r in self.subject.history)
        return Decision(
            verb=refusal.verb,
            reason=refusal.reason,
            policy=name,
            mode=self.mode,
            detail=refusal.detail,
            next_at=refusal.next_at,
            awaits_approval=waits and others <= PASSING,
            ages=own or refusal.reason in AGEING,
            escalates=self._escalates({rung.reason for rung in rungs if rung.refuses}, refusal.verb),
        )

    def _escalates(self, refusing: Collection[Reason], verb: Verb) -> Reason | None:
        """Why a person has to see to it. What a person has put aside, somebody has seen to.

        Of a retry that nobody can judge any more a person is told in any mode: a call was made. Else only where one may
        be made.
        """
        opened = [retry for retry in self.subject.history if retry.is_open]
        if any(retry.state is RetryState.HELD for retry in opened):
            return Reason.HELD
        if self.mode.rank < Mode.APPROVE.rank:
            return None
        words = [o for o in self.subject.overrides if o.action in _ASIDE and not _is_computed(o)]
        if words:  # the engine's own, of what a policy wants to be retried: the platform forbids it
            ours = all(o.action is OverrideAction.QUARANTINE and o.who == ENGINE for o in words)
            return Reason.HELD if ours and self.retrying else None
        if Reason.EXHAUSTED in refusing and not opened:
            return Reason.EXHAUSTED
        return Reason.POLICY if not refusing and verb in (Verb.ESCALATE, Verb.QUARANTINE) else None

    def rungs(self) -> Iterator[Rung]:
        """Every check, in order."""
        yield self._mode()
        yield self._paused()
        if self.owner is not None and self.owner.window is not None and self.retrying and not self.at_once:
            next_open = self.owner.window.next_open(self.now)
            closed = next_open is None or next_open > self.now
            yield Rung(reason=Reason.WINDOW, refuses=closed, detail="outside its hours", next_at=next_open)
        yield self._held()
        yield Rung(
            reason=Reason.UNDETERMINED,
            refuses=self.undecided is not None,
            verb=Verb.HOLD,
            detail=""
            if self.undecided is None
            else f"whether {self.undecided.name} matches depends on {', '.join(self.missing)}",
        )
        if self.owner is None or not self.retrying:
            return
        yield self._eligible(self.owner)
        if not self.at_once:
            yield self._exhausted(self.owner)
            yield self._backoff(self.owner)
        yield self._native()
        yield from self._rails(self.owner)
        yield self._preflight()

    def _mode(self) -> Rung:
        if self.mode is Mode.OFF:
            return Rung(reason=Reason.MODE, refuses=True, verb=Verb.HOLD, detail="retrying is off")
        if not self.retrying or self.owner is None or self.mode is Mode.SHADOW:
            refuses = self.wish is not None and self.mode is Mode.SHADOW
            return Rung(reason=Reason.MODE, refuses=refuses, verb=Verb.HOLD, detail=f"the mode is {self.mode}")
        asks = (
            self.owner.approve if self.mode is Mode.ENFORCE else "each"
        )  # below, nothing is sent that nobody approved
        approved = (self.owner.name, self.group) in self.subject.rails.approved_groups
        if asks == "none" or self.wish is not None or (asks == "first_of_group" and approved):
            return Rung(reason=Reason.MODE, refuses=False, detail=f"the mode is {self.mode}")
        if self.later is not None:
            detail = f"approved by {self.later.who}, who may still take it back"
            return Rung(reason=Reason.MODE, refuses=True, detail=detail, next_at=self.later.starts_at)
        return Rung(reason=Reason.MODE, refuses=True, detail="waits for approval")

    def _paused(self) -> Rung:
        pauses = [override for override in self.subject.overrides if override.action is OverrideAction.PAUSE]
        if not pauses:
            return Rung(reason=Reason.PAUSED, refuses=False)
        last = max(pauses, key=lambda o: float("inf") if o.until is None else o.until)
        return Rung(reason=Reason.PAUSED, refuses=True, detail=f"paused by {last.who}", next_at=last.until)

    def _held(self) -> Rung:
        for override in self.subject.overrides:
            if override.action in _ASIDE and not _is_computed(override):
                verb = Verb.HOLD if override.action is OverrideAction.HOLD else Verb.QUARANTINE
                reason = Reason(override.snapshot.get("reason", Reason.HELD))  # the engine's own: why it did
                detail = f"{override.action} by {override.who}{': ' if override.why else ''}{override.why}"
                return Rung(reason=reason, refuses=True, verb=verb, detail=detail, next_at=override.until)
        for retry in (*self.subject.history, self.subject.neighbour):
            if retry is not None and retry.is_open and not retry.shadow:
                whose = "its" if retry.root == self.subject.root else "another dead letter's"
                verb = Verb.HOLD if retry.state is RetryState.HELD else Verb.WAIT
                detail = f"{whose} retry {retry.id} is {retry.state}"
                return Rung(reason=Reason.HELD, refuses=True, verb=verb, detail=detail, next_at=retry.look_at)
        return Rung(reason=Reason.HELD, refuses=False)

    def _eligible(self, owner: Policy) -> Rung:
        why = None
        if self.subject.traits is None:
            why = "this platform knows no retry"
        elif not self.subject.letter.is_open:
            why = "it is resolved"
        elif self.subject.letter.reruns and not owner.rerun:
            why = "a retry would run it again from its trigger; that takes a policy that says retry: {rerun: allow}"
        elif self.subject.ahead is not None:
            why = f"its workflow runs in order, and {self.subject.ahead} comes first"
        return Rung(reason=Reason.NOT_ELIGIBLE, refuses=why is not None, verb=Verb.HOLD, detail=why or "")

    def _exhausted(self, owner: Policy) -> Rung:
        spent = len(self.subject.spent(self.mode))
        why = None
        if spent >= owner.retries:
            why = f"{spent} of {owner.retries} retries are used"
        elif self.now - self.subject.failed_at() - self.subject.idle(self.now) > owner.give_up_after:
            why = f"it could have been tried for more than {span(owner.give_up_after)}"
        return Rung(reason=Reason.EXHAUSTED, refuses=why is not None, verb=Verb(owner.exhausted), detail=why or "")

    def _backoff(self, owner: Policy) -> Rung:
        subject, spent = self.subject, len(self.subject.spent(self.mode))
        in_shadow = self.mode is Mode.SHADOW
        # One that closed in the future closed by a clock that was ahead: when, nobody knows.
        ends = [
            retry.closed_at
            for retry in subject.history
            if ran(retry) and (in_shadow or not retry.shadow)
            if retry.closed_at is not None and retry.closed_at <= self.now
        ]
        native = subject.letter.native_retry
        gave_up = [native[0]] if native is not None and not native[1] else []
        since = max([min(subject.letter.opened_at, self.now), *ends, *gave_up])
        due = since + owner.backoff.delay(subject.root, spent + 1)
        return Rung(reason=Reason.BACKOFF, refuses=self.now < due, detail=f"before retry {spent + 1}", next_at=due)

    def _native(self) -> Rung:
        native = self.subject.letter.native_retry
        yields = self.rules.source(self.subject.source).yields and native is not None and native[1]
        return Rung(reason=Reason.NATIVE_RETRY, refuses=yields, detail="the platform will retry it" if yields else "")

    def _rails(self, owner: Policy) -> Iterator[Rung]:
        passenger = Passenger(
            owner=owner,
            group=self.group,
            workflow_id=self.subject.letter.workflow_id,
            at_once=self.at_once,
            unbudgeted=self.wish is not None or self.mode is Mode.SHADOW,
        )
        for check in checks(self.subject.rails, passenger, self.now):
            yield Rung(reason=check.reason, refuses=check.refuses, detail=check.detail, next_at=check.next_at)

    def _preflight(self) -> Rung:
        refused = self.subject.refused
        if refused is None or not refused.holds(self.now):
            return Rung(reason=Reason.PREFLIGHT, refuses=False)
        return Rung(reason=Reason.PREFLIGHT, refuses=True, detail=refused.why, next_at=refused.until)


def _is_computed(override: Override) -> bool:
    """Whether an earlier version wrote down as a quarantine what is computed now: that retries are used up."""
    return override.action is OverrideAction.QUARANTINE and override.snapshot.get("reason") == Reason.EXHAUSTED


def changes_at(subject: Subject, ladder: Ladder, rules: Rules, now: float) -> float:
    """When the decision may change though nothing happens but time; infinity if it cannot.

    Of the rungs that one dead letter is asked about, not of the rails, which all share.
    """
    letter, owner = subject.letter, ladder.owner
    marks = [letter.opened_at + age for age in rules.ages]
    for override in subject.overrides:
        marks += [override.starts_at] if override.until is None else [override.starts_at, override.until]
    marks += [rung.next_at for rung in ladder.rungs if rung.next_at is not None and rung.reason not in RAILS]
    if subject.refused is not None:
        marks.append(subject.refused.until)
    if owner is not None:
        if owner.window is not None:
            marks.append(owner.window.next_edge(now))
        if ladder.decision.ages:
            marks.append(subject.failed_at() + subject.idle(now) + owner.give_up_after)
    return min((mark for mark in marks if mark > now), default=float("inf"))
