"""The README's commands: each parses, and those that end by themselves are run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from serving.cli import build_parser

README = Path("README.md").read_text()
FENCES = re.split(r"^```.*$", README, flags=re.MULTILINE)
COMMANDS = [line.strip() for block in FENCES[1::2] for line in block.splitlines() if line.startswith("gridserve ")]
QUICK = ("models list", "policy check", "policy show", "power status", "carbon now", "traces inspect")


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("command", COMMANDS)
def test_it_parses(command: str) -> None:
    arguments = build_parser().parse_args(shlex.split(command)[1:])
    assert callable(arguments.run)


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.removeprefix("gridserve ").startswith(QUICK)])
def test_it_runs(command: str) -> None:
    words = [sys.executable, "-m", "serving.cli", *shlex.split(command)[1:]]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))))
def test_make_knows_the_target(target: str) -> None:
    result = subprocess.run(["make", "--dry-run", target], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_its_links_lead_somewhere(link: str) -> None:
    assert link.startswith("https://") or Path(link).exists()
