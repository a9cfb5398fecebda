"""The start of the server: what it must not wait for, and mistakes it tells of at once."""

from __future__ import annotations

import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from serving.cli import build_parser, main
from serving.commands.serve import engine_config
from serving.http_server import bind


def test_the_command_line_reaches_the_scheduler() -> None:
    asked = {"max-num-seqs": 7, "max-num-batched-tokens": 100, "long-prefill-threshold": 33, "max-model-len": 900}
    words = [word for name, value in asked.items() for word in (f"--{name}", str(value))]
    config = engine_config(build_parser().parse_args(["serve", *words]), Path("model.gguf"))
    assert (config.max_num_seqs, config.max_num_batched_tokens, config.max_model_len) == (7, 100, 900)
    assert config.long_prefill_threshold_tokens == 33


@pytest.mark.parametrize("library", ["torch", "numba", "sklearn", "pandas"])
def test_the_front_end_starts_without_the_large_libraries(library: str) -> None:
    """Importing them takes seconds and much memory; only the engine process computes, only what-ifs simulate, and
    there is something to learn only once requests are answered."""
    code = f"import sys, serving.commands.serve, serving.server; sys.exit({library!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_little_is_imported_before_the_engine_process_starts() -> None:
    code = "import sys, engine.client, engine.model_store, engine.config, serving.terminal; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"fastapi", "gguf", "numpy", "pydantic", "scipy", "sklearn", "sqlalchemy", "tokenizers", "torch"}
    assert not heavy & set(result.stdout.split())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_free_port_is_bound_and_a_taken_one_refused_with_advice(host: str) -> None:
    try:
        first = bind(host, 0)
    except OSError as error:
        pytest.skip(f"no {host} here: {error}")
    with first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of {host} is in use; .*choose another port"):
            bind(host, port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1, port 0: "):
        bind("192.0.2.1", 0)


def test_a_taken_port_is_one_line_and_leaves_no_engine(tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "serving.cli", "serve", "--model", str(tiny_model), "--port", str(port)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        f"gridserve: port {port} of 127.0.0.1 is in use; stop what listens there or choose another port"
    )


def test_the_command_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"gridserve {metadata.version('gridserve')}\n"
