"""What can be typed. Nothing is imported here that a command needs: ``--help`` and ``--version`` answer at once.

A command is named as ``module:function`` of this package, and imported when it runs.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from exporter import __version__

#: Where the config is looked for when ``--config`` does not say.
CONFIG_VARIABLE, CONFIG_FILE = "AUTOMATION_EXPORTER_CONFIG", "/etc/automation-exporter/config.yaml"
#: Shells that ``completion`` knows.
SHELLS = ("bash", "zsh", "fish")
#: How ``rules`` may print them: as Prometheus reads them, or as a resource of the Prometheus Operator in Kubernetes.
RULE_FORMATS = ("prometheus", "prometheusrule")
#: Where the ids come from that the examples use.
LETTER, RETRY, WORKFLOW = "make-eu/0f3c9a1be27d4e5f", "4711abcd00ff1122", "make-eu/4711"
RUN = "erp/4f1d2a90"
GROUP, OPERATION = "885baef1c0", "0a1b2c3d4e5f6071"


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    made = argparse.ArgumentParser(
        prog="automation-exporter",
        description="Metrics, traces and safe retries for automation platforms.",
        epilog=_epilog(["demo", "check --config config.yaml --online", "run --config config.yaml", "COMMAND --help"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"automation-exporter {__version__}")
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    running = _add(commands, "run", "service:run", "the service", "run --config config.yaml")
    _takes_config(running)
    _add_demo(commands)
    checking = _add(
        commands, "check", "config:check", "validate a config", "check", "check --config config.yaml --online"
    )
    _takes_config(checking)
    checking.add_argument(
        "--online", action="store_true", help="also try credentials, rights and limits of each source"
    )
    help = "whether the service answers at its address: exit code 0 or 1"
    _takes_config(
        _add(
            commands, "healthcheck", "healthcheck:healthcheck", help, "healthcheck", "healthcheck --config config.yaml"
        )
    )
    ruling = _add(
        commands,
        "rules",
        "rules:rules",
        "alert and recording rules for the objectives in slo",
        "rules --config config.yaml > rules.yaml",
        "rules --config config.yaml --format prometheusrule > prometheusrule.yaml",
    )
    _takes_config(ruling)
    ruling.add_argument(
        "--format",
        choices=RULE_FORMATS,
        default=RULE_FORMATS[0],
        help="a file for Prometheus, or a resource for the Prometheus Operator (default: %(default)s)",
    )
    _add_dashboards(_family(commands, "dashboards", "about the dashboards for Grafana"))
    _add_simulate(commands)
    _add_policies(_family(commands, "policies", "about retry policies"))
    _add_retries(_family(commands, "retries", "the ledger of retries, and control over them"))
    _add_config(_family(commands, "config", "about the config"))
    _add_store(_family(commands, "store", "about the database"))
    completing = _add(
        commands,
        "completion",
        "completion:completion",
        "a script that lets a shell complete these commands",
        "completion bash > /etc/bash_completion.d/automation-exporter",
        "completion zsh > ~/.zfunc/_automation-exporter",
        "completion fish > ~/.config/fish/completions/automation-exporter.fish",
    )
    completing.add_argument("shell", metavar="SHELL", choices=SHELLS, help=f"one of {', '.join(SHELLS)}")
    return made


def _family(commands: Any, name: str, help: str) -> Any:
    return commands.add_parser(name, help=help, description=_sentence(help)).add_subparsers(
        required=True, metavar="COMMAND"
    )


def _add(commands: Any, name: str, command: str, help: str, *examples: str) -> argparse.ArgumentParser:
    """A command, with examples of what may be typed after ``automation-exporter``."""
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=_sentence(help),
        epilog=_epilog(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(command=command)
    return made


def _sentence(help: str) -> str:
    return f"{help[0].upper()}{help[1:]}."


def _epilog(examples: Any) -> str:
    return "\n".join([f"example{'s' * (len(examples) > 1)}:", *(f"  automation-exporter {one}" for one in examples)])


def _takes_config(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    default = Path(os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE)
    parser.add_argument(
        "--config", type=Path, default=default, metavar="FILE", help=f"default: ${CONFIG_VARIABLE}, then {CONFIG_FILE}"
    )
    return parser


def _takes_json(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("--json", action="store_true", help=help)


def _add_demo(commands: Any) -> None:
    help = "simulated platforms and the service that reads them, on this machine; no credentials"
    demo = _add(commands, "demo", "demo:demo", help, "demo", "demo --port 0 --with-prometheus")
    demo.add_argument("--port", type=int, default=10870, help="of the service; 0: any free one (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=1, help="the same seed gives the same world (default: %(default)s)")
    demo.add_argument(
        "--with-prometheus", action="store_true", help="also a local Prometheus and Alertmanager, where installed"
    )


def _add_simulate(commands: Any) -> None:
    simulate = _add(
        commands,
        "simulate",
        "demo:simulate",
        "the simulators alone",
        "simulate --workflows 50 --fault rate_limited=0.05 --fault truncated=0.02",
        "simulate --webhooks http://127.0.0.1:10870",
    )
    simulate.add_argument("--platform", action="append", metavar="NAME", help="may be repeated; default: all")
    simulate.add_argument(
        "--port", type=int, default=10880, help="of the first simulator; 0: any free ones (default: %(default)s)"
    )
    simulate.add_argument(
        "--seed", type=int, default=1, help="the same seed gives the same world (default: %(default)s)"
    )
    simulate.add_argument("--workflows", type=int, default=6, help="generated per platform (default: %(default)s)")
    simulate.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what goes wrong how often, for example rate_limited=0.05; an unknown name lists them",
    )
    simulate.add_argument("--webhooks", metavar="URL", help="send webhooks to URL/webhooks/{platform}")


def _add_policies(policies: Any) -> None:
    explaining = _add(
        policies,
        "explain",
        "policies:explain",
        "what is decided of the open dead letters, and why; changes nothing",
        "policies explain",
        f"policies explain {LETTER}",
        "policies explain --all",
    )
    _takes_config(explaining)
    explaining.add_argument("ids", nargs="*", metavar="SOURCE/ID", help="dead letters to show every check of")
    explaining.add_argument("--all", action="store_true", help="every check of every open dead letter")
    _takes_json(explaining, "as one JSON object")
    help = "try the policies on cases: each a dead letter and the expected decision"
    testing = _add(policies, "test", "policies:test", help, "policies test cases.yaml --config config.yaml")
    _takes_config(testing)
    testing.add_argument("file", type=Path, metavar="FILE", help="the cases, as YAML")
    backtesting = _add(
        policies,
        "backtest",
        "policies:backtest",
        "what these policies would have retried of the recorded dead letters, and what became of those",
        "policies backtest --config config.yaml --since 14d",
    )
    _takes_config(backtesting)
    backtesting.add_argument(
        "--since",
        metavar="T",
        default="14d",
        help="a time (UTC unless it says otherwise), or how long ago (default: 14d)",
    )
    _takes_json(backtesting, "as one JSON object")


def _add_config(config: Any) -> None:
    help = "JSON Schema of the config, for editors"
    _add(config, "schema", "config:schema", help, "config schema > config.schema.json")
    help = "the config with its defaults, secrets masked, in a form that can be read"
    _takes_config(_add(config, "show", "config:show", help, "config show --config config.yaml"))


def _add_dashboards(dashboards: Any) -> None:
    help = "write the dashboards, and examples of how Grafana finds them, into a folder; older ones are replaced"
    example = "dashboards export /etc/grafana/dashboards/automation-exporter"
    exporting = _add(dashboards, "export", "dashboards:export", help, example)
    exporting.add_argument("folder", type=Path, metavar="DIR", help="created if missing")


def _add_store(store: Any) -> None:
    help = "copy a SQLite database into a new file, whole, while the service runs"
    backing = _add(store, "backup", "store:backup", help, "store backup --config config.yaml /backup/exporter.db")
    _takes_config(backing)
    backing.add_argument("--store", metavar="URL", help="the database, where the config cannot be read")
    backing.add_argument("to", type=Path, metavar="TO", help="the new file; must not be there yet")
    copying = _add(
        store,
        "copy",
        "store:copy",
        "copy a ledger into an empty database, of SQLite or PostgreSQL, totals and all; stop the service before",
        "store copy --from sqlite:///old.db --to postgresql://exporter@db.example/exporter",
    )
    copying.add_argument("--from", dest="source", required=True, metavar="URL", help="the database to copy")
    copying.add_argument("--to", required=True, metavar="URL", help="an empty database")


def _add_retries(retries: Any) -> None:
    """``retries list | show | audit | groups | pause | resume``, and the operations."""

    def add(name: str, help: str, *examples: str, without_config: bool = False) -> argparse.ArgumentParser:
        parser = _add(retries, name, f"retries:{name}", help, *(f"retries {name}{example}" for example in examples))
        if without_config:
            parser.add_argument("--store", metavar="URL", help="the database, where the config cannot be read")
        return _takes_config(parser)

    listing = add("list", "the newest retries", "", " --limit 10 --json", without_config=True)
    listing.add_argument("--limit", type=int, default=50, metavar="N", help="so many (default: %(default)s)")
    _takes_json(listing, "as a list of JSON objects")
    help = "one retry, or those of one dead letter, with their audit"
    showing = add("show", help, f" {RETRY}", f" {LETTER}")
    showing.add_argument("id", metavar="ID", help="of a retry, or SOURCE/ID of a dead letter")
    _takes_json(showing, "as one JSON object")
    help = "what was decided, said and done, as JSON lines"
    auditing = add("audit", help, " --since 14d", " --since 2026-11-28T22:00", " --verify", without_config=True)
    auditing.add_argument("--since", metavar="T", help="a time (UTC unless it says otherwise), or how long ago")
    auditing.add_argument(
        "--verify", action="store_true", help="check its hash chain instead; exit code 1 where it is broken"
    )
    _takes_json(auditing, "as one JSON value instead of lines")

    help = "open dead letters by what they have in common: how many, why, what can be done"
    _takes_json(add("groups", help, "", " --json"), "as a list of JSON objects")

    help = "stop sending retries: the kill switch"
    pause = add("pause", help, " --why maintenance", " --source make-eu --for 3d", without_config=True)
    pause.add_argument("--source", help="default: all")
    pause.add_argument("--for", dest="seconds", type=_duration, metavar="DURATION", help="default: 24h")
    pause.add_argument("--why", default="", metavar="TEXT", help="for those who see it")
    resume = add("resume", "end pauses", "", " --source make-eu", without_config=True)
    resume.add_argument("--source", help="default: all")
    for one in (pause, resume):
        _takes_json(one, "as one JSON object")
    _add_operations(add)


class Operation(NamedTuple):
    """A command that does one thing to many dead letters."""

    name: str
    help: str
    examples: tuple[str, ...]  # after its name
    takes: tuple[str, ...] = ()  # beside what all of them take
    names: str = ""  # what has to be named one by one; "": dead letters, which may also be chosen by what they share


#: Every operation there is. What lets dead letters pass takes effect a little later and can be stopped.
PASSES = ("--now", "--stop-after")
OPERATIONS = (
    Operation(
        "approve",
        "let dead letters that wait for it be retried once",
        (f" {LETTER}", f" --group {GROUP} --stop-after 10", " --policy transient-network --dry-run"),
        PASSES,
    ),
    Operation("retry", "retry dead letters now, past backoff and hours", (f" {LETTER}", f" --group {GROUP}"), PASSES),
    Operation("hold", "keep dead letters from being retried", (f" {LETTER}", f" --group {GROUP} --for 2d"), ("--for",)),
    Operation(
        "release",
        "take back what holds dead letters; settle retries whose outcome is unknown",
        (f" {LETTER}", f" {LETTER} --not-sent", f" --workflow {WORKFLOW}"),
        ("--not-sent",),
    ),
    Operation(
        "quarantine",
        "never retry dead letters by themselves, until they are released",
        (f" {LETTER}", " --between 2026-11-28T22:00 2026-11-29T02:30 --why bad-import"),
    ),
    Operation(
        "discard", "delete dead letters on their platform", (f" {LETTER} --dry-run", f" --group {GROUP}"), PASSES
    ),
    Operation(
        "fix-and-retry",
        "have dead letters run as their workflow is today, and retry them",
        (f" {LETTER} --dry-run", f" {LETTER}"),
        PASSES,
        "dead letters",
    ),
    Operation(
        "rerun",
        "run the workflow of a dead letter again, with the parameters of the config",
        (f" {LETTER} --dry-run", f" {LETTER}"),
        PASSES,
        "dead letters",
    ),
    Operation(
        "reactivate",
        "switch on workflows that their platform switched off",
        (f" {WORKFLOW} --dry-run", f" {WORKFLOW}"),
        PASSES,
        "workflows, or a dead letter of each",
    ),
    Operation("stop", "end runs that hang", (f" {RUN} --dry-run", f" {RUN}"), PASSES, "runs that are under way"),
)


def _add_operations(add: Callable[..., argparse.ArgumentParser]) -> None:
    for operation in OPERATIONS:
        parser = add(operation.name, operation.help, *operation.examples)
        parser.set_defaults(command="retries:operate", action=operation.name)
        _takes_selection(parser, operation.names)
        for option in operation.takes:
            _takes_option(parser, option)
        parser.add_argument("--why", default="", metavar="TEXT", help="for those who see it, and the audit")
        parser.add_argument("--dry-run", action="store_true", help="only say what it would cover; change nothing")
        _takes_json(parser, "as one JSON object")
    help = "the newest operations, or one: how many of its dead letters are done, and what became of them"
    listing = add("operations", help, "", f" {OPERATION}", without_config=True)
    listing.add_argument("id", nargs="?", metavar="ID", help="of an operation; default: the newest")
    _takes_json(listing, "as JSON, with every dead letter of the one asked for")
    cancelling = add("cancel", "stop what is left of an operation", f" {OPERATION}", without_config=True)
    cancelling.add_argument("id", metavar="ID", help="of the operation")
    _takes_json(cancelling, "as one JSON object")
    help = "ask the platform about a dead letter as right before a retry, without making one"
    trying = add("try", help, f" {LETTER} --dry-run")
    trying.set_defaults(command="retries:attempt")
    trying.add_argument("id", metavar="SOURCE/ID", help="of the dead letter, as `policies explain` prints it")
    trying.add_argument("--dry-run", action="store_true", help="required: this command never sends a retry")
    _takes_json(trying, "as one JSON object")


def _takes_selection(parser: argparse.ArgumentParser, names: str) -> None:
    """Which dead letters are meant; or what else, by its names alone."""
    if names:
        parser.add_argument("ids", nargs="+", metavar="SOURCE/ID", help=names)
        parser.set_defaults(group=None, policy=None, workflow=None, between=None)
        return
    help = "dead letters, as `policies explain --all` prints them; to release, a retry may be named as well"
    parser.add_argument("ids", nargs="*", metavar="SOURCE/ID", help=help)
    parser.add_argument("--group", metavar="G", help="all of this group, as `retries groups` prints it")
    parser.add_argument("--policy", metavar="P", help="all that this policy owns")
    parser.add_argument("--workflow", metavar="SOURCE/ID", help="all of this workflow")
    help = "all that failed then (UTC unless it says otherwise, or how long ago)"
    parser.add_argument("--between", nargs=2, metavar=("FROM", "TO"), help=help)


def _takes_option(parser: argparse.ArgumentParser, option: str) -> None:
    match option:
        case "--now":
            parser.add_argument(
                option,
                action="store_true",
                help="take effect at once, without the seconds in which it can be cancelled",
            )
        case "--stop-after":
            parser.add_argument(option, type=_number, metavar="N", help="stop the rest after so many failures")
        case "--for":
            parser.add_argument(
                option, dest="seconds", type=_duration, metavar="DURATION", help="default: until it is released"
            )
        case "--not-sent":
            parser.add_argument(option, action="store_true", help="the retry had no effect: it does not count")


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("write a number of at least 1")
    return int(text)


def _duration(text: str) -> float:
    from exporter.model.durations import parse_duration  # only where one is given

    try:
        seconds = parse_duration(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    if seconds <= 0:
        raise argparse.ArgumentTypeError("has to be longer than nothing")
    return seconds
