"""JSON Schema of the policy file for editors: draft 7, which is what yaml-language-server understands."""

from __future__ import annotations

from typing import Any

from serving.policy.model import Policy


def policy_schema() -> dict[str, Any]:
    """The schema. Editors complete and check with it; `gridserve policy check` also checks what a schema cannot say."""
    schema = Policy.model_json_schema(ref_template="#/definitions/{model}")
    schema["definitions"] = schema.pop("$defs")
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "gridserve policy"}
    return head | {key: _draft7(value) for key, value in schema.items() if key != "title"}


def _draft7(node: Any) -> Any:
    """Draft 7 ignores whatever stands beside `$ref`, and knows no OpenAPI discriminator."""
    if isinstance(node, list):
        return [_draft7(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _draft7(value) for key, value in node.items() if key != "discriminator"}
    if "$ref" in plain and len(plain) > 1:
        reference = plain.pop("$ref")
        return {"allOf": [{"$ref": reference}], **plain}
    return plain
