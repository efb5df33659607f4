"""Where there is no n8n, and none can be had, the tests say so and are skipped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.n8n import testbed

ROOT = Path(__file__).parent.parent.parent


def run(*command: str, n8n_dir: Path, path: str = os.environ["PATH"]) -> tuple[int, str]:
    env = {**os.environ, "N8N_DIR": str(n8n_dir), "PATH": path}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    return done.returncode, done.stdout + done.stderr


def test_without_npm_nothing_is_installed_and_the_reason_is_said(tmp_path: Path) -> None:
    code, said = run(sys.executable, "-m", "tests.n8n.testbed", "install", n8n_dir=tmp_path, path=str(tmp_path))
    assert code == 0
    assert "npm is missing: n8n cannot be installed; the tests that need it are skipped" in said
    assert list(tmp_path.iterdir()) == []


def test_the_tests_are_skipped_with_the_reason(tmp_path: Path) -> None:
    tests = str(Path(__file__).with_name("test_oracle.py"))
    code, said = run(
        sys.executable, "-m", "pytest", "-m", "n8n", "-q", "-p", "no:cacheprovider", tests, n8n_dir=tmp_path
    )
    assert code == 0, said
    assert f"no n8n in {tmp_path}: `make test-n8n` installs it with npm" in said


def test_another_version_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N8N_DIR", str(tmp_path))
    (tmp_path / "installed.json").write_text(json.dumps({"n8n": "1.0.0", "node": testbed.NODE}))
    assert testbed.missing() == f"another version of n8n in {tmp_path}: `make test-n8n` installs {testbed.N8N}"
    (tmp_path / "installed.json").write_text(json.dumps({"n8n": testbed.N8N, "node": testbed.NODE}))
    assert testbed.missing() is None
