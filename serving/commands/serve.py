"""`gridserve serve`: the inference server with the planes asked for. `gridserve up`: everything, on any machine."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from serving.commands import CommandError

if TYPE_CHECKING:
    from engine.client_protocol import EngineInfo
    from serving.commands import Subparsers
    from serving.server_options import AdminOptions, ServerOptions
    from serving.terminal import Progress

DEFAULT_MODEL = "smollm2-135m-instruct"
EXAMPLES = """examples:
  gridserve serve --model smollm2-135m-instruct --host 127.0.0.1 --port 8000
  gridserve serve --model ./Qwen3-0.6B --max-model-len 4096
  gridserve serve --host 0.0.0.0 --api-key-file keys.txt
  gridserve serve --policy policy.yaml --ledger /var/lib/gridserve/ledger --admin-port 9000 --api-key-file keys.json
  gridserve up                                   everything with the shipped policy, on any machine
"""
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMGT]?)(i?B)?", re.IGNORECASE)


def register(subparsers: Subparsers) -> None:
    for name, help_text, run in (
        ("serve", "start the inference server", run_serve),
        ("up", "start everything and show how to call it", run_up),
    ):
        parser = subparsers.add_parser(
            name,
            help=help_text,
            description=__doc__,
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_server_options(parser)
        if name == "up":
            parser.add_argument(
                "--data", type=Path, metavar="FOLDER", help="ledger, policy and knowledge (default: the user's state)"
            )
        parser.set_defaults(run=run)


def add_server_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="built-in name, Hugging Face folder, GGUF file or hub id (%(default)s)"
    )
    parser.add_argument("--served-model-name", metavar="NAME", help="name clients use (default: what --model says)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one (%(default)s)")
    parser.add_argument("--api-key-file", type=Path, metavar="F", help="keys that may call; needed beyond loopback")
    parser.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help="Host header to serve")
    parser.add_argument("--max-queued-requests", type=int, default=256, metavar="N", help="then 429 (%(default)s)")
    planes = parser.add_argument_group("power and carbon")
    planes.add_argument("--policy", type=Path, metavar="F", help="policy file: power, carbon, directives, tenants")
    planes.add_argument(
        "--device",
        metavar="D",
        help="what power is measured on: auto, nvml, rapl, simulated:h100-sxm ... (default: auto; none for nothing)",
        default="auto",
    )
    planes.add_argument("--powerd", type=Path, metavar="SOCKET", help="socket of gridserve-powerd, to control clocks")
    planes.add_argument("--learned", type=Path, metavar="FOLDER", help="what the carbon plane learned before")
    planes.add_argument("--ledger", type=Path, metavar="FOLDER", help="keep requests, audit and telemetry there")
    planes.add_argument("--managed-policy", action="store_true", help="the file belongs to GitOps: refuse edits")
    admin = parser.add_argument_group("admin API")
    admin.add_argument("--admin-host", default="127.0.0.1", help="address to listen on (%(default)s)")
    admin.add_argument(
        "--admin-port", type=int, metavar="PORT", help="serve the admin API there; 0 takes a free port (up: 9000)"
    )
    admin.add_argument("--vllm-metric-names", action="store_true", help="export latencies under vLLM's names too")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--compute", default="auto", choices=("auto", "cpu", "cuda"), help="where the model runs")
    engine.add_argument(
        "--weight-format", default="auto", choices=("auto", "fp32", "bf16", "int4"), help="(%(default)s)"
    )
    engine.add_argument("--max-model-len", type=int, metavar="TOKENS", help="longest prompt and output together")
    engine.add_argument("--max-num-seqs", type=int, default=64, metavar="N", help="running at once (%(default)s)")
    engine.add_argument("--max-num-batched-tokens", type=int, metavar="TOKENS", help="token budget of a step")
    engine.add_argument("--kv-cache-memory", type=memory_bytes, metavar="SIZE", help="such as 512M or 4G")
    engine.add_argument(
        "--kv-dtype",
        default="auto",
        choices=("auto", "bf16", "fp8", "int8"),
        help="keys and values on a GPU (%(default)s: as computed)",
    )
    engine.add_argument(
        "--gpu-memory-fraction",
        type=float,
        default=0.90,
        metavar="F",
        help="of the card's memory for weights, KV cache and work (%(default)s)",
    )
    engine.add_argument(
        "--deterministic", action="store_true", help="a request's tokens are the same whatever shares the batch; slower"
    )
    engine.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the physical cores)")


def memory_bytes(text: str) -> int:
    """`512M`, `4GiB` or plain bytes; units are powers of 1024."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it like 512M or 4G")
    return int(float(found["number"]) * 1024 ** " KMGT".index(found["unit"].upper() or " "))


def run_serve(arguments: argparse.Namespace) -> int:
    return serve(arguments, announce_url)


def run_up(arguments: argparse.Namespace) -> int:
    return serve(arguments, announce_snippet, with_everything=True)


Announce = Callable[["EngineInfo", str, bool], None]


def serve(arguments: argparse.Namespace, announce: Announce, with_everything: bool = False) -> int:
    """Start the server and stay until it is stopped. `with_everything`: as `gridserve up` does."""
    from kernels.threads import configure_environment

    configure_environment()
    import uvloop

    from engine.builtin_model import ModelUnavailableError
    from engine.client import EngineStartError
    from engine.messages import Loading
    from power.device import DeviceError
    from serving.ledger.engine import LedgerError
    from serving.policy.problems import PolicyError
    from serving.server import run_server
    from serving.terminal import Progress

    with Progress() as progress:

        def on_loading(message: Loading) -> None:
            progress.show(message.stage, message.done, message.total)

        def on_ready(info: EngineInfo, url: str, admin_url: str | None) -> None:
            progress.close()
            if admin_url is not None and options.admin is not None:
                announce_admin(admin_url, options.admin, notes)
            announce(info, url, arguments.api_key_file is not None)

        try:
            if with_everything:
                options, notes = up_options(arguments, progress)
            else:
                options, notes = options_of(arguments, progress), ()
            try:
                uvloop.run(run_server(options, on_loading, on_ready))
            except LedgerError as error:
                if not with_everything:
                    raise
                notes = (*notes, f"no ledger is kept: {error}")
                options = replace(options, ledger=None)
                uvloop.run(run_server(options, on_loading, on_ready))
        except PolicyError as error:
            raise CommandError(f"the policy cannot be used:\n{error}") from error
        except (EngineStartError, ModelUnavailableError, DeviceError, LedgerError, ValueError, OSError) as error:
            raise CommandError(str(error)) from error
    return 0


def options_of(arguments: argparse.Namespace, progress: Progress) -> ServerOptions:
    """What the command line asks for. Raises `ModelUnavailableError`, `ValueError` or `OSError`."""
    from engine.config import EngineConfig
    from engine.model_store import resolve_model
    from kernels.weight_format import WeightFormat
    from serving.server_options import ServerOptions
    from serving.settings import ApiSettings
    from serving.tenants_keys import open_keys

    path = resolve_model(arguments.model, progress.show)
    config = EngineConfig(
        model=str(path),
        model_id=arguments.served_model_name or arguments.model,
        device=arguments.compute,
        weight_format=None if arguments.weight_format == "auto" else WeightFormat(arguments.weight_format),
        max_model_len=arguments.max_model_len,
        max_num_seqs=arguments.max_num_seqs,
        max_num_batched_tokens=arguments.max_num_batched_tokens,
        kv_cache_bytes=arguments.kv_cache_memory,
        num_threads=arguments.threads,
        kv_dtype=arguments.kv_dtype,
        gpu_memory_fraction=arguments.gpu_memory_fraction,
        deterministic=arguments.deterministic,
    )
    settings = ApiSettings(
        host=arguments.host,
        api_keys=open_keys(arguments.api_key_file) if arguments.api_key_file else None,
        allowed_hosts=tuple(arguments.allowed_host),
        max_queued_requests=arguments.max_queued_requests,
    )
    return ServerOptions(
        config,
        settings,
        arguments.port,
        policy=arguments.policy,
        power_device=None if arguments.device == "none" else arguments.device,
        powerd_socket=arguments.powerd,
        learned=arguments.learned,
        ledger=arguments.ledger,
        admin=admin_options(arguments.admin_host, arguments.admin_port) if arguments.admin_port is not None else None,
        managed=arguments.managed_policy,
        vllm_names=arguments.vllm_metric_names,
    )


def up_options(arguments: argparse.Namespace, progress: Progress) -> tuple[ServerOptions, tuple[str, ...]]:
    """As `options_of`, with everything on, and what to say about it. Raises `PolicyError` too."""
    from serving.server_options import ADMIN_PORT
    from serving.up import data_folder, free_or, prepare

    device = "none" if arguments.device == "none" else arguments.device
    prepared = prepare(data_folder(arguments.data), arguments.policy, device)
    options = options_of(arguments, progress)
    port = arguments.admin_port
    if port is None:
        port = free_or(ADMIN_PORT, arguments.admin_host)
    return replace(
        options,
        policy=prepared.policy,
        power_device=None if prepared.device == "none" else prepared.device,
        ledger=arguments.ledger or prepared.data / "ledger",
        learned=arguments.learned or prepared.data / "learned",
        admin=admin_options(arguments.admin_host, port),
        override=prepared.override,
    ), prepared.notes


def admin_options(host: str, port: int) -> AdminOptions:
    """The token is the environment's, or a fresh one. Raises `ValueError` for a short one."""
    from serving.admin_auth import TOKEN_VARIABLE, AdminAccess
    from serving.server_options import AdminOptions

    token = os.environ.get(TOKEN_VARIABLE)
    if token is None:
        return AdminOptions(host, port)
    AdminAccess(token)
    return AdminOptions(host, port, token)


def announce_admin(url: str, admin: AdminOptions, notes: tuple[str, ...]) -> None:
    from serving.admin_auth import TOKEN_VARIABLE

    shown = f"${TOKEN_VARIABLE}" if os.environ.get(TOKEN_VARIABLE) else admin.token
    print(f"admin API at {url}, token {shown}", flush=True)
    for note in notes:
        print(f"note: {note}", flush=True)


def announce_url(info: EngineInfo, url: str, with_keys: bool) -> None:
    print(f"gridserve serves {info.model_id} ({info.weight_format}, {info.device}) at {url}/v1", flush=True)


def announce_snippet(info: EngineInfo, url: str, with_keys: bool) -> None:
    announce_url(info, url, with_keys)
    header = ' -H "Authorization: Bearer $GRIDSERVE_API_KEY"' if with_keys else ""
    key = 'os.environ["GRIDSERVE_API_KEY"]' if with_keys else '"none"'
    print(
        f"""
Try it:

  curl -N {url}/v1/chat/completions{header} -H 'Content-Type: application/json' -d '{{
    "model": "{info.model_id}", "stream": true, "temperature": 0,
    "messages": [{{"role": "user", "content": "Why is the sky blue?"}}]}}'

or in Python (pip install openai):

  {"import os; " if with_keys else ""}import openai
  client = openai.OpenAI(base_url="{url}/v1", api_key={key})
  messages = [{{"role": "user", "content": "Why is the sky blue?"}}]
  for chunk in client.chat.completions.create(model="{info.model_id}", messages=messages, temperature=0, stream=True):
      print(chunk.choices[0].delta.content or "", end="", flush=True)

Stop with Ctrl-C.""",
        flush=True,
    )
