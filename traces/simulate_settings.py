"""What a simulation holds fixed while policies vary: GPUs, model, scheduler limits, control period."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from engine.scheduler import SchedulerConfig
from power.simulated import simulated_twin
from power.twin import Twin
from traces.simulate_policy import SimulationPolicy, SloSettings

if TYPE_CHECKING:
    from traces.twin_step import PreparedTwin

BLOCK_SIZE = 16
MEMORY_SHARE = 0.9
ACTIVATION_SHARE = 0.05


class SimulationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`servers` engines of `tensor_parallel` GPUs each; `low_priority_servers` of them serve only low priority.

    `control_s`: period of the controllers (production: 0.2 s). `sample_s`: spacing of the timeline. `low_tasks`:
    prompt classes of low priority. `prefix_caching=None`: where the trace has prefix ids.
    `warm_up_s`: left out of all figures, energy included. `drain`: run on until the last answer.
    """

    gpu: str = "h100-sxm"
    model: str = "llama-3.1-8b"
    engine: str = "vllm-0.11"
    tensor_parallel: int = 1
    servers: int = 1
    low_priority_servers: int = 0
    low_tasks: tuple[str, ...] = ()
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 16384
    prefix_caching: bool | None = None
    control_s: float = 0.2
    sample_s: float = 1.0
    warm_up_s: float = 0.0
    pue: float = 1.0
    embodied_kg: float | None = None
    embodied_years: float = 5.0
    slo: SloSettings = SloSettings()
    over_window: Literal["drop", "error"] = "drop"

    def __post_init__(self) -> None:
        if self.servers < 1 or not 0 <= self.low_priority_servers < max(self.servers, 1):
            raise ValueError("settings: at least one server, and fewer low_priority_servers than servers")
        if self.control_s <= 0 or self.sample_s <= 0:
            raise ValueError("settings: control_s and sample_s must be above 0")

    def make_twin(self) -> PreparedTwin:
        """Raises `ValueError` for an unknown profile or shape, or a model that does not fit."""
        # What is compiled takes a second to import: only who simulates waits for it, not who handles settings.
        from traces.twin_step import PreparedTwin

        twin = simulated_twin(self.gpu, self.model, engine=self.engine, tensor_parallel=self.tensor_parallel)
        return PreparedTwin.of(twin)

    def servers_of(self, policy: SimulationPolicy) -> int:
        return policy.servers if policy.servers is not None else self.servers

    def scheduler(self) -> SchedulerConfig:
        return SchedulerConfig(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=self.max_model_len,
        )

    @property
    def embodied_g_per_s(self) -> float | None:
        """Of one GPU."""
        if self.embodied_kg is None:
            return None
        return self.embodied_kg * 1e3 / (self.embodied_years * 365 * 86400)


def kv_blocks(twin: Twin) -> int:
    """KV blocks beside the weights in 90 % of the memory, a twentieth kept for activations (vLLM's defaults).

    Raises `ValueError` where the weights leave no room.
    """
    shape, degree = twin.shape, twin.tensor_parallel
    memory = twin.gpu.memory_bytes * degree * (MEMORY_SHARE - ACTIVATION_SHARE)
    weights = shape.streamed_bytes + shape.head_parameters * shape.weight_bytes
    blocks = int((memory - weights) / (shape.kv_bytes_per_token * BLOCK_SIZE))
    if blocks < 256:
        raise ValueError(
            f"{shape.name} does not fit {degree} x {twin.gpu.name}: {weights / 2**30:.0f} GiB of weights; "
            "raise --tensor-parallel"
        )
    return blocks
