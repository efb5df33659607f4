"""What the rails go by, in memory: gates, setbacks, budgets, storms. Follows the commits, never ahead of them."""

from bisect import insort
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from exporter.model import FAILED, SUCCEEDED, Change, Result, RunFinished
from exporter.model.ledger import Committed, Key
from exporter.model.policy import Rules
from exporter.model.rails import Gate, Purse, Rails, Setback, slowed, storm, unverified
from exporter.model.retries import Retry
from exporter.retries.protocol import SKEW
from exporter.source import Source
from exporter.store.rails import KeptState


class RailsBook:
    """How the rails of each source stand."""

    def __init__(self, sources: Mapping[str, Source], rules: Rules) -> None:
        self._sources = sources
        self._rules = rules
        self._gates: dict[str, dict[tuple[str, str], Gate]] = {source: {} for source in sources}
        self._setbacks: dict[str, dict[str, Setback]] = {source: {} for source in sources}
        self._purses: dict[str, Purse] = {}
        self._full_at: dict[str, float] = {}
        self._earned: dict[str, int] = {}  # successful runs that the budget of a source does not hold yet
        self._ended: dict[str, deque[tuple[float, bool]]] = {}  # runs that ended lately: when, and whether they failed
        self._made: dict[str, Rails] = {}

    def load(self, found: KeptState, full_at: Mapping[str, float]) -> None:
        """Start from what the ledger remembers."""
        self._keep(found.gates, found.setbacks)
        self._purses |= found.purses
        self._full_at |= full_at

    def take_over(self, source: str) -> None:
        """Another process has earned for a source so far, and stored it."""
        self._earned.pop(source, None)

    def note_ends(self, source: str, ends: Iterable[tuple[float, str]]) -> None:
        """The runs of a source that ended lately, in order: when, on its platform's clock, and how."""
        ahead = self._sources[source].ahead
        self._ended[source] = deque((at + ahead, result in FAILED) for at, result in ends)

    # What is asked of it

    def of(self, source: str, now: float, *, opened: Collection[Retry], approved: frozenset[tuple[str, str]]) -> Rails:
        """How the rails of a source stand, with these retries open; the very same object while nothing has changed."""
        found = self._made.get(source)
        made = self._make(source, now, opened, approved)
        if found != made:
            self._made[source] = found = made
        return found

    def _make(self, source: str, now: float, opened: Collection[Retry], approved: frozenset[tuple[str, str]]) -> Rails:
        rules, setbacks, gates = self._rules.source(source), self._setbacks[source], self._gates[source]
        pace = slowed(rules.pace, setbacks.get(""), now)
        full_at = pace.full(self._full_at.get(source, 0.0), now)
        purse = self._purses.get(source)
        tokens = token_at = None
        if rules.budget is not None and purse is not None:
            earned = self._earned.get(source, 0)
            tokens, token_at = purse.now(rules.budget, now, earned=earned), None
            if tokens < 1.0:
                token_at = purse.next_at(rules.budget, now, earned=earned)
            # Whole tokens, and whole seconds: what differs less changes nothing.
            tokens, token_at = float(int(tokens)), None if token_at is None else float(round(token_at))
        return Rails(
            pace=pace,
            pace_at=pace.next_at(full_at) if full_at > now else 0.0,
            in_flight=sum(1 for retry in opened if retry.in_flight),
            setbacks={key: one for key, one in setbacks.items() if one.holds_until(now) > now},
            storm=self.storm(source, now),
            tokens=tokens,
            token_at=token_at,
            gates=dict(gates),
            unverified=unverified(opened),
            approved_groups=approved,
            well=self._ended_last(source, SUCCEEDED),
            ill=self._ended_last(source, FAILED),
        )

    def storm(self, source: str, now: float) -> str:
        """Why too much of a source fails to retry anything; "" where that is not so."""
        rules, ended = self._rules.source(source).storm, self._ended.get(source)
        if rules is None or ended is None:
            return ""
        while ended and ended[0][0] < now - rules.within:
            ended.popleft()
        return storm(len(ended), sum(failed for _, failed in ended), rules)

    def _ended_last(self, source: str, results: frozenset[Result]) -> dict[str, float]:
        """When runs of the workflows with dead letters last ended so; "" is the source as a whole.

        Only where a gate is shut, and no later than just after the last was: what was when after that changes nothing.
        """
        shut = [gate.tripped_at for gate in self._gates[source].values() if gate.tripped_at is not None]
        if not shut:
            return {}
        one, latest = self._sources[source], max(shut) + 1.0
        ends = {workflow_id: one.last_ended(workflow_id, results) for workflow_id in one.known.entries}
        found = {workflow_id: min(at, latest) for workflow_id, at in ends.items() if at is not None}
        with_letters = {letter.workflow_id for letter in one.known.dead_letters.values()}
        whole = {"": max(found.values())} if found else {}
        return {workflow_id: at for workflow_id, at in found.items() if workflow_id in with_letters} | whole

    def setback(self, source: str, key: str) -> Setback | None:
        """How a source (key "") or one of its workflows was set back."""
        return self._setbacks[source].get(key)

    def has_purse(self, source: str) -> bool:
        return source in self._purses

    def earned(self, source: str) -> int:
        """Successful runs of a source that its budget does not hold yet."""
        return self._earned.get(source, 0)

    # What a clock that was ahead has noted, as it was meant to be; None or nothing where it is right

    def redated_pace(self, source: str, now: float) -> float | None:
        noted = self._full_at.get(source, 0.0)
        full_at = slowed(self._rules.source(source).pace, self.setback(source, ""), now).full(noted, now)
        return full_at if full_at < noted else None

    def redated_gates(self, source: str, now: float) -> dict[tuple[str, str], Gate]:
        return {key: right for key, gate in self._gates[source].items() if (right := gate.redated(now)) != gate}

    def redated_purse(self, source: str, now: float) -> Purse | None:
        purse = self._purses.get(source)
        return replace(purse, at=now) if purse is not None and purse.at > now + SKEW else None

    # How it is kept

    def apply(self, committed: Committed) -> None:
        """Follow one commit."""
        self._keep(committed.gates, committed.setbacks)
        self._full_at |= committed.full_at
        for source, purse in committed.purses.items():
            before = self._purses.get(source)
            if before is None or purse.at > before.at:  # it holds by now what was earned
                self._earned[source] = 0
            self._purses[source] = purse

    def note_runs(self, source: str, changes: Sequence[Change], ours: Collection[Key]) -> None:
        """What the source's own runs say of its health; ours, that retries made, say nothing of it."""
        rules = self._rules.source(source)
        if rules.storm is None and rules.budget is None:
            return
        for change in changes:
            if isinstance(change, RunFinished) and (source, change.run.id) not in ours:
                self._earned[source] = self._earned.get(source, 0) + (change.result in SUCCEEDED)
                at = change.run.finished_at
                if rules.storm is not None and at is not None:
                    ended = (at + self._sources[source].ahead, change.result in FAILED)
                    insort(self._ended.setdefault(source, deque()), ended)

    def served_before(self, before: float) -> dict[str, list[tuple[str, str]]]:
        """By source the gates that nothing has passed since."""
        return {
            source: [key for key, gate in gates.items() if gate.served_at < before]
            for source, gates in self._gates.items()
        }

    def forget(self, source: str, gates: Iterable[tuple[str, str]]) -> None:
        for key in gates:
            del self._gates[source][key]

    def _keep(self, gates: Mapping[tuple[str, str, str], Gate], setbacks: Mapping[Key, Setback]) -> None:
        for (source, policy, group), gate in gates.items():
            self._gates.setdefault(source, {})[policy, group] = gate
        for (source, key), setback in setbacks.items():
            self._setbacks.setdefault(source, {})[key] = setback
