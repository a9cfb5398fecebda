"""Several simulated servers: which request goes where, and their sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.block_pool import BlockPool
from power.twin import Twin
from traces.simulate_board import VirtualGpu
from traces.simulate_policy import SimulationPolicy
from traces.simulate_request import SimulatedRequest
from traces.simulate_server import SimulatedServer
from traces.simulate_settings import BLOCK_SIZE, SimulationSettings, kv_blocks
from traces.virtual_clock import VirtualClock


class Cluster:
    """The last `low_priority_servers` form the low pool, the others the high pool; with one pool, all take all.

    Routers: `spread` takes servers in turn; `pack` fills the first server up to `pack_limit` requests before the
    next, so that the others may rest.
    """

    pack_limit = 48

    def __init__(
        self,
        twin: Twin,
        settings: SimulationSettings,
        policy: SimulationPolicy,
        prefix_caching: bool,
        on_finish: Callable[[SimulatedRequest, float], None],
        *,
        seed: int = 0,
        jump: bool = True,
    ) -> None:
        count = settings.servers_of(policy)
        low = settings.low_priority_servers
        if low >= count:
            raise ValueError(f"{low} low-priority servers of {count}: leave at least one for high priority")
        blocks = kv_blocks(twin)
        self.settings, self.policy = settings, policy
        self.pooled = low > 0
        self.idle_since_s = 0.0
        self.servers = [
            SimulatedServer(
                VirtualGpu(twin, VirtualClock(), ordinal=place, seed=seed),
                settings.scheduler(),
                BlockPool(blocks, BLOCK_SIZE, prefix_caching=prefix_caching),
                on_finish,
                jump=jump,
            )
            for place in range(count)
        ]
        self._pools = (self.servers[: count - low], self.servers[count - low :])
        self._turn = [0, 0]

    def is_low_server(self, place: int) -> bool:
        return place >= len(self._pools[0])

    def submit(self, request: SimulatedRequest) -> None:
        pool = 1 if self.pooled and request.priority else 0
        self._route(pool, request.arrival_s).submit(request)

    def advance(self, until_s: float) -> None:
        for server in self.servers:
            server.advance(until_s)
        if self.busy:
            self.idle_since_s = until_s

    def _route(self, pool: int, arrival_s: float) -> SimulatedServer:
        servers: Sequence[SimulatedServer] = self._pools[pool]
        if len(servers) == 1:
            return servers[0]
        if self.policy.router == "pack":
            for server in servers:
                server.advance(arrival_s)
                if server.load < self.pack_limit:
                    return server
            return min(servers, key=lambda server: server.load)
        self._turn[pool] += 1
        return servers[self._turn[pool] % len(servers)]

    @property
    def busy(self) -> bool:
        return any(server.busy for server in self.servers)

    @property
    def energy_j(self) -> float:
        return sum(server.gpu.energy_j for server in self.servers)

    @property
    def idle_j(self) -> float:
        """What the idle power took, claimed by requests or not."""
        return sum(server.ledger.all_idle_j for server in self.servers)

    @property
    def unclaimed_idle_j(self) -> float:
        return sum(server.ledger.idle_j for server in self.servers)

    @property
    def request_idle_j(self) -> float:
        return sum(server.ledger.request_idle_j for server in self.servers)

    @property
    def prefill_j(self) -> float:
        return sum(server.ledger.prefill_j for server in self.servers)

    @property
    def decode_j(self) -> float:
        return sum(server.ledger.decode_j for server in self.servers)

    @property
    def closure_error_j(self) -> float:
        return sum(server.ledger.closure_error_j(server.gpu.energy_j) for server in self.servers)

    @property
    def busy_s(self) -> float:
        return sum(sum(server.gpu.time_at_clock_s.values()) for server in self.servers)

    @property
    def mean_clock_mhz(self) -> float:
        return sum(server.gpu.clock_mhz() for server in self.servers) / len(self.servers)

    @property
    def mean_busy_clock_mhz(self) -> float | None:
        """Over the time in steps."""
        return sum(server.gpu.cycles for server in self.servers) / self.busy_s if self.busy_s else None

    @property
    def time_at_clock_s(self) -> dict[str, float]:
        total: dict[int, float] = {}
        for server in self.servers:
            for clock, seconds in server.gpu.time_at_clock_s.items():
                total[clock] = total.get(clock, 0.0) + seconds
        return {str(clock): total[clock] for clock in sorted(total)}

    @property
    def clock_changes(self) -> int:
        return sum(server.gpu.clock_changes for server in self.servers)

    @property
    def output_tokens(self) -> int:
        return sum(server.output_tokens for server in self.servers)

    @property
    def running(self) -> int:
        return sum(server.scheduler.num_running for server in self.servers)

    @property
    def waiting(self) -> int:
        return sum(server.scheduler.num_waiting for server in self.servers)

    @property
    def steps(self) -> int:
        return sum(server.steps for server in self.servers)

    @property
    def jumped_steps(self) -> int:
        return sum(server.jumped_steps for server in self.servers)

    @property
    def preemptions(self) -> int:
        return sum(server.scheduler.stats().preemptions for server in self.servers)

    def update_sensors(self) -> None:
        for server in self.servers:
            server.gpu.update_sensor()

    def check(self) -> None:
        """Check the books of every engine; raises `IntegrityError`."""
        for server in self.servers:
            server.check()
