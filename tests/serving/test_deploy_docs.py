"""The operator's pages name options, routes and files that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from serving.cli import build_parser

PAGE = Path("docs/operations.md")


def test_commands_of_the_page_parse() -> None:
    text = PAGE.read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    commands = [
        line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.startswith("gridserve ")
    ]
    assert len(commands) >= 2
    for command in commands:
        assert build_parser().parse_args(shlex.split(command)[1:]).run


def test_options_and_files_of_the_page_exist() -> None:
    text = PAGE.read_text()
    helped = "".join(
        action.format_help()
        for parser in [build_parser()]
        for found in parser._subparsers._group_actions  # type: ignore[union-attr]
        for action in found.choices.values()  # type: ignore[attr-defined,union-attr]
    )
    known_elsewhere = {"--data"}
    for option in set(re.findall(r"`(--[a-z-]+)", text)):
        assert option in helped or option in known_elsewhere, option
    for path in re.findall(r"`((?:deploy|policies|docs)/[\w./-]+)`", text):
        assert Path(path).exists(), path
    for target in re.findall(r"\]\(([\w.-]+\.md)\)", text):
        assert (PAGE.parent / target).exists(), target


def test_routes_of_the_page_are_documented() -> None:
    listed = Path("docs/admin-api.md").read_text()
    for route in re.findall(r"`(?:GET|POST) (/api/v1/[\w/]+)", PAGE.read_text()):
        assert route in listed, route
