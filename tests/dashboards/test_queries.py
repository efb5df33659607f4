"""Every query of every dashboard, on a real Prometheus that has seen two hours of a deployment: each returns data."""

import math
import re
from pathlib import Path

from tests.dashboards.history import STEP, History, history
from tests.dashboards.reading import FILES, Shown, board, filled, shown
from tests.servers import eventually, real

EVERYTHING = [query for file in FILES for query in shown(file)]
LABEL_VALUES = re.compile(r"label_values\((?P<selector>.+), (?P<label>\w+)\)")


@real("promtool")
@real("prometheus")
async def test_every_query_returns_data(tmp_path: Path) -> None:
    async with history(tmp_path) as lived:

        async def scraped() -> bool:
            return bool(await lived.server.query("up == 1"))

        await eventually(scraped)
        assert [str(query) for query in EVERYTHING if not await returns_data(lived, query)] == []
        with_exemplars = [query for query in EVERYTHING if query.exemplars]
        assert with_exemplars
        for query in with_exemplars:
            found = await lived.server.query_exemplars(filled(query.expr), lived.start, lived.end)
            assert all(len(exemplar.labels["trace_id"]) == 32 for exemplar in found), str(query)
            assert found, str(query)
        await every_variable_has_choices(lived)


async def returns_data(lived: History, query: Shown) -> bool:
    if not query.graph:
        return any(not math.isnan(value) for _, value in await lived.server.query(filled(query.expr)))
    series = await lived.server.query_range(filled(query.expr), lived.start, lived.end, STEP)
    return any(not math.isnan(value) for _, points in series for _, value in points)


async def every_variable_has_choices(lived: History) -> None:
    """Those of a dashboard in their order, each with what the ones before it chose."""
    for file in FILES:
        chosen: dict[str, str] = {}
        for variable in board(file)["templating"]["list"]:
            if variable["type"] == "datasource":
                continue
            match = LABEL_VALUES.fullmatch(variable["query"]["query"])
            assert match, variable
            selector = filled(match["selector"], **chosen)
            values = await lived.server.label_values(match["label"], selector, lived.start, lived.end)
            assert values, (file.name, variable["name"], selector)
            chosen[variable["name"]] = "|".join(values) if variable.get("multi") else values[0]
