"""From bytes to a validated policy: the one validator of command line, API, dashboard and start-up."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from serving.policy.checks import DeviceRange, check
from serving.policy.document import MAX_BYTES, Document, read_document
from serving.policy.model import Policy
from serving.policy.problems import Path, PolicyError, Problem, Severity, dotted, suggestion

Model = TypeVar("Model", bound=BaseModel)

_SECTION_NOT_GOVERNOR = {
    "row_budget": "row_budget is a section of its own beside any governor: add power.row_budget and keep a governor",
    "carbon_follow": "carbon_follow wraps any governor: add power.carbon_follow and keep a governor",
}


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy that passed, the text it came from, and what is worth a look though not wrong."""

    policy: Policy
    text: str
    warnings: tuple[Problem, ...] = ()


def load_policy(path: FilePath, device: DeviceRange | None = None) -> LoadedPolicy:
    """Read and validate a file. Raises `PolicyError` with every problem found, `OSError` if it cannot be read."""
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    return parse_policy(raw, str(path), device)


def parse_policy(raw: bytes, file: str = "policy", device: DeviceRange | None = None) -> LoadedPolicy:
    """Validate the bytes of a policy. `device`: what the clocks and limits are held against, where known."""
    document = read_document(raw, file)
    policy = validate(document, Policy)
    findings = [
        Problem(file, *document.place(found.path), dotted(found.path), found.message, found.severity)
        for found in check(policy, device)
    ]
    findings.sort(key=lambda problem: (problem.line, problem.column))
    if any(found.severity is Severity.ERROR for found in findings):
        raise PolicyError(findings)
    return LoadedPolicy(policy, document.text, tuple(findings))


def validate(document: Document, model: type[Model]) -> Model:
    """The document as `model`; raises `PolicyError` in words, with places and suggestions."""
    if not isinstance(document.data, dict):
        raise PolicyError([document.problem((), f"a {model.__name__} must be a mapping that begins with apiVersion")])
    try:
        return model.model_validate_json(json.dumps(document.data))
    except ValidationError as error:
        problems = [_problem(detail, document, model) for detail in error.errors(include_url=False)]
        raise PolicyError(_joined(_without_consequences(problems))) from None


def _problem(detail: ErrorDetails, document: Document, model: type[BaseModel]) -> Problem:
    kind, message = detail["type"], detail["msg"]
    path = _path_in_data(detail["loc"], document.data)
    if kind == "extra_forbidden":
        word = str(detail["loc"][-1])
        message = f"unknown key{suggestion(word, _known_keys(model, detail['loc'][:-1]))}"
        return document.problem((*path, word) if path[-1:] != (word,) else path, message, key=True)
    if kind == "union_tag_not_found":
        name = str(detail.get("ctx", {}).get("discriminator", "type")).strip("'")
        return document.problem((*path, name), f"is required; add {name}: to say which kind it is")
    if kind == "missing":
        return document.problem((*path, str(detail["loc"][-1])), "is required")
    value = detail.get("input")
    if kind in ("literal_error", "union_tag_invalid") and isinstance(value, dict):
        return _bad_tag(detail, document, path, value)
    if kind == "literal_error":
        expected = _choices(str(detail.get("ctx", {}).get("expected", "")))
        hint = _SECTION_NOT_GOVERNOR.get(str(value)) if path[-1:] == ("governor",) else None
        message = f"{_shown(value)} is not one of {', '.join(expected)}"
        message = hint or message + suggestion(str(value), expected).split("; known")[0]
    elif kind == "value_error":
        message = message.removeprefix("Value error, ")
    elif not isinstance(value, dict | list):
        message = f"{message[0].lower()}{message[1:]}, got {_shown(value)}"
    return document.problem(path, message)


def _bad_tag(detail: ErrorDetails, document: Document, path: Path, value: dict[str, Any]) -> Problem:
    context = detail.get("ctx", {})
    name = str(context.get("discriminator", "type")).strip("'")
    expected = _choices(str(context.get("expected_tags", "")))
    word = str(value.get(name))
    return document.problem((*path, name), f"{word!r} is not one of {', '.join(expected)}{_near(word, expected)}")


def _near(word: str, expected: list[str]) -> str:
    return suggestion(word, expected).split("; known")[0]


def _choices(expected: str) -> list[str]:
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",") if part.strip()]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _path_in_data(loc: tuple[int | str, ...], data: Any) -> Path:
    """`loc` without the parts pydantic adds for branches of unions."""
    path: list[str | int] = []
    for part in loc:
        inside = (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        )
        if inside:
            path.append(part)
            data = data[part]
    return tuple(path)


def _known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Keys of the section at `loc`, found by walking the models' annotations."""
    current: list[type[BaseModel]] = [model]
    for part in loc:
        inner: list[type[BaseModel]] = []
        for section in current:
            found = section.model_fields.get(str(part))
            if found is not None:
                inner += _sections(_annotation(found))
            elif isinstance(part, int) or _tag_of(section) == part:
                inner.append(section)
        current = inner or current
    return sorted({key for section in current for key in section.model_fields})


def _annotation(found: FieldInfo) -> Any:
    return found.annotation


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _tag_of(section: type[BaseModel]) -> str | None:
    field = section.model_fields.get("type")
    tags = get_args(field.annotation) if field is not None else ()
    return str(tags[0]) if tags else None


def _without_consequences(problems: list[Problem]) -> list[Problem]:
    """A list whose items were refused is then also too short: that is no news."""
    paths = [problem.path for problem in problems]
    return [
        problem
        for problem in problems
        if not ("after validation" in problem.message and any(path.startswith(f"{problem.path}.") for path in paths))
    ]


def _joined(problems: list[Problem]) -> list[Problem]:
    """One problem a place: branches of a union complain each for itself."""
    merged: dict[tuple[int, int, str], Problem] = {}
    for problem in problems:
        key = (problem.line, problem.column, problem.path)
        known = merged.get(key)
        if known is not None and problem.message not in known.message:
            other = problem.message.removeprefix("input ").split(", got ")[0]
            message = f"{known.message} or {other}"
            problem = Problem(problem.file, problem.line, problem.column, problem.path, message)
        elif known is not None:
            problem = known
        merged[key] = problem
    return sorted(merged.values(), key=lambda problem: (problem.line, problem.column))
