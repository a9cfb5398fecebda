"""The server: engine process, power and carbon planes and inference API under one event loop, from start to drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from carbon.plane import CarbonPlane
from engine.checkpoint import Checkpoint, open_checkpoint
from engine.client import EngineClient, OnLoading
from engine.client_protocol import EngineInfo
from engine.config import CPU_MAX_NUM_BATCHED_TOKENS, EngineConfig
from power.plane import PowerPlane
from serving.http_server import server_config
from serving.inference_api import create_app
from serving.model_text import ModelText
from serving.planes import GridView, build_carbon, build_power, shape_of, undirected_classes
from serving.policy.model import Policy
from serving.service import InferenceService
from serving.settings import ApiSettings
from serving.steering import Steering

logger = logging.getLogger(__name__)

OnReady = Callable[[EngineInfo, str], None]


class SignalledServer(uvicorn.Server):
    """uvicorn's server, but a signal ends `serve` instead of the process, so that what comes after it still runs."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def ask_to_stop(self) -> None:
        """Let running requests finish; asked again, cut them off."""
        self.force_exit = self.should_exit
        self.should_exit = True


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What `gridserve serve` starts. `power_device`: see `power.open`; None measures nothing. `learned`: folder of
    what the carbon plane learned before. `powerd_socket`: the privileged helper, where real clocks are controlled."""

    engine: EngineConfig
    api: ApiSettings
    port: int
    policy: Policy | None = None
    power_device: str | None = None
    powerd_socket: Path | None = None
    learned: Path | None = None


async def run_server(options: ServerOptions, on_loading: OnLoading, on_ready: OnReady) -> None:
    """Serve until SIGINT or SIGTERM, then let running requests finish, leave devices as they were, stop the engine.

    `on_ready` is called with the engine's facts and the base URL once requests are answered. Raises
    `EngineStartError` when the engine cannot start, `OSError` when the address cannot be listened on, `ValueError`
    and `DeviceError` for a policy or device that cannot be used.
    """
    checkpoint = open_checkpoint(Path(options.engine.model))
    carbon = None
    if options.policy is not None:
        carbon = build_carbon(options.policy, learned=options.learned)
    power = _power(options, checkpoint, carbon)
    steering = Steering(
        power,
        carbon,
        options.policy.short_revision if options.policy is not None else None,
        undirected_classes(options.policy),
        lambda factor: engine.set_pace(factor),
    )
    engine = EngineClient(options.engine, on_loading, steering.on_step)
    # The tokenizer loads here while the engine process loads the weights.
    starting = asyncio.create_task(engine.start())
    background: list[asyncio.Task[None]] = []
    try:
        if power is not None:
            power.start()
        if carbon is not None:
            background.append(asyncio.create_task(carbon.run(), name="carbon"))
        text = ModelText(await asyncio.to_thread(checkpoint.load_tokenizer))
        info = await starting
        service = InferenceService(engine, text, options.api, steering)
        server = SignalledServer(server_config(create_app(service, options.api), options.api, options.port))
        listener = server.config.bind_socket()
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signal_number, server.ask_to_stop)
        background.append(
            asyncio.create_task(_announce(server, info, options.api.host, listener.getsockname()[1], on_ready))
        )
        await server.serve([listener])
    finally:
        starting.cancel()
        for task in background:
            task.cancel()
        if power is not None:
            await asyncio.to_thread(power.stop)
        if carbon is not None:
            await carbon.close()
        await engine.close()


def _power(options: ServerOptions, checkpoint: Checkpoint, carbon: CarbonPlane | None) -> PowerPlane | None:
    if options.power_device is None:
        return None
    config, weights = checkpoint.config, checkpoint.open_weights()
    shape = shape_of(config, options.engine.model_id, weights.total_bytes / config.num_parameters)
    grid = GridView(carbon, options.policy) if carbon is not None and options.policy is not None else None
    return build_power(
        options.power_device,
        shape,
        options.policy,
        grid=grid or (lambda: None),
        max_running=options.engine.max_num_seqs,
        max_step_tokens=options.engine.max_num_batched_tokens or CPU_MAX_NUM_BATCHED_TOKENS,
        powerd_socket=options.powerd_socket,
        on_alarm=lambda text: logger.warning("power: %s", text),
    )


async def _announce(server: uvicorn.Server, info: EngineInfo, host: str, port: int, on_ready: OnReady) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    shown = f"[{host}]" if ":" in host else host
    on_ready(info, f"http://{shown}:{port}")
