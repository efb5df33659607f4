"""axe-core, which looks at a page as those do who do not see it, or not well: injected into a real Chromium.

`tests/setup-real-components` installs it outside the clone; only its name, version and checksum are in this repository.
"""

import json
import os
from pathlib import Path

import pytest

from tests.chromium import Page

HERE = Path(__file__).parent
#: WCAG 2.0 to 2.2, levels A and AA.
TAGS = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")


def folder() -> Path:
    """Where setup-real-components puts it."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "automation-exporter" / "accessibility"


def script() -> str:
    """The whole of axe-core; the test is skipped, with the reason, where it is not installed."""
    installed, wanted = folder() / "package-lock.json", HERE / "package-lock.json"
    if not installed.is_file() or installed.read_bytes() != wanted.read_bytes():
        pytest.skip(f"axe-core is not in {folder()}: tests/setup-real-components installs it with npm")
    return (folder() / "node_modules" / "axe-core" / "axe.min.js").read_text()


async def violations(page: Page) -> list[str]:
    """What is wrong with the page as it is shown now, one line a rule and element; and that something was looked at."""
    await page.read(script())
    found = await page.wait_for(f"axe.run({{runOnly: {json.dumps(TAGS)}}}).then(r => JSON.stringify(r))")
    result = json.loads(found)
    assert len(result["passes"]) > 5, "axe looked at nothing"
    return [
        f"{rule['id']}: {rule['help']}: {node['html'][:200]} {node.get('failureSummary', '')}"
        for rule in result["violations"]
        for node in rule["nodes"]
    ]
