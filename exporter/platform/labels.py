"""How labels are written: names that Prometheus and Alertmanager take, values that fit on a line. Pure."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from exporter.model.labels import Labelled, Labels, exposed
from exporter.platform.fields import Id, Section

#: Of one source. Each is a column in every alert.
NAMES_MAX = 30
VALUE_CHARACTERS_MAX = 200
_NAME = r"[A-Za-z_][A-Za-z0-9_./-]{0,62}"


def _labels(written: Any) -> Any:
    """Each mistake names its label; what is no name at all is quoted, so that it stays on its line."""
    if not isinstance(written, dict):
        return written
    for name, value in written.items():
        if not isinstance(name, str) or not re.fullmatch(_NAME, name):
            raise ValueError(
                f"{ascii(name)[:80]} is no name of a label: write up to 63 letters, digits, _ - . and /, a letter first"
            )
        if not isinstance(value, str):
            raise ValueError(f"{name}: must be text; write it in quotes, also a number, yes or no")
        if len(value) > VALUE_CHARACTERS_MAX or any(unicodedata.category(letter) == "Cc" for letter in value):
            raise ValueError(f"{name}: must be one line of text, of {VALUE_CHARACTERS_MAX} characters at most")
    return written


LabelSet = Annotated[
    dict[str, str],
    BeforeValidator(_labels),
    WithJsonSchema(
        {"type": "object", "additionalProperties": {"type": "string"}, "propertyNames": {"pattern": f"^{_NAME}$"}}
    ),
]


class WorkflowLabels(Section):
    """Labels for some workflows of a source."""

    match: Id = Field(description="a workflow id, or a pattern of names (* and ?)")
    labels: LabelSet = Field(min_length=1)


def labels_of(source: Mapping[str, str], workflows: Sequence[WorkflowLabels]) -> Labels:
    """ValueError where two labels would be one in metrics, or where they are too many."""
    made = Labels(
        source=source, workflows=tuple(Labelled(match=entry.match, labels=entry.labels) for entry in workflows)
    )
    names = sorted(made.names())
    if len(names) > NAMES_MAX:
        raise ValueError(f"{len(names)} different labels, {NAMES_MAX} at most")
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(exposed(name), name)
        if other != name:
            raise ValueError(f"the labels {other} and {name} are both {exposed(name)} in metrics: use one of them")
    return made


class LabelsConfig(Section):
    """What a source says of labels, for whoever needs no more of it."""

    labels: LabelSet = Field(default={})
    workflow_labels: list[WorkflowLabels] = Field(default=[])

    @model_validator(mode="after")
    def _differ(self) -> "LabelsConfig":
        labels_of(self.labels, self.workflow_labels)
        return self
