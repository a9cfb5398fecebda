"""What the dashboard process was started with; `python -m dashboard` sets it in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Access = Literal["local", "proxy", "oidc"]

API = "GRIDSERVE_DASHBOARD_API"
INFERENCE_API = "GRIDSERVE_DASHBOARD_INFERENCE_API"
ACCESS = "GRIDSERVE_DASHBOARD_ACCESS"
LINK_TOKEN = "GRIDSERVE_DASHBOARD_LINK_TOKEN"  # noqa: S105 - the name of a variable
USER_HEADER = "GRIDSERVE_DASHBOARD_USER_HEADER"
USERS = "GRIDSERVE_DASHBOARD_USERS"
EXPERIMENTS = "GRIDSERVE_DASHBOARD_EXPERIMENTS"
ADMIN_TOKEN = "GRIDSERVE_ADMIN_TOKEN"  # noqa: S105 - the name of a variable
API_KEY = "GRIDSERVE_API_KEY"

DEFAULT_API = "http://127.0.0.1:9000"
DEFAULT_INFERENCE_API = "http://127.0.0.1:8000"
DEFAULT_USER_HEADER = "X-Forwarded-Email"


@dataclass(frozen=True)
class Settings:
    """`admin_token`: what the dashboard asks the admin API with in `local` access; without it each session brings its
    own. `link_token`: opens a `local` session. `users`: file of tokens and users for `proxy` and `oidc`."""

    api: str
    inference_api: str
    access: Access
    admin_token: str | None
    link_token: str | None
    user_header: str
    users: Path | None
    api_key: str | None
    experiments: Path | None


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Raises `ValueError` for an access mode that does not exist."""
    access = environment.get(ACCESS, "local")
    if access not in ("local", "proxy", "oidc"):
        raise ValueError(f"{ACCESS} is {access!r}; it must be local, proxy or oidc")
    users, experiments = environment.get(USERS), environment.get(EXPERIMENTS)
    return Settings(
        api=environment.get(API, DEFAULT_API),
        inference_api=environment.get(INFERENCE_API, DEFAULT_INFERENCE_API),
        access=access,  # type: ignore[arg-type]
        admin_token=environment.get(ADMIN_TOKEN) or None,
        link_token=environment.get(LINK_TOKEN) or None,
        user_header=environment.get(USER_HEADER, DEFAULT_USER_HEADER),
        users=Path(users) if users else None,
        api_key=environment.get(API_KEY) or None,
        experiments=Path(experiments) if experiments else None,
    )
