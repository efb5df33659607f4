"""One thing that happens is one alert: a real exporter says what happened, promtool asks every rule."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.alerting import rules
from exporter.config.objectives import SloConfig
from tests.alerts.recorded import Recorded
from tests.alerts.test_rules import promtool
from tests.e2e.deployment import deployment
from tests.e2e.test_truth import ROOMY
from tests.servers import real

#: The other ways to notice that something does not run, all of which must be quiet about what was switched off.
STRICT = SloConfig.model_validate({"success_within": "2h", "runs_within": "2h"})


def firing(at: int, *names: str) -> dict[str, Any]:
    """These alerts and no others, each once."""
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in names]
    return {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": f"{at}m", "exp_samples": samples}


def asked(folder: Path, recorded: Recorded, slo: SloConfig, *moments: dict[str, Any]) -> None:
    (folder / "rules.yaml").write_text(rules.as_yaml(rules.recording_rules(slo) + rules.alert_rules(slo)))
    test = {"interval": "1m", "input_series": recorded.series(), "promql_expr_test": list(moments)}
    given = {"rule_files": ["rules.yaml"], "evaluation_interval": "15m", "tests": [test]}
    (folder / "test.yaml").write_text(yaml.safe_dump(given))
    done = promtool("test", "rules", folder / "test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@real("promtool")
@pytest.mark.parametrize("platform", ["make", "qlik", "etlworks", "n8n"])
async def test_a_workflow_that_is_switched_off_is_one_alert_for_a_day(platform: str, tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=[platform], options=ROOMY) as made:
        simulator: Any = made.fleet.simulators[platform]
        await made.sweep()
        await made.live(600, step=60, deliver=True)
        failing = await made.samples("automation_workflow_consecutive_failures")
        enabled = await made.samples("automation_workflow_enabled")
        chosen = next(key[1] for key, on in sorted(enabled.items()) if on and failing.get(key, 0) < 3)
        recorded = Recorded(
            began=made.clock.now() - 1800, keep=lambda labels: labels.get("workflow_id") in (None, chosen)
        )
        recorded.hold(await made.scrape(), 30)
        simulator.set_enabled(chosen, False)
        await made.live(1200, step=60, deliver=True)  # what still runs comes to its end
        assert (await made.samples("automation_workflow_enabled"))[platform, chosen] == 0.0
        recorded.hold(await made.scrape(), 32 * 60)
    off = "AutomationWorkflowDisabled"
    moments = [firing(15), *(firing(at, off) for at in (60, 3 * 60, 8 * 60, 20 * 60)), firing(31 * 60)]
    asked(tmp_path, recorded, STRICT, *moments)
