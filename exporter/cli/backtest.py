"""``policies backtest``: a policy file over the recorded history."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from exporter.cli.ledger import Say, as_text, moment
from exporter.config.outline import Outline, known
from exporter.model import Workflow
from exporter.model.backtest import Account, Worth, account, worth
from exporter.model.durations import duration_text
from exporter.model.ledger import Key
from exporter.model.subject import Subject
from exporter.store import history as script
from exporter.store.history import History
from exporter.store.ledger import Ledger, open_engine

#: Of an error's text, on one line.
MESSAGE_CHARS_MAX = 80


async def backtested(outline: Outline, since: float, now: float, *, say: Say, as_json: bool = False) -> int:
    """What the policies of a file would have done from a moment on, and what retries were good for."""
    rules, labels = outline.rules(), outline.labels()
    ledger = Ledger(await open_engine(outline.store_url, password=outline.store.password_now, to_read=True), {})
    try:
        loaded = await ledger.load()
        history = await ledger.transact("history", script.history(since))
    finally:
        await ledger.close()
    workflows = {key: entry.workflow for key, entry in loaded.workflows.items()}
    subjects = list(_subjects(outline, history, workflows, labels))
    accounts = account(subjects, rules, history.retries, now=now)
    texts = {
        (source, letter.id): None if letter.error is None else letter.error.message
        for source, letter in history.dead_letters
    }
    worths = worth(history.retries, texts)
    made = len(history.dead_letters) - len(subjects)
    if as_json:
        head = {"since": since, "dead_letters": len(subjects), "left_out": made}
        say(as_text({**head, "policies": [asdict(one) for one in accounts], "errors": [asdict(one) for one in worths]}))
        return 0
    since = max(since, min((letter.opened_at for _, letter in history.dead_letters), default=since))
    policies = "1 policy" if len(rules.policies) == 1 else f"{len(rules.policies)} policies"
    say(f"{_letters(len(subjects))} since {moment(since)}, {policies}")
    if made:
        say(f"left out: {made} that retries made, or whose source is not in the config")
    say("as in shadow: backoff, hours and ages count; pace, gates, budgets, storms and people do not")
    for one in accounts:
        if one.policy or one.owned:
            say("")
            _say_account(one, say)
    if worths:
        say("")
        say("how often retries worked:")
    for kind in worths:
        say(_line(kind))
    return 0


def _subjects(
    outline: Outline, history: History, workflows: Mapping[Key, Workflow], labels: Mapping[str, Any]
) -> Iterator[Subject]:
    """The dead letters that no retry made, of sources whose platform is known."""
    platforms = known(outline.platforms)
    for source, letter in history.dead_letters:
        platform = platforms.get(source)
        if platform is None or (letter.run_id is not None and (source, letter.run_id) in history.made):
            continue
        workflow = workflows.get((source, letter.workflow_id))
        yield Subject(
            source=source,
            platform=platform.name,
            letter=letter,
            root=letter.id,
            traits=None if platform.retrying is None else platform.retrying.traits,
            workflow=workflow,
            labels=labels[source].of(letter.workflow_id, None if workflow is None else workflow.name),
        )


def _say_account(one: Account, say: Say) -> None:
    if not one.policy:
        say(f"no policy: {_letters(one.owned)}")
        return
    say(f"{one.policy} ({one.action}): {_letters(one.owned)}")
    if one.action != "retry" or not one.owned:
        return
    say(f"    would have retried {one.retried}, with at most {one.calls} calls")
    if one.ends:
        ends = ", ".join(f"{number} {end}" for end, number in sorted(one.ends.items(), key=lambda end: -end[1]))
        say(f"    what became of these: {ends}")
    if one.in_time:
        say(f"    resolved before the first retry was due: {one.in_time}")


def _letters(number: int) -> str:
    return f"{number} dead letter{'s' * (number != 1)}"


def _line(one: Worth) -> str:
    after = "" if one.seconds is None else f", after a median of {duration_text(round(one.seconds))}"
    again = f"; {one.recurred} failed again soon" if one.recurred else ""
    text = "" if one.message is None else f"  {' '.join(one.message.split())[:MESSAGE_CHARS_MAX]}"
    return (
        f"    {one.source}  {one.error_class}  {one.fingerprint[:8]}: {one.succeeded} of {one.retries} retries "
        f"succeeded{after}{again}{text}"
    )
