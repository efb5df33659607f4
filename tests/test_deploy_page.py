"""docs/deploy.md: its commands are run, its proxy is an nginx, its Prometheus scrapes, and its messages are ours."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path

import bcrypt
import pytest
import yaml
from aiohttp import ClientSession, CookieJar, TCPConnector

from exporter import app
from exporter.clock import SystemClock
from exporter.config import StoreConfig, parse
from exporter.store.sqlite import SqliteEngine
from tests.e2e.deployment import deployment
from tests.postgres import Postgres
from tests.servers import PATIENCE_SECONDS, eventually, free_port, real, running
from tests.test_docs import DOCS, ROOT, rows

PAGE = DOCS / "deploy.md"
DEPLOY = ROOT / "deploy" / "README.md"


def section(heading: str) -> str:
    """A heading's text, up to the next one of its level or a higher one."""
    [found] = re.findall(rf"^##+ {heading}\n(.*?)(?=^##+ |\Z)", PAGE.read_text(), re.M | re.S)
    assert isinstance(found, str)
    return found


def fences(heading: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", section(heading), re.M | re.S)


def shell(code: str, folder: Path) -> str:
    """Run commands as somebody would who copied them, with the command of this environment."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-e"],
        input=code.replace("/backup/", f"{folder}/backup/"),
        text=True,
        capture_output=True,
        cwd=folder,
        env={"PATH": path},
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def with_source(folder: Path, **more: object) -> Path:
    """The config that the page begins with, and its secret."""
    [first] = fences("First, a config", "yaml")
    (folder / "make").write_text("demo-token")
    file = folder / "config.yaml"
    file.write_text(first.replace("/run/secrets", str(folder)) + (yaml.safe_dump(more) if more else ""))
    return file


async def test_backup_and_restore_as_told(tmp_path: Path) -> None:
    with_source(tmp_path, server={"listen": "127.0.0.1:0"})
    (tmp_path / "backup").mkdir()
    database = tmp_path / "automation-exporter.db"
    await (await SqliteEngine.open(database)).close()
    backup, restore = fences("SQLite", "sh")
    said = shell(backup, tmp_path)
    [copy] = (tmp_path / "backup").iterdir()
    [shown] = fences("SQLite", "text")
    numbers = re.compile(r"\d[\d,.]*")
    shown = shown.replace("/backup/automation-exporter-2026-11-29.db", "X")
    assert numbers.sub("N", said.replace(str(copy), "X")) == numbers.sub("N", shown)

    database.write_text("damaged")
    shell(re.sub(r"/backup/\S+\.db", f"backup/{copy.name}", restore), tmp_path)
    assert database.read_bytes() == copy.read_bytes()
    assert database.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "old" / database.name).read_text() == "damaged"
    await (await SqliteEngine.open(database)).close()


@real("postgres")
async def test_a_postgresql_is_backed_up_beside_the_service_and_restored_as_told(
    tmp_path: Path, server: Postgres
) -> None:
    """By an owner that is nobody else: no superuser restores what belongs to another one."""
    (tmp_path / "backup").mkdir()
    url, empty = (server.secured("x").replace("@", ":x@") for _ in range(2))
    dump, restore = fences("PostgreSQL", "sh")
    async with deployment(tmp_path, platforms=["make"], changes={"store": {"url": url}}) as made:
        await made.sweep()
        await made.live(180, step=30)
        before = await made.samples("automation_runs_total")
        shell(dump.replace("postgresql://exporter@db.example.com/exporter", url), tmp_path)
        await made.live(180, step=30)
        await made.stop()
        shell(restore.replace("postgresql://exporter@db.example.com/restored", empty), tmp_path)
        made.config = made.config.model_copy(update={"store": StoreConfig(url=empty)})
        await made.start()
        replicas = made.service.replicas
        assert replicas is not None

        async def holds() -> bool:  # as its loop does: in the copy, whoever ran when it was made is alive for a while
            await replicas.beat_once()
            return "make" in made.service.held

        await eventually(holds, every=1.0)
        assert await made.samples("automation_runs_total") == before
        assert sum(before.values()) > 0
        await made.live(180, step=30)
        assert sum((await made.samples("automation_runs_total")).values()) > sum(before.values())


def test_whoever_has_the_command_has_dashboards_and_rules(tmp_path: Path) -> None:
    with_source(tmp_path)
    shell(fences("pip", "sh")[1], tmp_path)
    assert (tmp_path / "grafana" / "automation-overview.json").is_file()
    assert yaml.safe_load((tmp_path / "automation-exporter-rules.yaml").read_text())["groups"]


def test_every_extra_is_in_the_table() -> None:
    provided = set(metadata.metadata("automation-exporter").get_all("Provides-Extra") or ()) - {"dev", "pictures"}
    assert provided <= {cell.strip("`") for cell, _ in rows(PAGE, r"`(auth|grpc|re2|postgres)`")}


@pytest.mark.parametrize("heading", ["Compose", "Kubernetes", "systemd"])
def test_the_three_ways_are_those_of_the_folder(heading: str) -> None:
    if not DEPLOY.exists():
        pytest.skip("there is no deploy/ here")
    [commands] = fences(heading, "sh")
    assert f"```sh\n{commands}```" in DEPLOY.read_text()
    for path in re.findall(r"deploy/[\w./-]+\w", PAGE.read_text()):
        assert (ROOT / path).exists() or path == "deploy/compose/secrets", path


def test_the_container_is_given_what_the_image_looks_for() -> None:
    [commands] = fences("A single container", "sh")
    image = (ROOT / "Dockerfile").read_text()
    mounted = re.findall(r"--volume (\S+):(/[\w/-]+)", commands)
    assert [inside for _, inside in mounted] == ["/etc/automation-exporter", "/run/secrets", "/data"]
    assert "/etc/automation-exporter/config.yaml" in image
    assert re.search(r"^VOLUME /data$", image, re.M)
    [port] = re.findall(r"--publish 127\.0\.0\.1:\d+:(\d+)", commands)
    assert re.search(rf"^EXPOSE {port}$", image, re.M)


def test_what_people_see_is_what_we_say() -> None:
    """A quoted text of the first column is in the program."""
    ours = "\n".join(path.read_text() for path in (ROOT / "exporter").rglob("*.py"))
    seen = [text for cell, *_ in rows(PAGE, ".*") for text in re.findall(r"`([^`]+)`", cell) if " " in text]
    assert len(seen) > 3
    assert [text for text in seen if text not in ours] == []
    said = [text for *_, cell in rows(PAGE, ".*") for text in re.findall(r"`([a-z,]+ [a-z, ]+)` in the log", cell)]
    assert len(said) > 1
    assert [text for text in said if text not in ours] == []


# By an nginx and a Prometheus


def certificate(folder: Path) -> tuple[Path, Path]:
    cert, key = folder / "automation.pem", folder / "automation.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=automation.example.com"),
            *("-addext", "subjectAltName=DNS:automation.example.com,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


@asynccontextmanager
async def nginx(folder: Path, server: str, url: str) -> AsyncIterator[None]:
    """A server block of the page in an nginx of its own."""
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder}/pid;\nerror_log {folder}/errors;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}"
        f"server {{ listen {free_port_of(url)}; location / {{ return 200; }} }}\n{server}}}\n"
    )
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "errors")]
    async with running(command, log=folder / "nginx.log", ready_url=url):
        yield


def free_port_of(url: str) -> str:
    return url.removeprefix("http://").rstrip("/")


@real("nginx")
async def test_the_proxy_of_the_page_serves_people_under_a_path_and_webhooks_to_strangers(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    [text], [server] = fences("Reverse proxy", "yaml"), fences("Reverse proxy", "nginx")
    for name in ("make", "make-hook"):
        (tmp_path / name).write_text("0123456789abcdef")
    main, hooks, outside, probe = (free_port() for _ in range(4))
    text = text.replace("/run/secrets", str(tmp_path)).replace(":10870", f":{main}").replace(":10871", f":{hooks}")
    config = parse(text + f"store: {{url: 'sqlite:///{tmp_path}/x.db'}}\n", {})
    server = (
        server.replace(":10870", f":{main}").replace(":10871", f":{hooks}").replace("listen 443", f"listen {outside}")
    )
    server = server.replace("/etc/ssl/automation.pem", str(cert)).replace("/etc/ssl/automation.key", str(key))
    server = server.replace("10.0.0.0/8", "127.0.0.1")
    async with (
        app.service(config, clock=SystemClock(), loops=False),
        nginx(tmp_path, server, f"http://127.0.0.1:{probe}/"),
        ClientSession(connector=TCPConnector(ssl=False), cookie_jar=CookieJar(unsafe=True)) as session,
    ):
        base = f"https://127.0.0.1:{outside}"
        async with session.get(f"{base}/automation") as answer:  # redirected
            assert (answer.status, answer.url.path) == (200, "/automation/")
            links = re.findall(r'(?:href|action)="([^"#]+)"', await answer.text())
        assert links
        assert [link for link in links if link.startswith("/")] == []
        async with session.get(f"{base}/automation/metrics") as answer:
            assert "automation_exporter_build_info" in await answer.text()
        event = {"event": "run.started", "workflow_id": "1", "run_id": "r"}
        for secret, status in (("0123456789abcdef", 202), ("wrong", 401)):
            headers = {"X-Webhook-Token": secret}
            async with session.post(f"{base}/webhooks/make-eu", json=event, headers=headers) as answer:
                assert answer.status == status
        for path in ("/metrics", "/webhooks/../metrics", "/-/ready"):
            async with session.get(base + path) as answer:
                assert answer.status in (403, 404)  # nginx says it
                assert "automation" not in await answer.text()


@real("prometheus")
async def test_prometheus_scrapes_with_tls_and_a_password_as_told(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    ours, scraping = fences("TLS", "yaml")
    shutil.copy(cert, tmp_path / "exporter.pem")
    shutil.copy(key, tmp_path / "exporter.key")
    (tmp_path / "make").write_text("0123456789abcdef")
    (tmp_path / "password").write_text("open sesame")
    hashed = bcrypt.hashpw(b"open sesame", bcrypt.gensalt(4)).decode().replace("$", "$$")
    port, url = free_port(), f"http://127.0.0.1:{free_port()}"
    ours = (
        re.sub(r"\$\$2y\S+", hashed, ours)
        .replace("/run/secrets", str(tmp_path))
        .replace("0.0.0.0:10870", f"127.0.0.1:{port}")
    )
    config = parse(ours + f"store: {{url: 'sqlite:///{tmp_path}/x.db'}}\n", {})
    scraping = scraping.replace("/etc/prometheus/exporter-ca.pem", str(cert))
    scraping = scraping.replace("/etc/prometheus/exporter-password", str(tmp_path / "password"))
    scraping = scraping.replace("exporter.example.com:10870", f"127.0.0.1:{port}")
    (tmp_path / "prometheus.yaml").write_text("global: {scrape_interval: 1s}\n" + scraping)
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yaml", f"--storage.tsdb.path={tmp_path}/data"]
    command += [f"--web.listen-address={url.removeprefix('http://')}"]
    async with (
        app.service(config, clock=SystemClock(), loops=False),
        running(command, log=tmp_path / "log", ready_url=f"{url}/-/ready"),
        ClientSession() as session,
    ):

        async def up() -> bool:
            query = {"query": 'up{job="automation-exporter"} == 1'}
            async with session.get(f"{url}/api/v1/query", params=query) as answer:
                return bool((await answer.json())["data"]["result"])

        assert await eventually(up)
