"""What holds of repairs on every platform: nothing passes that is not granted, whatever the adapter would do."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import exporter
from exporter.model.repairs import Proof, RepairAction
from exporter.platform.repairing import Answered, Case, Effect, Offer, Plan, Repairing
from exporter.platforms import PLATFORMS
from exporter.wire.errors import ApiError

OFFERS = [
    (name, offer)
    for name, platform in PLATFORMS.items()
    if platform.repairing is not None
    for offer in platform.repairing.offers
]


class Obedient:
    """Does whatever it is told."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def plan(self, case: Case) -> Plan:
        self.done.append(f"plan {case.action}")
        return Plan(at=0.0, does="it", mark={})

    async def repair(self, cases: Sequence[Case], *, send_by: float) -> Answered:
        self.done.append(f"repair {cases[0].action}")
        return Answered(handles={})

    async def verify(self, case: Case) -> Effect:
        self.done.append(f"verify {case.action}")
        return Effect(at=0.0, proof=Proof.DONE, evidence="it is done")


def a_case(action: RepairAction) -> Case:
    return Case(action=action, workflow_id="1", id="2", mark={})


@pytest.mark.parametrize(("name", "offer"), OFFERS, ids=[f"{name}-{offer.action}" for name, offer in OFFERS])
async def test_only_what_is_granted_reaches_the_adapter(name: str, offer: Offer) -> None:
    adapter, declared = Obedient(), PLATFORMS[name].repairing
    assert declared is not None
    without = [action for action in RepairAction if action is not offer.action]
    for grant, passes in ([offer.action], True), (without, False), ([], False):
        made: Any = Repairing(offers=declared.offers, adapter=lambda config, api: adapter)
        repairs = made.connect(SimpleNamespace(grant=grant), None)
        adapter.done.clear()
        assert ((await repairs.plan(a_case(offer.action))).refusal is None) == passes
        if passes:
            await repairs.repair([a_case(offer.action)], send_by=0.0)
        else:
            with pytest.raises(ApiError) as error:
                await repairs.repair([a_case(offer.action)], send_by=0.0)
            assert not error.value.sent
        assert adapter.done == ([f"plan {offer.action}", f"repair {offer.action}"] if passes else [])
        await repairs.verify(a_case(offer.action))  # reads, and is owed to what was sent before
        assert adapter.done[-1] == f"verify {offer.action}"


@pytest.mark.parametrize(("name", "offer"), OFFERS, ids=[f"{name}-{offer.action}" for name, offer in OFFERS])
def test_each_is_offered_once_and_names_the_right_it_takes(name: str, offer: Offer) -> None:
    declared = PLATFORMS[name].repairing
    assert declared is not None
    assert declared.actions.count(offer.action) == 1
    assert offer.needs
    assert offer.bulk_max >= 1
    assert offer.repeatable == (offer.action is not RepairAction.RERUN)


def test_nobody_takes_an_adapter_past_its_grants() -> None:
    """The one place that makes an adapter wraps it; elsewhere its class is named where it is declared only."""
    folder = Path(exporter.__file__).parent
    for path in folder.rglob("*.py"):
        text = path.read_text()
        if path != folder / "platform" / "repairing.py":
            assert ".adapter(" not in text, path
        for name in re.findall(r"\b\w+Repairs\b", text):
            declared = path.name == "repairing.py" and path.parent.parent.name == "platforms"
            assert declared, f"{path} names {name}"
