"""``retries groups | operations | approve | … | cancel | try``: what there is, what is done to many, how far it is.

What is there is read beside the service, from its ledger; what is done, and what has to be asked of a platform, goes to
the service that is running.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from exporter.cli.ledger import Answer, Say, as_text, moment, offline, plain
from exporter.clock import SystemClock
from exporter.config import load
from exporter.config.outline import Outline
from exporter.memory import Memory
from exporter.model.operations import UNDER_WAY, OperationAction, alike
from exporter.model.repairs import RepairAction
from exporter.retries.facts import group_facts, operation_facts
from exporter.retries.repairer import Repairer
from exporter.retries.trying import try_once
from exporter.view.own import OwnMetrics
from exporter.web import local

#: What is said of many dead letters alike is shown in so many lines at most; ``--json`` has all of it.
KINDS_MAX = 10
#: Dead letters named in a line.
NAMED_MAX = 3


async def groups(outline: Outline, *, say: Say, as_json: bool = False) -> int:
    """Open dead letters by what they have in common, the largest group first."""
    clock = SystemClock()
    async with offline(outline, to_read=True, by_rules=True, clock=clock) as opened:
        found = [group_facts(group, opened.operations.can(group)) for group in opened.operations.groups()]
        paused = [source for source in outline.platforms if opened.book.overrides.is_paused(source, clock.now())]
        mode = opened.book.rules.mode
    if as_json:
        say(as_text(found))
        return 0
    letters = sum(group["count"] for group in found)
    note = f"; paused: {', '.join(paused)}" if paused else ""
    say(f"{_many(letters, 'open dead letter')}, {_many(len(found), 'group')}, mode {mode}{note}")
    for group in found:
        say("")
        for line in _group(group):
            say(line)
    return 0


def _group(group: Mapping[str, Any]) -> Iterator[str]:
    workflow = f"{group['source']}/{group['workflow_id']}"
    name = "" if group["workflow"] is None else f"  {group['workflow']}"
    error_class = group["error_class"] or "error not known"
    yield f"{group['id']}  {group['count']} x {error_class}  {workflow}{name}  {group['error']}"
    lately = group["opened_last_hour"]
    trend = f"{lately} opened in the last hour" if lately else "none opened in the last hour"
    yield f"    oldest {moment(group['oldest_at'])}, newest {moment(group['newest_at'])}; {trend}"
    decision = group["decision"]
    owner = f"policy {decision['policy']}" if decision["policy"] else "no policy"
    when = f", next at {moment(decision['next_at'])}" if decision["next_at"] is not None else ""
    yield f"    {group['words']} ({owner}{when}){_others(group)}"
    last = "not retried yet" if group["last_outcome"] is None else f"last retry: {group['last_outcome']}"
    known = group["retries"]
    yield f"    {last}; {known['words']}" if known["tries"] else f"    {last}"
    for line in group["can"]:
        yield f"    automation-exporter retries {line}"


def _others(group: Mapping[str, Any]) -> str:
    """What is so of those of a group of which it is not what is so of most."""
    others = [f"{count} x {words}" for words, count in list(group["said"].items())[1:]]
    return f"; besides: {', '.join(others)}" if others else ""


async def operations(outline: Outline, identity: str | None, *, say: Say, by_rules: bool, as_json: bool = False) -> int:
    """The newest operations, or one with what became of its dead letters."""
    async with offline(outline, to_read=True, by_rules=by_rules) as opened:
        known = opened.operations
        states = known.newest() if identity is None else [await known.one(identity)]
        found = [
            operation_facts(
                state,
                new_since=known.new_since(state) if identity is not None or state.is_open else 0,
                items=identity is not None,
            )
            for state in states
        ]
    if as_json:
        say(as_text(found if identity is None else found[0]))
        return 0
    for one in found:
        for line in [_line(one)] if identity is None else _operation(one):
            say(line)
    return 0


def _line(one: Mapping[str, Any]) -> str:
    why = f": {one['why']}" if one["why"] else ""
    parts = (moment(one["created_at"]), one["id"], one["action"], _progress(one), _chosen(one), f"by {one['who']}{why}")
    return "  ".join(part for part in parts if part) + _meanwhile(one)


def _operation(one: Mapping[str, Any]) -> Iterator[str]:
    why = f": {one['why']}" if one["why"] else ""
    yield f"operation {one['id']}: {one['action']} of {_chosen(one)}, by {one['who']}{why}"
    yield f"    {_progress(one)}{_meanwhile(one)}"
    yield f"    asked for at {moment(one['created_at'])}, in effect from {moment(one['starts_at'])}"
    if one["cancelled_by"]:
        yield f"    cancelled by {one['cancelled_by']}"
    elif one["ended_at"] is not None:
        yield f"    ended at {moment(one['ended_at'])}"
    if one["stop_after"] is not None:
        yield f"    stops by itself after {_many(one['stop_after'], 'failure')}"
    if any(state in UNDER_WAY for state in one["outcomes"]):
        yield f"    to stop the rest: automation-exporter retries cancel {one['id']}"
    said = {item["dead_letter"]: ": ".join(filter(None, (item["state"], item["detail"]))) for item in one["items"]}
    yield from _alike(said)


def _progress(one: Mapping[str, Any]) -> str:
    outcomes = ", ".join(
        f"{count} {'under way' if state == 'open' else state}" for state, count in one["outcomes"].items()
    )
    return f"{one['done']} of {one['total']} done ({outcomes})"


def _meanwhile(one: Mapping[str, Any]) -> str:
    new = one["new_since"]
    return f"; {_many(new, 'new one')} failed meanwhile, which it is not about" if new else ""


def _chosen(one: Mapping[str, Any]) -> str:
    """What an operation was asked for."""
    selected = dict(one["selected"])
    ids = selected.pop("ids", [])
    if between := selected.get("between"):
        selected["between"] = f"{moment(between[0])} and {moment(between[1])}"
    named = ", ".join(ids) if len(ids) <= NAMED_MAX else f"{len(ids)} dead letters"
    return " ".join([*([named] if ids else []), *(f"{name} {value}" for name, value in selected.items())])


def begun(answer: Answer) -> Iterator[str]:
    """What an operation covers, whom it refuses and why, when it takes effect and how to take it back."""
    count, letters, action = answer["count"], answer["dead_letters"], answer["action"]
    subject = RepairAction(action).subject if OperationAction(action).is_repair else "dead letter"
    which = f"{_many(count, subject)}" + (f": {', '.join(letters)}" if count <= NAMED_MAX else "")
    if answer.get("dry_run"):
        yield f"dry run, nothing is done: {action} would cover {which}"
    else:
        yield f"operation {answer['operation']}: {action} covers {which}"
    if refused := answer["refused"]:
        yield f"refused: {len(refused)}"
        yield from _alike(dict(line.split(": ", 1) for line in refused))
    for plan in answer.get("plans", ()):
        yield f"plan for {plan['of']}: {'; '.join([plan['does'], *plan['changes']])}"
    if answer.get("starts_at") is not None:
        yield from _effect(answer)
    if answer.get("until") is not None:
        yield f"ends by itself at {moment(answer['until'])}"
    yield from plain({name: answer[name] for name in ("released", "retry", "outcome", "settles") if name in answer})


def _effect(answer: Answer) -> Iterator[str]:
    ahead = answer["starts_at"] - SystemClock().now()
    if answer.get("dry_run"):
        yield f"would take effect {f'{ahead:.0f} s after it is said' if ahead > 0 else 'at once'}"
        return
    yield f"takes effect {f'in {ahead:.0f} s' if ahead > 0 else 'at once'}, at {moment(answer['starts_at'])}"
    yield f"to take it back, or stop the rest: automation-exporter retries cancel {answer['operation']}"
    yield f"progress: automation-exporter retries operations {answer['operation']}"


def _alike(said: Mapping[str, str]) -> Iterator[str]:
    """What is said of dead letters, each thing once."""
    kinds = alike(said)
    for one in kinds[:KINDS_MAX]:
        yield f"{one.count:6}  {one.why}  ({one.example if one.count == 1 else f'such as {one.example}'})"
    if left := sum(one.count for one in kinds[KINDS_MAX:]):
        yield f"{left:6}  others; --json has all of them"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


async def tried(outline: Outline, file: Path, key: tuple[str, str], *, say: Say, as_json: bool = False) -> int:
    """Look at one dead letter as the check right before a call does, and say what would be done; 1 if no look came off.

    The running service looks, as it has the credentials. Where none runs, the source is opened here, with the config's.
    """
    path = f"/api/v1/dead-letters/{quote(key[0], safe='')}/{quote(key[1], safe='')}/try"
    try:
        answer = await local.ask(outline.store_url, path, {})
    except local.NotThere:
        answer = await _looked(outline, file, key)
    for line in [as_text(answer)] if as_json else _tried(answer):
        say(line)
    return 0 if answer["look"] is not None else 1


async def _looked(outline: Outline, file: Path, key: tuple[str, str]) -> Answer:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        config = load(file)
        memory = await stack.enter_async_context(
            offline(outline, to_read=True, by_rules=True, clock=clock, config=config)
        )
        source = memory.control.source(key[0])
        memory.control.one(*key)  # before anybody is asked
        await stack.enter_async_context(source.opened(clock=clock, own=OwnMetrics()))
        return await try_once(memory.control, memory.book, key)


@asynccontextmanager
async def able_to_repair(memory: Memory) -> AsyncIterator[None]:
    """Connect the sources, to plan repairs here; who holds them carries them out."""
    clock, repairers = SystemClock(), dict[str, Repairer]()
    async with AsyncExitStack() as stack:
        for name, source in memory.sources.items():
            await stack.enter_async_context(source.opened(clock=clock, own=OwnMetrics()))
            if source.platform.repairing is not None:
                repairers[name] = Repairer(
                    source, memory.ledger, clock, book=memory.book, decider=memory.deciders[name]
                )
        memory.connect(repairers, clock)
        yield


def _tried(answer: Answer) -> Iterator[str]:
    yield from explanation(answer)
    if answer["look"] is None:
        yield f"{answer['platform']}: {answer['look_forbids']}"
    else:
        says = answer["look_forbids"] or "a retry may be sent"
        yield f"{answer['platform']}, asked at {moment(answer['look']['at'])}: {answer['look']['standing']}; {says}"
    verdict = "would be sent now" if answer["would_send"] else f"would not be sent now: {answer['why_not']}"
    yield f"a retry {verdict}; none was"


def explanation(facts: Mapping[str, Any]) -> Iterator[str]:
    """One dead letter, what each policy says of it, every check, the decision and when it may change."""
    decision = facts["decision"]
    kind = f" {facts['error_type']}" if facts["error_type"] else ""
    key, error_class = f"{facts['source']}/{facts['id']}", facts["error_class"] or "error not known"
    yield f"{key}  {facts['workflow']}  {error_class}{kind}  group {facts['group']}"
    owner = f"policy {decision['policy']}" if decision["policy"] else "no policy"
    when = f", next at {moment(decision['next_at'])}" if decision["next_at"] is not None else ""
    yield (
        f"  {decision['decision']}: {decision['reason']} ({owner}, mode {decision['mode']}{when})  {decision['detail']}"
    )
    for policy in facts["policies"]:
        yield f"    policy {policy['policy']}: {policy['matches']}, {policy['action']}"
    for rung in facts["ladder"]:
        yield f"    {_rung(rung)}"


def _rung(rung: Mapping[str, Any]) -> str:
    when = f", until {moment(rung['next_at'])}" if rung["refuses"] and rung["next_at"] is not None else ""
    detail = f": {rung['detail']}" if rung["detail"] else ""
    return f"{'refuses' if rung['refuses'] else 'passes '}  {rung['reason']}{detail}{when}"
