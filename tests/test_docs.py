"""Documents that fail: what README and docs/ say is compared with the code, and what they tell to send is sent.

Tables of metrics, commands, routes, config keys and log messages are read from the Markdown and held against what the
program has. Config examples are parsed, commands are given to the real parser, links are followed, queries are checked
by Prometheus' own tool, and each webhook example goes to a running demo.
"""

import argparse
import ast
import base64
import contextlib
import io
import itertools
import re
import shlex
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from aiohttp import ClientSession
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from exporter import app, cli
from exporter.cli.parser import parser
from exporter.clock import SystemClock
from exporter.config import Config, ConfigError, parse
from exporter.config.cases import parse_cases
from exporter.model import catalogue
from exporter.platform.fields import Section
from exporter.platform.section import SourceConfig
from exporter.platforms import PLATFORMS
from exporter.simulator.fleet import Fleet, demo_config
from exporter.traces.spans import trace_ids
from exporter.view.costs import counted, series_of
from exporter.view.own import OwnMetrics
from tests.servers import real

ROOT = Path(__file__).parent.parent
README, DOCS = ROOT / "README.md", ROOT / "docs"
METRICS = DOCS / "metrics.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
DEMO = "http://127.0.0.1:10870"
#: Where the files of the project are shown, for pages that are read elsewhere as well (PyPI).
OURS = re.compile(
    r"https://(?:github\.com/automation-exporter/automation-exporter/(?:blob|tree)"
    r"|raw\.githubusercontent\.com/automation-exporter/automation-exporter)/main/"
)
#: YAML that is not ours, by its first key.
FOREIGN_YAML = {"groups", "receivers", "route", "scrape_configs", "services"}
#: What ``limits.error_classes`` may say.
ERROR_CLASSES: tuple[Literal["all", "seen"], ...] = ("all", "seen")
SHORT_LABELS = {"S": "platform, source", "W": "platform, source, workflow_id"}


def fences(path: Path, *kinds: str) -> list[str]:
    """The fenced code of these kinds."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", path.read_text(), re.M | re.S)
    return [code for kind, code in found if kind in kinds]


def rows(path: Path, first: str) -> list[list[str]]:
    """The cells of every table row whose first cell matches, fully, this pattern; a bar in code is written ``\\|``."""
    out = []
    for line in path.read_text().splitlines():
        if line.startswith("|"):
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]
            if re.fullmatch(first, cells[0]):
                out.append(cells)
    return out


def examples(*kinds: str) -> list[Any]:
    """Every fenced code of these kinds in any page, as test parameters."""
    return [
        pytest.param(code, id=f"{path.stem}-{number}")
        for path in PAGES
        for number, code in enumerate(fences(path, *kinds), start=1)
    ]


# Metrics


def own_metrics(own: OwnMetrics) -> Iterator[tuple[str, tuple[str, tuple[str, ...]]]]:
    """Name, type and labels of what the registry of the process exposes beside process_* and python_*."""
    for collector in set(own.registry._collector_to_names):
        for family in getattr(collector, "describe", lambda: ())():
            if isinstance(collector, MetricWrapperBase):
                labels = collector._labelnames
            else:
                labels = getattr(collector, "_labels", ())
            name = f"{family.name}_total" if family.type == "counter" else family.name
            if name.startswith("automation_"):
                yield name, (family.type, tuple(labels))


@contextlib.asynccontextmanager
async def demo(folder: Path) -> AsyncIterator[app.Service]:
    """The demo, but for its loops: nothing is swept unless asked for."""
    clock = SystemClock()
    async with Fleet.open(clock=clock, workflows=2) as fleet:
        config = demo_config(fleet, listen="127.0.0.1:0", database=folder / "docs.db")
        async with app.service(config, clock=clock, loops=False) as service:
            yield service


async def test_the_page_of_metrics_lists_every_one_with_its_type_and_labels_and_no_other(tmp_path: Path) -> None:
    async with demo(tmp_path) as service:
        has = dict(own_metrics(service.own))
    for metric in catalogue.CATALOGUE:
        has[metric.name] = (metric.type + ", exemplar" * metric.exemplars, tuple(metric.labels))
    says = {}
    for name, kind, labels, _ in rows(METRICS, r"`automation_\w+`"):
        long = ", ".join(SHORT_LABELS.get(label, label) for label in labels.split(", "))
        says[name.strip("`")] = (kind, tuple(long.split(", ")) if long else ())
    assert says == has


def test_what_a_workflow_is_said_to_cost_is_what_it_costs() -> None:
    """Whoever counts for `check` is held against a real scrape by ``tests/view/test_projection.py``."""
    said = {row[0]: [int(cell) for cell in row[1:]] for row in rows(METRICS, r"(Make|Qlik.*|Etlworks|Cognaize.*|n8n)")}
    costs = {}
    for platform in PLATFORMS.values():
        for events, suffix in ((True, ", with webhooks"), (False, ", without")):
            whole, seen = (
                series_of(counted(platform, events=events, error_classes=classes)) for classes in ERROR_CLASSES
            )
            title = platform.title + (suffix if platform.error_classes_read is not None else "")
            costs[title] = [whole.workflow, whole.result, whole.with_results(2), seen.with_results(2)]
    assert said == costs
    *_, usual, fewer = said["Make"]
    sentence = f"a workflow of Make with two results costs {fewer - 2 * 8} series instead of {usual}"
    assert sentence in METRICS.read_text()


def test_the_buckets_that_are_dropped_are_those_that_are_said_to_be() -> None:
    [config] = [yaml.safe_load(code) for code in fences(METRICS, "yaml") if "metric_relabel_configs" in code]
    [rule] = config["scrape_configs"][0]["metric_relabel_configs"]
    buckets = catalogue.RUN_DURATION.buckets
    for written in ("{:g}", "{:.1f}"):
        names = {bucket: f"{catalogue.RUN_DURATION.name}_bucket;{written.format(bucket)}" for bucket in buckets}
        kept = [bucket for bucket, name in names.items() if not re.fullmatch(rule["regex"], name)]
        assert kept == [5.0, 60.0, 300.0, 1800.0]
        assert len(buckets) - len(kept) == 8
    assert not re.fullmatch(rule["regex"], f"{catalogue.RUN_DURATION.name}_bucket;+Inf")


def metric_labels(name: str) -> set[str] | None:
    """The labels of a metric by the name of one of its samples; None if there is no such metric."""
    listed = {row[0].strip("`"): row[2] for row in rows(METRICS, r"`automation_\w+`")}
    labels = listed.get(name, listed.get(re.sub(r"_(bucket|count|sum)$", "", name)))
    if labels is None:
        return None
    return {label for part in labels.split(", ") for label in SHORT_LABELS.get(part, part).split(", ")} | {"le"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_metric_a_page_speaks_of_exists(path: Path) -> None:
    names = set(re.findall(r"\bautomation_[a-z_]*[a-z]\b(?!_)", path.read_text()))
    assert [name for name in sorted(names - {"automation_exporter"}) if metric_labels(name) is None] == []


def test_the_readme_s_excerpt_of_a_scrape_has_the_labels_there_are() -> None:
    [excerpt] = [code for code in fences(README, "text") if code.startswith("automation_")]
    samples = [sample for family in text_string_to_metric_families(excerpt) for sample in family.samples]
    assert len(samples) == 10
    for sample in samples:
        assert set(sample.labels) | {"le"} == metric_labels(sample.name), sample


@pytest.mark.parametrize("query", examples("promql"))
def test_queries_name_labels_their_metrics_have(query: str) -> None:
    for name, selectors in re.findall(r"(automation_\w+)\{([^}]*)\}", query):
        assert set(re.findall(r"(\w+)\s*[=!]", selectors)) <= (metric_labels(name) or set())


@real("promtool")
def test_prometheus_reads_every_query(tmp_path: Path) -> None:
    queries = [code for path in PAGES for code in fences(path, "promql")]
    assert len(queries) > 10
    group = {"name": "docs", "rules": [{"record": f"docs:{n}", "expr": q} for n, q in enumerate(queries)]}
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [group]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# The first screen


def test_the_readme_runs_the_image_as_it_is_made() -> None:
    [run] = [code for code in fences(README, "sh") if "docker run" in code]
    image = (ROOT / "Dockerfile").read_text()
    [config] = re.findall(r"AUTOMATION_EXPORTER_CONFIG=(\S+)", image)
    [port] = re.findall(r"^EXPOSE (\d+)$", image, re.M)
    [data] = re.findall(r"^VOLUME (\S+)$", image, re.M)
    assert f":{config}:ro" in run
    assert f"127.0.0.1:{port}:{port}" in run
    assert f":{data} " in run
    needed = set(re.findall(r"\$\{(\w+)", next(code for code in fences(README, "yaml") if "sources:" in code)))
    assert needed == set(re.findall(r"--env (\w+)", run))


def test_the_first_screen_says_what_it_is_and_how_to_see_it() -> None:
    screen = "\n".join(README.read_text().splitlines()[:45])
    for needed in ("![", "make demo", "docker run", "automation_runs_total", "docs/metrics.md"):
        assert needed in screen


# Config


def check_config(text: str, folder: Path) -> None:
    """Take a config as a user would, with made-up variables and secret files."""
    for name in re.findall(r"/run/secrets/([\w.-]+)", text):
        (folder / name).write_text("0123456789abcdef0123456789abcdef")
    made_up = dict.fromkeys(re.findall(r"\$\{(\w+)", text), "0123456789abcdef0123456789abcdef")
    parse(text.replace("/run/secrets/", f"{folder}/"), made_up)


@pytest.mark.parametrize("text", examples("yaml"))
def test_every_config_example_is_accepted(text: str, tmp_path: Path) -> None:
    if "cases" in yaml.safe_load(text):
        parse_cases(text)
    elif not FOREIGN_YAML & set(yaml.safe_load(text)):
        check_config(text, tmp_path)


def test_the_complete_example_is_accepted(tmp_path: Path) -> None:
    check_config((DOCS / "example.yaml").read_text(), tmp_path)


def test_the_check_of_examples_notices_a_wrong_key(tmp_path: Path) -> None:
    text = (DOCS / "example.yaml").read_text()
    with pytest.raises(ConfigError, match="unknown key"):
        check_config(text.replace("interval:", "intervall:"), tmp_path)


def sections(annotation: Any) -> list[type[Section]]:
    """The sections a key may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections(part)]


def keys(model: type[Section], place: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the config with its whole path, those of each platform included."""
    for name, info in model.model_fields.items():
        if info.annotation is not None and sections(info.annotation) == [SourceConfig]:
            for platform in PLATFORMS.values():
                yield from keys(platform.config, f"{place}{name}.*.")
            continue
        if place or not sections(info.annotation):
            yield f"{place}{name}", info
        many = ".*" if get_origin(info.annotation) in (list, dict) else ""
        for section in sections(info.annotation):
            yield from keys(section, f"{place}{name}{many}.")


def default_texts(info: FieldInfo) -> set[str]:
    """How the default of a key may be told; nothing where anything will do."""
    if info.default is PydanticUndefined and info.default_factory is None:
        return {"required"}
    if info.default in (None, "") or isinstance(info.default, Section | list | dict):
        return set()
    text = str(info.default)
    return {f"`{text.lower() if isinstance(info.default, bool) else text}`"}


def test_the_configuration_page_lists_every_key_with_its_default_and_no_other() -> None:
    has: dict[str, set[str]] = {}
    for key, info in keys(Config):
        has.setdefault(key, set()).update(default_texts(info))
    says: dict[str, set[str]] = {}
    for key, default, _ in rows(DOCS / "configuration.md", r"`[a-z_.*]+`"):
        says.setdefault(key.strip("`"), set()).add(default)
    assert sorted(says) == sorted(has)
    wrong = {key: (says[key], texts) for key, texts in has.items() if not texts <= says[key]}
    assert wrong == {}


def test_the_complete_example_has_every_key() -> None:
    text = (DOCS / "example.yaml").read_text()
    names = {key.rsplit(".", 1)[-1] for key, _ in keys(Config)}
    assert [name for name in sorted(names) if not re.search(rf"\b{name}(_file)?:", text)] == []


def test_the_schema_for_editors_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "schema"]) == 0
    assert (DOCS / "config.schema.json").read_text() == capsys.readouterr().out


# Commands


def commands(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, set[str]]]:
    """Every command with its options."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for word, sub in action.choices.items():
            yield from commands(sub, f"{name} {word}".strip())
    if not below:
        yield name, {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}


def test_the_readme_lists_every_command_with_its_options_and_no_other() -> None:
    says = {}
    for cell, _ in rows(README, r"`automation-exporter .*`"):
        usage = cell.strip("`").removeprefix("automation-exporter ")
        [command] = re.findall(r"^[a-z]+(?: [a-z][a-z-]*)*", usage)
        says[command] = set(re.findall(r"--[a-z-]+", usage))
    assert says == dict(commands(parser()))


def shell(code: str) -> Iterator[list[str]]:
    """The commands of a piece of shell, as words. Comments are left out, pipes and quotes respected."""
    pending = ""
    for line in code.splitlines():
        pending += line.removesuffix("\\") if line.endswith("\\") else f"{line}\n"
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation goes on in the next line
            continue
        if not line.endswith("\\"):
            pending = ""
            if words:
                yield words


@pytest.mark.parametrize("code", examples("sh"))
def test_what_is_to_be_typed_exists(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for words in shell(code):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets
        if words[0] == "automation-exporter":
            try:
                parser().parse_args([*itertools.takewhile(lambda word: word != ">", words[1:])])
            except SystemExit:
                pytest.fail(f"{shlex.join(words)}: {capsys.readouterr().err}")


def test_the_readme_lists_every_route_and_no_other() -> None:
    web = ROOT / "exporter/web"  # the forms of the status page are nobody's interface
    files = ("server.py", "pages.py", "retry_routes.py", "runbooks.py")
    trees = [ast.parse((web / name).read_text()) for name in files]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    texts = {node.value for node in nodes if isinstance(node.value, str)}
    routes = {re.sub(r"\{(\w+):[^}]*\}", r"{\1}", text) for text in texts if re.fullmatch(r"/|/[a-z-][^ ]*[^/ ]", text)}
    says = {cell.strip("`").split()[1] for cell, _ in rows(README, r"`(GET|POST) /.*`")}
    assert says == routes


# Logs, traces, links


def test_the_operations_page_explains_every_line_of_the_log() -> None:
    has = set()
    for path in (ROOT / "exporter").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and re.fullmatch(r"log\.(info|warning|error)", ast.unparse(node.func)):
                has |= {part.value for part in node.args if isinstance(part, ast.Constant)}
    table = rows(DOCS / "operations.md", r"`[^`]*`(, `[^`]*`)*")
    levels = [row for row in table if len(row) == 3 and row[1] in ("info", "warning", "error")]
    assert {text for row in levels for text in re.findall(r"`([^`]*)`", row[0])} == has


def test_the_traces_page_lists_every_attribute_and_no_other() -> None:
    name = re.compile(r"(?:automation|cicd)(?:\.[a-z_]+)+|error\.type")
    tree = ast.parse((ROOT / "exporter/traces/spans.py").read_text())
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    has = {text for text in constants if isinstance(text, str) and name.fullmatch(text)}
    spoken_of = set(re.findall(r"`([^`\n]+)`", (DOCS / "traces.md").read_text()))
    assert {text for text in spoken_of if name.fullmatch(text)} == has


def test_the_ids_of_traces_can_be_computed_as_told() -> None:
    [code] = fences(DOCS / "traces.md", "python")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})  # noqa: S102 (our own page)
    trace_id, span_id = trace_ids("example", "docs", "run-1", 1)
    assert printed.getvalue().split() == [f"{trace_id:032x}", f"{span_id:016x}"]
    assert printed.getvalue().strip() in code


def anchors(path: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        file, _, fragment = target.partition("#")
        linked = path.parent / file if file else path
        if OURS.match(target):
            linked = ROOT / OURS.sub("", file)
        elif re.match("https?://", target):
            continue
        assert linked.exists(), target
        assert not fragment or fragment in anchors(linked), target


# Webhooks


@dataclass(slots=True)
class Curl:
    """A curl command, as far as the pages use it."""

    url: str = ""
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @classmethod
    def parse(cls, words: Sequence[str]) -> "Curl":
        made, waiting = cls(), iter(words)
        for word in waiting:
            if not word.startswith("-"):
                made.url = word
            elif word == "-X":
                made.method = next(waiting)
            elif word == "-H":
                name, _, value = next(waiting).partition(": ")
                made.headers[name] = value
            elif word == "-d":
                made.body = next(waiting).encode()
            elif word == "-u":
                made.headers["Authorization"] = f"Basic {base64.b64encode(next(waiting).encode()).decode()}"
            else:
                raise ValueError(f"an option of curl nobody taught this test: {word}")
        return made


async def test_every_webhook_example_is_stored_by_the_demo(tmp_path: Path) -> None:
    told = [words for code in fences(DOCS / "webhooks.md", "sh") for words in shell(code) if words[0] == "curl"]
    hooks = [hook for hook in map(Curl.parse, (words[1:] for words in told)) if hook.url.startswith(DEMO)]
    assert {hook.url.removeprefix(f"{DEMO}/webhooks/") for hook in hooks} == set(PLATFORMS)
    async with demo(tmp_path) as service, ClientSession() as session:
        for hook in hooks:
            url = hook.url.replace(DEMO, f"http://127.0.0.1:{service.port}")
            async with session.request(hook.method, url, headers=hook.headers, data=hook.body) as answer:
                assert (answer.status, await answer.json()) == (202, {"status": "stored"}), hook.url
            forged = {name: value[:-1] + "x" for name, value in hook.headers.items()} | {
                "Content-Type": "application/json"
            }
            async with session.request(hook.method, url, headers=forged, data=hook.body) as answer:
                assert answer.status == 401, hook.url
