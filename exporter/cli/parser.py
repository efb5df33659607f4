"""What can be typed. Nothing is imported here that a command needs: ``--help`` and ``--version`` answer at once.

A command is named as ``module:function`` of this package, and imported when it runs.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from exporter import __version__

#: Where the config is looked for when ``--config`` does not say.
CONFIG_VARIABLE, CONFIG_FILE = "AUTOMATION_EXPORTER_CONFIG", "/etc/automation-exporter/config.yaml"


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    made = argparse.ArgumentParser(
        prog="automation-exporter", description="Metrics, traces and safe retries for automation platforms."
    )
    made.add_argument("--version", action="version", version=f"automation-exporter {__version__}")
    subcommands = made.add_subparsers(required=True, metavar="COMMAND")

    _takes_config(subcommands.add_parser("run", help="the service"), "service:run")
    _add_demo(subcommands)
    checking = _takes_config(subcommands.add_parser("check", help="validate a config"), "service:check")
    checking.add_argument(
        "--online", action="store_true", help="also try credentials, rights and limits of each source"
    )
    rules = subcommands.add_parser("rules", help="alert and recording rules for the objectives in slo")
    _takes_config(rules, "service:rules")
    _add_simulate(subcommands)

    policies = subcommands.add_parser("policies", help="about retry policies").add_subparsers(
        required=True, metavar="COMMAND"
    )
    explaining = policies.add_parser("explain", help="every open dead letter with the decision about it, and why")
    _takes_config(explaining, "retries:explain")
    explaining.add_argument("--brief", action="store_true", help="only the decision and its reason")
    for later in ("bound", "backtest"):
        policies.add_parser(later, help="comes with a later version").set_defaults(command="retries:later")

    retries = subcommands.add_parser("retries", help="the ledger of retries, and control over them")
    _add_retries(retries.add_subparsers(required=True, metavar="COMMAND"))

    config = subcommands.add_parser("config", help="about the config").add_subparsers(required=True, metavar="COMMAND")
    config.add_parser("schema", help="JSON Schema of the config, for editors").set_defaults(command="service:schema")
    showing = config.add_parser("show", help="the config with its defaults, secrets masked, in a form that can be read")
    _takes_config(showing, "service:show")
    return made


def _takes_config(parser: argparse.ArgumentParser, command: str) -> argparse.ArgumentParser:
    default = Path(os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE)
    parser.add_argument(
        "--config", type=Path, default=default, metavar="FILE", help=f"default: ${CONFIG_VARIABLE}, then {CONFIG_FILE}"
    )
    parser.set_defaults(command=command)
    return parser


def _add_demo(subcommands: Any) -> None:
    demo = subcommands.add_parser("demo", help="simulators of all platforms plus the service against them, on loopback")
    demo.add_argument("--port", type=int, default=10870, help="of the service; 0: any free one (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=1, help="another seed, another world (default: %(default)s)")
    demo.add_argument(
        "--with-prometheus", action="store_true", help="also a local Prometheus and Alertmanager, where installed"
    )
    demo.set_defaults(command="demo:demo")


def _add_simulate(subcommands: Any) -> None:
    simulate = subcommands.add_parser("simulate", help="the simulators alone")
    simulate.add_argument("--platform", action="append", metavar="NAME", help="may be given twice; default: all")
    simulate.add_argument("--port", type=int, default=10880, help="of the first simulator (default: %(default)s)")
    simulate.add_argument("--seed", type=int, default=1)
    simulate.add_argument("--workflows", type=int, default=6, help="generated per platform (default: %(default)s)")
    simulate.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what goes wrong how often, for example rate_limited=0.05; an unknown name lists them",
    )
    simulate.add_argument("--webhooks", metavar="URL", help="send webhooks to URL/webhooks/{platform}")
    simulate.set_defaults(command="demo:simulate")


def _add_retries(retries: Any) -> None:
    """``retries list | show | pause | resume | approve | hold | release | quarantine``."""

    def add(name: str, help: str, *, without_config: bool = False) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = retries.add_parser(name, help=help)
        if without_config:
            parser.add_argument("--store", metavar="URL", help="the database, where the config cannot be read")
        return _takes_config(parser, f"retries:{name}")

    listing = add("list", "the newest retries", without_config=True)
    listing.add_argument("--limit", type=int, default=50)
    listing.add_argument("--json", action="store_true", help="as a list of JSON objects")
    add("show", "one retry, or those of one dead letter, with the audit").add_argument("id", metavar="ID")
    pause = add("pause", "send nothing: the kill switch", without_config=True)
    pause.add_argument("--source", help="default: all")
    pause.add_argument("--for", dest="seconds", type=_duration, metavar="DURATION", help="default: 24h")
    pause.add_argument("--why", default="")
    add("resume", "end pauses", without_config=True).add_argument("--source", help="default: all")
    approve = add("approve", "let dead letters that wait for it be retried once")
    approve.add_argument("ids", nargs="*", metavar="SOURCE/ID")
    approve.add_argument("--policy", help="whatever waits for approval under this policy now")
    hold = add("hold", "keep a dead letter from being retried")
    hold.add_argument("id", metavar="SOURCE/ID")
    hold.add_argument("--for", dest="seconds", type=_duration, metavar="DURATION", help="default: for good")
    add("quarantine", "never retry a dead letter by itself, until it is released").add_argument(
        "id", metavar="SOURCE/ID"
    )
    release = add("release", "take back what holds a dead letter; settle a retry nobody knows the fate of")
    release.add_argument("id", metavar="SOURCE/ID", help="of the dead letter, or of the retry")
    release.add_argument("--not-sent", action="store_true", help="that retry had no effect: it does not count")


def _duration(text: str) -> float:
    from exporter.model.durations import parse_duration  # only where one is given

    try:
        return parse_duration(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
