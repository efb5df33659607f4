"""Labels of sources and workflows: how they are written, who gets them, and what a scrape shows."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from exporter.config import ConfigError, parse
from exporter.config.outline import outline
from exporter.model import DeadLetter, Error, ErrorClass, Workflow
from exporter.model.labels import Labels, alert_labels, exposed
from exporter.model.subject import Subject, facts_of
from exporter.platform.section import SourceConfig
from exporter.view.projection import Projection
from tests.view.test_projection import NOW, STAND_IN, Service

SOURCE = """
sources:
  m:
    platform: cognaize
    url: http://localhost
    token: abcd
"""
WRITTEN = (
    SOURCE
    + """
    labels: {team: finance, cost-center: "4711"}
    workflow_labels:
      - {match: "77", labels: {team: payroll}}
      - {match: "*payment*", labels: {team: payments, idempotent: "no"}}
      - {match: "*", labels: {team: nobody, tier: gold}}
"""
)


def section(text: str = WRITTEN) -> SourceConfig:
    return parse(text, {}).sources["m"]


def test_for_each_label_the_first_entry_that_matches_decides() -> None:
    labels = section().labelled
    rest = {"cost-center": "4711", "tier": "gold"}
    assert labels.of("77", "A payment") == {"team": "payroll", "idempotent": "no", **rest}
    assert labels.of("78", "A payment") == {"team": "payments", "idempotent": "no", **rest}
    assert labels.of("79", "Orders") == {"team": "nobody", **rest}


def test_what_depends_on_a_name_nobody_knows_is_unknown() -> None:
    assert section().labelled.of("5", None) == {"team": None, "idempotent": None, "cost-center": "4711", "tier": "gold"}


def test_the_commands_that_need_no_secret_read_the_same_labels(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(WRITTEN.replace("abcd", "${UNSET}"))
    assert outline(config, {}).labels() == {"m": section().labelled}


def test_policies_match_labels_of_the_workflow() -> None:
    letter = DeadLetter(
        id="d", workflow_id="78", opened_at=NOW, error=Error(error_class=ErrorClass.NETWORK, message="x")
    )
    labels = section().labelled.of("78", "A payment")
    subject = Subject(source="m", platform="cognaize", letter=letter, root="d", traits=None, labels=labels)
    assert facts_of(subject, NOW)["labels.idempotent"] == "no"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("labels: {'te am': x}", "sources.m.labels: 'te am' is no name of a label"),
        ("labels: {'': x}", "sources.m.labels: '' is no name of a label"),
        ("labels: {1a: x}", "sources.m.labels: '1a' is no name of a label"),
        ('labels: {"a\\"} 1\\nb{c=\\"": x}', "sources.m.labels: 'a\"} 1\\nb{c=\"' is no name of a label"),
        ("labels: {straße: x}", "sources.m.labels: 'stra\\xdfe' is no name of a label"),
        ("labels: {5: x}", "sources.m.labels: '5' is no name of a label"),
        (f"labels: {{{'a' * 64}: x}}", f"sources.m.labels: '{'a' * 64}' is no name of a label"),
        ("labels: {idempotent: true}", "sources.m.labels: idempotent: must be text; write it in quotes"),
        ('labels: {team: "a\\nb"}', "sources.m.labels: team: must be one line of text"),
        (f"labels: {{team: {'x' * 201}}}", "sources.m.labels: team: must be one line of text"),
        (
            "labels: {cost-center: a, cost_center: b}",
            "sources.m: the labels cost-center and cost_center are both label_cost_center in metrics",
        ),
        (
            "labels: {a.b: x}\n    workflow_labels: [{match: '*', labels: {a/b: x}}]",
            "sources.m: the labels a.b and a/b are both label_a_b in metrics",
        ),
        ("workflow_labels: [{match: '*'}]", "sources.m.workflow_labels[0].labels: missing"),
        ("workflow_labels: [{match: '*', labels: {}}]", "sources.m.workflow_labels[0].labels: must not be empty"),
        ("workflow_labels: [{labels: {a: b}}]", "sources.m.workflow_labels[0].match: missing"),
        (
            "workflow_labels: [{match: '*', labels: {'a b': c}}]",
            "sources.m.workflow_labels[0].labels: 'a b' is no name",
        ),
        (f"labels: {{{', '.join(f'l{n}: x' for n in range(31))}}}", "sources.m: 31 different labels, 30 at most"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"{SOURCE}    {text}\n", {})
    [line] = caught.value.problems
    assert line.startswith(problem)
    assert line.isprintable()


def test_names_are_what_kube_state_metrics_would_make_of_them() -> None:
    assert exposed("app.kubernetes.io/cost-center") == "label_app_kubernetes_io_cost_center"
    made = alert_labels({"m": section().labelled, "n": Labels(source={"team": "finance"})})
    assert made.names == ("label_cost_center", "label_idempotent", "label_team", "label_tier")
    assert made.sources[("label_team", "finance")] == ("m", "n")


# What a scrape shows


class Labelled(Service):
    """The projection of a source with labels."""

    async def open(self) -> None:
        await super().open()
        self.projection = Projection(
            {"s": STAND_IN}, series_max=self.series_max, on_folded=self.folded.append, labels={"s": section().labelled}
        )

    def labels(self) -> dict[str, dict[str, str]]:
        found = self.samples().get("automation_workflow_labels", {})
        return {(pairs := dict(labels)).pop("workflow_id"): pairs for labels in found}


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Labelled]:
    service = Labelled(tmp_path / "t.db")
    await service.open()
    yield service
    await service.ledger.close()


async def test_a_workflow_shows_its_labels_as_long_as_it_is_there(service: Labelled) -> None:
    await service.tell(Workflow(id="77", at=NOW, name="Wages"), Workflow(id="78", at=NOW, name='A "payment"'))
    rest = {"label_cost_center": "4711", "label_tier": "gold"}
    assert service.labels() == {
        "77": {"label_team": "payroll", **rest},
        "78": {"label_team": "payments", "label_idempotent": "no", **rest},
    }
    await service.tell(Workflow(id="78", at=NOW + 1, name="Orders"))
    assert service.labels()["78"] == {"label_team": "nobody", **rest}
    entry = service.world.sources["s"].entries["78"]
    service.world.sources["s"].put_workflow(replace(entry, gone_at=NOW + 2))
    service.projection.apply({("s", "78")}, {}, service.world)
    assert service.labels().keys() == {"77"}


async def test_labels_are_within_the_limit_of_series(tmp_path: Path) -> None:
    service = Labelled(tmp_path / "t.db", series_max=400)
    await service.open()
    await service.tell(*(Workflow(id=f"w{n}", at=NOW, name="A payment") for n in range(50)))
    assert service.projection.registry.series() <= 400
    assert 0 < len(service.labels()) < 50
    assert "__other__" not in service.labels()
    await service.ledger.close()


async def test_without_labels_there_is_no_such_metric(tmp_path: Path) -> None:
    service = Service(tmp_path / "t.db")
    await service.open()
    await service.tell(Workflow(id="77", at=NOW, name="Wages"))
    assert "automation_workflow_labels" not in service.samples()
    await service.ledger.close()
