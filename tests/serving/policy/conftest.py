"""Policies as text for the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from serving.policy.load import LoadedPolicy, parse_policy
from serving.policy.problems import PolicyError, Problem

HEAD = "apiVersion: gridserve/v1\nkind: Policy\nmetadata: {name: p}\nspec:\n"


@pytest.fixture
def shipped() -> Path:
    return Path(__file__).resolve().parents[3] / "policies"


@pytest.fixture
def load_spec() -> Callable[[str], LoadedPolicy]:
    """A policy from the lines of its `spec`, which begin on line 5."""

    def load(spec: str) -> LoadedPolicy:
        return parse_policy((HEAD + spec).encode(), "p.yaml")

    return load


@pytest.fixture
def problems_of() -> Callable[..., list[Problem]]:
    """What is wrong with a whole file's text, warnings of an accepted policy included."""

    def find(text: str | bytes, device: object = None) -> list[Problem]:
        raw = text if isinstance(text, bytes) else text.encode()
        try:
            return list(parse_policy(raw, "p.yaml", device).warnings)
        except PolicyError as error:
            return list(error.problems)

    return find


@pytest.fixture
def spec_problems(problems_of: Callable[..., list[Problem]]) -> Callable[..., list[str]]:
    """The same as lines, for the lines of a `spec`."""

    def find(spec: str, device: object = None) -> list[str]:
        return [str(problem) for problem in problems_of(HEAD + spec, device)]

    return find
