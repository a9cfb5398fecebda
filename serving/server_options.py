"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from engine.config import EngineConfig
from serving.admin_auth import generate_token
from serving.settings import ApiSettings
from serving.tenants_keys import KeyRing
from serving.tracing_options import TracingOptions

ADMIN_PORT = 9000


@dataclass(frozen=True, slots=True)
class AdminOptions:
    """The admin API's listener. `token`: of role admin. Port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = ADMIN_PORT
    token: str = field(default_factory=generate_token, repr=False)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What `gridserve serve` and `gridserve up` start.

    `policy`: its file, which is followed; `managed`: edits through the API are refused. `power_device`: see
    `power.open`; None measures nothing. `learned`: folder of what the carbon plane learned. `powerd_socket`: the
    privileged helper, where real clocks are controlled. `ledger`: folder of the ledger; None keeps none. `admin`: None
    runs no admin API. `override`: what was changed of the policy at start, in words. `vllm_names`: export the latency
    series under vLLM's names too. `tracing`: export traces of requests.
    """

    engine: EngineConfig
    api: ApiSettings
    port: int
    policy: Path | None = None
    power_device: str | None = None
    powerd_socket: Path | None = None
    learned: Path | None = None
    ledger: Path | None = None
    admin: AdminOptions | None = None
    managed: bool = False
    override: str | None = None
    vllm_names: bool = False
    tracing: TracingOptions | None = None

    @property
    def deferred(self) -> Path | None:
        """Where deferred requests are kept: beside the ledger."""
        return self.ledger / "deferred" if self.ledger is not None else None

    @property
    def keys(self) -> KeyRing | None:
        keys = self.api.api_keys
        return keys if isinstance(keys, KeyRing) else None
