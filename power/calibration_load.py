"""Work to measure a device under: prefill and decode steps shaped like a model, on the real GPU or on the twin."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from power.model_shape import ModelShape
from power.simulated import SimulatedDevice
from power.twin import StepWork, decode_work, prefill_work

MEMORY_SHARE = 0.6


class Load(Protocol):
    """Runs one step and returns when it is done; `now` and `wait` are its clock."""

    def prefill(self, tokens: int) -> None: ...
    def decode(self, batch: int, context: int) -> None: ...
    def now(self) -> float: ...
    def wait(self, seconds: float) -> None: ...
    def close(self) -> None: ...


class TwinLoad:
    """Steps of the twin in virtual time; the device must run on `now`."""

    def __init__(self, make_device: Callable[[Callable[[], float]], SimulatedDevice]) -> None:
        self._now_s = 0.0
        self.device = make_device(self.now)

    def prefill(self, tokens: int) -> None:
        self._step(prefill_work(tokens))

    def decode(self, batch: int, context: int) -> None:
        self._step(decode_work(batch, context))

    def now(self) -> float:
        return self._now_s

    def wait(self, seconds: float) -> None:
        self.device.quiet(self._now_s)
        self._now_s += seconds

    def close(self) -> None:
        return None

    def _step(self, work: StepWork) -> None:
        board = self.device.board.state
        clock = min(self.device.board.target_clock(busy=True), board.ceiling_mhz)
        started = self._now_s
        self._now_s += self.device.twin.predict(work, clock).duration_s
        self.device.on_step(work, started, self._now_s)


class TorchModel:
    """The matrix products and attention of a decoder with random weights, in plain torch on any device."""

    def __init__(self, shape: ModelShape, device: str) -> None:
        import torch

        self.torch = torch
        self.shape = shape
        self.device = torch.device(device)
        attention, width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self._layers = [
            {
                "qkv": self.random(shape.hidden, attention + 2 * width),
                "out": self.random(attention, shape.hidden),
                "gate_up": self.random(shape.hidden, 2 * shape.intermediate),
                "down": self.random(shape.intermediate, shape.hidden),
            }
            for _ in range(shape.layers)
        ]
        self._head = self.random(shape.hidden, shape.vocab)

    def prefill(self, hidden: Any) -> Any:
        """Logits of the last position; `hidden`: `[tokens, hidden]`, one prompt."""
        for layer in self._layers:
            hidden = self._layer(hidden, layer, None)
        return hidden[-1:] @ self._head

    def decode(self, hidden: Any, cache: Any) -> Any:
        """Logits of each sequence; `hidden`: `[batch, hidden]`, `cache`: `[2, batch, kv_heads, context, head_dim]`."""
        for layer in self._layers:
            hidden = self._layer(hidden, layer, cache)
        return hidden @ self._head

    def random(self, *size: int) -> Any:
        return self.torch.randn(*size, dtype=self.torch.bfloat16, device=self.device) * 0.02

    def _layer(self, hidden: Any, layer: dict[str, Any], cache: Any) -> Any:
        shape, attend = self.shape, self.torch.nn.functional.scaled_dot_product_attention
        rows, width = hidden.shape[0], shape.kv_heads * shape.head_dim
        packed = hidden @ layer["qkv"]
        query = packed[:, : shape.heads * shape.head_dim].view(rows, shape.heads, shape.head_dim)
        if cache is None:
            key = packed[:, -2 * width : -width].view(rows, shape.kv_heads, shape.head_dim).transpose(0, 1)
            value = packed[:, -width:].view(rows, shape.kv_heads, shape.head_dim).transpose(0, 1)
            mixed = attend(query.transpose(0, 1)[None], key[None], value[None], is_causal=True, enable_gqa=True)
            mixed = mixed[0].transpose(0, 1)
        else:
            mixed = attend(query[:, :, None], cache[0], cache[1], enable_gqa=True)[:, :, 0]
        hidden = hidden + mixed.reshape(rows, -1) @ layer["out"]
        gate, up = (hidden @ layer["gate_up"]).chunk(2, dim=-1)
        return hidden + (self.torch.nn.functional.silu(gate) * up) @ layer["down"]


class TorchLoad:
    """The model on a CUDA device. Decode steps run from a CUDA graph, so that the host's pace does not show.

    Raises `ValueError` without CUDA or when the model does not fit.
    """

    def __init__(self, shape: ModelShape, device_index: int = 0) -> None:
        import torch

        if not torch.cuda.is_available():
            raise ValueError("calibration on a real GPU needs a CUDA build of torch and a GPU")
        free, _ = torch.cuda.mem_get_info(device_index)
        if shape.streamed_bytes > free * MEMORY_SHARE:
            wanted, there = shape.streamed_bytes / 1e9, free * MEMORY_SHARE / 1e9
            raise ValueError(f"{shape.name} needs {wanted:.0f} GB, {there:.0f} GB may be used; take a smaller --model")
        self._torch = torch
        self._model = TorchModel(shape, f"cuda:{device_index}")
        self._graphs: dict[tuple[int, int], Any] = {}
        self._inputs: list[Any] = []

    def prefill(self, tokens: int) -> None:
        with self._torch.inference_mode():
            self._model.prefill(self._model.random(tokens, self._model.shape.hidden))
        self._torch.cuda.synchronize(self._model.device)

    def decode(self, batch: int, context: int) -> None:
        graph = self._graphs.get((batch, context))
        if graph is None:
            graph = self._graphs[batch, context] = self._capture(batch, context)
        graph.replay()
        self._torch.cuda.synchronize(self._model.device)

    def now(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        self._graphs.clear()
        self._inputs.clear()

    def _capture(self, batch: int, context: int) -> Any:
        torch, model = self._torch, self._model
        hidden = model.random(batch, model.shape.hidden)
        cache = model.random(2, batch, model.shape.kv_heads, context, model.shape.head_dim)
        with torch.inference_mode():
            side = torch.cuda.Stream(model.device)
            side.wait_stream(torch.cuda.current_stream(model.device))
            with torch.cuda.stream(side):
                model.decode(hidden, cache)
            torch.cuda.current_stream(model.device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                model.decode(hidden, cache)
        self._inputs.append((hidden, cache))  # the graph reads their memory
        return graph
