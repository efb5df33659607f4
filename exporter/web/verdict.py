"""What the status page is made of, and its verdict: what a person has to know, in one sentence."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.model import words
from exporter.web.markup import told, ways
from exporter.web.status import Trouble

#: Sources named in the sentence.
NAMED_MAX = 4
#: How much of a reason it says (characters).
REASON_CHARS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the page is made of, in plain values as ``exporter.web.status`` says them.

    A source is a row of ``status["sources"]`` and nothing else: it need not be one that this process reads itself.
    """

    status: Mapping[str, Any]
    store_error: str | None
    trouble: Sequence[Trouble]  # all of them, the worst first
    can_repair: Mapping[tuple[str, str], Sequence[str]]  # what a person can do to a workflow or its run: of those shown
    groups: Sequence[Mapping[str, Any]]  # the largest
    groups_of: Mapping[str, int]  # how many there are, by source
    approvals: Mapping[str, int]  # dead letters that wait for approval, by policy
    needy: Mapping[str, Sequence[tuple[str, str, int]]]  # group, workflow, count: by why they need a person
    unsettled: Sequence[Mapping[str, Any]]  # retries whose outcome a person has to say
    operations: Sequence[Mapping[str, Any]]
    mode: str  # how far retrying may go
    policies: int
    paused: Mapping[str, str]  # sources, each with by whom and until when
    retries: Sequence[Mapping[str, Any]]  # recent ones, the newest first
    rails: Sequence[Mapping[str, Any]]

    @property
    def sources(self) -> Sequence[Mapping[str, Any]]:
        rows: Sequence[Mapping[str, Any]] = self.status["sources"]
        return rows

    @property
    def is_complete(self) -> bool:
        """Whether everything was read at least once: before, what is not seen may be there all the same."""
        return all(stream["success_at"] is not None for source in self.sources for stream in source["streams"])

    @property
    def waiting(self) -> int:
        """How many dead letters wait for a person."""
        needy = sum(number for found in self.needy.values() for _, _, number in found)
        return sum(self.approvals.values()) + needy + len(self.unsettled)


#: How bad something is, and the class of the style by which that is seen.
_GRADES = ("good", "wait", "bad")


def verdict(seen: Seen) -> str:
    """What a person has to know, as HTML."""
    grade, parts, fine = 0, list[str](), 0
    others: dict[str, Counter[str]] = {}
    for one in seen.trouble:
        if not one.failing:
            others.setdefault(one.source, Counter())[one.problems[0].kind] += 1
    for source in seen.sources:
        name = source["source"]
        found = _problems(source, seen.groups_of.get(name, 0), others.get(name, Counter()), seen.status["now"])
        if found:
            parts.append(f"<b>{told(name)}</b>: {', '.join(said for said, _ in found)}")
            grade = max(grade, *(worse for _, worse in found))
        else:
            fine += 1
    if len(parts) > NAMED_MAX:
        parts[NAMED_MAX:] = [f"{words.count(len(parts) - NAMED_MAX, 'more source')} not fine"]
    if seen.store_error is not None:
        runbook = ways("", alert="AutomationStoreDown")
        reason = told(seen.store_error, most=REASON_CHARS)
        parts.insert(0, f"<b>the database cannot be written</b>: {reason} {runbook}")
        grade = 2
    if fine:
        parts.insert(0, f"{words.count(fine, 'source')} fine")
    said = "".join(f'<span class="part">{part};</span> ' for part in parts or ["no source is configured"])
    return f'<p class="verdict {_GRADES[grade]}">{said}<span class="part">{_yours(seen)}</span></p>'


def _yours(seen: Seen) -> str:
    if seen.waiting:
        verb = "waits" if seen.waiting == 1 else "wait"
        return f"<b>{words.count(seen.waiting, 'dead letter')} {verb} for you.</b>"
    return "nothing waits for you." if seen.is_complete else "nothing is known yet that waits for you."


def _problems(source: Mapping[str, Any], groups: int, others: Counter[str], now: float) -> list[tuple[str, int]]:
    """What is the matter with a source, each with how bad it is."""
    found = _reading(source["streams"], now)
    failing, letters = source["failing_workflows"], source["dead_letters"]
    if failing:
        found.append((f"{words.count(failing, 'workflow')} failing", 2))
    for number, (kind, count) in enumerate(others.items()):
        found.append((f"{f'{count:,}' if number or failing else words.count(count, 'workflow')} {kind}", 2))
    if letters:
        found.append(
            (words.count(letters, "dead letter") + (f" in {words.count(groups, 'group')}" if groups else ""), 1)
        )
    return found


def _reading(streams: Sequence[Mapping[str, Any]], now: float) -> list[tuple[str, int]]:
    """What cannot be read of a source, or was not read yet."""
    broken = [stream for stream in streams if stream["error"]]
    if broken:
        first, is_all = broken[0], len(broken) == len(streams)
        what = "" if is_all else first["stream"].replace("_", " ")
        cause = told(first["error"], most=REASON_CHARS)
        alert = "AutomationSourceDown" if is_all else "AutomationDataIncomplete"
        runbook = ways("", alert="AutomationCredentialFailing" if first["error_kind"] == "auth" else alert)
        if first["fresh"]:
            return [(f"the last reading{what and f' of {what}'} failed ({cause}) {runbook}", 1)]
        return [(f"{what and f'{what} '}cannot be read ({cause}) {runbook}", 2)]
    if any(stream["success_at"] is None for stream in streams):
        is_new = all(stream["success_at"] is None for stream in streams)
        return [("not read yet" if is_new else "not read completely yet", 1)]
    late = next((stream for stream in streams if not stream["fresh"]), None)
    if late is None:
        return []
    what, unread = late["stream"].replace("_", " "), late["unread"]["total"]
    runbook = ways("", alert="AutomationReadingIncomplete" if unread else "AutomationDataIncomplete")
    said = f"{what} last read {words.ago(late['success_at'], now)}"
    if unread:
        said = f"{what} of {words.count(unread, 'workflow')} cannot be read"
    return [(f"{said} {runbook}", 2)]
