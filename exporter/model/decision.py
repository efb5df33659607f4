"""Deciding about one dead letter: which policy owns it, and the first rung of the ladder that refuses. Pure.

The first policy that matches owns the dead letter, and only that one. Where a match is undetermined, the walk stops:
falling through would hand what "never retry auth errors" might own to a later "retry timeouts". Then the rungs are
climbed in the order of ``Reason``; the first that refuses is *the* reason, in log, metric, status page and ledger.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from exporter.model import DeadLetter, Workflow
from exporter.model.matchers import Facts, Matcher
from exporter.model.policy import MANUAL, Policy, Rules
from exporter.model.redact import fingerprint
from exporter.model.retries import (
    Action,
    Decision,
    Mode,
    Override,
    OverrideAction,
    Reason,
    Retry,
    RetryState,
    Scope,
    Traits,
    Verb,
    lowest,
)

#: Refusals that pass with time: what waits for approval may be approved meanwhile.
PASSING = frozenset({Reason.PAUSED, Reason.WINDOW, Reason.BACKOFF, Reason.NATIVE_RETRY, Reason.PACE, Reason.PREFLIGHT})
#: Of a message no more than this takes part in a match.
MESSAGE_CHARS_MAX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One open dead letter and all that deciding about it depends on."""

    source: str
    platform: str
    letter: DeadLetter
    root: str
    traits: Traits | None  # None: the platform knows no retry
    workflow: Workflow | None = None
    labels: Mapping[str, str | None] = field(default_factory=dict)  # None: its name would tell, and is not known
    history: Sequence[Retry] = ()  # of the root, in order
    overrides: Sequence[Override] = ()  # that hold now and reach it
    ahead: str | None = None  # an older dead letter of its ordered workflow
    neighbour: Retry | None = None  # an open retry that its workflow has to wait for
    doubtful: Mapping[tuple[str, str], Retry] = field(default_factory=dict)  # by policy and group: nobody knows yet
    in_flight: int = 0  # open retries of the source
    pace_at: float = 0.0  # when the pace of the source next allows a call
    approved_groups: frozenset[tuple[str, str]] = frozenset()  # policy and group, where an approval holds for the rest
    looked: tuple[float, str] | None = None  # the last preflight refused: until when that holds, and why


#: States in which nobody knows what a call has done: nothing near it is retried meanwhile.
DOUBTFUL = (RetryState.IN_DOUBT, RetryState.HELD)


def beside(subject: Subject, open_retries: Sequence[Retry]) -> Subject:
    """The subject with what the open retries of its source, oldest first, mean for it."""
    letter, workflow, traits = subject.letter, subject.workflow, subject.traits
    alone = (workflow is not None and workflow.ordered) or traits is None or traits.serial
    neighbour = next(
        (
            retry
            for retry in open_retries
            if retry.workflow_id == letter.workflow_id
            and retry.root != subject.root
            and (alone or retry.state in DOUBTFUL)
        ),
        None,
    )
    return replace(
        subject,
        neighbour=neighbour,
        doubtful={(retry.policy, retry.group): retry for retry in open_retries if retry.state in DOUBTFUL},
        in_flight=sum(1 for retry in open_retries if retry.in_flight),
    )


def reaches(override: Override, *, source: str, workflow: str, root: str) -> bool:
    """Whether an override speaks of a dead letter, as far as that is known before its policy is."""
    if override.source not in ("", source):
        return False
    match override.scope:
        case Scope.WORKFLOW:
            return override.key == workflow
        case Scope.ROOT:
            return override.key == root
        case Scope.ENGINE | Scope.SOURCE | Scope.POLICY:
            return True


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


def facts_of(subject: Subject, now: float) -> Facts:
    """What policies may ask about a dead letter; None where it is not known."""
    letter, workflow = subject.letter, subject.workflow
    error = letter.error
    message = None if error is None or error.message is None else error.message[:MESSAGE_CHARS_MAX]
    known: dict[str, str | float | None] = {
        "platform": subject.platform,
        "source": subject.source,
        "workflow.id": letter.workflow_id,
        "workflow.name": None if workflow is None else workflow.name,
        "workspace": None if workflow is None else workflow.workspace,
        "trigger": None if workflow is None else workflow.trigger,
        "error.class": None if error is None else error.error_class.value,
        "error.type": None if error is None else error.type,
        "error.message": message,
        "error.fingerprint": None if error is None else error_fingerprint(subject.letter),
        "step.type": None if error is None else error.step_type,
        "age": max(0.0, now - letter.opened_at),
        "retries": float(used(subject.history)),
    }
    return known | {f"labels.{name}": value for name, value in subject.labels.items()}


def error_fingerprint(letter: DeadLetter) -> str:
    """The same for two errors of one kind: class, type, step and the message without its numbers, ids, hosts, dates."""
    error = letter.error
    if error is None:
        return ""
    parts = (error.error_class.value, error.type or "", error.step_type or "", error.message or "")
    return fingerprint(" ".join(parts))


def used(history: Sequence[Retry]) -> int:
    """How many retries of a root are used up."""
    return sum(1 for retry in history if retry.counts and not retry.shadow)


def find_owner(policies: Sequence[Policy], facts: Facts) -> tuple[Policy | None, Policy | None]:
    """The owner, and the policy at which the walk had to stop because nobody knows whether it matches."""
    for policy in policies:
        match policy.owns(facts):
            case True:
                return policy, None
            case None:
                return None, policy
    return None, None


def climb(subject: Subject, rules: Rules, now: float) -> Ladder:
    """Decide about one dead letter."""
    facts = facts_of(subject, now)
    owner, undecided = find_owner(rules.policies, facts)
    subject = replace(subject, overrides=[o for o in subject.overrides if _speaks_of(o, owner)])
    mode = rules.mode_of(subject.source, subject.overrides)
    if owner is not None:
        mode = lowest(mode, owner.mode)
    wish = _wish(subject, owner)
    if owner is None and wish is not None and wish.action is OverrideAction.RETRY_NOW:
        owner, undecided = Policy(name=MANUAL, hash=MANUAL, matcher=Matcher(), action=Action.RETRY), None
    if owner is None and undecided is None:
        decision = Decision(verb=Verb.HOLD, reason=Reason.NO_POLICY, mode=mode, detail="no policy matches")
        return Ladder(decision=decision, owner=None)
    group = "" if owner is None else "\0".join(str(facts.get(name)) for name in owner.group_by)
    missing = () if undecided is None else undecided.missing(facts)
    rungs = tuple(_rungs(subject, rules, owner, undecided, mode, group, missing, wish, now))
    refusal = next((rung for rung in rungs if rung.refuses), None)
    name = owner.name if owner is not None else ""
    if refusal is None and owner is not None:
        verb_of = Verb(owner.action) if wish is None or wish.action is OverrideAction.APPROVE else Verb.RETRY
        reason = Reason.DUE if verb_of is Verb.RETRY else Reason.POLICY
        detail = "nothing refuses" if verb_of is Verb.RETRY else "the policy says so"
        decision = Decision(verb=verb_of, reason=reason, policy=name, mode=mode, detail=detail)
    else:
        assert refusal is not None  # noqa: S101 (an undecided owner is a refusal)
        others = {rung.reason for rung in rungs if rung.refuses and rung.reason is not Reason.MODE}
        waits = refusal.reason is Reason.MODE and refusal.verb is Verb.WAIT
        decision = Decision(
            verb=refusal.verb,
            reason=refusal.reason,
            policy=name,
            mode=mode,
            detail=refusal.detail,
            next_at=refusal.next_at,
            awaits_approval=waits and others <= PASSING,
        )
    return Ladder(
        decision=decision,
        owner=owner,
        group=group,
        rungs=rungs,
        missing=missing,
        approval=wish,
        manual=wish is not None and wish.action is OverrideAction.RETRY_NOW,
    )


def _speaks_of(override: Override, owner: Policy | None) -> bool:
    return override.scope is not Scope.POLICY or (owner is not None and override.key == owner.name)


def _wish(subject: Subject, owner: Policy | None) -> Override | None:
    """What a person said that lets this dead letter pass, if it still speaks of what is there now."""
    found: Override | None = None
    for override in subject.overrides:
        if override.scope is not Scope.ROOT or override.snapshot != snapshot_of(subject, owner, override.action):
            continue
        if override.action is OverrideAction.RETRY_NOW:
            return override
        if override.action is OverrideAction.APPROVE:
            found = override
    return found


def snapshot_of(subject: Subject, owner: Policy | None, action: OverrideAction) -> dict[str, object]:
    """What a person's approval speaks of: should any of it change, the approval is void."""
    letter = subject.letter
    snapshot: dict[str, object] = {"id": letter.id, "attempt": letter.attempt, "tries": letter.tries}
    if action is OverrideAction.APPROVE:
        snapshot["policy"] = None if owner is None else owner.hash
    return snapshot


def _rungs(
    subject: Subject,
    rules: Rules,
    owner: Policy | None,
    undecided: Policy | None,
    mode: Mode,
    group: str,
    missing: tuple[str, ...],
    wish: Override | None,
    now: float,
) -> Iterator[Rung]:
    """Every check, in order."""
    at_once = wish is not None and wish.action is OverrideAction.RETRY_NOW
    retrying = at_once or (owner is not None and owner.action is Action.RETRY)
    yield _mode(subject, owner, mode, group, wish, retrying)
    yield _paused(subject.overrides)
    if owner is not None and owner.window is not None and retrying and not at_once:
        next_open = owner.window.next_open(now)
        closed = next_open is None or next_open > now
        yield Rung(reason=Reason.WINDOW, refuses=closed, detail="outside its hours", next_at=next_open)
    yield _held(subject, owner, group)
    yield Rung(
        reason=Reason.UNDETERMINED,
        refuses=undecided is not None,
        verb=Verb.HOLD,
        detail="" if undecided is None else f"whether {undecided.name} matches depends on {', '.join(missing)}",
    )
    if owner is None or not retrying:
        return
    yield _eligible(subject, owner)
    if not at_once:
        yield _exhausted(subject, owner, mode, now)
        yield _backoff(subject, owner, mode, now)
    yield _native(subject, rules)
    yield _pace(subject, rules, now)
    looked = subject.looked
    refused = looked is not None and now < looked[0]
    yield Rung(
        reason=Reason.PREFLIGHT,
        refuses=refused,
        detail=looked[1] if looked is not None and refused else "",
        next_at=looked[0] if looked is not None and refused else None,
    )


def _mode(
    subject: Subject, owner: Policy | None, mode: Mode, group: str, wish: Override | None, retrying: bool
) -> Rung:
    if mode is Mode.OFF:
        return Rung(reason=Reason.MODE, refuses=True, verb=Verb.HOLD, detail="retrying is off")
    if not retrying or owner is None or mode is Mode.SHADOW:
        refuses = wish is not None and mode is Mode.SHADOW
        return Rung(reason=Reason.MODE, refuses=refuses, verb=Verb.HOLD, detail=f"the mode is {mode}")
    asks = owner.approve if mode is Mode.ENFORCE else "each"  # below, nothing is sent that nobody approved
    passed = asks == "first_of_group" and (owner.name, group) in subject.approved_groups
    waits = asks != "none" and not passed and wish is None
    return Rung(reason=Reason.MODE, refuses=waits, detail="waits for approval" if waits else f"the mode is {mode}")


def _paused(overrides: Sequence[Override]) -> Rung:
    pauses = [override for override in overrides if override.action is OverrideAction.PAUSE]
    if not pauses:
        return Rung(reason=Reason.PAUSED, refuses=False)
    last = max(pauses, key=lambda o: float("inf") if o.until is None else o.until)
    return Rung(reason=Reason.PAUSED, refuses=True, detail=f"paused by {last.who}", next_at=last.until)


def _held(subject: Subject, owner: Policy | None, group: str) -> Rung:
    for override in subject.overrides:
        if override.action in (OverrideAction.HOLD, OverrideAction.QUARANTINE):
            verb = Verb.HOLD if override.action is OverrideAction.HOLD else Verb.QUARANTINE
            reason = Reason(override.snapshot.get("reason", Reason.HELD))  # the engine's own: why it did
            detail = f"{override.action} by {override.who}{': ' if override.why else ''}{override.why}"
            return Rung(reason=reason, refuses=True, verb=verb, detail=detail, next_at=override.until)
    doubtful = None if owner is None else subject.doubtful.get((owner.name, group))
    for retry in (*subject.history, subject.neighbour, doubtful):
        if retry is not None and retry.is_open:
            whose = "its" if retry.root == subject.root else "another dead letter's"
            waits = retry.state is not RetryState.HELD
            detail = f"{whose} retry {retry.id} is {retry.state}"
            verb = Verb.WAIT if waits else Verb.HOLD
            return Rung(reason=Reason.HELD, refuses=True, verb=verb, detail=detail, next_at=retry.look_at)
    return Rung(reason=Reason.HELD, refuses=False)


def _eligible(subject: Subject, owner: Policy) -> Rung:
    why = None
    if subject.traits is None:
        why = "this platform knows no retry"
    elif not subject.letter.is_open:
        why = "it is resolved"
    elif subject.letter.reruns and not owner.rerun:
        why = "a retry would run it again from its trigger; that takes a policy that says retry: {rerun: allow}"
    elif subject.ahead is not None:
        why = f"its workflow runs in order, and {subject.ahead} comes first"
    return Rung(reason=Reason.NOT_ELIGIBLE, refuses=why is not None, verb=Verb.HOLD, detail=why or "")


def _spent(subject: Subject, mode: Mode) -> list[Retry]:
    """The retries that count: real ones, or in shadow those that would have been."""
    shadow = mode is Mode.SHADOW
    return [retry for retry in subject.history if retry.counts and (shadow or not retry.shadow)]


def _exhausted(subject: Subject, owner: Policy, mode: Mode, now: float) -> Rung:
    spent = len(_spent(subject, mode))
    first = min([subject.letter.opened_at, *(retry.failed_at for retry in subject.history)])
    why = None
    if spent >= owner.retries:
        why = f"{spent} of {owner.retries} retries are used"
    elif now - first > owner.give_up_after:
        why = f"it failed more than {owner.give_up_after:.0f} s ago"
    was_released = any(override.action is OverrideAction.RELEASE for override in subject.overrides)
    verb = Verb.ESCALATE if was_released else Verb(owner.exhausted)
    return Rung(reason=Reason.EXHAUSTED, refuses=why is not None, verb=verb, detail=why or "")


def _backoff(subject: Subject, owner: Policy, mode: Mode, now: float) -> Rung:
    spent = _spent(subject, mode)
    # One that closed in the future closed by a clock that was ahead: when, nobody knows.
    ends = [retry.closed_at for retry in spent if retry.closed_at is not None and retry.closed_at <= now]
    native = subject.letter.native_retry
    gave_up = [native[0]] if native is not None and not native[1] else []
    since = max([subject.letter.opened_at, *ends, *gave_up])
    due = since + owner.backoff.delay(subject.root, len(spent) + 1)
    return Rung(reason=Reason.BACKOFF, refuses=now < due, detail=f"before retry {len(spent) + 1}", next_at=due)


def _native(subject: Subject, rules: Rules) -> Rung:
    native = subject.letter.native_retry
    yields = rules.source(subject.source).yields and native is not None and native[1]
    return Rung(reason=Reason.NATIVE_RETRY, refuses=yields, detail="the platform will retry it" if yields else "")


def _pace(subject: Subject, rules: Rules, now: float) -> Rung:
    pace = rules.source(subject.source).pace
    if subject.in_flight >= pace.in_flight:
        return Rung(reason=Reason.PACE, refuses=True, detail=f"{subject.in_flight} retries are in flight")
    return Rung(reason=Reason.PACE, refuses=now < subject.pace_at, next_at=subject.pace_at)


def take_turns(ladders: Mapping[str, Ladder], room: int, next_at: float) -> dict[str, Ladder]:
    """The same, but of what is due only so many as there is ``room`` for now; the rest waits for its turn."""
    due = [identity for identity in due_first(ladders) if ladders[identity].decision.mode is not Mode.SHADOW]
    late = due[max(0, room) :]
    after = dict(ladders)
    for identity in late:
        decision = ladders[identity].decision
        later = replace(decision, verb=Verb.WAIT, reason=Reason.PACE, detail="others are before it", next_at=next_at)
        after[identity] = replace(ladders[identity], decision=later)
    return after


def due_first(ladders: Mapping[str, Ladder]) -> list[str]:
    """The ids of what is to be retried, groups taking turns so that a noisy one starves nobody."""
    turns: dict[str, int] = {}
    order: list[tuple[int, str, str]] = []
    for identity, ladder in ladders.items():
        if ladder.decision.verb is Verb.RETRY:
            turn = turns.get(ladder.group, 0)
            turns[ladder.group] = turn + 1
            order.append((turn, ladder.group, identity))
    return [identity for _, _, identity in sorted(order)]
