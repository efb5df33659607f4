"""``policies``: what is decided of the open dead letters, and why; whether a file decides as it should."""

import argparse
import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from exporter.cli import audit
from exporter.cli.ledger import Say, as_text, dead_letter, moment, offline
from exporter.cli.operations import explanation
from exporter.clock import SystemClock
from exporter.config import ConfigError
from exporter.config.outline import Outline, outline
from exporter.model.groups import group_id, readable
from exporter.retries.control import Found, ladder_facts, workflow_name


def explain(options: argparse.Namespace) -> int:
    keys = [dead_letter(text) for text in options.ids]
    read = outline(options.config)
    return asyncio.run(explained(read, keys, say=print, everything=options.all, as_json=options.json))


def test(options: argparse.Namespace) -> int:
    from exporter.config.cases import judge, parse_cases

    read, file = outline(options.config), options.file
    rules, labels = read.rules(), read.labels()
    try:
        cases = parse_cases(file.read_text(encoding="utf-8"))
        verdicts = judge(cases, rules, platforms=read.platforms, labels=labels, now=SystemClock().now())
    except ConfigError as exc:
        raise ConfigError(exc.problems, file=file) from None
    except OSError as exc:
        raise ConfigError([exc.strerror or "cannot be read"], file=file) from None
    except UnicodeDecodeError:
        raise ConfigError(["not UTF-8 text: save it as UTF-8"], file=file) from None
    failed = [one for one in verdicts if one.differences]
    for one in failed:
        print(f"{file}: {one.place}: {one.name}")
        for line in one.differences:
            print(f"    {line}")
        print(f"    because: {one.decision.reason}: {one.decision.detail}")
    told = f"{len(failed)} of {len(verdicts)} cases failed" if failed else f"{len(verdicts)} cases, all as expected"
    print(f"{file}: {told}")
    named = {one.expect.policy for one in cases.cases}
    if idle := [policy.name for policy in rules.policies if policy.name not in named]:
        print(f"{file}: no case expects {', '.join(idle)}")
    return 1 if failed else 0


def backtest(options: argparse.Namespace) -> int:
    from exporter.cli import backtest

    now = SystemClock().now()
    since = audit.since(options.since, now)
    return asyncio.run(backtest.backtested(outline(options.config), since, now, say=print, as_json=options.json))


async def explained(
    outline: Outline, keys: Sequence[tuple[str, str]], *, say: Say, everything: bool = False, as_json: bool = False
) -> int:
    """First how many dead letters are decided how. Then of these ``keys``, or of ``everything``: what each policy says
    of it, every check, the decision and when it may change.

    Raises ``ControlError`` if one of the keys is no open dead letter.
    """
    clock = SystemClock()
    async with offline(outline, to_read=True, by_rules=True, clock=clock) as opened:
        now, found, rules = clock.now(), opened.control.everything(), opened.book.rules
        wanted = found if everything else _named(found, [opened.control.one(*key).key for key in keys])
        paused = [source for source in outline.platforms if opened.book.overrides.is_paused(source, now)]
    if as_json:
        head = {"dead_letters": len(found), "policies": len(rules.policies), "mode": rules.mode.value, "paused": paused}
        say(
            as_text({**head, "summary": summary(found), "explained": [ladder_facts(one, rules, now) for one in wanted]})
        )
        return 0
    note = f"; paused: {', '.join(paused)}" if paused else ""
    say(f"{len(found)} open dead letters, {len(rules.policies)} policies, mode {rules.mode}{note}")
    for line in summary(found):
        say(_summed(line))
    for one in wanted:
        say("")
        for text in explanation(ladder_facts(one, rules, now)):
            say(text)
    if found and not wanted:
        say("")
        say("every check of one: policies explain SOURCE/ID; of all: policies explain --all")
    return 0


def _named(found: Iterable[Found], keys: Iterable[str]) -> list[Found]:
    by_key = {one.key: one for one in found}
    return [by_key[key] for key in dict.fromkeys(keys)]


def summary(found: Iterable[Found]) -> list[dict[str, Any]]:
    """How many dead letters of which group are decided how, the many first of each decision."""
    parts: dict[tuple[str, ...], list[Found]] = {}
    for one in found:
        decision, subject = one.ladder.decision, one.subject
        label = (decision.verb.value, decision.reason.value, decision.policy)
        parts.setdefault((*label, group_id(subject.source, subject.letter)), []).append(one)
    ordered = sorted(parts.items(), key=lambda part: (part[0][:2], -len(part[1]), part[1][0].key))
    return [
        {
            "decision": verb,
            "reason": reason,
            "policy": policy,
            "group": group,
            "source": members[0].subject.source,
            "workflow_id": members[0].subject.letter.workflow_id,
            "workflow": workflow_name(members[0].subject),
            "error_class": _error_class(members[0]),
            "error": readable(members[0].subject.letter.error),
            "dead_letters": len(members),
            "awaits_approval": sum(one.ladder.decision.awaits_approval for one in members),
            "oldest_at": min(one.subject.letter.opened_at for one in members),
            "newest_at": max(one.subject.letter.opened_at for one in members),
            "next_at": min((at for one in members if (at := one.ladder.decision.next_at) is not None), default=None),
            "example": members[0].key,
        }
        for (verb, reason, policy, group), members in ordered
    ]


def _summed(line: dict[str, Any]) -> str:
    owner = f"policy {line['policy']}" if line["policy"] else "no policy"
    waits = ", waits for approval" if line["awaits_approval"] else ""
    when = f", next at {moment(line['next_at'])}" if line["next_at"] is not None else ""
    return (
        f"{line['dead_letters']:6}  {line['decision']}: {line['reason']} ({owner}{waits}{when})  "
        f"group {line['group']}  {line['source']}/{line['workflow_id']}  {line['workflow']}  {line['error_class']}  "
        f"since {moment(line['oldest_at'])}  {line['error']}"
    )


def _error_class(one: Found) -> str:
    error = one.subject.letter.error
    return "error not known" if error is None else error.error_class.value
