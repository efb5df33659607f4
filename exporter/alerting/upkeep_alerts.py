"""The rows of the table of alerts that are about sources and the exporter itself. Pure."""

from exporter.alerting import upkeep as of
from exporter.alerting.alert import Alert
from exporter.alerting.promql import store_is_down

#: What the platform answers mostly, or else which kind of error it is.
_WHY = (
    "{{ with printf `topk(1, sum by (code) (increase(automation_exporter_api_requests_total{job=%q, source=%q,"
    ' code!~"[123].."}[30m])) > 0)` $labels.job $labels.source | query }}, mostly {{ (first .).Labels.code }}'
    "{{ else }}{{ with printf `topk(1, sum by (kind) (automation_exporter_sweep_errors_total{job=%q, source=%q}) > 0)`"
    " $labels.job $labels.source | query }}, mostly {{ (first .).Labels.kind }}{{ end }}{{ end }}"
)

#: Which answer refuses the credential, and what cannot be read therefore: all of it, or what wants a right of its own.
_REFUSED = (
    "{{ with printf `topk(1, (sum by (code) (increase(automation_exporter_api_requests_total{job=%q, source=%q,"
    ' code=~"401|403"}[1h])) > 0) or on () sum by (code) (automation_exporter_api_requests_total{job=%q, source=%q,'
    ' code=~"401|403"}))` $labels.job $labels.source $labels.job $labels.source | query }}'
    " ({{ (first .).Labels.code }}){{ end }}"
)
_UNREAD = (
    "{{ range $i, $s := printf `group by (stream) (automation_exporter_sweep_errors_total{job=%q, source=%q,"
    ' kind="auth"} and on (job, source, stream) automation_exporter_data_complete{job=%q, source=%q} == 0)`'
    " $labels.job $labels.source $labels.job $labels.source | query | sortByLabel `stream` }}"
    "{{ if $i }}, {{ end }}{{ .Labels.stream }}{{ end }}"
)

UPKEEP = (
    Alert(
        name="AutomationSourceDown",
        group="sources",
        about="source",
        severity="critical",
        expr=of.source_is_down,
        wait="3m",
        keep="5m",
        summary="A platform cannot be reached, or refuses every request.",
        description=f"Nothing of {{{{ $labels.source }}}} can be read{_WHY}.",
        needs_data=False,
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
        wait="30s",
        keep="5m",
        summary="A platform refuses the credential of a source.",
        description=f"The credential of {{{{ $labels.source }}}} is refused{_REFUSED}. Not read any more: {_UNREAD}.",
        needs_data=False,
    ),
    Alert(
        name="AutomationDetectionSlow",
        group="sources",
        about="source",
        severity="warning",
        expr=of.failures_are_seen_late,
        wait="15m",
        keep="15m",
        summary="Runs are counted long after they ended: failures are told late.",
        description="One run in twenty of {{ $labels.source }} is counted more than {{ $value | humanizeDuration }}"
        " after its end.",
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
        name="AutomationQuotaUsedUpSoon",
        group="sources",
        about="source",
        severity="warning",
        expr=of.plan_is_used_up_soon,
        wait="30m",
        keep="15m",
        summary="At the present pace a plan is used up within three days.",
        description="The {{ $labels.kind }} of {{ $labels.source }} are used up in {{ $value | humanizeDuration }}, if"
        " it goes on as it did within the last day.",
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
        expr=store_is_down,
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
        name="AutomationConfigReloadFailed",
        group="exporter",
        about="process",
        severity="warning",
        expr=of.config_was_refused,
        wait="5m",
        keep="1m",
        summary="A changed config was refused; the one before is still in force.",
        description="{{ $labels.instance }} could not load its config. Its log and automation-exporter check say why.",
        needs_data=False,
    ),
    Alert(
        name="AutomationTracesPending",
        group="exporter",
        about="process",
        severity="warning",
        expr=of.traces_pile_up,
        wait="15m",
        keep="15m",
        summary="Traces are not exported as fast as runs end.",
        description="{{ $value }} finished runs of {{ $labels.instance }} wait for their trace to be exported.",
        needs_data=False,
    ),
    Alert(
        name="AutomationExporterRestarting",
        group="exporter",
        about="process",
        severity="critical",
        expr=of.exporter_restarts,
        wait="1m",
        keep="15m",
        summary="The exporter restarts again and again.",
        description="{{ $labels.instance }} started {{ $value }} times within an hour.",
        needs_data=False,
    ),
    Alert(
        name="AutomationExporterDown",
        group="exporter",
        about="exporter",
        severity="critical",
        expr=of.exporter_is_down,
        wait="5m",
        keep="1m",
        summary="No exporter can be scraped.",
        description="Every instance of {{ $labels.job }} is down or gone: nothing is known of any workflow.",
        needs_data=False,
        serves=False,
    ),
)
