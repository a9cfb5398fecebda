"""The feeds of a policy as the plain settings that `carbon.feeds.build.build_feed` takes."""

from __future__ import annotations

from typing import Any

from serving.policy.carbon_section import Carbon
from serving.policy.checks_carbon import methodology

_DECLARED = ("csv", "constant", "carbon_aware_sdk")
_WITH_BOUNDARY = (*_DECLARED, "electricity_maps", "entsoe", "eia")


def feed_settings(carbon: Carbon) -> list[dict[str, Any]]:
    """One mapping a feed, most wanted first; what all figures count is filled in where a feed can choose."""
    basis, boundary = methodology(carbon)
    found = []
    for feed in carbon.feeds:
        settings = {name: value for name, value in feed.model_dump().items() if value is not None}
        if feed.type == "csv" and "value_column" not in settings:
            settings.pop("unit")
        if feed.type == "eia":
            settings["token_env"] = settings.pop("key_env")
        if feed.type in _DECLARED:
            settings["basis"] = basis
        if feed.type in _WITH_BOUNDARY:
            settings["boundary"] = boundary
        found.append(settings)
    return found
