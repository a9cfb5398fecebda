"""What is deployed matches what is served: generated files are current, rules are valid, commands are real ones."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from serving.alert_rules import RULES
from serving.catalogue_render import ALL, ROWS, rendered
from serving.cli import build_parser

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is missing: install the package prometheus")
DEPLOY = Path("deploy")


@pytest.mark.parametrize(("path", "content"), rendered().items(), ids=lambda value: getattr(value, "name", ""))
def test_generated_files_are_current(path: Path, content: str) -> None:
    assert path.read_text() == content, "run python -m serving.catalogue_render"


def exported() -> set[str]:
    names = {spec.name for spec in ALL}
    for spec in ALL:
        if spec.kind == "histogram":
            names |= {f"{spec.name}_{part}" for part in ("bucket", "sum", "count")}
    return names


def test_rules_and_panels_speak_of_series_that_exist() -> None:
    texts = [rule.expr for rule in RULES]
    texts += [expr for _, row in ROWS for panel in row for expr, _ in panel.queries]
    for text in texts:
        for name in re.findall(r"\b(?:gridserve_[a-z0-9_]+|DCGM_[A-Z_]+)", text):
            assert name in exported(), f"{name} in {text}"
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_names_follow_the_conventions() -> None:
    names = [spec.name for spec in ALL]
    assert len(names) == len(set(names))
    families = [name.removesuffix("_total") for name in names]
    assert len(families) == len(set(families)), "a counter and another series would share a family"
    for spec in ALL:
        if spec.name.startswith("gridserve_"):
            assert (spec.kind == "counter") == spec.name.endswith("_total"), spec.name
        assert spec.help.endswith("."), spec.name


def test_the_dashboard_lays_its_panels_side_by_side() -> None:
    panels = json.loads((DEPLOY / "grafana/gridserve.json").read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@needs_promtool
@pytest.mark.parametrize(
    "command",
    ["check rules alerts.yml", "test rules alerts_test.yml", "check config prometheus.yml"],
)
def test_promtool_accepts_the_rules(command: str) -> None:
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *command.split()], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def arguments_of(text: str) -> list[str]:
    return shlex.split(text.replace("\\\n", " "))


def test_the_unit_starts_a_command_that_exists() -> None:
    unit = (DEPLOY / "systemd/gridserve.service").read_text()
    for line in re.findall(r"^ExecStart(?:Pre)?=(.*?)(?<!\\)$", unit, re.MULTILINE | re.DOTALL):
        words = arguments_of(line)
        assert words[0].endswith("/gridserve")
        assert build_parser().parse_args(words[1:]).run


def test_the_container_starts_a_command_that_exists() -> None:
    text = (DEPLOY / "container/Containerfile").read_text()
    found = re.search(r"^CMD (\[.*?\])$", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    assert build_parser().parse_args(json.loads(found[1].replace("\\\n", ""))).run
    for folder in re.findall(r"^COPY (\w+) \w+$", text, re.MULTILINE):
        assert Path(folder).is_dir(), folder


def manifests() -> list[Any]:
    return list(YAML(typ="safe").load_all((DEPLOY / "kubernetes/gridserve.yaml").read_text()))


def test_the_manifests_start_a_command_and_probe_what_is_open() -> None:
    (workload,) = [one for one in manifests() if one["kind"] == "StatefulSet"]
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    parsed = build_parser().parse_args(container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (ports["api"], ports["admin"]) == (parsed.port, parsed.admin_port)
    assert parsed.managed_policy
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in ("/health", "/ready")
        assert container[probe]["httpGet"]["port"] == "admin"


def test_the_policy_in_the_manifests_is_a_good_one() -> None:
    from serving.policy.load import parse_policy

    (config,) = [one for one in manifests() if one["kind"] == "ConfigMap"]
    assert parse_policy(config["data"]["policy.yaml"].encode()).policy.metadata.name == "cluster"
