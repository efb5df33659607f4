"""Every metric fed by the ledger and the sweeps' world, in one table: the exposition, the docs and the checks all read
it.

Metrics of the exporter itself stand in ``metrics.own``; both together are what a scrape returns.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Literal

from exporter.model import Unit

DURATION_BUCKETS = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0)
DELAY_BUCKETS = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0)
AGE_BUCKETS = (60.0, 300.0, 900.0, 3600.0, 10800.0, 21600.0, 43200.0, 86400.0, 259200.0, 604800.0, 1209600.0)

#: What a name may end in to say what its numbers count.
UNITS = frozenset({"seconds", "bytes", "ratio", "tokens", "items", "operations", "credits", "runs"})

_SOURCE = ("platform", "source")
_WORKFLOW = (*_SOURCE, "workflow_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row of the catalogue. ValueError if it could not be exposed."""

    name: str
    """As in the text format: counters end in ``_total``"""
    help: str
    type: Literal["gauge", "counter", "histogram"]
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram, without +Inf"""
    exemplars: bool = False
    sparse: bool = False
    """A label without a value is left out of the line"""

    def __post_init__(self) -> None:
        if (self.type == "counter") != self.name.endswith("_total"):
            raise ValueError(f"{self.name}: counters end in _total, and nothing else does")
        if not self.help:
            raise ValueError(f"{self.name}: OpenMetrics has no empty help")
        if (self.type == "histogram") != bool(self.buckets):
            raise ValueError(f"{self.name}: histograms have buckets, and nothing else has")
        if not all(map(isfinite, self.buckets)) or any(low >= high for low, high in pairwise(self.buckets)):
            raise ValueError(f"{self.name}: buckets must rise, and +Inf is understood")
        if "le" in self.labels or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"{self.name}: labels must differ from each other and from le")
        if self.exemplars and self.type == "gauge":
            raise ValueError(f"{self.name}: a gauge has no exemplars")

    @property
    def family(self) -> str:
        """The name OpenMetrics gives the family."""
        return self.name.removesuffix("_total")

    @property
    def unit(self) -> str | None:
        """What its numbers count, if its name says so."""
        return unit_of(self.family)

    @property
    def reserved(self) -> set[str]:
        """Every name this metric takes in either format."""
        suffixes = {"gauge": (), "counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}[self.type]
        return {self.family, *(self.family + suffix for suffix in suffixes)}


def unit_of(family: str) -> str | None:
    """The unit in which the name of a family ends."""
    before, _, last = family.rpartition("_")
    return last if before and last in UNITS else None


def _gauge(name: str, help: str, labels: tuple[str, ...]) -> Metric:
    return Metric(name=name, help=help, type="gauge", labels=labels)


def _counter(name: str, help: str, labels: tuple[str, ...], *, exemplars: bool = False) -> Metric:
    return Metric(name=name, help=help, type="counter", labels=labels, exemplars=exemplars)


def _histogram(
    name: str, help: str, labels: tuple[str, ...], buckets: tuple[float, ...], *, exemplars: bool = False
) -> Metric:
    return Metric(name=name, help=help, type="histogram", labels=labels, buckets=buckets, exemplars=exemplars)


# Gauges: what is so now, as last read from the platform.
SOURCE_UP = _gauge(
    "automation_source_up", "1 if the last poll cycle (sweep) of the source reached its platform, else 0.", _SOURCE
)
WORKFLOW_INFO = _gauge(
    "automation_workflow_info",
    "What is known of a workflow; join on workflow_id for its name.",
    (*_WORKFLOW, "workflow", "workspace", "trigger"),
)
#: With the configured labels behind these: their names are known when the config is.
WORKFLOW_LABELS = Metric(
    name="automation_workflow_labels",
    help="Labels given to a workflow in the config, each as label_ and its name.",
    type="gauge",
    labels=_WORKFLOW,
    sparse=True,
)
WORKFLOW_ENABLED = _gauge("automation_workflow_enabled", "1 if the workflow is switched on, else 0.", _WORKFLOW)
WORKFLOW_BLOCKED = _gauge(
    "automation_workflow_blocked",
    "1 while the platform keeps the workflow from running, by reason.",
    (*_WORKFLOW, "reason"),
)
WORKFLOW_LAST_RUN = _gauge(
    "automation_workflow_last_run_timestamp_seconds", "When a run last ended with this result.", (*_WORKFLOW, "result")
)
WORKFLOW_NEXT_RUN = _gauge(
    "automation_workflow_next_run_timestamp_seconds", "When the platform plans the next run.", _WORKFLOW
)
WORKFLOW_FAILURES = _gauge(
    "automation_workflow_consecutive_failures", "Failed runs since the last successful one.", _WORKFLOW
)
RUNS_ACTIVE = _gauge(
    "automation_runs_active", "Runs that have not finished, by state, where that is known.", (*_WORKFLOW, "state")
)
RUN_OLDEST_ACTIVE = _gauge(
    "automation_run_oldest_active_timestamp_seconds",
    "When the oldest unfinished run was queued (pending) or started (running).",
    (*_WORKFLOW, "state"),
)
DEAD_LETTERS = _gauge("automation_dead_letters", "Open dead letters.", (*_WORKFLOW, "error_class"))
DEAD_LETTER_OLDEST = _gauge(
    "automation_dead_letter_oldest_timestamp_seconds", "When the oldest open dead letter was opened.", _WORKFLOW
)
DEAD_LETTER_GROUPS = _gauge(
    "automation_dead_letter_groups",
    "Groups of open dead letters: what shares workflow, error class and error fingerprint.",
    _SOURCE,
)
QUEUE_ITEMS = _gauge("automation_input_queue_items", "Items waiting in front of the workflow.", _WORKFLOW)
QUEUE_LIMIT = _gauge(
    "automation_input_queue_limit_items", "How many items may wait in front of the workflow.", _WORKFLOW
)
#: By unit: what is used of a plan, and what the plan allows.
USED = {
    unit: _gauge(
        f"automation_usage_{unit}", f"Used of the plan, in {unit}, as the platform reports it.", (*_SOURCE, "kind")
    )
    for unit in Unit
}
ALLOWED = {
    unit: _gauge(f"automation_usage_limit_{unit}", f"What the plan allows, in {unit}.", (*_SOURCE, "kind"))
    for unit in Unit
}
#: Before there was a family for each unit: to be removed after the first release that has both.
USAGE = _gauge(
    "automation_usage",
    "Deprecated, gone with the next release: used of the plan, in several units. Read automation_usage_operations,"
    " _credits, _runs, _bytes and _seconds instead.",
    (*_SOURCE, "kind"),
)
USAGE_LIMIT = _gauge(
    "automation_usage_limit",
    "Deprecated, gone with the next release: what the plan allows, in several units. Read"
    " automation_usage_limit_operations, _credits, _runs, _bytes and _seconds instead.",
    (*_SOURCE, "kind"),
)

# Tallies: durable totals that rise in the transaction of what caused them.
RUNS = _counter(
    "automation_runs_total", "Finished runs (each attempt once), by result.", (*_WORKFLOW, "result"), exemplars=True
)
RUN_DURATION = _histogram(
    "automation_run_duration_seconds",
    "Time from the start of a run to its end.",
    (*_WORKFLOW, "result"),
    DURATION_BUCKETS,
    exemplars=True,
)
RUN_QUEUE_DURATION = _histogram(
    "automation_run_queue_duration_seconds",
    "Time from a run being queued to its start, where the platform gives both.",
    _WORKFLOW,
    DURATION_BUCKETS,
)
RUN_ERRORS = _counter(
    "automation_run_errors_total",
    "Failed runs by the class of their error.",
    (*_WORKFLOW, "error_class"),
    exemplars=True,
)
RUN_OPERATIONS = _counter(
    "automation_run_operations_total", "Operations used by finished runs, as the platform bills them.", _WORKFLOW
)
RUN_TRANSFER = _counter(
    "automation_run_transfer_bytes_total", "Bytes moved by finished runs.", (*_WORKFLOW, "direction")
)
STEPS = _counter("automation_steps_total", "Finished steps of runs.", (*_WORKFLOW, "step_type", "result"))
STEP_DURATION = _histogram(
    "automation_step_duration_seconds",
    "Time from the start of a step to its end, as far as it was seen.",
    (*_SOURCE, "step_type"),
    DURATION_BUCKETS,
)
DEAD_LETTERS_OPENED = _counter(
    "automation_dead_letters_opened_total", "Dead letters opened.", (*_WORKFLOW, "error_class"), exemplars=True
)
DEAD_LETTERS_RESOLVED = _counter(
    "automation_dead_letters_resolved_total", "Dead letters resolved, by what resolved them.", (*_WORKFLOW, "by")
)
DEAD_LETTER_RESOLUTION = _histogram(
    "automation_dead_letter_resolution_seconds",
    "Time from the opening of a dead letter to its resolution.",
    (*_SOURCE, "by"),
    AGE_BUCKETS,
)
RETRY_MODE = _gauge("automation_retry_mode", "1 for the mode retries of the source are in.", (*_SOURCE, "mode"))
RETRY_PAUSED = _gauge("automation_retry_paused", "1 while retries of the source are paused, else 0.", _SOURCE)
RETRY_LOWERED = _gauge(
    "automation_retry_lowered",
    "1 while the exporter has lowered retries of the source to approval, because its calls were refused, else 0.",
    _SOURCE,
)
RETRY_STORM = _gauge(
    "automation_retry_storm",
    "1 while no retry of the source is sent because so many of its own runs fail; where a storm guard is configured.",
    _SOURCE,
)
RETRY_BUDGET = _gauge(
    "automation_retry_budget_tokens",
    "Failed retries the source can afford now; where a budget is configured.",
    _SOURCE,
)
RETRY_GATES = _gauge(
    "automation_retry_gates",
    "Groups with dead letters that may be retried, by the state of their gates.",
    (*_SOURCE, "policy", "state"),
)
RETRIES_OPEN = _gauge(
    "automation_retries_open", "Retries without an outcome so far, by state.", (*_SOURCE, "policy", "state")
)
RETRY_DECISIONS = _counter(
    "automation_retry_decisions_total",
    "Decisions about dead letters, counted when a dead letter's decision changes.",
    (*_SOURCE, "policy", "decision", "reason"),
)
RETRY_ESCALATIONS = _counter(
    "automation_retry_escalations_total",
    "Dead letters that need a person, once for each root and reason.",
    (*_SOURCE, "policy", "reason"),
)
RETRIES = _counter(
    "automation_retries_total",
    "Retries that have ended, by outcome.",
    (*_SOURCE, "policy", "outcome"),
    exemplars=True,
)
RETRIES_SHADOW = _counter(
    "automation_retries_shadow_total", "Retries that would have been sent in another mode.", (*_SOURCE, "policy")
)
REPAIRS = _counter(
    "automation_repairs_total",
    "Repairs other than a retry that people asked for, by outcome.",
    (*_SOURCE, "action", "outcome"),
)
RUNS_OBSERVED = _counter(
    "automation_exporter_runs_observed_total",
    "Finished runs by what reported the end first: poll, webhook or backfill.",
    (*_SOURCE, "via"),
)
RECONCILED = _counter(
    "automation_exporter_reconciled_total",
    "Finished runs that polling or webhooks missed, or that were reported late or corrected.",
    (*_SOURCE, "kind"),
)
DETECTION_DELAY = _histogram(
    "automation_exporter_detection_delay_seconds",
    "Time from the end of a run on the platform to its being counted.",
    (*_SOURCE, "via"),
    DELAY_BUCKETS,
)

#: Totals kept in the ledger.
TALLIED = (
    RUNS,
    RUN_DURATION,
    RUN_QUEUE_DURATION,
    RUN_ERRORS,
    RUN_OPERATIONS,
    RUN_TRANSFER,
    STEPS,
    STEP_DURATION,
    DEAD_LETTERS_OPENED,
    DEAD_LETTERS_RESOLVED,
    DEAD_LETTER_RESOLUTION,
    RETRY_DECISIONS,
    RETRY_ESCALATIONS,
    RETRIES,
    RETRIES_SHADOW,
    REPAIRS,
    RUNS_OBSERVED,
    RECONCILED,
    DETECTION_DELAY,
)

#: Everything the projection exposes, in the order of the scrape.
CATALOGUE = (
    SOURCE_UP,
    WORKFLOW_INFO,
    WORKFLOW_LABELS,
    WORKFLOW_ENABLED,
    WORKFLOW_BLOCKED,
    WORKFLOW_LAST_RUN,
    WORKFLOW_NEXT_RUN,
    WORKFLOW_FAILURES,
    RUNS_ACTIVE,
    RUN_OLDEST_ACTIVE,
    DEAD_LETTERS,
    DEAD_LETTER_OLDEST,
    DEAD_LETTER_GROUPS,
    QUEUE_ITEMS,
    QUEUE_LIMIT,
    *USED.values(),
    *ALLOWED.values(),
    USAGE,
    USAGE_LIMIT,
    RETRY_MODE,
    RETRY_PAUSED,
    RETRY_LOWERED,
    RETRY_STORM,
    RETRY_BUDGET,
    RETRY_GATES,
    RETRIES_OPEN,
    *TALLIED,
)
