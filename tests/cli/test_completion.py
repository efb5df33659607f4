"""Completion as a shell does it, with the scripts that are shipped."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from exporter.cli import main
from exporter.cli.completion import FOLDER
from exporter.cli.parser import SHELLS
from tests.cli.completions import made


def test_the_scripts_are_those_of_the_parser() -> None:
    """After a change of the command line: make completions."""
    assert {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()} == made()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_is_printed_as_it_is(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == (FOLDER / f"automation-exporter.{shell}").read_text(encoding="utf-8")


def completed(*words: str, folder: Path) -> set[str]:
    """What bash offers in place of the last word."""
    line = [json.dumps(word) for word in ("automation-exporter", *words)]
    script = f"""
        source {FOLDER}/automation-exporter.bash
        function=$(complete -p automation-exporter | grep -o -- '-F [^ ]*' | cut -d' ' -f2)
        COMP_WORDS=({" ".join(line)}); COMP_CWORD={len(words)}
        "$function" automation-exporter {line[-1]} {line[-2]}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=folder, timeout=60, check=True)
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_options_and_files(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert {"run", "demo", "check", "retries", "policies"} <= completed("", folder=tmp_path)
    assert completed("retries", "qu", folder=tmp_path) == {"quarantine"}
    assert completed("retries", "audit", "--ver", folder=tmp_path) == {"--verify"}
    assert completed("completion", "", folder=tmp_path) == set(SHELLS)
    assert completed("run", "--config", "con", folder=tmp_path) == {"config.yaml"}
