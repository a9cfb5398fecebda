"""YAML 1.2 text to plain values, each with its place in the file; refuses what a policy has no use for.

Refused before anything is built: files above 256 KiB, anchors, aliases and merge keys (an alias bomb is small until
it is expanded), tags, several documents, `%YAML` directives (1.1 would read `NO` as false and 22:30 as 1350), deep or
huge trees, duplicate keys, keys that are not strings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StreamMark, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, DocumentStartEvent, NodeEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from serving.policy.problems import Path, PolicyError, Problem, dotted

MAX_BYTES = 256 * 1024
MAX_NODES = 20_000
MAX_DEPTH = 24
_CORE = "tag:yaml.org,2002:"

Place = tuple[int, int]
"""Line and column, both from 1."""


@dataclass(slots=True)
class Document:
    """`data`: dicts, lists, str, int, float, bool, None. `values`, `keys`: where each value and each key stands."""

    file: str
    text: str
    data: Any
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)

    def place(self, path: Path, *, key: bool = False) -> Place:
        """The nearest place known: the key or value itself, else what encloses it."""
        if key and path in self.keys:
            return self.keys[path]
        for length in range(len(path), -1, -1):
            found = self.values.get(path[:length])
            if found is not None:
                return found
        return (1, 1)

    def problem(self, path: Path, message: str, *, key: bool = False) -> Problem:
        return Problem(self.file, *self.place(path, key=key), dotted(path), message)


def read_document(raw: bytes, file: str) -> Document:
    """Parse `raw`; raises `PolicyError` for all that is refused, with its place."""
    if len(raw) > MAX_BYTES:
        raise _refusal(file, f"the file has {len(raw)} bytes; a policy may have {MAX_BYTES}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise PolicyError([Problem(file, line, 1, "", "not UTF-8; save the file as UTF-8")]) from None
    try:
        _check_events(text, file)
        root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _refusal(file, f"not valid YAML: {error.problem or error.context}", mark) from None
    except YAMLError as error:
        raise _refusal(file, f"not valid YAML: {str(error).splitlines()[0]}") from None
    if root is None:
        raise _refusal(file, "the file is empty; start from one of the shipped policies")
    document = Document(file, text, None)
    document.data = _build(root, (), document)
    return document


def _refusal(file: str, message: str, mark: StreamMark | None = None) -> PolicyError:
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    return PolicyError([Problem(file, line, column, "", message)])


def _check_events(text: str, file: str) -> None:
    nodes = depth = documents = 0
    for event in _events(text):
        mark = event.start_mark
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if event.version or event.tags:
                raise _refusal(file, "directives are refused; a policy is YAML 1.2 without tags", mark)
            if documents > 1:
                raise _refusal(file, "only one document a file; remove the second '---'", mark)
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor is not None):
            raise _refusal(file, "anchors and aliases are refused; write the value out", mark)
        if getattr(event, "tag", None) not in (None, "!"):
            raise _refusal(file, f"the tag {event.tag} is refused; write a plain value", mark)
        nodes += isinstance(event, NodeEvent)
        depth += isinstance(event, CollectionStartEvent)
        depth -= isinstance(event, CollectionEndEvent)
        if nodes > MAX_NODES or depth > MAX_DEPTH:
            raise _refusal(file, f"more than {MAX_NODES} values or {MAX_DEPTH} levels; split the policy", mark)


def _events(text: str) -> Iterator[Any]:
    yield from YAML(typ="safe", pure=True).parse(text)


def _build(node: Node, path: Path, document: Document) -> Any:
    document.values[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, MappingNode):
        return _build_mapping(node, path, document)
    if isinstance(node, SequenceNode):
        return [_build(item, (*path, index), document) for index, item in enumerate(node.value)]
    assert isinstance(node, ScalarNode)
    try:
        return _scalar(node)
    except ValueError as error:
        raise PolicyError([document.problem(path, str(error))]) from None


def _build_mapping(node: MappingNode, path: Path, document: Document) -> dict[str, Any]:
    built: dict[str, Any] = {}
    for key_node, value_node in node.value:
        name = key_node.value
        place = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
        if not isinstance(key_node, ScalarNode) or not isinstance(name, str):
            raise PolicyError([Problem(document.file, *place, dotted(path), "a key must be a plain word")])
        if name == "<<":
            raise PolicyError([Problem(document.file, *place, dotted(path), "merge keys are refused; write it out")])
        inner = (*path, name)
        if name in built:
            first = document.keys[inner][0]
            raise PolicyError([Problem(document.file, *place, dotted(inner), f"duplicate key; first on line {first}")])
        document.keys[inner] = place
        built[name] = _build(value_node, inner, document)
    return built


def _scalar(node: ScalarNode) -> Any:
    kind, text = (node.tag or "").removeprefix(_CORE), node.value
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        plain = text.replace("_", "").lower()
        return int(plain, 0) if plain.lstrip("+-").startswith(("0x", "0o")) else int(plain)
    if kind == "float":
        return _float(text.replace("_", "").lower())
    return text


def _float(text: str) -> float:
    number = float(text.replace(".inf", "inf").replace(".nan", "nan"))
    if not math.isfinite(number):
        raise ValueError("infinite and undefined numbers are refused")
    return number
