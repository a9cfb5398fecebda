"""`gridserve serve`: the inference server with the planes asked for. `gridserve up`: everything, on any machine."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from serving.commands import CommandError

if TYPE_CHECKING:
    from engine.client_protocol import EngineInfo
    from engine.config import EngineConfig
    from engine.messages import Loading
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
            parser.add_argument("--no-dashboard", dest="dashboard", action="store_false", help="run no dashboard")
            parser.add_argument("--dashboard-port", type=int, default=8501, metavar="PORT", help="(%(default)s)")
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
    planes.add_argument("--policy-note", metavar="TEXT", help=argparse.SUPPRESS)
    planes.add_argument("--managed-policy", action="store_true", help="the file belongs to GitOps: refuse edits")
    admin = parser.add_argument_group("admin API")
    admin.add_argument("--admin-host", default="127.0.0.1", help="address to listen on (%(default)s)")
    admin.add_argument(
        "--admin-port", type=int, metavar="PORT", help="serve the admin API there; 0 takes a free port (up: 9000)"
    )
    watched = parser.add_argument_group("metrics and traces")
    watched.add_argument("--vllm-metric-names", action="store_true", help="export latencies under vLLM's names too")
    watched.add_argument(
        "--otlp-traces-endpoint",
        metavar="URL",
        help="export traces of requests to an OpenTelemetry collector, such as http://localhost:4318/v1/traces; "
        "OTEL_* variables work too (needs gridserve[otel])",
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument("--compute", default="auto", choices=("auto", "cpu", "cuda"), help="where the model runs")
    engine.add_argument(
        "--weight-format", default="auto", choices=("auto", "fp32", "bf16", "int8", "int4"), help="(%(default)s)"
    )
    engine.add_argument("--max-model-len", type=int, metavar="TOKENS", help="longest prompt and output together")
    engine.add_argument("--max-num-seqs", type=int, default=64, metavar="N", help="running at once (%(default)s)")
    engine.add_argument("--max-num-batched-tokens", type=int, metavar="TOKENS", help="token budget of a step")
    engine.add_argument(
        "--long-prefill-threshold", type=int, metavar="TOKENS", help="most tokens of one prompt in a step (no limit)"
    )
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
    engine.add_argument(
        "--speculate",
        default="off",
        choices=("off", "ngram"),
        help="guess tokens from a request's own text, verify them in one step: same text, fewer steps (%(default)s)",
    )
    engine.add_argument(
        "--max-draft", type=int, default=4, metavar="TOKENS", help="guessed in a step for a request (%(default)s)"
    )
    engine.add_argument(
        "--no-overlap",
        dest="overlap",
        action="store_const",
        const=False,
        help="on a GPU, wait for a step's tokens before planning the next",
    )
    engine.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="N",
        help="share the model among N GPUs, or N processes on a CPU (%(default)s)",
    )
    engine.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the physical cores)")


def memory_bytes(text: str) -> int:
    """`512M`, `4GiB` or plain bytes; units are powers of 1024."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it like 512M or 4G")
    return int(float(found["number"]) * 1024 ** " KMGT".index(found["unit"].upper() or " "))


def run_serve(arguments: argparse.Namespace) -> int:
    """Start the server and stay until it is stopped."""
    from kernels.threads import configure_environment

    configure_environment()
    import uvloop

    from engine.model_store import resolve_model
    from serving.terminal import Progress

    with Progress() as progress:
        try:
            config = engine_config(arguments, resolve_model(arguments.model, progress.show))
            uvloop.run(_serve(arguments, config, progress))
        except _user_errors() as error:
            raise CommandError(_explained(error)) from error
    return 0


async def _serve(arguments: argparse.Namespace, config: EngineConfig, progress: Progress) -> None:
    """The engine process first: it loads while the front end imports the rest and sets itself up.

    Raises what `options_of` and `run_server` raise.
    """
    from engine.client import EngineClient

    def on_loading(message: Loading) -> None:
        progress.show(message.stage, message.done, message.total)

    def on_ready(info: EngineInfo, url: str, admin_url: str | None) -> None:
        progress.close()
        if admin_url is not None and options.admin is not None:
            announce_admin(admin_url, options.admin.token)
        announce_url(info.model_id, f"{info.weight_format}, {info.device}", url)
        notify(READY="1", STATUS=f"serves {info.model_id} at {url}", X_MODEL=info.model_id, X_URL=url,
               X_KIND=f"{info.weight_format}, {info.device}", X_ADMIN_URL=admin_url or "")  # fmt: skip

    engine = EngineClient(config, on_loading)
    starting = asyncio.create_task(engine.start())
    try:
        from serving.notify import notify

        options = await asyncio.to_thread(options_of, arguments, config)
        server = await asyncio.to_thread(importlib.import_module, "serving.server")
        await server.run_server(options, engine, starting, on_ready)
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await engine.close()


def _user_errors() -> tuple[type[BaseException], ...]:
    """Evaluated when an error is there: importing what raises them would hold up every start."""
    from engine.builtin_model import ModelUnavailableError
    from engine.client import EngineStartError
    from power.device import DeviceError
    from serving.ledger.engine import LedgerError
    from serving.policy.problems import PolicyError

    return EngineStartError, ModelUnavailableError, DeviceError, LedgerError, PolicyError, ValueError, OSError


def _explained(error: BaseException) -> str:
    from serving.policy.problems import PolicyError

    return f"the policy cannot be used:\n{error}" if isinstance(error, PolicyError) else str(error)


def run_up(arguments: argparse.Namespace) -> int:
    """Everything under one supervisor; see `serving.up`."""
    import shutil
    import tempfile

    from serving.admin_auth import TOKEN_VARIABLE, AdminAccess, generate_token
    from serving.policy.problems import PolicyError
    from serving.server_options import ADMIN_PORT
    from serving.supervisor import Supervisor
    from serving.up import SERVER, choose_addresses, data_claimed, data_folder, prepare, services

    run = Path(tempfile.mkdtemp(prefix="gridserve-"))
    data = data_folder(arguments.data)
    try:
        token = os.environ.get(TOKEN_VARIABLE) or generate_token()
        AdminAccess(token)
        with data_claimed(data) as alone:
            prepared = prepare(data, run, arguments, alone=alone)
            addresses = choose_addresses(arguments, ADMIN_PORT)

            def on_ready(said: Mapping[str, str]) -> None:
                announce_admin(said["X_ADMIN_URL"], token)
                for note in prepared.notes:
                    print(f"note: {note}", flush=True)
                if prepared.powerd is not None:
                    print(f"powerd: gridserve power status --socket {prepared.powerd}", flush=True)
                announce_url(said["X_MODEL"], said["X_KIND"], said["X_URL"])
                announce_snippet(said["X_MODEL"], said["X_URL"], arguments.api_key_file is not None)

            found = services(arguments, prepared, addresses, data, token)
            return Supervisor(found, run, {SERVER: on_ready}).run()
    except PolicyError as error:
        raise CommandError(f"the policy cannot be used:\n{error}") from error
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from error
    finally:
        shutil.rmtree(run, ignore_errors=True)


def engine_config(arguments: argparse.Namespace, path: Path) -> EngineConfig:
    """The engine that the command line asks for. Raises `ValueError`."""
    from engine.config import EngineConfig
    from kernels.weight_format import WeightFormat

    return EngineConfig(
        model=str(path),
        model_id=arguments.served_model_name or arguments.model,
        device=arguments.compute,
        weight_format=None if arguments.weight_format == "auto" else WeightFormat(arguments.weight_format),
        max_model_len=arguments.max_model_len,
        max_num_seqs=arguments.max_num_seqs,
        max_num_batched_tokens=arguments.max_num_batched_tokens,
        long_prefill_threshold_tokens=arguments.long_prefill_threshold,
        kv_cache_bytes=arguments.kv_cache_memory,
        num_threads=arguments.threads,
        kv_dtype=arguments.kv_dtype,
        gpu_memory_fraction=arguments.gpu_memory_fraction,
        deterministic=arguments.deterministic,
        overlap=arguments.overlap,
        speculate=arguments.speculate,
        max_draft=arguments.max_draft,
        tensor_parallel=arguments.tensor_parallel,
    )


def options_of(arguments: argparse.Namespace, config: EngineConfig) -> ServerOptions:
    """What the command line asks for. Raises `ValueError` or `OSError`."""
    from serving.server_options import ServerOptions
    from serving.settings import ApiSettings
    from serving.tenants_keys import open_keys
    from serving.tracing_options import tracing_options

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
        override=arguments.policy_note,
        tracing=tracing_options(arguments.otlp_traces_endpoint, os.environ),
    )


def admin_options(host: str, port: int) -> AdminOptions:
    """The token is the environment's, or a fresh one. Raises `ValueError` for a short one."""
    from serving.admin_auth import TOKEN_VARIABLE, AdminAccess
    from serving.server_options import AdminOptions

    token = os.environ.get(TOKEN_VARIABLE)
    if token is None:
        return AdminOptions(host, port)
    AdminAccess(token)
    return AdminOptions(host, port, token)


def announce_admin(url: str, token: str) -> None:
    from serving.admin_auth import TOKEN_VARIABLE

    shown = f"${TOKEN_VARIABLE}" if os.environ.get(TOKEN_VARIABLE) else token
    print(f"admin API at {url}, token {shown}", flush=True)


def announce_url(model: str, kind: str, url: str) -> None:
    """`kind`: weight format and device."""
    print(f"gridserve serves {model} ({kind}) at {url}/v1", flush=True)


def announce_snippet(model: str, url: str, with_keys: bool) -> None:
    header = ' -H "Authorization: Bearer $GRIDSERVE_API_KEY"' if with_keys else ""
    key = 'os.environ["GRIDSERVE_API_KEY"]' if with_keys else '"none"'
    print(
        f"""
Try it:

  curl -N {url}/v1/chat/completions{header} -H 'Content-Type: application/json' -d '{{
    "model": "{model}", "stream": true, "temperature": 0,
    "messages": [{{"role": "user", "content": "Why is the sky blue?"}}]}}'

or in Python (pip install openai):

  {"import os; " if with_keys else ""}import openai
  client = openai.OpenAI(base_url="{url}/v1", api_key={key})
  messages = [{{"role": "user", "content": "Why is the sky blue?"}}]
  for chunk in client.chat.completions.create(model="{model}", messages=messages, temperature=0, stream=True):
      print(chunk.choices[0].delta.content or "", end="", flush=True)

Stop with Ctrl-C.""",
        flush=True,
    )
