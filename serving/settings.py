"""How the inference API is set up."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from serving.auth import ApiKeys

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """`max_queued_requests` counts sequences that wait beside those the engine runs at once.

    `api_keys=None` asks for no key; raises `ValueError` for that on a host others can reach, unless
    `allow_unauthenticated`. `allowed_hosts`: values of the Host header that are served (without port). When empty,
    any is; but without keys on loopback only the names of this machine are, or a web page could reach the server
    through a name of its own (DNS rebinding). `max_inflight_body_bytes` bounds the bodies held at once.
    """

    host: str = "127.0.0.1"
    api_keys: ApiKeys | None = None
    allow_unauthenticated: bool = False
    allowed_hosts: tuple[str, ...] = ()
    max_queued_requests: int = 256
    max_body_bytes: int = 4 * 1024 * 1024
    max_inflight_body_bytes: int = 256 * 1024 * 1024
    max_header_bytes: int = 64 * 1024
    body_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if self.api_keys is None and not self.loopback and not self.allow_unauthenticated:
            raise ValueError(
                f"{self.host} can be reached from other machines: create a key file with `gridserve keys create`, "
                "or listen on 127.0.0.1"
            )

    @property
    def served_hosts(self) -> frozenset[str]:
        """Host header values that are served; empty for any."""
        guarded = self.loopback and self.api_keys is None and not self.allowed_hosts
        return frozenset({*LOOPBACK_HOSTS, self.host}) if guarded else frozenset(self.allowed_hosts)

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)
