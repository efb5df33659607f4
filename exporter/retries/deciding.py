"""Deciding about all open dead letters of a source, again and again, at the cost of what has changed.

What is decided of one is remembered with everything the decision was made from. As long as all of that is the very same
and no time that matters has come, it stands. Whose turn it is among those that may be retried is decided anew once the
rails or one of them changed.
"""

import asyncio
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from exporter.model import DeadLetter, Workflow
from exporter.model.decision import Ladder, changes_at, climb
from exporter.model.rails import FREE, Gate, GateState, Passenger, Rails, gate_states
from exporter.model.retries import Action, Decision, Mode, Override, Retry, Verb
from exporter.model.subject import Refused, Subject, neighbours, reaches
from exporter.model.turns import Candidate, GroupKey, in_turn, precedence, take_turns
from exporter.retries.book import RetryBook
from exporter.source import Source

#: Dead letters looked through, and decided about, before others get a chance to run.
CHECKED_AT_ONCE, DECIDED_AT_ONCE = 2000, 25


@dataclass(slots=True, kw_only=True)
class _Standing:
    """What is decided of one dead letter, and what from: as long as that is the same, so is this."""

    letter: DeadLetter
    workflow: Workflow | None
    root: str
    history: Sequence[Retry]
    overrides: Sequence[Override]
    shared: Sequence[Override]
    neighbour: Retry | None
    ahead: str | None
    refused: Refused | None
    approved: frozenset[tuple[str, str]]
    subject: Subject
    ladder: Ladder  # as if the rails were free
    until: float
    candidate: Candidate | None
    decision: Decision
    shown: Ladder | None = None  # the ladder with that decision, once somebody has asked


@dataclass(slots=True, kw_only=True)
class Turn:
    """What a pass over all open dead letters came to."""

    due: list[str] = field(default_factory=list)  # ids of those whose turn it is, in order
    changed: dict[str, Decision] = field(default_factory=dict)  # what is decided otherwise than before
    gone: list[str] = field(default_factory=list)  # no longer open


class Decider:
    """Decides about one source's open dead letters."""

    def __init__(self, book: RetryBook, source: Source) -> None:
        self._book = book
        self._source = source
        #: Rises whenever something is decided otherwise, or from something else.
        self.revision = 0
        self._standing: dict[str, _Standing] = {}
        self._queues: dict[GroupKey, list[Candidate]] = {}
        self._shadows: dict[GroupKey, list[Candidate]] = {}  # of these everything is done but the call
        self._unsorted = False
        self._rails: Rails | None = None
        self._turns_until = 0.0
        self._now = 0.0
        self._due: list[str] = []
        self._groups: dict[GroupKey, Counter[str]] = {}  # those that may be retried, by workflow
        self._gates: Counter[tuple[str, GateState]] | None = None  # how the gates of these stand …
        self._gates_of: tuple[Mapping[GroupKey, Gate], Mapping[str, float]] = {}, {}  # … made from this
        self._gates_until = 0.0

    # One

    def subject(self, letter: DeadLetter, now: float) -> Subject:
        """An open dead letter and all that deciding about it depends on."""
        book, name, known = self._book, self._source.name, self._source.known
        workflow = known.workflows.get(letter.workflow_id)
        root = book.root_of(name, letter)
        return self._subject(
            letter,
            workflow,
            root,
            history=book.history(name, root),
            overrides=(*book.overrides.shared(name), *book.overrides.of_root(name, root)),
            neighbour=self._neighbours().get(letter.workflow_id),
            ahead=self._head(workflow, letter),
            refused=book.refused(name, letter.id),
            rails=book.rails(name, now),
        )

    def ladder(self, letter: DeadLetter, now: float) -> tuple[Subject, Ladder]:
        """What is to be said of one now; if others are before it, that."""
        subject = self.subject(letter, now)
        ladder = climb(subject, self._book.rules, now)
        standing = self._standing.get(letter.id)
        if ladder.decision.verb is Verb.RETRY and standing is not None and standing.decision.verb is Verb.WAIT:
            waits = standing.candidate is not None and not ladder.manual
            ladder = replace(ladder, decision=standing.decision) if waits else ladder
        return subject, ladder

    def _subject(
        self,
        letter: DeadLetter,
        workflow: Workflow | None,
        root: str,
        *,
        history: Sequence[Retry],
        overrides: Iterable[Override],
        neighbour: Retry | None,
        ahead: str | None,
        refused: Refused | None,
        rails: Rails,
    ) -> Subject:
        source, decided = self._source, self._book.decided(self._source.name, letter.id)
        retrying = source.platform.retrying
        return Subject(
            source=source.name,
            platform=source.platform.name,
            letter=letter,
            root=root,
            traits=None if retrying is None else retrying.traits,
            workflow=workflow,
            labels=source.labels.of(letter.workflow_id, None if workflow is None else workflow.name),
            history=history,
            overrides=[o for o in overrides if reaches(o, source=source.name, workflow=letter.workflow_id, root=root)],
            ahead=ahead,
            neighbour=None if neighbour is None or neighbour.root == root else neighbour,
            refused=refused,
            waited=0.0 if decided is None else decided.waited,
            waits_since=None if decided is None else decided.waits_since,
            rails=rails,
        )

    def _neighbours(self) -> dict[str, Retry]:
        retrying, known = self._source.platform.retrying, self._source.known
        ordered = [key for key, workflow in known.workflows.items() if workflow.ordered]
        serial = retrying is None or retrying.traits.serial
        return neighbours(self._book.open_of(self._source.name), serial=serial, ordered=ordered)

    def _head(self, workflow: Workflow | None, letter: DeadLetter) -> str | None:
        """The dead letter that comes before it in its ordered workflow."""
        if workflow is None or not workflow.ordered or letter.reruns:
            return None
        first = self._first(workflow.id)
        return None if first == letter.id else first

    def _first(self, workflow_id: str) -> str | None:
        """The dead letter that comes first in a workflow: what only a rerun can save stops nothing."""
        letters = [one for one in self._source.known.dead_letters_of(workflow_id) if not one.reruns]
        return min(letters, key=lambda one: (one.opened_at, one.id)).id if letters else None

    # All

    async def turn(self, now: float) -> Turn:
        """Decide about every open dead letter of the source, and whose turn it is; others run in between."""
        steps = self._steps(now)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                turn: Turn = end.value
                return turn
            await asyncio.sleep(0)

    def turn_at_once(self, now: float) -> Turn:
        """The same, while nobody else runs."""
        steps = self._steps(now)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                turn: Turn = end.value
                return turn

    def _steps(self, now: float) -> Generator[None, None, Turn]:
        turn, letters = Turn(), self._source.known.dead_letters
        if now < self._now:  # our clock was put back: no time noted so far means anything
            self._turns_until = 0.0
            self._gates = None
            for standing in self._standing.values():
                standing.until = 0.0
        self._now = now
        for letter_id in [letter_id for letter_id in self._standing if letter_id not in letters]:
            self._forget(letter_id)
            turn.gone.append(letter_id)
        yield from self._look_through(turn, now)
        rails = self._book.rails(self._source.name, now)
        if rails is not self._rails or self._unsorted or now >= self._turns_until:
            self._rails, self._unsorted = rails, False
            self._due, waits = take_turns(self._queues, rails, now=now)
            self._turns_until = _turns_until(rails, now)
            yield from self._tell(waits, turn)
        turn.due = [*in_turn(self._shadows), *self._due]
        return turn

    def _look_through(self, turn: Turn, now: float) -> Generator[None, None, None]:
        book, name, known = self._book, self._source.name, self._source.known
        shared, by_workflow = book.overrides.shared(name), self._neighbours()
        approved = book.approved_groups(name, now)
        heads = self._heads()
        decided = 0
        for number, letter in enumerate(list(known.dead_letters.values()), start=1):
            workflow = known.workflows.get(letter.workflow_id)
            root = book.root_of(name, letter)
            history, overrides = book.history(name, root), book.overrides.of_root(name, root)
            neighbour, refused = by_workflow.get(letter.workflow_id), book.refused(name, letter.id)
            head = heads.get(letter.workflow_id)
            ahead = None if head is None or head == letter.id or letter.reruns else head
            had = self._standing.get(letter.id)
            if (
                had is not None
                and had.letter is letter
                and (had.workflow is workflow or had.workflow == workflow)
                and had.root == root
                and had.history is history
                and had.overrides is overrides
                and had.shared is shared
                and had.neighbour is neighbour
                and had.ahead == ahead
                and had.refused is refused
                and had.approved is approved
                and now < had.until
            ):
                if number % CHECKED_AT_ONCE == 0:
                    yield
                continue
            subject = self._subject(
                letter,
                workflow,
                root,
                history=history,
                overrides=(*shared, *overrides),
                neighbour=neighbour,
                ahead=ahead,
                refused=refused,
                rails=FREE if not approved else replace(FREE, approved_groups=approved),
            )
            ladder = climb(subject, book.rules, now)
            candidate = _candidate(subject, ladder)
            decision = ladder.decision
            if had is not None and candidate is not None and had.candidate is not None:
                # Until turns are given out again, it waits as it did.
                decision = had.decision if candidate.key == had.candidate.key else decision
            self._place(letter.id, None if had is None else had.candidate, candidate)
            self._regroup(None if had is None else (had.ladder, had.letter), (ladder, letter))
            self.revision += 1
            self._standing[letter.id] = _Standing(
                letter=letter,
                workflow=workflow,
                root=root,
                history=history,
                overrides=overrides,
                shared=shared,
                neighbour=neighbour,
                ahead=ahead,
                refused=refused,
                approved=approved,
                subject=subject,
                ladder=ladder,
                until=changes_at(subject, ladder, book.rules, now),
                candidate=candidate,
                decision=decision,
            )
            if had is None or decision != had.decision:
                turn.changed[letter.id] = decision
            decided += 1
            if decided % DECIDED_AT_ONCE == 0:
                yield

    def _heads(self) -> dict[str, str]:
        """The first dead letter of each ordered workflow."""
        known = self._source.known
        ordered = [workflow.id for workflow in known.workflows.values() if workflow.ordered]
        return {workflow_id: first for workflow_id in ordered if (first := self._first(workflow_id)) is not None}

    def _tell(self, waits: Mapping[GroupKey, Decision], turn: Turn) -> Generator[None, None, None]:
        """Decide of each that may be retried whether it is its turn."""
        due = set(self._due)
        number = 0
        for key, queue in self._queues.items():
            waiting = waits.get(key)
            for candidate in queue:
                number += 1
                if number % CHECKED_AT_ONCE == 0:
                    yield
                standing = self._standing.get(candidate.id)
                if standing is None:
                    continue
                decision = standing.ladder.decision if candidate.id in due or waiting is None else waiting
                if decision is not standing.decision:
                    if decision != standing.decision:
                        turn.changed[candidate.id] = decision
                    standing.decision = decision
                    self.revision += 1

    def _place(self, letter_id: str, before: Candidate | None, after: Candidate | None) -> None:
        """Keep the queues of those that may be retried, each in the order of its turns."""
        if before == after:
            return
        self._unsorted = True
        if before is not None:
            queues = self._shadows if before.mode is Mode.SHADOW else self._queues
            queue = queues[before.key]
            del queue[bisect_left(queue, precedence(before), key=precedence)]
            if not queue:
                del queues[before.key]
        if after is not None:
            queues = self._shadows if after.mode is Mode.SHADOW else self._queues
            insort(queues.setdefault(after.key, []), after, key=precedence)

    def _forget(self, letter_id: str) -> None:
        self.revision += 1
        had = self._standing.pop(letter_id)
        self._place(letter_id, had.candidate, None)
        self._regroup((had.ladder, had.letter), None)

    def _regroup(self, before: tuple[Ladder, DeadLetter] | None, after: tuple[Ladder, DeadLetter] | None) -> None:
        """Keep count of the groups that have a gate to pass."""
        left, joined = (
            None if one is None or (key := _gated(one[0])) is None else (key, one[1].workflow_id)
            for one in (before, after)
        )
        if left == joined:
            return
        self._gates = None
        if left is not None:
            workflows = self._groups[left[0]]
            workflows[left[1]] -= 1
            if not workflows[left[1]]:
                del workflows[left[1]]
            if not workflows:
                del self._groups[left[0]]
        if joined is not None:
            self._groups.setdefault(joined[0], Counter())[joined[1]] += 1

    def gates(self, now: float) -> Mapping[tuple[str, GateState], int]:
        """How many groups' gates stand how, by policy: of groups in which something may still be retried."""
        rails = self._book.rails(self._source.name, now)
        made_from = rails.gates, rails.well
        if self._gates is None or made_from != self._gates_of or now >= self._gates_until:
            owners = {policy.name: policy for policy in self._book.rules.policies if policy.action is Action.RETRY}
            self._gates, self._gates_of = gate_states(self._groups, owners, rails, now), made_from
            self._gates_until = min((gate.changes_at(now) for gate in rails.gates.values()), default=float("inf"))
        return self._gates

    @property
    def stands(self) -> bool:
        """Whether every open dead letter has been decided about."""
        return self._source.known.dead_letters.keys() <= self._standing.keys()

    def undetermined(self) -> Iterable[tuple[Subject, Ladder]]:
        """Those of which nobody can say yet which policy owns them."""
        return [(one.subject, one.ladder) for one in self._standing.values() if one.ladder.missing]

    def standing(self) -> Iterable[tuple[Subject, Ladder]]:
        """Every open dead letter as it was last decided about."""
        for one in self._standing.values():
            if one.shown is None or one.shown.decision is not one.decision:
                same = one.decision is one.ladder.decision
                one.shown = one.ladder if same else replace(one.ladder, decision=one.decision)
            yield one.subject, one.shown


def _gated(ladder: Ladder) -> GroupKey | None:
    """The gate in front of a dead letter, if it may still be retried."""
    owner, verb = ladder.owner, ladder.decision.verb
    gated = owner is not None and owner.action is Action.RETRY and verb in (Verb.RETRY, Verb.WAIT)
    return (owner.name, ladder.group) if owner is not None and gated else None


def _candidate(subject: Subject, ladder: Ladder) -> Candidate | None:
    """What waits for its turn: whatever nothing of its own holds back, and is going to be sent."""
    owner, decision = ladder.owner, ladder.decision
    if owner is None or decision.verb is not Verb.RETRY:
        return None
    return Candidate(
        id=subject.letter.id,
        passenger=Passenger(
            owner=owner,
            group=ladder.group,
            workflow_id=subject.letter.workflow_id,
            at_once=ladder.manual,
            unbudgeted=ladder.approval is not None,
        ),
        mode=decision.mode,
        calls=sum(1 for retry in subject.history if retry.shadow is (decision.mode is Mode.SHADOW)),
        opened_at=subject.letter.opened_at,
    )


def _turns_until(rails: Rails, now: float) -> float:
    """When turns may come that did not now though nothing changed but time."""
    marks = [rails.pace_at, rails.token_at or 0.0]
    marks += [setback.until for setback in rails.setbacks.values()]
    marks += [gate.cool_until for gate in rails.gates.values() if gate.is_shut]
    return min((mark for mark in marks if mark > now), default=float("inf"))
