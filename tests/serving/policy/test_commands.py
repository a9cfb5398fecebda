"""`gridserve policy`: output, formats and exit status."""

import json
import shlex
from pathlib import Path

import pytest

from serving.cli import main

CASES = Path(__file__).parent / "cases"
BAD = "apiVersion: gridserve/v1\nkind: Policy\nmetadata: {name: p}\nspec: {mode: go, power: {clock_mhz: {max: 3000}}}\n"


DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "policy.md"
COMMANDS = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("$ gridserve ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_document_work(command, monkeypatch, capsys):
    monkeypatch.chdir(DOCUMENT.parents[1])
    words = shlex.split(command.removeprefix("$ gridserve "))
    assert main(words) == (1 if words[1] == "diff" else 0)
    if words[1] == "check":
        assert capsys.readouterr().out.strip() in DOCUMENT.read_text()


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    return path


def test_check_accepts_the_shipped_policies(shipped, capsys):
    assert main(["policy", "check", *map(str, sorted(shipped.glob("*.yaml"))), "--strict", "--device", "h100-sxm"]) == 0
    out = capsys.readouterr()
    assert out.out.count(": ok, revision ") == 4
    assert out.err == ""


def test_check_refuses_with_places_on_stderr(bad, shipped, capsys):
    assert main(["policy", "check", str(bad), str(shipped / "observe-only.yaml")]) == 1
    out = capsys.readouterr()
    assert f"{bad}:4:14: spec.mode:" in out.err
    assert "observe-only.yaml: ok" in out.out


def test_check_for_programs(bad, capsys):
    assert main(["policy", "check", str(bad), "--format", "json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)
    assert (problem["line"], problem["column"], problem["path"], problem["severity"]) == (4, 14, "spec.mode", "error")
    assert main(["policy", "check", str(bad), "--format", "github"]) == 1
    assert capsys.readouterr().out.startswith(f"::error file={bad},line=4,col=14::spec.mode: ")


def test_warnings_fail_only_when_strict(tmp_path, capsys):
    path = tmp_path / "warn.yaml"
    path.write_text(BAD.replace("mode: go", "mode: observe").replace("3000", "1975"))
    assert main(["policy", "check", str(path), "--device", "h100-sxm"]) == 0
    assert "warning: " in capsys.readouterr().err
    assert main(["policy", "check", str(path), "--device", "h100-sxm", "--strict"]) == 1


def test_diff(shipped, capsys):
    old, new = str(shipped / "observe-only.yaml"), str(shipped / "save-energy.yaml")
    assert main(["policy", "diff", old, old]) == 0
    assert capsys.readouterr().out == ""
    assert main(["policy", "diff", old, new]) == 1
    out = capsys.readouterr().out
    assert "spec.mode: observe -> enforce" in out
    assert "spec.power.clock_mhz.min: null -> 600" in out
    assert "spec.carbon.zone: GB -> (absent)" in out
    main(["policy", "diff", old, new, "--json"])
    assert {"path": "spec.mode", "old": "observe", "new": "enforce"} in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["follow-the-grid", "power-capped-row"])
def test_the_policy_tests_of_the_shipped_policies_pass(name, capsys):
    assert main(["policy", "test", str(CASES / f"{name}.yaml")]) == 0
    assert "0 failed" in capsys.readouterr().out


def test_a_policy_test_that_fails_says_where(tmp_path, shipped, capsys):
    path = tmp_path / "t.yaml"
    path.write_text(
        f"apiVersion: gridserve/v1\nkind: PolicyTest\npolicy: {shipped / 'power-capped-row.yaml'}\ncases:\n"
        '  - {name: n, given: {time: "2026-03-04T12:00:00Z"}, expect: {row_budget_w: 1.0}}\n'
    )
    assert main(["policy", "test", str(path)]) == 1
    assert f"{path}:5:77: cases.0.expect.row_budget_w: expected 1.0, got 4500.0" in capsys.readouterr().out
    path.write_text(path.read_text().replace("row_budget_w: 1.0", "row_budgt_w: 1.0"))
    assert main(["policy", "test", str(path)]) == 1
    assert "there is no such setting; did you mean 'row_budget_w'?" in capsys.readouterr().err


def test_show_and_schema(shipped, capsys):
    path = str(shipped / "follow-the-grid.yaml")
    assert main(["policy", "show", path]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["spec"]["power"]["stability"]["dwell_s"] == 0.5
    assert main(["policy", "show", path, "--effective", "--at", "2026-01-15T16:30:00+00:00", "--g-per-kwh", "320"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["band"], shown["rules.clock_mhz"]) == ("dirty", "evening-peak")
    assert main(["policy", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "gridserve policy"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "nowhere.yaml"], "nowhere.yaml cannot be read: No such file"),
        (["check", "nowhere.yaml"], "cannot be read"),
        (["test", "nowhere.yaml"], "nowhere.yaml"),
        (["check", "x", "--device", "h1000"], "no profile 'h1000'"),
        (["show", "POLICY", "--effective", "--at", "noon"], "is not a time"),
        (["show", "POLICY", "--effective", "--at", "2026-01-01T00:00:00"], "has no offset"),
    ],
)
def test_mistakes_are_one_line(arguments, words, shipped, capsys):
    arguments = [str(shipped / "observe-only.yaml") if word == "POLICY" else word for word in arguments]
    assert main(["policy", *arguments]) == 1
    assert words in capsys.readouterr().err
