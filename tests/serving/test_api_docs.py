"""docs/api.md names what the API takes and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serving.openai_requests import ChatCompletionRequest, CompletionRequest
from serving.openapi_document import build_document

TEXT = Path("docs/api.md").read_text()
NAMED = set(re.findall(r"`([^`]+)`", TEXT))


@pytest.mark.parametrize("name", sorted({*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields}))
def test_each_field_is_named(name: str) -> None:
    assert name in NAMED


def test_each_route_is_named(make_app, engine) -> None:
    document = build_document(make_app(engine), with_keys=False)
    assert len(document["paths"]) > 5
    for path in set(document["paths"]) - {"/"}:
        assert path.replace("{model_id}", "{id}") in TEXT, path


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", TEXT))))
def test_its_links_lead_somewhere(link: str) -> None:
    assert (Path("docs") / link).exists()
