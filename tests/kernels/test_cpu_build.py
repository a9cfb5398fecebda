"""Building the library: two processes at once, no compiler, a broken compiler, and switched off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.cpu import build
from kernels.cpu.build import BuildError, build_library

PROBE = """
import json, torch
from kernels import cpu_status, ops
status = cpu_status()
x = torch.randn(4, 64)
exact = torch.nn.functional.silu(x[:, :32]) * x[:, 32:]
print(json.dumps([status.native, status.reason, torch.allclose(ops.silu_and_mul(x), exact, atol=1e-6)]))
"""


def start(cache: Path, **environment: str) -> subprocess.Popen[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("CXX", "GRIDSERVE_CPU_KERNELS")}
    return subprocess.Popen(
        [sys.executable, "-c", PROBE],
        env={**inherited, "PYTHONPATH": os.getcwd(), "GRIDSERVE_CACHE": str(cache), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[list, str]:
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    return json.loads(out), err


@pytest.fixture(scope="module")
def _compiler():
    try:
        build.find_compiler()
    except BuildError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("_compiler")
def test_two_processes_build_once(tmp_path):
    first, second = start(tmp_path), start(tmp_path)
    results = [finish(first), finish(second)]
    assert [result for result, _ in results] == [[True, None, True]] * 2
    assert sum("compiling" in err for _, err in results) == 1
    assert len(list((tmp_path / "cpu").glob("*.so"))) == 1
    assert [path.suffix for path in (tmp_path / "cpu").iterdir() if path.is_dir()] == []


def test_without_a_compiler_torch_computes(tmp_path):
    (native, reason, right), err = finish(start(tmp_path, CXX="no-such-compiler"))
    assert (native, right) == (False, True)
    assert "no C++ compiler (no-such-compiler)" in reason
    assert err.count("\n") == 1
    assert "using torch instead" in err


def test_a_failing_compiler_is_named(tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'x.cpp:1: error: cannot do this' >&2\nexit 1\n")
    broken.chmod(0o755)
    (native, reason, right), _ = finish(start(tmp_path / "cache", CXX=str(broken)))
    assert (native, right) == (False, True)
    assert "broken failed: x.cpp:1: error: cannot do this" in reason


def test_switched_off(tmp_path):
    (native, reason, right), err = finish(start(tmp_path, GRIDSERVE_CPU_KERNELS="torch"))
    assert (native, right, err) == (False, True, "")
    assert reason == "GRIDSERVE_CPU_KERNELS=torch"


def test_unwritable_cache_says_what_to_set(tmp_path, monkeypatch):
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("GRIDSERVE_CACHE", str(blocker))
    monkeypatch.setattr(build, "find_compiler", lambda: sys.executable)
    with pytest.raises(BuildError, match="set GRIDSERVE_CACHE"):
        build_library()


def test_sources_flags_and_cpu_name_the_library(monkeypatch):
    compiler = sys.executable
    digest = build._digest(compiler, ("-march=native",))
    assert digest == build._digest(compiler, ("-march=native",))
    assert digest != build._digest(compiler, ("-march=x86-64-v3",))
    monkeypatch.setattr(build, "_cpu_flags", lambda: "other")
    assert digest != build._digest(compiler, ("-march=native",))


def test_unknown_mode_is_refused(monkeypatch):
    from kernels.backend import cpu_mode
    from kernels.cpu.library import _load

    monkeypatch.setenv("GRIDSERVE_CPU_KERNELS", "fast")
    cpu_mode.cache_clear()
    try:
        with pytest.raises(ValueError, match="auto, torch or triton"):
            _load.__wrapped__()
    finally:
        cpu_mode.cache_clear()
