"""What an alert is: a row of the table in ``alerts``. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from exporter.config.objectives import SloConfig

#: How an alert calls a workflow.
NAMED = (
    "{{ with $labels.workflow }}{{ . }} ({{ $labels.workflow_id }}){{ else }}{{ $labels.workflow_id }}{{ end }}"
    " of {{ $labels.source }}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One row of the table."""

    name: str
    group: Literal["workflows", "dead-letters", "retries", "sources", "exporter"]
    severity: Literal["critical", "warning", "info"]
    expr: Callable[[SloConfig], str]
    wait: str
    keep: str
    summary: str
    description: str
    needs_data: bool = True
    about: Literal["workflow", "source", "process", "exporter"] = "workflow"
    """Whose labels it carries"""
    objective: str | None = None
    """Without this objective there is nothing to alert on, and no rule"""
    serves: bool = True
    """Whether the exporter still shows its pages meanwhile"""
