"""Cases of the alerts on retries, sources and the exporter."""

from tests.alerts.world import (
    ALLOWED,
    ALLOWED_BYTES,
    AT,
    COMPLETE,
    ENDED,
    FREE,
    GATES,
    HERE,
    JOB,
    LAG,
    OFFSET,
    ONE,
    POLICY,
    RAILS,
    READING,
    REFUSED,
    REFUSED_BY_STORE,
    RELIABILITY,
    RETRIES,
    SOURCE,
    STORE_UP,
    STREAM,
    SUCCESS,
    SWEEPS,
    UP,
    USED,
    USED_BYTES,
    Case,
    Cases,
    metric,
)

ESCALATED = "automation_retry_escalations_total"

DOWN = "Every instance of automation-exporter is down or gone: nothing is known of any workflow."
RELOADED = metric("automation_exporter_config_last_reload_successful", JOB)
LOADED_AT = metric("automation_exporter_config_last_reload_success_timestamp_seconds", JOB)
PENDING = metric("automation_exporter_traces_pending", JOB)
STARTED = metric("process_start_time_seconds", JOB)


def answers(code: str) -> str:
    return metric("automation_exporter_api_requests_total", SOURCE, endpoint="/runs", code=code)


def seen(le: str) -> str:
    return metric("automation_exporter_detection_delay_seconds_bucket", SOURCE, via="poll", le=le)


SOURCES: dict[str, Cases] = {
    "AutomationDeadLettersEscalated": Cases(
        fires=[
            Case(
                why="the retries of three are used up",
                series={metric(ESCALATED, RETRIES, reason="exhausted"): "0x60 3x400"},
                at="65m",
                told=(
                    {**POLICY, "reason": "exhausted"},
                    "New within an hour in make-eu: 3, reason exhausted, policy transient.",
                ),
            ),
            Case(
                why="a policy is new, and its first scrape says two already",
                series={metric(ESCALATED, RETRIES, reason="policy"): "_x60 2x400"},
                at="65m",
                told=(
                    {**POLICY, "reason": "policy"},
                    "New within an hour in make-eu: 2, reason policy, policy transient.",
                ),
            ),
            Case(
                why="nobody knows the policy of one that is held",
                series={metric(ESCALATED, f'{SOURCE}, policy=""', reason="held"): "0x60 1x400"},
                at="65m",
                told=({**HERE, "reason": "held"}, "New within an hour in make-eu: 1, reason held."),
            ),
        ],
        silent=[
            Case(why="none is", series={metric(ESCALATED, RETRIES, reason="held"): "0x400"}, at="65m"),
            Case(
                why="more than an hour ago",
                series={metric(ESCALATED, RETRIES, reason="exhausted"): "0x60 3x400"},
                at="150m",
            ),
            Case(
                why="the exporter was down for two hours, and its totals go on",
                series={metric(ESCALATED, RETRIES, reason="exhausted"): "3x60 _x120 3x400"},
                at="185m",
            ),
        ],
    ),
    "AutomationRetryHeld": Cases(
        fires=[
            Case(
                why="held for more than an hour",
                series={metric("automation_retries_open", RETRIES, state="held"): "2x100"},
                at="70m",
                told=({**POLICY, "state": "held"}, "Retries of make-eu held under the policy transient: 2."),
            )
        ],
        silent=[
            Case(
                why="held for half an hour, then approved",
                series={metric("automation_retries_open", RETRIES, state="held"): "2x30 0x70"},
                at="70m",
            )
        ],
    ),
    "AutomationRetryInDoubt": Cases(
        fires=[
            Case(
                why="in doubt for more than half an hour",
                series={metric("automation_retries_open", RETRIES, state="in_doubt"): "1x100"},
                at="40m",
                told=({**POLICY, "state": "in_doubt"}, "Retries of make-eu in doubt under the policy transient: 1."),
            )
        ],
        silent=[
            Case(
                why="settled by reading the platform",
                series={metric("automation_retries_open", RETRIES, state="in_doubt"): "1x20 0x70"},
                at="40m",
            )
        ],
    ),
    "AutomationRetriesIneffective": Cases(
        fires=[
            Case(
                why="nine of twelve failed or were refused",
                series={
                    metric("automation_retries_total", RETRIES, outcome="succeeded"): "0x60 3x400",
                    metric("automation_retries_total", RETRIES, outcome="failed"): "0x60 6x400",
                    metric("automation_retries_total", RETRIES, outcome="rejected"): "0x60 3x400",
                },
                at="3h",
                told=(
                    POLICY,
                    "75% of the retries of make-eu under the policy transient failed or were refused within six hours.",
                ),
            )
        ],
        silent=[
            Case(
                why="three of four, which is too few to judge",
                series={
                    metric("automation_retries_total", RETRIES, outcome="succeeded"): "0x60 1x400",
                    metric("automation_retries_total", RETRIES, outcome="failed"): "0x60 3x400",
                },
                at="3h",
            ),
            Case(
                why="most succeed",
                series={
                    metric("automation_retries_total", RETRIES, outcome="succeeded"): "0x60 9x400",
                    metric("automation_retries_total", RETRIES, outcome="failed"): "0x60 3x400",
                },
                at="3h",
            ),
        ],
    ),
    "AutomationRetryGateShut": Cases(
        fires=[
            Case(
                why="now it cools off, now one retry is tried, for more than four hours",
                series={
                    metric("automation_retry_gates", GATES, state="cooling"): "2x100 1x3 2x300",
                    metric("automation_retry_gates", GATES, state="probing"): "0x100 1x3 0x300",
                    metric("automation_retry_gates", GATES, state="open"): "5x400",
                },
                at="250m",
                told=(
                    {**HERE, "policy": "transient"},
                    "Groups of make-eu whose gates are shut under the policy transient: 2.",
                ),
            )
        ],
        silent=[
            Case(
                why="a retry worked after three hours",
                series={
                    metric("automation_retry_gates", GATES, state="cooling"): "2x180 0x220",
                    metric("automation_retry_gates", GATES, state="ramping"): "0x180 2x220",
                },
                at="250m",
            ),
            Case(
                why="nothing waits behind it any more",
                series={metric("automation_retry_gates", GATES, state="cooling"): "1x180 0x220"},
                at="250m",
            ),
        ],
    ),
    "AutomationRetryBudgetEmpty": Cases(
        fires=[
            Case(
                why="what is earned is spent at once",
                series={
                    metric("automation_retry_budget_tokens", RAILS): "0.5x400",
                    metric("automation_retry_gates", GATES, state="ramping"): "1x400",
                },
                at="65m",
                told=(HERE, "make-eu has 0.5 tokens left of its budget; a retry takes one."),
            )
        ],
        silent=[
            Case(
                why="nothing is there to be retried",
                series={
                    metric("automation_retry_budget_tokens", RAILS): "0.5x400",
                    metric("automation_retry_gates", GATES, state="ramping"): "0x400",
                },
                at="65m",
            ),
            Case(
                why="it fills again",
                series={
                    metric("automation_retry_budget_tokens", RAILS): "0.5x40 1.5x400",
                    metric("automation_retry_gates", GATES, state="ramping"): "1x400",
                },
                at="65m",
            ),
        ],
    ),
    "AutomationRetryStorm": Cases(
        fires=[
            Case(
                why="on for more than half an hour",
                series={metric("automation_retry_storm", RAILS): "1x400"},
                at="35m",
                told=(HERE, "So many runs of make-eu fail that retrying its dead letters would not help."),
            )
        ],
        silent=[
            Case(why="over in time", series={metric("automation_retry_storm", RAILS): "1x20 0x400"}, at="35m"),
        ],
    ),
    "AutomationRetriesLowered": Cases(
        fires=[
            Case(
                why="lowered and nobody saw to it",
                series={metric("automation_retry_lowered", RAILS): "1x400"},
                at="15m",
                told=(HERE, "Retries of make-eu were refused for want of a right or of a valid credential."),
            )
        ],
        silent=[
            Case(
                why="the credential was accepted again",
                series={metric("automation_retry_lowered", RAILS): "1x8 0x400"},
                at="15m",
            ),
            Case(
                why="a person chose the mode",
                series={
                    metric("automation_retry_lowered", RAILS): "0x400",
                    metric("automation_retry_mode", RAILS, mode="approve"): "1x400",
                },
                at="15m",
            ),
        ],
    ),
    "AutomationSourceDown": Cases(
        fires=[
            Case(
                why="503 since minute 10",
                series={UP: "1x10 0x60", answers("503"): "0x10 1+1x60", answers("200"): "0+1x10 10x60"},
                at="18m",
                told=(HERE, "Nothing of make-eu can be read, mostly 503."),
            ),
            Case(
                why="throttled for ever, in the middle of reading: no sweep ends",
                series={UP: "1x70", answers("429"): "0x10 1+1x60", answers("200"): "0+1x10 10x60", FREE: "60x10 0x60"},
                at="19m",
                told=(HERE, "Nothing of make-eu can be read, mostly 429."),
            ),
            Case(
                why="throttled for the first time, and each answer asks for a pause of five minutes",
                series={
                    UP: "1x70",
                    answers("429"): "_x10 1x4 2x4 3x4 4x4 5x40",
                    answers("200"): "0+1x10 10x60",
                    FREE: "60x10 0x60",
                },
                at="19m",
                told=(HERE, "Nothing of make-eu can be read, mostly 429."),
            ),
            Case(
                why="each answer takes too long, and a sweep asks for many things",
                series={UP: "1x70", answers("timeout"): "_x10 1+1x60", answers("200"): "0+1x10 10x60", FREE: "60x70"},
                at="19m",
                told=(HERE, "Nothing of make-eu can be read, mostly timeout."),
            ),
            Case(
                why="503 for the stream that is read most, ever more rarely; the main one is read four times an hour",
                series={
                    UP: "1x70",
                    COMPLETE: "1x10 0x60",
                    SWEEPS: "0+1x10 11 12x1 13x3 14x7 15x40",
                    answers("503"): "_x10 3 6x1 9x3 12x7 15x40",
                    answers("200"): "0+1x10 10x60",
                    FREE: "60x70",
                },
                at="19m",
                told=(HERE, "Nothing of make-eu can be read, mostly 503."),
            ),
            Case(
                why="nothing was ever answered",
                series={UP: "0x60", metric("automation_exporter_sweep_errors_total", STREAM, kind="timeout"): "1+1x60"},
                at="10m",
                told=(HERE, "Nothing of make-eu can be read, mostly timeout."),
            ),
        ],
        silent=[
            Case(
                why="some requests are refused",
                series={UP: "1x60", answers("429"): "0+1x60", answers("200"): "0+1x60"},
                at="30m",
            ),
            Case(why="for three minutes", series={UP: "1x10 0x3 1x60"}, at="15m"),
            Case(
                why="polled every ten minutes, and one request was refused on the way",
                series={
                    UP: "1x70",
                    answers("429"): "0x19 1x60",
                    answers("200"): "9x9 18x9 27x9 36x9",
                    FREE: "60x19 0x1 60x60",
                },
                at="29m",
            ),
            Case(
                why="the same, and something cannot be read at all times",
                series={
                    UP: "1x70",
                    COMPLETE: "0x70",
                    SWEEPS: "1x9 2x9 3x9 4x9",
                    answers("429"): "0x19 1x60",
                    answers("200"): "9x9 18x9 27x9 36x9",
                    FREE: "60x19 0x1 60x60",
                },
                at="29m",
            ),
            Case(
                why="a burst at the limit, with answers now and then",
                series={UP: "1x70", answers("429"): "0+3x70", answers("200"): "0x3 1x3 2x3 3x3 4x3 5x60", FREE: "0x70"},
                at="19m",
            ),
            Case(
                why="the credential is refused, which is another alert",
                series={UP: "0x60", COMPLETE: "0x60", REFUSED: "1+1x60", answers("401"): "0+1x60"},
                at="30m",
            ),
            Case(why="nothing can be stored", series={UP: "0x60", STORE_UP: "0x60"}, at="30m"),
        ],
    ),
    "AutomationDataIncomplete": Cases(
        fires=[
            Case(
                why="not read since minute 10",
                series={COMPLETE: "1x10 0x60", SUCCESS: "0+60x10 600x60"},
                at="40m",
                told=(READING, "The stream runs of make-eu cannot be read."),
            ),
            Case(
                why="never read since the exporter was started",
                series={COMPLETE: "0x60"},
                at="10m",
                told=(READING, "The stream runs of make-eu cannot be read."),
            ),
        ],
        silent=[
            Case(
                why="one item cannot be used, everything else is read",
                series={COMPLETE: "0x60", SUCCESS: "0+60x60"},
                at="40m",
            ),
            Case(
                why="one sweep failed",
                series={COMPLETE: "1x10 0x3 1x60", SUCCESS: "0+60x10 600x3 780+60x60"},
                at="40m",
            ),
            Case(why="a stream that is read rarely", series={COMPLETE: "1x60", SUCCESS: "0x60"}, at="40m"),
            Case(
                why="what is read cannot be stored: that is the store's, not the platform's",
                series={COMPLETE: "1x10 0x60", SUCCESS: "0+60x10 600x60", STORE_UP: "1x10 0x60"},
                at="40m",
            ),
        ],
    ),
    "AutomationReadingIncomplete": Cases(
        fires=[
            Case(
                why="one workflow has not been read since minute 10, and every sweep goes to its end",
                series={COMPLETE: "1x10 0x60", SUCCESS: "0+60x70", LAG: "60x10 60+60x60"},
                at="50m",
                told=(
                    READING,
                    "The stream runs of make-eu is read, but a part of it has not been for 40m 0s. The status page"
                    " names the workflow and the reason.",
                ),
            ),
        ],
        silent=[
            Case(
                why="it was read again after a few sweeps",
                series={COMPLETE: "1x10 0x8 1x60", SUCCESS: "0+60x80", LAG: "60x10 60+60x8 60x60"},
                at="40m",
            ),
            Case(
                why="one item cannot be used, and every workflow is read",
                series={COMPLETE: "0x90", SUCCESS: "0+60x90", LAG: "60x90"},
                at="80m",
            ),
            Case(
                why="nothing can be read, which is another alert",
                series={COMPLETE: "1x10 0x90", SUCCESS: "0+60x10 600x90", LAG: "60x10 60+60x90"},
                at="60m",
            ),
            Case(
                why="nothing can be stored, which is another alert",
                series={
                    COMPLETE: "1x10 0x90",
                    SUCCESS: "0+60x10 600x90",
                    LAG: "60x10 60+60x90",
                    STORE_UP: "1x10 0x90",
                },
                at="60m",
            ),
            Case(
                why="a stream that is read rarely",
                series={COMPLETE: "1x90", SUCCESS: "0x90", LAG: "0+60x90"},
                at="80m",
            ),
        ],
    ),
    "AutomationDataFaulty": Cases(
        fires=[
            Case(
                why="one item cannot be used, for more than an hour",
                series={COMPLETE: "0x90", SUCCESS: "0+60x90"},
                at="80m",
                told=(READING, "The stream runs of make-eu has not been read without a fault for an hour."),
            )
        ],
        silent=[
            Case(why="for half an hour", series={COMPLETE: "0x30 1x60", SUCCESS: "0+60x90"}, at="80m"),
            Case(
                why="nothing can be read, which is another alert", series={COMPLETE: "0x90", SUCCESS: "0x90"}, at="85m"
            ),
            Case(
                why="nothing can be stored, which is another alert",
                series={COMPLETE: "0x90", SUCCESS: "0+60x90", STORE_UP: "0x90"},
                at="85m",
            ),
        ],
    ),
    "AutomationCredentialFailing": Cases(
        fires=[
            Case(
                why="refused since minute 10, ever more rarely tried",
                series={
                    COMPLETE: "1x10 0x60",
                    REFUSED: "_x10 1x2 2x4 3x8 4x60",
                    metric("automation_exporter_data_complete", SOURCE, stream="workflows"): "1x10 0x60",
                    metric(
                        "automation_exporter_sweep_errors_total", SOURCE, stream="workflows", kind="auth"
                    ): "_x10 1x60",
                    answers("401"): "_x10 1x2 2x4 3x8 4x60",
                },
                at="40m",
                told=(HERE, "The credential of make-eu is refused (401). Not read any more: runs, workflows."),
            ),
            Case(
                why="refused for the first time: a counter that is born with it",
                series={COMPLETE: "1x10 0x60", REFUSED: "_x10 1x10", answers("403"): "_x10 1x10"},
                at="12m",
                told=(HERE, "The credential of make-eu is refused (403). Not read any more: runs."),
            ),
        ],
        silent=[
            Case(
                why="it works again",
                series={COMPLETE: "1x10 0x10 1x60", REFUSED: "_x10 1x2 2x4 3x60"},
                at="40m",
            ),
            Case(
                why="the platform is down, the credential was refused two hours ago",
                series={COMPLETE: "0x200", REFUSED: "1x200"},
                at="130m",
            ),
        ],
    ),
    "AutomationDetectionSlow": Cases(
        fires=[
            Case(
                why="one in ten is counted an hour after its end",
                series={seen("900"): "0+0.9x200", seen("3600"): "0+1x200", seen("+Inf"): "0+1x200"},
                at="90m",
                told=(HERE, "One run in twenty of make-eu is counted more than 37m 29s after its end."),
            )
        ],
        silent=[
            Case(
                why="one in a hundred is",
                series={seen("900"): "0+0.99x200", seen("3600"): "0+1x200", seen("+Inf"): "0+1x200"},
                at="90m",
            ),
            Case(why="no run has ended", series={seen("900"): "5x200", seen("+Inf"): "9x200"}, at="90m"),
        ],
    ),
    "AutomationWebhookLoss": Cases(
        fires=[
            Case(
                why="a third of the runs came without",
                series={RELIABILITY: "0.67x60", ENDED: "0+1x60"},
                at="30m",
                told=(HERE, "Webhooks of make-eu told of 67% of the runs of the last hour only."),
            )
        ],
        silent=[
            Case(
                why="one in fifty",
                series={RELIABILITY: "0.98x60", ENDED: "0+1x60"},
                at="30m",
            ),
            Case(why="no run has ended since", series={RELIABILITY: "0.67x200", ENDED: "0+1x60 60x200"}, at="150m"),
        ],
    ),
    "AutomationQuotaLow": Cases(
        fires=[
            Case(
                why="9500 of 10000 are used",
                series={USED: "9500x60", ALLOWED: "10000x60"},
                at="30m",
                told=({**HERE, "kind": "operations"}, "5% of the operations of make-eu are left."),
            ),
            Case(
                why="of two kinds, the one that is nearly used up",
                series={USED: "5000x60", ALLOWED: "10000x60", USED_BYTES: "9.9e9x60", ALLOWED_BYTES: "1e10x60"},
                at="30m",
                told=({**HERE, "kind": "transfer"}, "1% of the transfer of make-eu are left."),
            ),
        ],
        silent=[
            Case(why="half of it", series={USED: "5000x60", ALLOWED: "10000x60"}, at="30m"),
            Case(why="there is no limit", series={USED: "5000x60"}, at="30m"),
        ],
    ),
    "AutomationQuotaUsedUpSoon": Cases(
        fires=[
            Case(
                why="2000 a day, and 4000 are left",
                series={USED: f"2000+{2000 / 1440}x2880", ALLOWED: "10000x2880"},
                at="47h",
                told=(
                    {**HERE, "kind": "operations"},
                    "The operations of make-eu are used up in 2d 1h 0m 0s, if it goes on as it did within the last"
                    " day.",
                ),
            ),
            Case(
                why="all of it is used",
                series={USED: "5000x1500 12000x300", ALLOWED: "10000x1800"},
                at="28h",
                told=(
                    {**HERE, "kind": "operations"},
                    "The operations of make-eu are used up in 0s, if it goes on as it did within the last day.",
                ),
            ),
        ],
        silent=[
            Case(
                why="ten days' worth is left",
                series={USED: f"2000+{500 / 1440}x2880", ALLOWED: "10000x2880"},
                at="47h",
            ),
            Case(
                why="a new period has begun an hour ago",
                series={USED: f"4000+{2000 / 1440}x2700 0+10x180", ALLOWED: "10000x2880"},
                at="2760m",
            ),
            Case(
                why="a new install: what it finds used was not used today",
                series={USED: f"_x60 9000+{2000 / 1440}x600", ALLOWED: "_x60 10000x600"},
                at="10h",
            ),
            Case(why="nothing is used any more", series={USED: "9900x2880", ALLOWED: "10000x2880"}, at="47h"),
            Case(why="there is no limit", series={USED: "2000+2x2880"}, at="47h"),
            Case(
                why="nobody looked for a day, and a new period began meanwhile",
                series={USED: "9000x60 _x1500 800+2x300", ALLOWED: "10000x60 _x1500 10000x300"},
                at="1800m",
            ),
        ],
        every="5m",
    ),
    "AutomationApiQuotaLow": Cases(
        fires=[
            Case(
                why="300 requests a minute were free in the morning, now 12 on average",
                series={FREE: "300x60 12x60"},
                at="110m",
                told=(
                    HERE,
                    "Of the requests make-eu may send, 4% were free on average of 15 minutes.",
                ),
            )
        ],
        silent=[
            Case(why="a burst is what the budget is for", series={FREE: "300x60 0x5 300x60"}, at="70m"),
            Case(why="a small budget, unused", series={FREE: "6x120"}, at="110m"),
        ],
    ),
    "AutomationExporterClockOffset": Cases(
        fires=[
            Case(
                why="60 days ahead",
                series={OFFSET: "0x10 5184000x60"},
                at="30m",
                told=(HERE, "The clocks of the exporter and of make-eu differ by 60d 0h 0m 0s."),
            ),
            Case(
                why="two minutes behind",
                series={OFFSET: "-120x60"},
                at="30m",
                told=(HERE, "The clocks of the exporter and of make-eu differ by 2m 0s."),
            ),
        ],
        silent=[
            Case(why="whole seconds and slow answers", series={OFFSET: "0 3 -3 0 2x60"}, at="30m"),
            Case(why="set right within a few minutes", series={OFFSET: "0x10 600x5 0x60"}, at="20m"),
        ],
    ),
    "AutomationSeriesFolded": Cases(
        fires=[
            Case(
                why="three new workflows, and no room",
                series={metric("automation_exporter_series_folded_total", JOB): "0x60 3x200"},
                at="2h",
                told=(AT, "3 workflows were folded into __other__ within a day: limits.series_max is reached."),
            )
        ],
        silent=[
            Case(
                why="none",
                series={metric("automation_exporter_series_folded_total", JOB): "0x200"},
                at="2h",
            )
        ],
    ),
    "AutomationStoreDown": Cases(
        fires=[
            Case(
                why="the disk has been full since minute 10: told by minute 15, a minute of scraping included",
                series={STORE_UP: "1x10 0x30"},
                at="13m",
                told=(
                    ONE,
                    "host:10870 can store nothing: webhooks get 503, what is shown is old, and nothing is retried."
                    " /-/ready says why.",
                ),
            )
        ],
        silent=[
            Case(why="it works", series={STORE_UP: "1x40"}, at="30m"),
            Case(why="a moment's lock", series={STORE_UP: "1x10 0x0 1x40"}, at="14m"),
        ],
    ),
    "AutomationStoreErrors": Cases(
        fires=[
            Case(
                why="three errors, while the store works",
                series={STORE_UP: "1x60", REFUSED_BY_STORE: "0x20 3x40"},
                at="30m",
                told=(ONE, "host:10870 could not do 3 operations in its database within 15 minutes."),
            ),
        ],
        silent=[
            Case(why="an hour ago", series={STORE_UP: "1x90", REFUSED_BY_STORE: "0x10 3x80"}, at="80m"),
            Case(
                why="the whole store is down, which is another alert",
                series={STORE_UP: "0x40", REFUSED_BY_STORE: "0+9x40"},
                at="30m",
            ),
            Case(why="a restart", series={STORE_UP: "1x40", REFUSED_BY_STORE: "7x20 0x20"}, at="25m"),
            Case(why="a Prometheus that is new here", series={STORE_UP: "1x40", REFUSED_BY_STORE: "7x40"}, at="5m"),
        ],
    ),
    "AutomationConfigReloadFailed": Cases(
        fires=[
            Case(
                why="a changed config was refused at minute 10",
                series={RELOADED: "1x10 0x30", LOADED_AT: "60x40"},
                at="20m",
                told=(
                    ONE,
                    "host:10870 could not load its config. Its log and automation-exporter check say why.",
                ),
            )
        ],
        silent=[
            Case(why="corrected within three minutes", series={RELOADED: "1x10 0x2 1x30", LOADED_AT: "60x40"}, at="20m")
        ],
    ),
    "AutomationTracesPending": Cases(
        fires=[
            Case(
                why="the Collector takes none any more",
                series={PENDING: "0x10 0+50x200"},
                at="90m",
                told=(ONE, "2450 finished runs of host:10870 wait for their trace to be exported."),
            )
        ],
        silent=[
            Case(why="many, and they are sent", series={PENDING: "9000-20x200"}, at="90m"),
            Case(why="a few that never go", series={PENDING: "20x200"}, at="90m"),
        ],
    ),
    "AutomationExporterRestarting": Cases(
        fires=[
            Case(
                why="every five minutes",
                series={STARTED: "0x4 300x4 600x4 900x4 1200x4 1500x30"},
                at="20m",
                told=(ONE, "host:10870 started 4 times within an hour."),
            )
        ],
        silent=[Case(why="deployed twice", series={STARTED: "0x10 600x10 1200x30"}, at="40m")],
    ),
    "AutomationExporterDown": Cases(
        fires=[
            Case(
                why="it does not answer",
                series={f"up{{{JOB}}}": "1x10 0x30"},
                at="20m",
                told=(AT, DOWN),
            ),
            Case(
                why="nobody scrapes it any more",
                series={f"up{{{JOB}}}": "1x10 _x30"},
                at="30m",
                told=(AT, DOWN),
            ),
        ],
        silent=[
            Case(
                why="one of two replicas is left, which takes over",
                series={f"up{{{JOB}}}": "1x10 0x30", 'up{job="automation-exporter", instance="other:10870"}': "1x40"},
                at="30m",
            ),
            Case(why="it answers", series={f"up{{{JOB}}}": "1x40"}, at="30m"),
            Case(why="a restart", series={f"up{{{JOB}}}": "1x10 0x2 1x40"}, at="20m"),
        ],
    ),
}
