"""The server: engine process, tokenizer and inference API under one event loop, from start to drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from engine.checkpoint import open_checkpoint
from engine.client import EngineClient, OnLoading
from engine.client_protocol import EngineInfo
from engine.config import EngineConfig
from serving.http_server import server_config
from serving.inference_api import create_app
from serving.model_text import ModelText
from serving.service import InferenceService
from serving.settings import ApiSettings

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


async def run_server(
    config: EngineConfig, settings: ApiSettings, port: int, on_loading: OnLoading, on_ready: OnReady
) -> None:
    """Serve until SIGINT or SIGTERM, then let running requests finish and stop the engine.

    `on_ready` is called with the engine's facts and the base URL once requests are answered. Raises
    `EngineStartError` when the engine cannot start, `OSError` when the address cannot be listened on.
    """
    engine = EngineClient(config, on_loading)
    # The tokenizer loads here while the engine process loads the weights.
    starting = asyncio.create_task(engine.start())
    try:
        text = ModelText(await asyncio.to_thread(lambda: open_checkpoint(Path(config.model)).load_tokenizer()))
        info = await starting
        service = InferenceService(engine, text, settings)
        server = SignalledServer(server_config(create_app(service, settings), settings, port))
        listener = server.config.bind_socket()
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signal_number, server.ask_to_stop)
        announcing = asyncio.create_task(_announce(server, info, settings.host, listener.getsockname()[1], on_ready))
        await server.serve([listener])
        announcing.cancel()
    finally:
        starting.cancel()
        await engine.close()


async def _announce(server: uvicorn.Server, info: EngineInfo, host: str, port: int, on_ready: OnReady) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    shown = f"[{host}]" if ":" in host else host
    on_ready(info, f"http://{shown}:{port}")
