"""``check``: the verdict first, then what would keep the service from running here."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.cli.checking import SPACE_MIN, SPACE_SCARCE, check, space
from exporter.clock import SystemClock
from exporter.platform import Watches
from exporter.simulator import SIMULATORS
from exporter.simulator.fleet import Fleet

QLIK = {"platform": "qlik", "url": "https://q.example", "token": "t-o-k-e-n"}


async def checked(
    folder: Path, data: dict[str, Any], *, online: bool = False, **environment: str
) -> tuple[int, list[str]]:
    whole = {"server": {"listen": "127.0.0.1:0"}, "store": {"url": f"sqlite:///{folder}/x.db"}, "sources": {"q": QLIK}}
    path, said = folder / "c.yaml", list[str]()
    path.write_text(yaml.safe_dump({**whole, **data}))
    code = await check(path, online=online, say=said.append, environment=environment)
    assert "t-o-k-e-n" not in "".join(said)
    return code, [line.replace(f"{path}: ", "").replace(str(folder), "DIR") for line in said]


@contextmanager
def taken() -> Iterator[int]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield one.getsockname()[1]


async def test_the_verdict_comes_first_and_always(tmp_path: Path) -> None:
    code, said = await checked(tmp_path, {})
    assert (code, said[0]) == (0, "fine")
    assert said[1].startswith("q: ")
    code, said = await checked(tmp_path, {"sources": {"q": {**QLIK, "url": "http://q.qlik.com"}}})
    assert (code, said[0]) == (0, "fine, 1 warning")
    assert said[1] == "warning: sources.q.url: the credential is sent unencrypted: write https://"
    code, said = await checked(tmp_path, {"log": {"level": 1}, "nonsense": 2})
    assert (code, said[0]) == (1, "2 problems")
    assert said[1:] == ["log.level: must be one of debug, info, warning, error", "nonsense: unknown key"]


async def test_how_many_retries_a_day_each_source_can_have_at_most(tmp_path: Path) -> None:
    policies = [{"name": "p", "match": {"error.class": "network"}, "action": "retry"}]
    for mode, pace, said in (
        ("enforce", {}, "q: its rate limit (pace) allows at most 8640 retries a day, 3 at once"),
        ("approve", {"rate": "1/7d", "burst": 1}, "q: its rate limit (pace) allows at most 1 retries a day, 1 at once"),
        ("enforce", {"rate": "100/1h"}, "q: its rate limit (pace) allows at most 2400 retries a day, 3 at once"),
        (
            "shadow",
            {},
            "q: its rate limit (pace) allows at most 8640 retries a day, 3 at once;"
            " none is sent while the mode is shadow",
        ),
    ):
        retries = {"mode": mode, "policies": policies, "sources": {"q": {"pace": pace}}}
        assert (await checked(tmp_path, {"retries": retries}))[1][3:] == [said]


async def test_what_retrying_costs_in_series_is_said(tmp_path: Path) -> None:
    policies = [
        {"name": "data", "match": {"error.class": "validation"}, "action": "escalate"},
        {"name": "network", "match": {"error.class": "network"}, "action": "retry"},
    ]
    for changes, series in (
        ({}, 4),
        ({"policies": policies[:1]}, 5),
        ({"policies": policies}, 18),
        ({"policies": policies, "sources": {"q": {"budget": {"cap": 5}, "storm": {}}}}, 20),
    ):
        assert f"q: {series} series for its retries" in (await checked(tmp_path, {"retries": changes}))[1]


async def test_policies_that_hardly_anybody_means_are_warnings(tmp_path: Path) -> None:
    policies = [{"name": "p", "match": {}, "action": "retry"}]
    code, said = await checked(tmp_path, {"retries": {"policies": policies}})
    assert (code, said[0]) == (0, "fine, 1 warning")
    assert said[1].startswith("warning: retries.policies[0].match: nothing is asked of the error or its workflow, ")


async def test_the_folder_of_the_database_is_tried(tmp_path: Path) -> None:
    for url, line in (
        (
            f"sqlite:///{tmp_path}/none/x.db",
            "store.url: there is no folder DIR/none: create it, for the user of the service",
        ),
        (f"sqlite:///{tmp_path}", "store.url: DIR is a folder: add the name of a file"),
        (f"sqlite:///{tmp_path}/c.yaml", "store.url: DIR/c.yaml is another kind of file: choose another name"),
        (
            "sqlite:////proc/x.db",
            "store.url: the folder /proc belongs to uid 0, gid 0 (mode 555) and cannot be written to by this ",
        ),
    ):
        code, said = await checked(tmp_path, {"store": {"url": url}})
        if "/proc" in url and os.access("/proc", os.W_OK):
            continue  # root may, as far as the system says
        assert (code, said[0], said[1][: len(line)]) == (1, "1 problem", line)
    assert space(SPACE_SCARCE) is None
    assert space(SPACE_SCARCE - 1) == (False, "only 511 MB are free")
    assert space(SPACE_MIN - 1) == (True, "only 31 MB are free")


async def test_the_addresses_are_tried(tmp_path: Path) -> None:
    with taken() as port:
        server = {"listen": f"127.0.0.1:{port}", "webhooks_listen": "192.0.2.1:80"}
        code, said = await checked(tmp_path, {"server": server})
        assert (code, said[0]) == (1, "2 problems")
        assert said[1].startswith(f"server.listen: 127.0.0.1:{port}: address already in use: ")
        assert said[2].startswith("server.webhooks_listen: 192.0.2.1:80: this machine has no such address: ")
        (tmp_path / "x.db.control").write_text(f'{{"url": "http://127.0.0.1:{port}", "token": "x"}}')
        code, said = await checked(tmp_path, {"server": {"listen": f"127.0.0.1:{port}"}})
        assert (code, said[0]) == (0, "fine")
        assert f"server.listen: 127.0.0.1:{port}: in use by the service that runs with this database" in said


async def test_traces_need_somebody_who_takes_them(tmp_path: Path) -> None:
    code, said = await checked(tmp_path, {"traces": {"enabled": True}})
    assert code == 1
    assert said[1].startswith("traces.endpoint: missing; ")
    with taken() as port:
        assert (await checked(tmp_path, {"traces": {"enabled": True, "endpoint": f"http://127.0.0.1:{port}"}}))[0] == 0
        code, _ = await checked(
            tmp_path, {"traces": {"enabled": True}}, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://localhost:{port}"
        )
        assert code == 0
    code, said = await checked(tmp_path, {"traces": {"enabled": True, "endpoint": f"http://127.0.0.1:{port}"}})
    assert code == 1
    assert said[1].startswith(f"traces.endpoint: connection refused by 127.0.0.1:{port}: ")
    assert (await checked(tmp_path, {"traces": {"enabled": True, "endpoint": "http://otel.invalid:4318"}}))[0] == 0


async def test_certificates_are_read(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("nothing")
    tls = {"cert_file": f"{tmp_path}/none.pem", "key_file": f"{tmp_path}/none.pem"}
    source = {**QLIK, "tls_ca_file": f"{tmp_path}/no.pem"}
    server = {"listen": "127.0.0.1:0", "tls": tls}
    code, said = await checked(tmp_path, {"server": server, "sources": {"q": source}})
    assert (code, said[0]) == (1, "2 problems")
    assert said[1] == "server.tls: cannot be used: No such file or directory"
    assert said[2] == "sources.q.tls_ca_file: cannot be used: is no PEM file, or its parts do not fit"


@pytest.mark.parametrize("platform", sorted(SIMULATORS))
async def test_a_refused_credential_names_its_key_and_what_to_look_at(tmp_path: Path, platform: str) -> None:
    section = dict(SIMULATORS[platform].section)
    async with Fleet.open(clock=SystemClock(), platforms=[platform], workflows=1) as fleet:
        section["url"] = fleet.urls[platform]
        key = next(key for key in ("oauth", "login", "token") if key in section)
        if key == "oauth":
            section["oauth"] = {**section["oauth"], "client_secret": "wrong-one"}
        else:
            section["password" if key == "login" else "token"] = "wrong-one"
        code, said = await checked(tmp_path, {"sources": {"s": section}}, online=True)
    assert (code, said[0]) == (1, "1 problem")
    assert said[1].startswith(f"s: problem: sources.s.{key} is not accepted by 127.0.0.1 (")
    assert "wrong-one" not in "".join(said)
    if platform == "make":
        assert "zone" in said[1]
        assert "scenarios:read" in said[1]


async def test_two_sources_that_the_platform_says_are_one(tmp_path: Path) -> None:
    async with Fleet.open(clock=SystemClock(), platforms=["make"], workflows=2) as fleet:
        one = {**SIMULATORS["make"].section, "url": fleet.urls["make"]}
        other = {**one, "url": one["url"].replace("127.0.0.1", "localhost")}
        code, said = await checked(tmp_path, {"sources": {"a": one, "b": other}}, online=True)
        assert (code, said[0]) == (1, "1 problem, 1 warning")
        assert said[1].startswith("b: problem: sources.b reads the same as sources.a, as the platform says (make ")
        code, said = await checked(tmp_path, {"sources": {"a": one}}, online=True)
        assert (code, said[0]) == (0, "fine; everything works")
        assert not [line for line in said if "watches" in line]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("z", "organization 9"), ("z", "organization 9"), True),
        (("z", "organization 9"), ("z", "organization 9", "team 1"), True),
        (("z", "organization 9", "team 1"), ("z", "organization 9", "team 2"), False),
        (("z", "organization 9"), ("z", "organization 99"), False),
        (("z", "organization 9"), ("y", "organization 9"), False),
    ],
)
def test_what_holds_another_overlaps_it(one: tuple[str, ...], other: tuple[str, ...], same: bool) -> None:
    assert Watches(place=one).overlaps(Watches(place=other)) is same
    assert Watches(place=other).overlaps(Watches(place=one)) is same


async def test_what_a_workflow_costs_can_be_halved(tmp_path: Path) -> None:
    def cost(said: list[str], source: str) -> int:
        [line] = [line for line in said if line.startswith(f"{source}: ") and "series for each workflow" in line]
        return int(line.split()[1])

    docs = {"platform": "cognaize", "url": "https://cognaize.example", "token": "t"}
    hook = {"webhook": {"scheme": "bearer", "token": "0123456789abcdef0123456789abcdef"}}
    sources = {"qlik": QLIK, "docs": docs, "told": {**docs, **hook, "url": "https://other.example"}}
    _, whole = await checked(tmp_path, {"sources": sources})
    assert cost(whole, "told") - cost(whole, "docs") == 22, "without events, Cognaize tells no cause"
    _, half = await checked(tmp_path, {"sources": sources, "limits": {"error_classes": "seen"}})
    assert cost(whole, "qlik") - cost(half, "qlik") == 24
    assert cost(half, "qlik") <= 0.5 * cost(whole, "qlik")
