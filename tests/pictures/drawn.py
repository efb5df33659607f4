"""Draws a dashboard without a Grafana: its panels where they lie, filled with what their queries really returned.

It is no Grafana and does not pretend to be: the picture says so.
"""

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import dates as _dates
from matplotlib import pyplot, ticker
from matplotlib.patches import FancyBboxPatch

from tests.dashboards.history import STEP, History, scraped_anew
from tests.dashboards.reading import board, filled

dates: Any = _dates  # without types
NOTE = "Drawn from what the panels' queries returned on a Prometheus of the tests. Not a picture of Grafana."
COLOURS = [mpl.colors.to_hex(colour) for pair in (0, 1) for colour in mpl.color_sequences["tab20"][pair::2]]
FIXED = {"green": "#73bf69", "yellow": "#f2cc0c", "red": "#e02f44", "dark-red": "#a01020", "orange": "#ff9830",
         "blue": "#5794f2", "text": "#7c7c7c"}  # fmt: skip
LIMITS = {"green": "#37872d", "orange": "#e0751a", "red": "#c4162a", "text": "#6e6e76"}
COLUMNS, UNIT_WIDTH, UNIT_HEIGHT, DPI, GAP = 24, 0.62, 0.34, 90, 0.06
Series = tuple[dict[str, str], list[tuple[float, float]]]


async def draw(file: Path, lived: History, to: Path, **variables: str) -> None:
    """One dashboard as a PNG."""
    mpl.rcParams.update({"font.family": "sans-serif", "font.size": 8, "axes.edgecolor": "#d0d0d6"})
    dashboard = board(file)
    units = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"]) + 2
    await scraped_anew(lived.server)  # drawing holds the exporter up, which lives in the same process
    answers = {panel["id"]: [await _asked(target, lived, panel, variables) for target in panel["targets"]]
               for panel in dashboard["panels"] if panel["type"] != "row"}  # fmt: skip
    figure = pyplot.figure(figsize=(COLUMNS * UNIT_WIDTH, units * UNIT_HEIGHT), dpi=DPI, facecolor="#f4f5f5")
    canvas = _Canvas(figure, units, (lived.start, lived.end))
    canvas.text(0, -1.5, dashboard["title"], size=15, weight="bold")
    canvas.text(0, -0.45, NOTE, size=8, color="#6e6e76")
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        if panel["type"] == "row":
            canvas.text(place["x"], place["y"] + 0.65, panel["title"], size=10, weight="bold")
            continue
        found = answers[panel["id"]]
        canvas.panel(place, panel["title"])
        if panel["type"] == "table":
            _table(canvas, panel, found)
            continue
        series = [
            (_legend(target, labels), labels, points)
            for target, answer in zip(panel["targets"], found, strict=True)
            for labels, points in answer
        ]
        {"stat": _stat, "timeseries": _graph, "bargauge": _bars}[panel["type"]](canvas, panel, series)
    figure.savefig(to, dpi=DPI)
    pyplot.close(figure)


async def _asked(target: Any, lived: History, panel: Any, variables: dict[str, str]) -> list[Series]:
    expr = filled(target["expr"], **variables)
    if panel["type"] == "timeseries":
        return await lived.server.query_range(expr, lived.start, lived.end, STEP)
    return [(labels, [(lived.end, value)]) for labels, value in await lived.server.query(expr)]


def _legend(target: Any, labels: dict[str, str]) -> str:
    legend: str = target["legendFormat"]
    if legend == "__auto":
        return ", ".join(labels.values())
    for name, value in labels.items():
        legend = legend.replace(f"{{{{{name}}}}}", value)
    return legend


class _Canvas:
    """The grid of a dashboard, in its own units, from the top."""

    def __init__(self, figure: Any, units: float, span: tuple[float, float]) -> None:
        self.figure, self.units, self.span = figure, units, span

    def box(self, x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
        return x / COLUMNS, 1 - (y + 2 + h) / self.units, w / COLUMNS, h / self.units

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        left, bottom, _, _ = self.box(x + 0.15, y, 0, 0)
        self.figure.text(left, bottom, text, va="center", **style)

    def ended(self, x: float, y: float, text: str, **style: Any) -> None:
        left, bottom, _, _ = self.box(x, y, 0, 0)
        self.figure.text(left, bottom, text, ha="right", va="center", **style)

    def panel(self, place: Any, title: str) -> None:
        left, bottom, width, height = self.box(
            place["x"] + GAP, place["y"] + GAP, place["w"] - 2 * GAP, place["h"] - 2 * GAP
        )
        frame = FancyBboxPatch((left, bottom), width, height, boxstyle="square,pad=0", facecolor="white",
            edgecolor="#dcdce0", linewidth=0.8, transform=self.figure.transFigure, zorder=-1)  # fmt: skip
        self.figure.add_artist(frame)
        self.text(place["x"] + 0.1, place["y"] + 0.6, title, size=9, weight="bold")

    def axes(self, place: Any, left: float = 1.0, right: float = 0.25, bottom: float = 1.6) -> Any:
        return self.figure.add_axes(self.box(
            place["x"] + left, place["y"] + 1.3, place["w"] - left - right, place["h"] - 1.4 - bottom
        ))  # fmt: skip


def _stat(canvas: _Canvas, panel: Any, series: Sequence[Any]) -> None:
    defaults, place = panel["fieldConfig"]["defaults"], panel["gridPos"]
    nothing = defaults["mappings"][0]["options"]["result"]
    text, colour = nothing["text"], LIMITS[nothing["color"]]
    if series:
        legend, _, points = series[0]
        named = panel["options"]["textMode"] == "name"
        text = legend if named else said(points[-1][1], defaults["unit"], defaults.get("decimals"))
        colour = _colour(points[-1][1], defaults) if panel["options"]["colorMode"] == "value" else "#24292e"
    left, bottom, width, height = canvas.box(place["x"], place["y"] + 0.7, place["w"], place["h"] - 0.7)
    canvas.figure.text(left + width / 2, bottom + height / 2, text, ha="center", va="center", size=19, color=colour)


def _colour(value: float, defaults: Any) -> str:
    steps = defaults["thresholds"]["steps"]
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return LIMITS[reached[-1]]


def _graph(canvas: _Canvas, panel: Any, series: Sequence[Any]) -> None:
    place, unit = panel["gridPos"], panel["fieldConfig"]["defaults"]["unit"]
    axes = canvas.axes(place)
    axes.grid(color="#ececf0", linewidth=0.6)
    axes.set_axisbelow(True)
    drawn = [(legend, [p for p in points if not math.isnan(p[1])]) for legend, _, points in series]
    drawn = [(legend, points) for legend, points in drawn if points]
    custom = panel["fieldConfig"]["defaults"]["custom"]
    colours = _series_colours(panel, [legend for legend, _ in drawn])
    if custom.get("stacking"):
        _stack(axes, drawn, colours)
    else:
        for (legend, points), colour in zip(drawn, colours, strict=True):
            shown = points if custom.get("spanNulls") else _broken(points)
            axes.plot(
                [_moment(at) for at, _ in shown], [v for _, v in shown], color=colour, linewidth=1.1, label=legend
            )
    axes.set_xlim(*map(_moment, canvas.span))
    axes.xaxis_date()
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    axes.xaxis.set_major_locator(dates.HourLocator())
    axes.yaxis.set_major_locator(ticker.MaxNLocator(4))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: said(value, unit)))
    axes.set_ylim(bottom=0)
    axes.tick_params(length=0, labelsize=7, colors="#6e6e76")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    _explain(axes, drawn)


def _explain(axes: Any, drawn: Sequence[tuple[str, list[tuple[float, float]]]]) -> None:
    """The legend, as far as there is room: of what is not 0 all the time, if anything is."""
    busy = [legend for legend, points in drawn if any(value for _, value in points)] or [legend for legend, _ in drawn]
    if not busy:
        return
    columns = 2 if max(map(len, busy)) > 18 else 4
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    shown = busy[: 2 * columns]
    axes.legend(
        [handles[legend] for legend in shown],
        shown,
        loc="upper left",
        bbox_to_anchor=(-0.08, -0.12),
        fontsize=6.5,
        ncols=columns,
        frameon=False,
        handlelength=1.0,
        columnspacing=1.0,
    )


def _moment(at: float) -> float:
    return float(dates.date2num(datetime.fromtimestamp(at, tz=UTC)))


def _broken(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """With a gap wherever there was nothing for a while."""
    whole = points[:1]
    for before, point in pairwise(points):
        if point[0] - before[0] > 1.5 * STEP:
            whole.append((before[0] + STEP, math.nan))
        whole.append(point)
    return whole


def _series_colours(panel: Any, legends: Sequence[str]) -> list[str]:
    fixed = {
        o["matcher"]["options"]: o["properties"][0]["value"]["fixedColor"] for o in panel["fieldConfig"]["overrides"]
    }
    return [FIXED[fixed[name]] if name in fixed else COLOURS[n % len(COLOURS)] for n, name in enumerate(legends)]


def _stack(axes: Any, drawn: Sequence[tuple[str, list[tuple[float, float]]]], colours: list[str]) -> None:
    moments = sorted({at for _, points in drawn for at, _ in points})
    known = [dict(points) for _, points in drawn]
    heights = [[of_one.get(at, 0.0) for at in moments] for of_one in known]
    if heights:
        labels = [legend for legend, _ in drawn]
        axes.stackplot([_moment(at) for at in moments], heights, labels=labels, colors=colours, alpha=0.75)


def _bars(canvas: _Canvas, panel: Any, series: Sequence[Any]) -> None:
    place, defaults = panel["gridPos"], panel["fieldConfig"]["defaults"]
    axes = canvas.axes(place, left=3.2, right=1.2, bottom=0.5)
    names = [legend for legend, _, _ in series]
    values = [points[-1][1] for _, _, points in series]
    bars = axes.barh(names, values, color=[_colour(value, defaults) for value in values], height=0.6)
    axes.bar_label(bars, [said(value, defaults["unit"], 1) for value in values], padding=3)
    axes.set_xlim(0, max([1.0, *values]))
    axes.xaxis.set_visible(False)
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _table(canvas: _Canvas, panel: Any, found: Sequence[list[Series]]) -> None:
    """A row for each set of labels that are shown, with its value of each query."""
    place, defaults = panel["gridPos"], panel["fieldConfig"]["defaults"]
    renamed = panel["transformations"][-1]["options"]["renameByName"]
    order = panel["transformations"][-1]["options"]["indexByName"]
    names = sorted(renamed, key=order.__getitem__)
    labels = [name for name in names if not name.startswith("Value")]
    titles = [renamed[name] for name in names[len(labels) :]]
    styles = {o["matcher"]["options"]: {p["id"]: p["value"] for p in o["properties"]}
              for o in panel["fieldConfig"]["overrides"]}  # fmt: skip
    cells: dict[tuple[str, ...], dict[str, float]] = {}
    for title, answer in zip(titles, found, strict=True):
        for of, points in answer:
            cells.setdefault(tuple(of.get(label, "") for label in labels), {})[title] = points[-1][1]
    room = place["h"] - 2
    lines = sorted(cells.items(), key=lambda row: -row[1].get(titles[0], -math.inf))[:room]
    right = 2.6 if len(titles) == 1 else min(3.6, (place["w"] - 4.0 * len(labels)) / len(titles))
    share = (place["w"] - right * len(titles)) / len(labels)
    for at, label in enumerate(labels):
        canvas.text(place["x"] + 0.15 + share * at, place["y"] + 1.5, renamed[label], size=7.5, color="#6e6e76")
    ends = [place["x"] + place["w"] - 0.35 - right * (len(titles) - 1 - at) for at in range(len(titles))]
    for end, title in zip(ends, titles, strict=True):
        canvas.ended(end, place["y"] + 1.5, shortened(title, int(right * 9)), size=7.5, color="#6e6e76")
    for line, (key, values) in enumerate(lines):
        y = place["y"] + 2.35 + line * 0.85
        for at, text in enumerate(key):
            canvas.text(place["x"] + 0.15 + share * at, y, shortened(text, int(share * 9)))
        for end, title in zip(ends, titles, strict=True):
            if title in values:
                text, colour = _cell(values[title], styles.get(title, {}), defaults)
                canvas.ended(end, y, text, color=colour)
    if not lines:
        canvas.text(place["x"] + 0.15, place["y"] + 2.35, panel["fieldConfig"]["defaults"]["noValue"], color="#6e6e76")


def _cell(value: float, style: Any, defaults: Any) -> tuple[str, str]:
    """What a cell says, and in which colour."""
    for mapping in style.get("mappings", ()):
        if f"{value:g}" in mapping["options"]:
            one = mapping["options"][f"{value:g}"]
            return one["text"], LIMITS[one["color"]]
    text = said(value, style.get("unit", defaults["unit"]), style.get("decimals", defaults.get("decimals")))
    return text, _colour(value, style) if "thresholds" in style else "#24292e"


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def said(value: float, unit: str, decimals: int | None = None) -> str:
    """A value as a person reads it, roughly as Grafana would write it."""
    match unit:
        case "bool_yes_no":
            return "Yes" if value else "No"
        case "percentunit":
            return f"{value * 100:.{decimals or 0}f}%"
        case "dateTimeFromNow":
            ahead = value / 1000 - time.time()
            return f"in {_duration(ahead)}" if ahead > 0 else f"{_duration(-ahead)} ago"
        case "s":
            return _duration(value)
        case "bytes" | "Bps":
            return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB")) + ("/s" if unit == "Bps" else "")
        case "ops" | "reqps":
            return f"{value:.3g}/s"
        case _:
            return _scaled(value, 1000, ("", "K", "M", "G"))


def _duration(seconds: float) -> str:
    for size, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds * 1000:.3g} ms" if seconds else "0 s"


def _scaled(value: float, base: int, names: Sequence[str]) -> str:
    for name in names[:-1]:
        if abs(value) < base:
            return f"{value:.3g} {name}".strip()
        value /= base
    return f"{value:.3g} {names[-1]}"
