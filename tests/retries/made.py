"""Subjects, policies and retries for tests: everything has a plain value, a test names what it is about."""

from dataclasses import replace
from typing import Any

from msgspec import structs

from exporter.model import DeadLetter, Error, ErrorClass, Workflow
from exporter.model.decision import Subject
from exporter.model.matchers import Matcher, read
from exporter.model.policy import Backoff, Cooling, GateRules, Pace, Policy, Rules, SourceRules
from exporter.model.retries import Action, Mode, Override, OverrideAction, Retry, RetryState, Scope, Traits

NOW = 1_800_000_000.0
HOUR, DAY = 3600.0, 86400.0
ERROR = Error(error_class=ErrorClass.NETWORK, type="ConnectionError", message="connect ETIMEDOUT 10.0.0.1:443")
TRAITS = Traits(effect="resume", handle="same_id", serial=False)
#: A gate that holds nothing back, for what is not about gates.
WIDE = GateRules(ramp=(1000,), cool=Cooling(first=1.0, cap=1.0))
PLAIN = Backoff(first=900.0, factor=3.0, cap=21600.0, jitter=0.0)
#: Effects show for each letter, one in a call; none after a quarter of an hour proves that there will be none.
EACH = Traits(effect="resume", handle="same_id", serial=False, absence=900.0)
#: Effects show for each workflow, as runs that nobody names.
SERIAL = Traits(effect="rerun", handle="inferred", serial=True)


def letter(**changes: Any) -> DeadLetter:
    made = DeadLetter(id="d1", workflow_id="w1", run_id="r1", opened_at=NOW - HOUR, error=ERROR)
    return structs.replace(made, **changes)


def policy(match: Any = None, *, action: Action = Action.RETRY, **changes: Any) -> Policy:
    made = Policy(name="p", hash="h", matcher=Matcher(match=read(match or {}, "match")), action=action, backoff=PLAIN)
    return replace(made, **changes)


def rules(*policies: Policy, **changes: Any) -> Rules:
    return replace(Rules(mode=Mode.ENFORCE, policies=policies or (policy(),), hash="file"), **changes)


def quick(*policies: Policy, pace: Pace | None = None, mode: Mode = Mode.ENFORCE, **changes: Any) -> Rules:
    """Rules under which everything takes minutes, in hours at most; ``changes`` are those of a policy."""
    brisk = policy(
        backoff=Backoff(first=60.0, factor=2.0, cap=300.0, jitter=0.0),
        gate=GateRules(cool=Cooling(first=60.0, factor=2.0, cap=300.0)),
        deadline=900.0,
    )
    found = [replace(one, backoff=brisk.backoff, gate=brisk.gate, deadline=brisk.deadline) for one in policies]
    sources = {"s": SourceRules(pace=pace or Pace(rate=1.0, burst=50, in_flight=50))}
    return rules(*(found or [replace(brisk, **changes)]), mode=mode, sources=sources)


def subject(**changes: Any) -> Subject:
    made = Subject(
        source="make-eu",
        platform="make",
        letter=letter(),
        root="d1",
        traits=TRAITS,
        workflow=Workflow(id="w1", at=NOW, name="Order sync"),
    )
    return replace(made, **changes)


def retry(**changes: Any) -> Retry:
    made = Retry(
        id="t1",
        source="make-eu",
        workflow_id="w1",
        dead_letter_id="d1",
        run_id="r1",
        attempt=1,
        opened_at=NOW - HOUR,
        root="d1",
        ordinal=1,
        policy="p",
        policy_hash="h",
        group="g",
        failed_at=NOW - HOUR,
        claimed_at=NOW,
        send_by=NOW + 10.0,
        deadline=7200.0,
    )
    return replace(made, **changes)


def sent(**changes: Any) -> Retry:
    return retry(**{"state": RetryState.SENT, "sent_at": NOW + 1.0, "sent_at_theirs": NOW + 1.0} | changes)


def override(action: OverrideAction, **changes: Any) -> Override:
    made = Override(
        id="o1", scope=Scope.ROOT, source="make-eu", key="d1", action=action, until=None, who="ann", created_at=NOW
    )
    return replace(made, **changes)
