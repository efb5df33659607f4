"""The ladder: one row a decision, every reason named; then the laws that hold for all of them."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from exporter.model import Error, ErrorClass, Workflow
from exporter.model.decision import climb, find_owner, snapshot_of
from exporter.model.matchers import FIELDS, Matcher, read
from exporter.model.policy import Backoff, GateRules, Pace, Rules, SourceRules
from exporter.model.rails import Gate, Passenger, Rails, Setback
from exporter.model.retries import Action, Mode, Outcome, OverrideAction, Reason, RetryState, Scope, Verb
from exporter.model.subject import Refused, Subject, error_fingerprint, facts_of
from exporter.model.turns import Candidate, take_turns
from exporter.model.windows import parse_window
from tests.retries.made import DAY, ERROR, HOUR, NOW, letter, override, policy, retry, rules, subject

CLOSED = parse_window("UTC", ["00:00-00:01"], [])
FAILED = {"outcome": Outcome.FAILED, "state": RetryState.VERIFYING, "closed_at": NOW - 600}


def approval(action: OverrideAction = OverrideAction.APPROVE, **changes: Any) -> Any:
    given, owner = subject(), policy()
    return override(action, snapshot=snapshot_of(given, owner, action), **changes)


def rails_of(gate: Gate, *, unverified: int = 0) -> Rails:
    return Rails(gates={("p", "network"): gate}, unverified={("p", "network"): unverified})


DECISIONS: list[tuple[str, Subject, Rules, Verb, Reason]] = [
    ("nothing refuses", subject(), rules(), Verb.RETRY, Reason.DUE),
    ("shadow lets pass what is not sent", subject(), rules(mode=Mode.SHADOW), Verb.RETRY, Reason.DUE),
    ("off", subject(), rules(mode=Mode.OFF), Verb.HOLD, Reason.MODE),
    ("off for the source", subject(), rules(sources={"make-eu": SourceRules(mode=Mode.OFF)}), Verb.HOLD, Reason.MODE),
    ("off for the policy", subject(), rules(policy(mode=Mode.OFF)), Verb.HOLD, Reason.MODE),
    ("approval is missing", subject(), rules(mode=Mode.APPROVE), Verb.WAIT, Reason.MODE),
    ("the policy asks for approval", subject(), rules(policy(approve="each")), Verb.WAIT, Reason.MODE),
    ("approved", subject(overrides=[approval()]), rules(mode=Mode.APPROVE), Verb.RETRY, Reason.DUE),
    ("approved by an older policy", subject(overrides=[approval()]), rules(policy(hash="new"), mode=Mode.APPROVE),
        Verb.WAIT, Reason.MODE),
    ("approved before it changed", subject(overrides=[approval()], letter=letter(tries=1)), rules(mode=Mode.APPROVE),
        Verb.WAIT, Reason.MODE),
    ("its group was approved and worked", subject(rails=Rails(approved_groups=frozenset({("p", "network")}))),
        rules(policy(approve="first_of_group", group_by=("error.class",))), Verb.RETRY, Reason.DUE),
    ("its group was, but nothing is sent that was not",
        subject(rails=Rails(approved_groups=frozenset({("p", "network")}))),
        rules(policy(approve="first_of_group", group_by=("error.class",)), mode=Mode.APPROVE), Verb.WAIT, Reason.MODE),
    ("its group was not", subject(), rules(policy(approve="first_of_group")), Verb.WAIT,
        Reason.MODE),
    ("lowered, so approval is missing", subject(overrides=[override(OverrideAction.LOWER, scope=Scope.SOURCE, key="")]),
        rules(), Verb.WAIT, Reason.MODE),
    ("paused", subject(overrides=[override(OverrideAction.PAUSE, scope=Scope.ENGINE, source="", key="")]), rules(),
        Verb.WAIT, Reason.PAUSED),
    ("another policy is paused", subject(overrides=[override(OverrideAction.PAUSE, scope=Scope.POLICY, key="q")]),
        rules(), Verb.RETRY, Reason.DUE),
    ("its policy is paused", subject(overrides=[override(OverrideAction.PAUSE, scope=Scope.POLICY, key="p")]), rules(),
        Verb.WAIT, Reason.PAUSED),
    ("outside its hours", subject(), rules(policy(window=CLOSED)), Verb.WAIT, Reason.WINDOW),
    ("held by a person", subject(overrides=[override(OverrideAction.HOLD)]), rules(), Verb.HOLD, Reason.HELD),
    ("quarantined", subject(overrides=[override(OverrideAction.QUARANTINE)]), rules(), Verb.QUARANTINE, Reason.HELD),
    ("an earlier version wrote down that it was exhausted",
        subject(overrides=[override(OverrideAction.QUARANTINE, snapshot={"reason": "exhausted"})]), rules(),
        Verb.RETRY, Reason.DUE),
    ("its retry is open", subject(history=[retry(state=RetryState.VERIFYING)]), rules(), Verb.WAIT, Reason.HELD),
    ("its retry needs a person", subject(history=[retry(state=RetryState.HELD)]), rules(), Verb.HOLD, Reason.HELD),
    ("its workflow waits for another", subject(neighbour=retry(root="d0", state=RetryState.SENT)), rules(), Verb.WAIT,
        Reason.HELD),
    ("its group cools off", subject(rails=rails_of(Gate(trips=1, tripped_at=NOW - 60, cool_until=NOW + 600))),
        rules(policy(group_by=("error.class",))), Verb.WAIT, Reason.GATE),
    ("its policy cools off", subject(rails=Rails(gates={("p", ""): Gate(trips=1, tripped_at=NOW, cool_until=NOW + 9)})),
        rules(), Verb.WAIT, Reason.GATE),
    ("its group has cooled off", subject(rails=rails_of(Gate(trips=1, tripped_at=NOW - 60, cool_until=NOW - 1))),
        rules(policy(group_by=("error.class",))), Verb.RETRY, Reason.DUE),
    ("another of its group shows whether it helps", subject(rails=rails_of(Gate(), unverified=1)),
        rules(policy(group_by=("error.class",), gate=GateRules())), Verb.WAIT, Reason.GATE),
    ("a storm", subject(rails=Rails(storm="all fail")), rules(), Verb.WAIT, Reason.STORM),
    ("no more failures can be afforded", subject(rails=Rails(tokens=0.5)), rules(), Verb.WAIT, Reason.BUDGET),
    ("no more can be afforded, and it is approved", subject(rails=Rails(tokens=0.5), overrides=[approval()]),
        rules(mode=Mode.APPROVE), Verb.RETRY, Reason.DUE),
    ("the platform is busy", subject(rails=Rails(setbacks={"": Setback(until=NOW + 30, at=NOW)})), rules(), Verb.WAIT,
        Reason.PACE),
    ("its workflow is busy", subject(rails=Rails(setbacks={"w1": Setback(until=NOW + 30, at=NOW)})), rules(), Verb.WAIT,
        Reason.PACE),
    ("another workflow is busy", subject(rails=Rails(setbacks={"w2": Setback(until=NOW + 30, at=NOW)})), rules(),
        Verb.RETRY, Reason.DUE),
    ("nobody knows whether it matches", subject(letter=letter(error=None)), rules(policy({"error.class": "network"})),
        Verb.HOLD, Reason.UNDETERMINED),
    ("an undecidable policy stops the walk", subject(letter=letter(error=None)),
        rules(policy({"error.class": "auth"}, action=Action.ESCALATE), policy()), Verb.HOLD, Reason.UNDETERMINED),
    ("no policy matches", subject(), rules(policy({"platform": "qlik"})), Verb.HOLD, Reason.NO_POLICY),
    ("an unknown error is not named", subject(letter=letter(error=Error())), rules(), Verb.HOLD, Reason.NO_POLICY),
    ("an unknown error is named", subject(letter=letter(error=Error())), rules(policy({"error.class": "unknown"})),
        Verb.RETRY, Reason.DUE),
    ("the platform knows no retry", subject(traits=None), rules(), Verb.HOLD, Reason.NOT_ELIGIBLE),
    ("an older one comes first", subject(ahead="d0"), rules(), Verb.HOLD, Reason.NOT_ELIGIBLE),
    ("a retry begins anew, unasked", subject(letter=letter(reruns=True)), rules(), Verb.HOLD, Reason.NOT_ELIGIBLE),
    ("a retry begins anew, allowed", subject(letter=letter(reruns=True)), rules(policy(rerun=True)), Verb.RETRY,
        Reason.DUE),
    ("a retry begins anew, allowed by a later policy only", subject(letter=letter(reruns=True)),
        rules(policy(), policy(rerun=True)), Verb.HOLD, Reason.NOT_ELIGIBLE),
    ("its retries are used", subject(history=[retry(**FAILED)]), rules(policy(retries=1)), Verb.QUARANTINE,
        Reason.EXHAUSTED),
    ("its retries are used, escalate", subject(history=[retry(**FAILED)]),
        rules(policy(retries=1, exhausted=Action.ESCALATE)), Verb.ESCALATE, Reason.EXHAUSTED),
    ("its retries are used, and it was released",
        subject(history=[retry(**FAILED | {"claimed_at": NOW - DAY, "closed_at": NOW - DAY})],
        overrides=[override(OverrideAction.RELEASE)]), rules(policy(retries=1)), Verb.RETRY, Reason.DUE),
    ("refusals use up nothing", subject(history=[retry(outcome=Outcome.REJECTED, spared="busy", closed_at=NOW - 9)]),
        rules(policy(retries=1)), Verb.RETRY, Reason.DUE),
    ("what failed in a storm uses up nothing",
        subject(history=[retry(**FAILED | {"spared": "storm", "closed_at": NOW - DAY})]), rules(policy(retries=1)),
        Verb.RETRY, Reason.DUE),
    ("it is old, and could not have been tried", subject(letter=letter(opened_at=NOW - 4 * DAY), waited=2 * DAY),
        rules(), Verb.RETRY, Reason.DUE),
    ("it is old, and cannot be tried", subject(letter=letter(opened_at=NOW - 4 * DAY), waits_since=NOW - 2 * DAY),
        rules(), Verb.RETRY, Reason.DUE),
    ("no retries at all", subject(), rules(policy(retries=0)), Verb.QUARANTINE, Reason.EXHAUSTED),
    ("it is too old", subject(letter=letter(opened_at=NOW - 4 * DAY)), rules(), Verb.QUARANTINE, Reason.EXHAUSTED),
    ("its root is too old", subject(history=[retry(**FAILED | {"failed_at": NOW - 4 * DAY})]), rules(), Verb.QUARANTINE,
        Reason.EXHAUSTED),
    ("what was not sent does not count", subject(history=[retry(outcome=Outcome.NOT_SENT, closed_at=NOW - DAY)]),
        rules(policy(retries=1)), Verb.RETRY, Reason.DUE),
    ("too soon after the failure", subject(letter=letter(opened_at=NOW - 60)), rules(), Verb.WAIT, Reason.BACKOFF),
    ("too soon after a retry", subject(history=[retry(**FAILED)]), rules(), Verb.WAIT, Reason.BACKOFF),
    ("too soon after a shadow", subject(history=[retry(shadow=True, closed_at=NOW - 60)]), rules(mode=Mode.SHADOW),
        Verb.WAIT, Reason.BACKOFF),
    ("shadows do not count beside calls", subject(history=[retry(shadow=True, closed_at=NOW - 60)]), rules(),
        Verb.RETRY, Reason.DUE),
    ("the platform gave up just now", subject(letter=letter(native_retry=(NOW - 60, False))), rules(), Verb.WAIT,
        Reason.BACKOFF),
    ("the platform will retry", subject(letter=letter(native_retry=(NOW - 60, True))), rules(), Verb.WAIT,
        Reason.NATIVE_RETRY),
    ("the platform will retry, ignored", subject(letter=letter(native_retry=(NOW - 60, True))),
        rules(sources={"make-eu": SourceRules(yields=False)}), Verb.RETRY, Reason.DUE),
    ("too many in flight", subject(rails=Rails(in_flight=2, pace=Pace(in_flight=2))), rules(),
        Verb.WAIT, Reason.PACE),
    ("too fast", subject(rails=Rails(pace_at=NOW + 5)), rules(), Verb.WAIT, Reason.PACE),
    ("the last look refused", subject(refused=Refused(until=NOW + 60, why="it was edited")), rules(), Verb.WAIT,
        Reason.PREFLIGHT),
    ("the last look is long ago", subject(refused=Refused(until=NOW - 60, why="it was edited")), rules(), Verb.RETRY,
        Reason.DUE),
    ("escalate", subject(), rules(policy(action=Action.ESCALATE)), Verb.ESCALATE, Reason.POLICY),
    ("ignore", subject(), rules(policy(action=Action.IGNORE)), Verb.IGNORE, Reason.POLICY),
    ("hold", subject(), rules(policy(action=Action.HOLD)), Verb.HOLD, Reason.POLICY),
    ("quarantine", subject(), rules(policy(action=Action.QUARANTINE)), Verb.QUARANTINE, Reason.POLICY),
    ("the first that matches owns it", subject(), rules(policy({"platform": "qlik"}), policy(action=Action.IGNORE),
        policy()), Verb.IGNORE, Reason.POLICY),
    ("a person wants it now: hours and backoff", subject(letter=letter(opened_at=NOW),
        overrides=[override(OverrideAction.RETRY_NOW, snapshot={"id": "d1", "attempt": 1, "tries": 0})]),
        rules(policy(window=CLOSED), mode=Mode.APPROVE), Verb.RETRY, Reason.DUE),
    ("a person wants it now: no policy", subject(overrides=[approval(OverrideAction.RETRY_NOW)]),
        rules(policy({"platform": "qlik"})), Verb.RETRY, Reason.DUE),
    ("a person wants it now: used up", subject(history=[retry(**FAILED)],
        overrides=[approval(OverrideAction.RETRY_NOW)]), rules(policy(retries=1)), Verb.RETRY, Reason.DUE),
    ("a person wants it now: quarantined", subject(overrides=[approval(OverrideAction.RETRY_NOW),
        override(OverrideAction.QUARANTINE)]), rules(), Verb.QUARANTINE, Reason.HELD),
    ("a person wants it now: in flight",
        subject(rails=Rails(in_flight=25), overrides=[approval(OverrideAction.RETRY_NOW)]), rules(), Verb.WAIT,
        Reason.PACE),
    ("a person wants it now: it would begin anew", subject(letter=letter(reruns=True),
        overrides=[approval(OverrideAction.RETRY_NOW)]), rules(), Verb.HOLD, Reason.NOT_ELIGIBLE),
    ("a person wants it now: it would begin anew, no policy", subject(letter=letter(reruns=True),
        overrides=[approval(OverrideAction.RETRY_NOW)]), rules(policy({"platform": "qlik"})), Verb.HOLD,
        Reason.NOT_ELIGIBLE),
    ("a person wants it now: shadow", subject(overrides=[approval(OverrideAction.RETRY_NOW)]), rules(mode=Mode.SHADOW),
        Verb.HOLD, Reason.MODE),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "by", "verb", "reason"), [row[1:] for row in DECISIONS], ids=[r[0] for r in DECISIONS]
)
def test_decision(given: Subject, by: Rules, verb: Verb, reason: Reason) -> None:
    decision = climb(given, by, NOW).decision
    assert (decision.verb, decision.reason) == (verb, reason), decision.detail


def test_every_reason_has_a_row() -> None:
    assert {row[4] for row in DECISIONS} == set(Reason)


def test_the_rungs_stand_in_the_order_of_the_contract_and_all_are_told() -> None:
    given = subject(
        letter=letter(opened_at=NOW - 60, native_retry=(NOW, True)), rails=Rails(pace_at=NOW + 9), ahead="d0"
    )
    ladder = climb(given, rules(policy(window=CLOSED), mode=Mode.APPROVE), NOW)
    order = list(Reason)
    assert [order.index(rung.reason) for rung in ladder.rungs] == sorted(order.index(r.reason) for r in ladder.rungs)
    assert [rung.reason for rung in ladder.rungs if rung.refuses] == [
        Reason.MODE, Reason.WINDOW, Reason.NOT_ELIGIBLE, Reason.BACKOFF, Reason.NATIVE_RETRY, Reason.PACE,
    ]  # fmt: skip
    assert not ladder.decision.awaits_approval
    waiting = climb(subject(rails=Rails(pace_at=NOW + 9)), rules(mode=Mode.APPROVE), NOW).decision
    assert waiting.awaits_approval


def test_a_refusal_of_a_rerun_says_the_way_out() -> None:
    decision = climb(subject(letter=letter(reruns=True)), rules(), NOW).decision
    assert "rerun: allow" in decision.detail
    assert not decision.awaits_approval
    asked = climb(subject(letter=letter(reruns=True)), rules(mode=Mode.APPROVE), NOW).decision
    assert not asked.awaits_approval, "an approval could not come true"


def test_a_wait_says_when_it_would_next_be_allowed() -> None:
    backoff = climb(subject(letter=letter(opened_at=NOW - 60)), rules(), NOW).decision
    assert backoff.next_at == NOW - 60 + 900
    window = climb(subject(), rules(policy(window=CLOSED)), NOW).decision
    assert window.next_at == NOW - NOW % DAY + DAY


def test_backoff_grows_to_its_cap_and_its_jitter_is_the_same_each_time() -> None:
    plain = Backoff(first=900, factor=3, cap=21600, jitter=0)
    assert [plain.delay("d1", k) for k in (1, 2, 3, 4, 90)] == [900, 2700, 8100, 21600, 21600]
    jittered = Backoff(first=900, factor=3, cap=21600, jitter=0.5)
    drawn = [jittered.delay(f"d{n}", 1) for n in range(200)]
    assert all(450 <= delay <= 900 for delay in drawn)
    assert max(drawn) - min(drawn) > 300
    assert drawn == [jittered.delay(f"d{n}", 1) for n in range(200)]


def test_errors_of_one_kind_have_one_fingerprint() -> None:
    one = letter(error=replace(ERROR, message="connect ETIMEDOUT 10.0.0.1:443 at 2026-11-27T10:00:00Z"))
    other = letter(error=replace(ERROR, message="connect ETIMEDOUT 192.168.7.9:8443 at 2026-11-28T11:30:00Z"))
    different = letter(error=replace(ERROR, message="connect ECONNREFUSED 10.0.0.1:443"))
    assert error_fingerprint(one) == error_fingerprint(other) != error_fingerprint(different)
    assert error_fingerprint(one) != error_fingerprint(letter(error=replace(ERROR, error_class=ErrorClass.TIMEOUT)))
    assert error_fingerprint(letter(error=None)) == ""


def queue(group: str, *numbers: int) -> dict[tuple[str, str], list[Candidate]]:
    passenger = Passenger(owner=policy(gate=GateRules()), group=group, workflow_id="w1")
    made = [Candidate(id=f"{group}{n}", passenger=passenger, mode=Mode.ENFORCE, calls=0, opened_at=n) for n in numbers]
    return {("p", group): made}


def test_groups_take_turns_the_one_served_longest_ago_first() -> None:
    open_wide = Gate(level=4)
    gates = {("p", group): dataclasses.replace(open_wide, served_at=at) for group, at in (("a", 5.0), ("b", 3.0))}
    queues = queue("a", *range(9)) | queue("b", *range(9)) | queue("c", 1)
    due, waits = take_turns(
        queues, Rails(gates=gates | {("p", "c"): open_wide, ("p", ""): open_wide}, pace=Pace(burst=5)), now=NOW
    )
    assert due == ["c1", "b0", "a0", "b1", "a1"]
    assert {key[1]: decision.reason for key, decision in waits.items()} == dict.fromkeys("abc", Reason.PACE)


def test_a_new_group_sends_one_ahead() -> None:
    due, waits = take_turns(queue("a", *range(9)) | queue("b", 1, 2), Rails(pace=Pace(burst=9)), now=NOW)
    assert due == ["a0", "b1"]
    assert {decision.reason for decision in waits.values()} == {Reason.GATE}


# The laws.

WORDS = st.sampled_from(["network", "timeout", "auth", "unknown"])
MATCHES = st.one_of(
    st.just({}),
    st.builds(lambda c: {"error.class": c}, st.lists(WORDS, min_size=1, max_size=3)),
    st.builds(lambda c: {"error.class": {"not": c}}, WORDS),
    st.builds(lambda m: {"error.message": {"contains": m}}, st.sampled_from(["ETIMEDOUT", "ECONN", "x"])),
    st.builds(lambda n: {"workflow.name": {"glob": n}}, st.sampled_from(["Order*", "*pay*"])),
    st.builds(lambda n: {"retries": {"lt": n}}, st.integers(0, 3)),
    st.builds(lambda t: {"trigger": t}, st.sampled_from(["schedule", "webhook"])),
)
POLICIES = st.lists(
    st.builds(
        lambda match, none, action, number: dataclasses.replace(
            policy(match, action=action),
            name=f"p{number}",
            matcher=Matcher(match=read(match, ""), none=tuple(read(n, "") for n in none)),
        ),
        MATCHES,
        st.lists(MATCHES, max_size=1),
        st.sampled_from(list(Action)),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=4,
)
ERRORS = st.builds(
    Error,
    error_class=st.sampled_from([ErrorClass.NETWORK, ErrorClass.TIMEOUT, ErrorClass.AUTH, ErrorClass.UNKNOWN]),
    type=st.sampled_from(["ConnectionError", "DataError"]),
    message=st.sampled_from(["connect ETIMEDOUT", "ECONNRESET", "bad data"]),
    step_type=st.sampled_from(["http", "json"]),
)
SUBJECTS = st.builds(
    lambda error, opened, trigger, native, history: subject(
        letter=letter(error=error, opened_at=NOW - opened, native_retry=native),
        workflow=Workflow(id="w1", at=NOW, name="Order sync", trigger=trigger),
        history=history,
    ),
    ERRORS,
    st.sampled_from([60.0, HOUR, 5 * DAY]),
    st.sampled_from(["schedule", "webhook"]),
    st.sampled_from([None, (NOW - HOUR, True), (NOW - HOUR, False)]),
    st.lists(st.just(retry(outcome=Outcome.FAILED, closed_at=NOW - 5 * HOUR)), max_size=2),
)


@given(SUBJECTS, POLICIES, st.data())
def test_missing_data_never_turns_not_retry_into_retry(given_: Subject, policies: Any, data: st.DataObject) -> None:
    by = rules(*policies)
    known = climb(given_, by, NOW)
    error = given_.letter.error
    assert error is not None
    lost = data.draw(st.sets(st.sampled_from(["error", "type", "message", "step_type", "trigger", "name"]), min_size=1))
    nothing: Any = {f: None for f in lost if f in ("type", "message", "step_type")}
    fewer = replace(error, **nothing)
    workflow = replace(given_.workflow, **{f: None for f in lost if f in ("trigger", "name")})  # type: ignore[type-var]
    missing = dataclasses.replace(
        given_,
        letter=replace(given_.letter, error=None if "error" in lost else fewer),
        workflow=workflow,
    )
    unknown = climb(missing, by, NOW)
    if unknown.decision.verb is Verb.RETRY:
        assert known.decision.verb is Verb.RETRY
        assert unknown.owner == known.owner


@given(SUBJECTS, POLICIES)
def test_every_dead_letter_has_one_owner_or_is_held_and_the_same_always(given_: Subject, policies: Any) -> None:
    by = rules(*policies)
    ladder = climb(given_, by, NOW)
    assert climb(given_, by, NOW) == ladder
    owner, undecided = find_owner(by.policies, facts_of(given_, NOW))
    assert undecided is None  # everything is known
    assert ladder.owner == owner
    if owner is None:
        assert ladder.decision.verb is Verb.HOLD


@given(SUBJECTS, POLICIES, st.integers(0, 2))
def test_policies_that_share_nothing_may_change_places(given_: Subject, policies: Any, index: int) -> None:
    if index + 1 >= len(policies):
        return
    swapped = [*policies[:index], policies[index + 1], policies[index], *policies[index + 2 :]]
    facts = facts_of(given_, NOW)
    if policies[index].owns(facts) and policies[index + 1].owns(facts):
        return  # not disjoint
    before, after = find_owner(tuple(policies), facts)[0], find_owner(tuple(swapped), facts)[0]
    assert before == after


@given(SUBJECTS, POLICIES, st.sampled_from(list(Mode)), st.sampled_from(list(Mode)), st.sampled_from(list(Mode)))
def test_lowering_a_mode_never_sends_more(given_: Subject, policies: Any, a: Mode, b: Mode, c: Mode) -> None:
    def sends(engine: Mode, source: Mode) -> bool:
        by = rules(*policies, mode=engine, sources={"make-eu": SourceRules(mode=source)})
        decision = climb(given_, by, NOW).decision
        return decision.verb is Verb.RETRY and decision.mode.rank >= Mode.APPROVE.rank

    low, high = sorted((a, b), key=lambda mode: mode.rank)
    assert not (sends(low, c) and not sends(high, c))
    assert not (sends(c, low) and not sends(c, high))
    assert not sends(Mode.OFF, c)
    assert not sends(Mode.SHADOW, c)


def test_the_fields_that_policies_may_ask_are_all_told() -> None:
    assert set(facts_of(subject(labels={"tier": "gold"}), NOW)) == {*FIELDS, "labels.tier"}


def test_an_error_nobody_has_read_yet_is_retried_by_no_policy_that_matches_everything() -> None:
    """Its class may turn out to be unknown or a kill, which such a policy does not retry."""
    unread = subject(letter=letter(error=None))
    ladder = climb(unread, rules(policy(match={})), NOW)
    assert (ladder.decision.verb, ladder.decision.reason) == (Verb.HOLD, Reason.UNDETERMINED)
    assert ladder.missing == ("error.class",)
