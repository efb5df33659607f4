"""Panels as plain values, and how they become Grafana's JSON.

Every panel has a title, a description that ends with what to do, and a unit. What is not known looks like nothing else:
never green, never 0, never "none".
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, table, timeseries
from grafana_foundation_sdk.builders import stat as single
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.generator.queries import EXPORTER

Kind = Literal["stat", "graph", "table", "bars"]
#: From which value on it is orange, and red; as values fall, if the first is the higher one.
Limits = tuple[float, float]

WIDTH = 24
TAG = "automation-exporter"
WORKFLOW_UID = "automation-workflow"
#: Rows of a table about workflows lead to the dashboard of theirs.
_WORKFLOW_URL = (
    f"/d/{WORKFLOW_UID}?${{datasource:queryparam}}&${{job:queryparam}}&${{instance:queryparam}}&${{__url_time_range}}"
    "&var-source=${__data.fields.source:percentencode}&var-workflow=${__data.fields.workflow:percentencode}"
)
#: Label and title of the columns that name a workflow.
WORKFLOW_COLUMNS = (("source", "Source"), ("workflow", "Workflow"))
#: What a panel says that has nothing to show. Nobody must take it for good news.
UNKNOWN = "unknown"
NO_ROWS = "No rows: none, or not known."
#: The recording rules are evaluated once a minute, and platforms are hardly polled more often: $__rate_interval is four
#: times this at least.
MIN_STEP = "1m"
#: Milliseconds of nothing that a line is drawn across, where values come only when something happens.
GAP_MAX = 3_600_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of values of a table, the first of which is what it is sorted by."""

    title: str
    expr: str
    unit: str = "short"
    decimals: int | None = None
    limits: Limits | None = None
    texts: tuple[tuple[str, str, str], ...] = ()
    """Value, what to write instead, in which colour"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """What one panel shows. ``queries``: PromQL and the legend of its series, in the order of drawing."""

    kind: Kind
    title: str
    description: str
    do: str
    """What a person does about it, as the end of the description"""
    queries: tuple[tuple[str, str], ...] = ()
    unit: str = "short"
    width: int
    height: int
    decimals: int | None = None
    limits: Limits | None = None
    stacked: bool = False
    exemplars: bool = False
    labels: tuple[tuple[str, str], ...] = ()
    """Of a table: the labels that are columns, and their titles"""
    values: tuple[Column, ...] = ()
    unknown: tuple[str, str] = (UNKNOWN, "text")
    """What it says where nothing is known, and in which colour"""
    empty: str = NO_ROWS


#: Series that everybody expects in a certain colour.
_COLOURS = {
    "success": "green",
    "succeeded": "green",
    "warning": "yellow",
    "failure": "red",
    "failed": "red",
    "timeout": "dark-red",
    "quota": "orange",
    "cancelled": "blue",
    "unknown": "text",
}


def stat(
    title: str,
    description: str,
    expr: str,
    *,
    do: str,
    unit: str = "short",
    legend: str = "",
    limits: Limits | None = None,
    decimals: int | None = None,
    unknown: tuple[str, str] = (UNKNOWN, "text"),
    width: int = 4,
    height: int = 4,
) -> Panel:
    """One number, as it is now."""
    return Panel(
        kind="stat",
        title=title,
        description=description,
        do=do,
        queries=((expr, legend),),
        unit=unit,
        limits=limits,
        decimals=decimals,
        unknown=unknown,
        width=width,
        height=height,
    )


def graph(
    title: str,
    description: str,
    *queries: tuple[str, str],
    do: str,
    unit: str = "short",
    stacked: bool = False,
    exemplars: bool = False,
    width: int = 8,
) -> Panel:
    """Series over time."""
    return Panel(
        kind="graph",
        title=title,
        description=description,
        do=do,
        queries=queries,
        unit=unit,
        stacked=stacked,
        exemplars=exemplars,
        width=width,
        height=8,
    )


def rows(
    title: str,
    description: str,
    *values: Column | str,
    do: str,
    labels: tuple[tuple[str, str], ...] = WORKFLOW_COLUMNS,
    unit: str = "short",
    decimals: int | None = None,
    width: int = 8,
    empty: str = NO_ROWS,
) -> Panel:
    """A table of what is now: ``labels``, and the values. A single column may be its query alone."""
    heading = "Time" if unit == "s" else "Number"
    columns = tuple(
        Column(title=heading, expr=value, unit=unit, decimals=decimals) if isinstance(value, str) else value
        for value in values
    )
    return Panel(
        kind="table",
        title=title,
        description=description,
        do=do,
        labels=labels,
        values=columns,
        queries=tuple((column.expr, "") for column in columns),
        unit=unit,
        decimals=decimals,
        empty=empty,
        width=width,
        height=8,
    )


def bars(
    title: str,
    description: str,
    expr: str,
    legend: str,
    *,
    do: str,
    unit: str = "short",
    limits: Limits | None = None,
    width: int = 8,
) -> Panel:
    """Bars of what is now."""
    return Panel(
        kind="bars",
        title=title,
        description=description,
        do=do,
        queries=((expr, legend),),
        unit=unit,
        limits=limits,
        width=width,
        height=8,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    uid: str
    title: str
    description: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    """Title and panels of each."""
    variables: tuple[Any, ...] = ()
    """Beside data source, job, instance and source."""


def rendered(board: Board, *, others: Sequence[Board]) -> str:
    """A board as Grafana's JSON, with links to the others."""
    made = (
        dashboard.Dashboard(f"Automation / {board.title}")
        .uid(board.uid)
        .description(board.description)
        .tags([TAG])
        .readonly()
        .refresh("1m")
        .time("now-24h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
    )
    for variable in (*_variables(), *board.variables):
        made = made.with_variable(variable)
    for other in others:
        link = dashboard.DashboardLink(other.title).type(models.DashboardLinkType.LINK).url(f"/d/{other.uid}")
        made = made.link(link.include_vars(True).keep_time(True))
    y = 0
    for title, panels in board.rows:
        made = made.with_row(dashboard.Row(title).grid_pos(models.GridPos(h=1, w=WIDTH, x=0, y=y)))
        y += 1
        x = height = 0
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y, height = 0, y + height, 0
            place = models.GridPos(h=panel.height, w=panel.width, x=x, y=y)
            made = made.with_panel(_panel(panel).grid_pos(place))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    plain = json.loads(JSONEncoder().encode(made.build()))
    plain["id"] = None
    for number, panel_json in enumerate(plain["panels"], start=1):
        panel_json["id"] = number
    return json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _datasource() -> common_models.DataSourceRef:
    return common_models.DataSourceRef(type_val="prometheus", uid="${datasource}")


def _variables() -> list[Any]:
    return [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        query_variable("job", "Job", "label_values(automation_exporter_build_info, job)", of_all=".+"),
        query_variable(
            "instance", "Instance", 'label_values(automation_exporter_build_info{job=~"$job"}, instance)', of_all=".+"
        ),
        query_variable("source", "Source", f"label_values(automation_source_up{{{EXPORTER}}}, source)", of_all=".+"),
    ]


def query_variable(name: str, label: str, query: str, *, of_all: str | None = None, hidden: bool = False) -> Any:
    """A choice read from Prometheus: of one, or of several or all, which ``of_all`` then stands for.

    A hidden one is always all of what its query finds, written out.
    """
    made = (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(_datasource())
        .query({"query": query, "refId": name})
        .definition(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )
    if hidden or of_all is not None:
        made = made.multi(True).include_all(True)
        made = made.current(models.VariableOption(text="All", value="$__all", selected=True))
    if of_all is not None:
        made = made.all_value(of_all)
    return made.hide(models.VariableHide.HIDE_VARIABLE) if hidden else made


def _panel(panel: Panel) -> Any:
    builder: Any = {"stat": _stat, "graph": _graph, "table": _table, "bars": _bars}[panel.kind](panel)
    builder = builder.title(panel.title).description(f"{panel.description} {panel.do}").datasource(_datasource())
    builder = builder.unit(panel.unit)
    if panel.decimals is not None:
        builder = builder.decimals(panel.decimals)
    if panel.limits is not None:
        builder = builder.thresholds(_thresholds(*panel.limits))
    for letter, (expr, legend) in zip("ABCDEF", panel.queries, strict=False):
        target = prometheus.Dataquery().expr(expr).ref_id(letter).datasource(_datasource())
        target = target.legend_format(legend or "__auto")
        target = target.range().exemplar(panel.exemplars) if panel.kind == "graph" else target.instant()
        target = target.interval(MIN_STEP)
        builder = builder.with_target(target.format(PromQueryFormat.TABLE) if panel.kind == "table" else target)
    return builder


def _thresholds(first: float, second: float) -> Any:
    """Grafana gives what is not known the colour of the lowest step: no good news and no bad."""
    if first <= second:
        steps = [(None, "text"), (0.0, "green"), (first, "orange"), (second, "red")]
    else:
        steps = [(None, "text"), (0.0, "red"), (second, "orange"), (first, "green")]
    found = [models.Threshold(value=value, color=colour) for value, colour in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(found)


def _now() -> Any:
    return common.ReduceDataOptions().calcs(["lastNotNull"])


def _stat(panel: Panel) -> Any:
    colour = common_models.BigValueColorMode.VALUE if panel.limits else common_models.BigValueColorMode.NONE
    made = single.Panel().color_mode(colour).graph_mode(common_models.BigValueGraphMode.NONE).reduce_options(_now())
    text, shade = panel.unknown
    result = models.ValueMappingResult(text=text, color=shade)
    nothing = models.DashboardSpecialValueMapOptions(match=models.SpecialValueMatch.NULL_AND_NAN, result=result)
    made = made.no_value(text).mappings([models.SpecialValueMap(options=nothing)])
    mode = common_models.BigValueTextMode.NAME if panel.queries[0][1] else common_models.BigValueTextMode.VALUE
    return made.text_mode(mode)


def _graph(panel: Panel) -> Any:
    legend = common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.LIST).show_legend(True)
    legend = legend.placement(common_models.LegendPlacement.BOTTOM)
    made = timeseries.Panel().legend(legend).fill_opacity(20.0 if panel.stacked else 0.0).min(0.0)
    if panel.stacked:
        made = made.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if any("histogram_quantile" in expr for expr, _ in panel.queries):
        made = made.span_nulls(GAP_MAX)
    if any(legend in ("{{result}}", "{{outcome}}") for _, legend in panel.queries):
        for name, colour in _COLOURS.items():
            fixed = models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})
            made = made.override_by_name(name, [fixed])
    return made


def _bars(panel: Panel) -> Any:
    made = bargauge.Panel().orientation(common_models.VizOrientation.HORIZONTAL).reduce_options(_now()).min(0.0)
    return made.no_value(UNKNOWN)


def _table(panel: Panel) -> Any:
    """The labels in their order, then the values; all other labels are left out. One row a set of labels."""
    several = len(panel.values) > 1
    fields = [f"Value #{letter}" if several else "Value" for letter, _ in zip("ABCDEF", panel.values, strict=False)]
    names = [*(label for label, _ in panel.labels), *fields]
    organize = {
        "includeByName": dict.fromkeys(names, True),
        "indexByName": {name: index for index, name in enumerate(names)},
        "renameByName": dict(panel.labels) | {f: v.title for f, v in zip(fields, panel.values, strict=True)},
    }
    made = table.Panel().no_value(panel.empty)
    if several:
        made = made.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    made = made.with_transformation(models.DataTransformerConfig(id_val="organize", options=organize))
    made = made.sort_by([common.TableSortByFieldState().display_name(panel.values[0].title).desc(True)])
    for value in panel.values:
        if several or value.limits or value.texts:
            made = made.override_by_name(value.title, _column(value))
    if panel.labels[:2] == WORKFLOW_COLUMNS:
        made = made.data_links([dashboard.DashboardLink("This workflow").url(_WORKFLOW_URL)])
    return made


def _column(value: Column) -> list[models.DynamicConfigValue]:
    """How one column of several is written, which Grafana keeps as overrides."""
    said: dict[str, Any] = {"unit": value.unit}
    if value.decimals is not None:
        said["decimals"] = value.decimals
    if value.limits or value.texts:
        said["custom.cellOptions"] = {"type": "color-text"}
    if value.limits:
        said["thresholds"] = json.loads(JSONEncoder().encode(_thresholds(*value.limits).build()))
    if value.texts:
        options = {v: {"text": t, "color": c, "index": n} for n, (v, t, c) in enumerate(value.texts)}
        said["mappings"] = [{"type": "value", "options": options}]
    return [models.DynamicConfigValue(id_val=name, value=of) for name, of in said.items()]
