"""The alerts, in one table: what they look at, how long they wait, what a person reads at night. Pure.

Names begin with what is wrong, severities are ``critical`` (somebody gets up), ``warning`` (somebody looks today) and
``info``. ``needs_data`` marks what cannot be judged while a source is not read: the Alertmanager example silences
those behind AutomationDataIncomplete, and everything behind AutomationExporterDown.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from exporter.alerting import expressions as of
from exporter.config.objectives import SloConfig

_WORKFLOW = (
    "{{ with $labels.workflow }}{{ . }} ({{ $labels.workflow_id }}){{ else }}{{ $labels.workflow_id }}{{ end }}"
    " of {{ $labels.source }}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
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


ALERTS = (
    Alert(
        name="AutomationErrorBudgetBurnFast",
        group="workflows",
        about="source",
        severity="critical",
        expr=of.budget_burns_fast,
        wait="2m",
        keep="5m",
        summary="Many runs of a source fail.",
        description="{{ $value | humanizePercentage }} of the runs of {{ $labels.source }} fail, far more than the"
        " objective allows.",
    ),
    Alert(
        name="AutomationErrorBudgetBurnSlow",
        group="workflows",
        about="source",
        severity="warning",
        expr=of.budget_burns_slowly,
        wait="15m",
        keep="15m",
        summary="More runs of a source fail than the objective allows.",
        description="For hours, {{ $value | humanizePercentage }} of the runs of {{ $labels.source }} have failed.",
    ),
    Alert(
        name="AutomationWorkflowFailing",
        group="workflows",
        severity="warning",
        expr=of.workflow_fails_in_a_row,
        wait="2m",
        keep="5m",
        summary="A workflow fails run after run, or runs rarely and failed.",
        description="The last {{ if gt $value 1.0 }}{{ $value }} runs{{ else }}run{{ end }}"
        f" of {_WORKFLOW} failed.",
    ),
    Alert(
        name="AutomationWorkflowFailingOften",
        group="workflows",
        severity="warning",
        expr=of.workflow_fails_often,
        wait="2m",
        keep="15m",
        summary="A busy workflow fails far more often than the objective allows.",
        description=f"{{{{ $value | humanizePercentage }}}} of the runs of {_WORKFLOW} fail.",
    ),
    Alert(
        name="AutomationWorkflowOverdue",
        group="workflows",
        severity="warning",
        expr=of.workflow_is_overdue,
        wait="2m",
        keep="5m",
        summary="A workflow did not start when it was planned to.",
        description=f"{_WORKFLOW} was to start {{{{ $value | humanizeDuration }}}} ago and has not.",
    ),
    Alert(
        name="AutomationWorkflowSilent",
        group="workflows",
        severity="warning",
        expr=of.workflow_is_silent,
        wait="10m",
        keep="5m",
        summary="A workflow that runs regularly has not run.",
        description=f"{_WORKFLOW} has not run for {{{{ $value | humanizeDuration }}}}, far longer than is usual.",
    ),
    Alert(
        name="AutomationWorkflowStuck",
        group="workflows",
        severity="warning",
        expr=of.workflow_is_stuck,
        wait="5m",
        keep="5m",
        summary="A run has been pending or running for too long.",
        description=f"A run of {_WORKFLOW} has been {{{{ $labels.state }}}} for {{{{ $value | humanizeDuration }}}}.",
    ),
    Alert(
        name="AutomationWorkflowDisabled",
        group="workflows",
        severity="warning",
        expr=of.workflow_was_disabled,
        wait="5m",
        keep="5m",
        summary="A workflow that was on is off.",
        description=f"{_WORKFLOW} was switched off within the last day, by a person or by the platform.",
    ),
    Alert(
        name="AutomationWorkflowBlocked",
        group="workflows",
        severity="warning",
        expr=of.workflow_is_blocked,
        wait="10m",
        keep="5m",
        summary="A platform keeps a workflow from running.",
        description=f"{_WORKFLOW} cannot run: {{{{ $labels.reason }}}}.",
    ),
    Alert(
        name="AutomationQueueNearLimit",
        group="workflows",
        severity="warning",
        expr=of.queue_is_nearly_full,
        wait="5m",
        keep="10m",
        summary="The queue in front of a workflow is nearly full.",
        description=f"The queue of {_WORKFLOW} is {{{{ $value | humanizePercentage }}}} full. When it is full,"
        " what comes is refused.",
    ),
    Alert(
        name="AutomationDeadLettersGrowing",
        group="dead-letters",
        severity="warning",
        expr=of.dead_letters_grow,
        wait="10m",
        keep="15m",
        summary="Dead letters come in faster than they are resolved.",
        description=f"{_WORKFLOW} has {{{{ $value }}}} more open dead letters than up to six hours ago.",
    ),
    Alert(
        name="AutomationDeadLettersOld",
        group="dead-letters",
        severity="warning",
        expr=of.dead_letters_are_old,
        wait="10m",
        keep="5m",
        summary="A dead letter has been waiting for too long.",
        description=f"The oldest dead letter of {_WORKFLOW} has been open for {{{{ $value | humanizeDuration }}}}.",
    ),
    Alert(
        name="AutomationDeadLettersExpired",
        group="dead-letters",
        severity="warning",
        expr=of.dead_letters_expire,
        wait="1m",
        keep="15m",
        summary="Dead letters were lost: they got too old before anybody treated them.",
        description=f"Dead letters of {_WORKFLOW} expired within the last hour. Their data is lost.",
    ),
    Alert(
        name="AutomationDeadLettersNearCapacity",
        group="dead-letters",
        about="source",
        severity="warning",
        expr=of.dead_letters_are_nearly_full,
        wait="10m",
        keep="15m",
        summary="A source holds nearly as many dead letters as it has room for.",
        description="{{ $labels.source }} holds {{ $value }} open dead letters. When there is no room left, what"
        " fails is lost, or stops its workflow.",
    ),
    Alert(
        name="AutomationDeadLettersEscalated",
        group="dead-letters",
        about="source",
        severity="warning",
        expr=of.dead_letters_are_escalated,
        wait="1m",
        keep="15m",
        summary="Dead letters need a person: they will not be retried by themselves any more.",
        description="New within an hour in {{ $labels.source }}: {{ $value }}, reason {{ $labels.reason }}"
        "{{ with $labels.policy }}, policy {{ . }}{{ end }}.",
    ),
    Alert(
        name="AutomationRetryHeld",
        group="retries",
        about="source",
        severity="warning",
        expr=of.retries_are_held,
        wait="1h",
        keep="5m",
        summary="Nobody can tell what a retry did; a person must decide.",
        description="Retries of {{ $labels.source }} held under the policy {{ $labels.policy }}: {{ $value }}.",
    ),
    Alert(
        name="AutomationRetryInDoubt",
        group="retries",
        about="source",
        severity="warning",
        expr=of.retries_are_in_doubt,
        wait="30m",
        keep="5m",
        summary="Nobody knows yet whether a retry had an effect.",
        description="Retries of {{ $labels.source }} in doubt under the policy {{ $labels.policy }}: {{ $value }}.",
    ),
    Alert(
        name="AutomationRetriesIneffective",
        group="retries",
        about="source",
        severity="warning",
        expr=of.retries_do_not_help,
        wait="15m",
        keep="30m",
        summary="Most retries of a policy do not help.",
        description="{{ $value | humanizePercentage }} of the retries of {{ $labels.source }} under the policy"
        " {{ $labels.policy }} failed or were refused within six hours.",
    ),
    Alert(
        name="AutomationRetryGateShut",
        group="retries",
        about="source",
        severity="warning",
        expr=of.retry_gates_are_shut,
        wait="4h",
        keep="30m",
        summary="Retrying has not helped for hours; the dead letters wait.",
        description="Groups of {{ $labels.source }} whose gates are shut under the policy {{ $labels.policy }}:"
        " {{ $value }}.",
    ),
    Alert(
        name="AutomationRetryBudgetEmpty",
        group="retries",
        about="source",
        severity="warning",
        expr=of.retry_budget_is_empty,
        wait="1h",
        keep="15m",
        summary="Dead letters wait because the budget of failed retries is used up.",
        description="{{ $labels.source }} has {{ $value }} tokens left of its budget; a retry takes one.",
    ),
    Alert(
        name="AutomationRetryStorm",
        group="retries",
        about="source",
        severity="info",
        expr=of.retries_wait_for_the_source,
        wait="30m",
        keep="15m",
        summary="Nothing is retried because most runs of the source fail.",
        description="So many runs of {{ $labels.source }} fail that retrying its dead letters would not help.",
    ),
    Alert(
        name="AutomationRetriesLowered",
        group="retries",
        about="source",
        severity="warning",
        expr=of.retries_are_lowered,
        wait="10m",
        keep="5m",
        summary="The platform refused retries; since then each waits for approval.",
        description="Retries of {{ $labels.source }} were refused for want of a right or of a valid credential.",
    ),
    Alert(
        name="AutomationDataIncomplete",
        group="sources",
        about="source",
        severity="warning",
        expr=of.data_are_incomplete,
        wait="5m",
        keep="5m",
        summary="A source cannot be read; what is shown of it is old.",
        description="The stream {{ $labels.stream }} of {{ $labels.source }} cannot be read.",
        needs_data=False,
    ),
    Alert(
        name="AutomationReadingIncomplete",
        group="sources",
        about="source",
        severity="warning",
        expr=of.reading_is_incomplete,
        wait="10m",
        keep="5m",
        summary="A source is read, but not all of it: runs of some workflows are not seen.",
        description="The stream {{ $labels.stream }} of {{ $labels.source }} is read, but a part of it has not been"
        " for {{ $value | humanizeDuration }}. The status page names the workflow and the reason.",
        needs_data=False,
    ),
    Alert(
        name="AutomationDataFaulty",
        group="sources",
        about="source",
        severity="info",
        expr=of.data_are_faulty,
        wait="1h",
        keep="15m",
        summary="A part of what a platform answers cannot be used.",
        description="The stream {{ $labels.stream }} of {{ $labels.source }} has not been read without a fault for an"
        " hour.",
        needs_data=False,
    ),
    Alert(
        name="AutomationCredentialFailing",
        group="sources",
        about="source",
        severity="critical",
        expr=of.credential_is_refused,
        wait="2m",
        keep="5m",
        summary="A platform refuses the credential of a source.",
        description="The credential of {{ $labels.source }} is refused: nothing of it is read or retried.",
        needs_data=False,
    ),
    Alert(
        name="AutomationWebhookLoss",
        group="sources",
        about="source",
        severity="warning",
        expr=of.webhooks_are_lost,
        wait="15m",
        keep="15m",
        summary="Runs end without the webhook that should tell of them.",
        description="Webhooks of {{ $labels.source }} told of {{ $value | humanizePercentage }} of the runs of the last"
        " hour only.",
    ),
    Alert(
        name="AutomationQuotaLow",
        group="sources",
        about="source",
        severity="warning",
        expr=of.plan_is_nearly_used,
        wait="15m",
        keep="15m",
        summary="Little is left of a plan.",
        description="{{ $value | humanizePercentage }} of the {{ $labels.kind }} of {{ $labels.source }} are left.",
        needs_data=False,
    ),
    Alert(
        name="AutomationApiQuotaLow",
        group="sources",
        about="source",
        severity="warning",
        expr=of.api_budget_is_short,
        wait="15m",
        keep="15m",
        summary="Requests to a platform wait for their turn most of the time.",
        description="Of the requests {{ $labels.source }} may send, {{ $value | humanizePercentage }} were free on"
        " average of 15 minutes.",
        needs_data=False,
    ),
    Alert(
        name="AutomationExporterClockOffset",
        group="exporter",
        about="source",
        severity="warning",
        expr=of.clocks_differ,
        wait="10m",
        keep="5m",
        summary="The exporter's clock and a platform's differ.",
        description="The clocks of the exporter and of {{ $labels.source }} differ by {{ $value | humanizeDuration }}.",
        needs_data=False,
    ),
    Alert(
        name="AutomationSeriesFolded",
        group="exporter",
        about="exporter",
        severity="warning",
        expr=of.series_are_folded,
        wait="5m",
        keep="5m",
        summary="New workflows are shown together for lack of series.",
        description="{{ $value }} workflows were folded into __other__ within a day: limits.series_max is reached.",
        needs_data=False,
    ),
    Alert(
        name="AutomationStoreDown",
        group="exporter",
        about="process",
        severity="critical",
        expr=of.store_is_down,
        wait="1m",
        keep="5m",
        summary="The exporter can store nothing.",
        description="{{ $labels.instance }} can store nothing: webhooks get 503, what is shown is old, and nothing is"
        " retried. /-/ready says why.",
        needs_data=False,
    ),
    Alert(
        name="AutomationStoreErrors",
        group="exporter",
        about="process",
        severity="warning",
        expr=of.store_refuses_some,
        wait="1m",
        keep="15m",
        summary="The exporter could not store something.",
        description="{{ $labels.instance }} could not do {{ $value }} operations in its database within 15 minutes.",
        needs_data=False,
    ),
    Alert(
        name="AutomationExporterDown",
        group="exporter",
        about="process",
        severity="critical",
        expr=of.exporter_is_down,
        wait="5m",
        keep="1m",
        summary="The exporter cannot be scraped.",
        description="{{ with $labels.instance }}{{ . }}{{ else }}Every instance of {{ $labels.job }}{{ end }} is down"
        " or gone: nothing is known of any workflow.",
        needs_data=False,
    ),
)
