"""Cases of the alerts on workflows and their dead letters."""

from tests.alerts.world import (
    ALWAYS,
    AT,
    BURNT,
    ENABLED,
    FAILURES,
    HERE,
    INFO,
    LAST_RUN,
    LETTERS,
    LETTERS_READ,
    NAMED,
    NEXT,
    OFTEN,
    OLDEST,
    OLDEST_RUN,
    SOURCE,
    SUCCESS,
    UP,
    WORKFLOW,
    Case,
    Cases,
    metric,
    runs,
    series,
)

#: When a run last ended, at midnight of each of ten days, and of the twelfth.
NIGHTS = " ".join(f"{night * 86400}x1439" for night in range(10))
LAST_FAILURE = metric("automation_workflow_last_run_timestamp_seconds", result="failure")
NIGHT_12 = f"{12 * 86400}x1439"


def weeks(*pairs: tuple[str, str]) -> dict[str, str]:
    return {INFO: "1x20000", UP: "1x20000", **dict(pairs)}


OTHER = f'{SOURCE}, workflow_id="7"'
WORST = " Worst: Invoices (5004), 7."


def both(*, failing: float, minutes: int) -> dict[str, str]:
    """Of two workflows this share fails; more runs of the first."""
    rates = [
        (runs(result, of), f"0+{each * share:g}x{minutes}")
        for of, each in ((WORKFLOW, 1.5), (OTHER, 1.0))
        for result, share in (("success", 1 - failing), ("failure", failing))
    ]
    return series(*rates)


def letters_of(number: int) -> str:
    return metric("automation_dead_letters", f'{SOURCE}, workflow_id="{number}"', error_class="network")


WORKFLOWS: dict[str, Cases] = {
    "AutomationErrorBudgetBurnFast": Cases(
        fires=[
            Case(
                why="one run in five fails, 60 runs an hour",
                series=both(failing=0.2, minutes=120),
                at="90m",
                told=(BURNT, f"20% of the runs of make-eu fail, far more than the objective allows.{WORST}"),
            ),
            Case(
                why="one in ten for half a day is too slow for the first pair of windows and enough for the second",
                series=both(failing=0.1, minutes=720),
                at="10h",
                told=(BURNT, f"10% of the runs of make-eu fail, far more than the objective allows.{WORST}"),
            ),
        ],
        silent=[
            Case(
                why="one bad workflow of two, which has an alert of its own",
                series=series((runs("failure"), "0+1x120"), (runs("success", OTHER), "0+1x120")),
                at="90m",
            ),
            Case(why="half of its first hour is not over", series=both(failing=0.5, minutes=120), at="28m"),
            Case(
                why="ten runs an hour are too few to speak of a ratio",
                series=series((runs("success"), "0+0.03x120"), (runs("failure"), "0+0.03x120")),
                at="90m",
            ),
            Case(
                why="successes are not counted here, so of the failures no share is known",
                series=series((runs("failure"), "0+1x120"), (runs("unknown"), "0+1x120")),
                at="90m",
            ),
            Case(
                why="who cancels a run has decided so",
                series=series((runs("success"), "0+1x120"), (runs("cancelled"), "0+1x120")),
                at="90m",
            ),
            Case(
                why="it has stopped: the short window is clean, whatever the long one remembers",
                series=series((runs("success"), "0+1x120"), (runs("failure"), "0+1x60 60x60")),
                at="110m",
            ),
            Case(
                why="a restart of the exporter with its totals kept is no event",
                series=series((runs("success"), "0+1x120"), (runs("failure"), "900x50 _x4 900x66")),
                at="90m",
            ),
        ],
    ),
    "AutomationErrorBudgetBurnSlow": Cases(
        fires=[
            Case(
                why="four in a hundred for hours",
                series=series((runs("success"), "0+0.96x900"), (runs("failure"), "0+0.04x900")),
                at="13h",
                told=(BURNT, "For hours, 4% of the runs of make-eu have failed."),
            )
        ],
        silent=[
            Case(
                why="half a percent is what the objective allows",
                series=series((runs("success"), "0+0.995x200"), (runs("failure"), "0+0.005x200")),
                at="3h",
            ),
            Case(
                why="a new install: two hours of a day that nobody saw",
                series=series((runs("success"), "0+0.96x200"), (runs("failure"), "0+0.04x200")),
                at="3h",
            ),
        ],
    ),
    "AutomationWorkflowFailing": Cases(
        fires=[
            Case(
                why="three in a row, once a night is enough",
                series=series((FAILURES, "2x10 3x20")),
                at="15m",
                told=({**AT, **NAMED}, "The last 3 runs of Invoices (5004) of make-eu failed."),
            ),
            Case(
                why="nobody has told the workflow's name yet",
                series={FAILURES: "3x20"},
                at="15m",
                told=({**HERE, "workflow_id": "5004"}, "The last 3 runs of 5004 of make-eu failed."),
            ),
        ],
        silent=[
            Case(why="two in a row", series=series((FAILURES, "2x30")), at="30m"),
            Case(
                why="it was switched off, which is another alert",
                series=series((FAILURES, "3x30"), (ENABLED, "0x30")),
                at="30m",
            ),
        ],
    ),
    "AutomationWorkflowFailingOften": Cases(
        fires=[
            Case(
                why="every other of 60 runs an hour, never three in a row",
                series=series((runs("success"), "0+0.5x120"), (runs("failure"), "0+0.5x120")),
                at="90m",
                told=(OFTEN, "50% of the runs of Invoices (5004) of make-eu fail."),
            ),
            Case(
                why="folded workflows have no name and fail all the same",
                series={
                    runs(result, f'{SOURCE}, workflow_id="__other__"'): "0+0.5x120" for result in ("success", "quota")
                },
                at="90m",
                told=({**BURNT, "workflow_id": "__other__"}, "50% of the runs of __other__ of make-eu fail."),
            ),
        ],
        silent=[
            Case(
                why="every other of six runs an hour",
                series=series((runs("success"), "0+0.05x120"), (runs("failure"), "0+0.05x120")),
                at="90m",
            ),
            Case(
                why="all runs succeed",
                series=series((runs("success"), "0+1x120"), (runs("failure"), "0x120")),
                at="90m",
            ),
        ],
    ),
    "AutomationWorkflowOverdue": Cases(
        fires=[
            Case(
                why="planned for minute 10, not started by minute 40",
                series=series((NEXT, "600x60"), (ENABLED, ALWAYS)),
                at="40m",
                told=(
                    {**AT, **NAMED},
                    "Invoices (5004) of make-eu was to start 30m 0s ago and has not.",
                ),
            ),
            Case(
                why="the platform does not say whether it is on",
                series=series((NEXT, "600x60")),
                at="40m",
                told=({**AT, **NAMED}, "Invoices (5004) of make-eu was to start 30m 0s ago and has not."),
            ),
        ],
        silent=[
            Case(why="the plan moves on", series=series((NEXT, "600+60x60"), (ENABLED, ALWAYS)), at="40m"),
            Case(why="it is off", series=series((NEXT, "600x60"), (ENABLED, "0x60")), at="40m"),
            Case(
                why="it is blocked, which is another alert",
                series=series((NEXT, "600x60"), (metric("automation_workflow_blocked", reason="paused"), ALWAYS)),
                at="40m",
            ),
            Case(
                why="its last run is not done yet",
                series=series((NEXT, "600x60"), (metric("automation_runs_active", state="running"), ALWAYS)),
                at="40m",
            ),
            Case(why="the source is down, the plan is old", series={**series((NEXT, "600x60")), UP: "0x60"}, at="40m"),
        ],
    ),
    "AutomationWorkflowSilent": Cases(
        fires=[
            Case(
                why="ten nights, then none",
                series=weeks((LAST_RUN, f"{NIGHTS} 864000x5000")),
                at="12d6h",
                told=(
                    {**AT, **NAMED},
                    "Invoices (5004) of make-eu has not run for 2d 6h 0m 0s, far longer than is usual.",
                ),
            )
        ],
        silent=[
            Case(
                why="one night was left out", series=weeks((LAST_RUN, f"{NIGHTS} 864000x2879 {NIGHT_12}")), at="12d6h"
            ),
            Case(why="nobody knows what is usual", series=weeks((LAST_RUN, "0x20000")), at="12d6h"),
            Case(
                why="its successes are not counted, so it may well have run",
                series=weeks((LAST_FAILURE, f"{NIGHTS} 864000x5000"), (runs("failure"), "1+0x20000")),
                at="12d6h",
            ),
        ],
        every="30m",
    ),
    "AutomationWorkflowOnlyWarns": Cases(
        fires=[
            Case(
                why="all of an hour's four",
                series=series((runs("warning"), "0x60 1x15 2x15 3x15 4x600"), (runs("success"), "0x700")),
                at="3h",
                told=(OFTEN, "Every run of Invoices (5004) of make-eu ends with a warning: the last 4 did."),
            ),
            Case(
                why="once a night, for four nights",
                series=weeks((runs("warning"), "0x119 1x1440 2x1440 3x1440 4x1440"), (runs("success"), "9x6000")),
                at="98h",
                told=(OFTEN, "Every run of Invoices (5004) of make-eu ends with a warning: the last 3 did."),
            ),
        ],
        silent=[
            Case(
                why="one succeeded",
                series=series((runs("warning"), "0x60 1x15 2x15 3x15 4x600"), (runs("success"), "0x90 1x700")),
                at="3h",
            ),
            Case(
                why="once a night, and one of four nights was well",
                series=weeks((runs("warning"), "0x119 1x1440 2x2880 3x1440"), (runs("success"), "9x4439 10x1500")),
                at="98h",
            ),
            Case(
                why="it runs no more: the warnings are a week old",
                series=weeks((runs("warning"), "0x119 1x1440 2x1440 3x1440 4x12000"), (runs("success"), "9x17000")),
                at="200h",
            ),
        ],
        every="5m",
    ),
    "AutomationWorkflowStuck": Cases(
        fires=[
            Case(
                why="running for three hours",
                series=series((OLDEST_RUN, "0x200")),
                at="3h",
                told=(
                    {**AT, **NAMED, "state": "running"},
                    "A run of Invoices (5004) of make-eu has been running for 3h 0m 0s.",
                ),
            )
        ],
        silent=[
            Case(why="for one hour", series=series((OLDEST_RUN, "0x200")), at="1h"),
            Case(why="the source is down", series={**series((OLDEST_RUN, "0x200")), UP: "0x200"}, at="3h"),
        ],
    ),
    "AutomationWorkflowDisabled": Cases(
        fires=[
            Case(
                why="it was on an hour ago",
                series=series((ENABLED, "1x60 0x100")),
                at="2h",
                told=(
                    {**AT, **NAMED},
                    "Invoices (5004) of make-eu was switched off within the last day, by a person or by the platform.",
                ),
            )
        ],
        silent=[
            Case(
                why="the platform switched it off and says why, which is another alert",
                series=series(
                    (ENABLED, "1x60 0x100"), (metric("automation_workflow_blocked", reason="invalid"), "_x60 1x100")
                ),
                at="2h",
            ),
            Case(why="it has always been off", series=series((ENABLED, "0x200")), at="2h"),
            Case(why="it was switched off more than a day ago", series=series((ENABLED, "1x10 0x1600")), at="25h"),
        ],
        every="5m",
    ),
    "AutomationWorkflowBlocked": Cases(
        fires=[
            Case(
                why="the platform calls it invalid",
                series=series((metric("automation_workflow_blocked", reason="invalid"), ALWAYS)),
                at="15m",
                told=({**AT, **NAMED, "reason": "invalid"}, "Invoices (5004) of make-eu cannot run: invalid."),
            )
        ],
        silent=[
            Case(
                why="for five minutes only",
                series=series((metric("automation_workflow_blocked", reason="paused"), "1x5 stale")),
                at="15m",
            )
        ],
    ),
    "AutomationQueueNearLimit": Cases(
        fires=[
            Case(
                why="90 of 100",
                series=series(
                    (metric("automation_input_queue_items"), "90x30"),
                    (metric("automation_input_queue_limit_items"), "100x30"),
                ),
                at="15m",
                told=(
                    {**AT, **NAMED},
                    "The queue of Invoices (5004) of make-eu is 90% full. When it is full, what comes is refused.",
                ),
            )
        ],
        silent=[
            Case(
                why="half full",
                series=series(
                    (metric("automation_input_queue_items"), "50x30"),
                    (metric("automation_input_queue_limit_items"), "100x30"),
                ),
                at="15m",
            ),
            Case(
                why="nobody knows the limit",
                series=series((metric("automation_input_queue_items"), "90x30")),
                at="15m",
            ),
        ],
    ),
    "AutomationDeadLettersGrowing": Cases(
        fires=[
            Case(
                why="two of one kind have become twelve of two kinds",
                series=series(
                    (LETTERS, "2x200 7x400"),
                    (metric("automation_dead_letters", error_class="auth"), "0x200 5x400"),
                    (LETTERS_READ, "0+60x600"),
                ),
                at="7h",
                told=(
                    {**AT, **NAMED},
                    "Invoices (5004) of make-eu has 10 more open dead letters than up to six hours ago.",
                ),
            ),
            Case(
                why="a workflow that is two hours old, of a platform whose runs tell of dead letters",
                series=series((LETTERS, "0x80 9x400"), (SUCCESS, "0+60x600")),
                at="2h",
                told=(
                    {**AT, **NAMED},
                    "Invoices (5004) of make-eu has 9 more open dead letters than up to six hours ago.",
                ),
            ),
        ],
        silent=[
            Case(
                why="as many are resolved",
                series=series((LETTERS, "2x200 12x30 3x400"), (LETTERS_READ, "0+60x600")),
                at="7h",
            ),
            Case(
                why="many, and they do not grow", series=series((LETTERS, "500x600"), (LETTERS_READ, "0x600")), at="7h"
            ),
            Case(
                why="the first sweep of a source finds many",
                series=series((LETTERS, "_x10 500x600"), (LETTERS_READ, "_x10 0x600")),
                at="1h",
            ),
            *(
                Case(
                    why=f"a large source whose letters were read half an hour after its workflows were found: {at}",
                    series=series((LETTERS, "0x30 500x600"), (LETTERS_READ, "_x30 0x600"), (SUCCESS, "0x600")),
                    at=at,
                )
                for at in ("85m", "385m")
            ),
        ],
    ),
    "AutomationDeadLettersGrowingInSource": Cases(
        fires=[
            Case(
                why="four new ones in each of 50 workflows",
                series={letters_of(n): "0x200 4x400" for n in range(50)} | {UP: "1x600", LETTERS_READ: "0x600"},
                at="4h",
                told=(
                    HERE,
                    "make-eu has 200 more open dead letters than up to six hours ago, over all its workflows.",
                ),
            ),
            Case(
                why="a new install: what it found at first, and two more in each of them an hour later",
                series={letters_of(n): f"_x{n} 4x{80 - n} 6x400" for n in range(50)} | {LETTERS_READ: "_x2 0x600"},
                at="130m",
                told=(
                    HERE,
                    "make-eu has 100 more open dead letters than up to six hours ago, over all its workflows.",
                ),
            ),
        ],
        silent=[
            Case(
                why="the first sweeps of a source find many, one workflow after the other",
                series={letters_of(n): f"_x{n} 4x400" for n in range(50)} | {LETTERS_READ: "0x600"},
                at="100m",
            ),
            *(
                Case(
                    why=f"a new install finds the workflows first, and half an hour later their letters: {at}",
                    series={letters_of(n): "0x30 4x600" for n in range(50)}
                    | {LETTERS_READ: "_x30 0x600", SUCCESS: "0x600"},
                    at=at,
                )
                for at in ("85m", "385m")
            ),
            Case(
                why="they are resolved",
                series={letters_of(n): "0x200 4x5 0x400" for n in range(50)} | {LETTERS_READ: "0x600"},
                at="4h",
            ),
        ],
    ),
    "AutomationDeadLettersOld": Cases(
        fires=[
            Case(
                why="open for more than a day",
                series=series((OLDEST, "0x1700")),
                at="25h",
                told=(
                    {**AT, **NAMED},
                    "The oldest dead letter of Invoices (5004) of make-eu has been open for 1d 1h 0m 0s.",
                ),
            )
        ],
        silent=[
            Case(why="open for twenty hours", series=series((OLDEST, "0x3000")), at="20h"),
            Case(why="it is resolved", series=series((OLDEST, "0x1450 stale")), at="25h"),
        ],
        every="5m",
    ),
    "AutomationDeadLettersExpired": Cases(
        fires=[
            Case(
                why="one got too old half an hour ago",
                series=series((metric("automation_dead_letters_resolved_total", by="expired"), "0x10 1x60")),
                at="40m",
                told=(
                    {**AT, **NAMED},
                    "Dead letters of Invoices (5004) of make-eu expired within the last hour. Their data is lost.",
                ),
            )
        ],
        silent=[
            Case(
                why="somebody repaired many",
                series=series((metric("automation_dead_letters_resolved_total", by="manual"), "0+5x60")),
                at="40m",
            ),
            Case(
                why="some did long ago",
                series=series((metric("automation_dead_letters_resolved_total", by="expired"), "0x10 7x300")),
                at="4h",
            ),
        ],
    ),
    "AutomationDeadLettersNearCapacity": Cases(
        fires=[
            Case(
                why="900 of the 1000 there is room for, in two workflows",
                series=series(
                    (metric("automation_dead_letters", error_class="network"), "600x30"),
                    (metric("automation_dead_letters", f'{SOURCE}, workflow_id="7"', error_class="auth"), "300x30"),
                ),
                at="15m",
                told=(
                    HERE,
                    "make-eu holds 900 open dead letters. When there is no room left, what fails is lost, or stops its"
                    " workflow.",
                ),
            )
        ],
        silent=[
            Case(
                why="600",
                series=series((metric("automation_dead_letters", error_class="network"), "600x30")),
                at="15m",
            )
        ],
    ),
}
