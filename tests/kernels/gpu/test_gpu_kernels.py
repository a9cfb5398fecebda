"""The Triton kernels without a card: their results under the interpreter, and what real compilation makes of them.

The interpreter and the compiler exclude each other in one process, so both run in child processes, two at a time: the
files of `checks/` with TRITON_INTERPRET=1 (and, marked `gpu`, on the card), `compile_gate.py` without it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# A test waits for its child process, and for those that run before it.
pytestmark = pytest.mark.timeout(900)

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
CHECKS = sorted(path.stem for path in (FOLDER / "checks").glob("check_*.py"))
FAMILIES = ("decode", "prefill", "invariant", "elementwise", "sampling", "linear", "variants", "engine")
CAPABILITIES = (80, 89, 90, 100)
# Shared memory one program may have, bytes: CUDA C++ Programming Guide, technical specifications by capability.
SHARED_LIMIT = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
REGISTER_FILE = 65536
TENSOR_MEMORY_COLUMNS = 512
# Registers a thread may take at most, by kernel: what the present code needs and a little room.
REGISTER_BUDGET = {
    "decode_kernel": 240,
    "prefill_kernel": 255,
    "segment_kernel": 255,
    "linear_kernel": 200,
    "add_splits_kernel": 80,
}
DEFAULT_REGISTER_BUDGET = 72
MMA_KERNELS = {"decode_kernel", "prefill_kernel", "segment_kernel", "linear_kernel"}
# Kernels with enough rows for the wide instructions of the newer cards must use them; all others use `mma.sync`.
WIDE_KERNELS = {"prefill_kernel", "segment_kernel", "linear_kernel"}
WIDE_MMA = {90: "wgmma", 100: "tcgen05"}


@dataclass(frozen=True)
class Finished:
    status: int
    output: str
    errors: str


def run_child(arguments: list[str], **environment: str) -> Finished:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=inherited | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def check(name: str, select: str, interpret: str) -> Finished:
    path = str(FOLDER / "checks" / f"{name}.py")
    arguments = ["-m", "pytest", path, "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-m", select]
    return run_child(arguments, TRITON_INTERPRET=interpret)


def compile_gate(capability: int, depth: str) -> Finished:
    return run_child([str(FOLDER / "compile_gate.py"), str(capability), depth])


Job = tuple[Any, ...]


@pytest.fixture(scope="session")
def finished(request: pytest.FixtureRequest) -> Iterator[Callable[[Job], Finished]]:
    """Gives the result of a job `(function, *arguments)`; those of all selected tests start ahead, each once."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        jobs: dict[Job, Future[Finished]] = {}
        for item in request.session.items:
            job = item.callspec.params.get("job") if hasattr(item, "callspec") else None
            if job is not None and job not in jobs:
                jobs[job] = pool.submit(job[0], *job[1:])
        yield lambda job: jobs[job].result()
        for future in jobs.values():
            future.cancel()


def expect_passed(child: Finished) -> None:
    nothing_selected = 5
    if child.status not in (0, nothing_selected):
        pytest.fail(f"{child.output[-12_000:]}\n{child.errors[-4000:]}", pytrace=False)


@pytest.mark.parametrize("job", [(check, name, "not slow", "1") for name in CHECKS], ids=CHECKS)
def test_interpreted(finished, job):
    expect_passed(finished(job))


@pytest.mark.slow
@pytest.mark.parametrize("job", [(check, name, "slow", "1") for name in CHECKS], ids=CHECKS)
def test_interpreted_slow(finished, job):
    expect_passed(finished(job))


@pytest.mark.gpu
@pytest.mark.parametrize("job", [(check, name, "not slow", "0") for name in CHECKS], ids=CHECKS)
def test_on_the_card(finished, job):
    expect_passed(finished(job))


def faults(capability: int, case: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one compiled variant."""
    if "error" in case:
        yield case["error"]
    for kernel in case.get("kernels", ()):
        name, registers = kernel["kernel"], kernel["registers"]
        if kernel["stack_bytes"] or kernel["local_bytes"]:
            yield f"{name} spills: {kernel['stack_bytes']} bytes of stack at {registers} registers"
        if registers > REGISTER_BUDGET.get(name, DEFAULT_REGISTER_BUDGET):
            yield f"{name} takes {registers} registers, more than its budget"
        if registers * kernel["num_warps"] * 32 > REGISTER_FILE:
            yield f"{name} cannot launch: {kernel['num_warps']} warps of {registers} registers"
        if kernel["shared_bytes"] > SHARED_LIMIT[capability]:
            yield f"{name} cannot launch: {kernel['shared_bytes']} bytes of shared memory"
        if kernel["tensor_memory_columns"] > TENSOR_MEMORY_COLUMNS:
            yield f"{name} cannot launch: {kernel['tensor_memory_columns']} columns of tensor memory"
        wanted = []
        if name in MMA_KERNELS:
            wanted = [WIDE_MMA.get(capability, "mma.sync") if name in WIDE_KERNELS else "mma.sync"]
            if kernel["async_copies"] == 0:
                yield f"{name} does not load ahead: it has no asynchronous copies"
        if kernel["mma"] != wanted:
            yield f"{name} multiplies with {kernel['mma']}, expected {wanted}"


def recompiled(case: dict[str, Any]) -> Iterator[str]:
    """Kernels of one case that were compiled more than once."""
    hashes: dict[str, set[str]] = {}
    for kernel in case.get("kernels", ()):
        hashes.setdefault(kernel["kernel"], set()).add(kernel["hash"])
    for name, found in hashes.items():
        if len(found) > 1:
            yield f"{name} was compiled {len(found)} times"


def compiled_late(case: dict[str, Any], cases: list[dict[str, Any]]) -> Iterator[str]:
    """Kernels of an engine serving that its warm-up had not compiled."""
    model, _, phase = case["case"].rpartition(" ")
    if phase != "serving" or "error" in case:
        return
    (warm,) = (each for each in cases if each["case"] == f"{model} warm-up")
    ready = {kernel["hash"] for kernel in warm.get("kernels", ())}
    for kernel in case["kernels"]:
        if kernel["hash"] not in ready:
            yield f"{model}: {kernel['kernel']}"


def expect_within_budgets(child: Finished, capability: int, family: str) -> None:
    if child.status != 0:
        pytest.fail(f"the compile gate itself failed:\n{child.errors[-8000:]}", pytrace=False)
    cases = [case for case in json.loads(child.output) if case["family"] == family]
    found = [f"{case['case']}: {fault}" for case in cases for fault in faults(capability, case)]
    if found:
        pytest.fail("\n".join(found), pytrace=False)
    if family == "engine":
        late = [fault for case in cases for fault in compiled_late(case, cases)]
        assert not late, f"these kernels compile while requests wait: {late}"
    if family == "variants":
        again = [fault for case in cases for fault in recompiled(case)]
        assert not again, f"the size of the batch makes kernels compile while they serve: {again}"
    assert cases, f"no variant of {family} was compiled"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "job", [(compile_gate, each, "usual") for each in CAPABILITIES], ids=lambda job: f"sm_{job[1]}"
)
def test_compiled(finished, job, family):
    expect_within_budgets(finished(job), job[1], family)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "job", [(compile_gate, each, "all") for each in (*CAPABILITIES, 120)], ids=lambda job: f"sm_{job[1]}"
)
def test_compiled_in_every_variant(finished, job, family):
    expect_within_budgets(finished(job), job[1], family)


def test_the_gate_reports_faults():
    spilled = {
        "kernel": "prefill_kernel",
        "registers": 255,
        "stack_bytes": 16,
        "local_bytes": 0,
        "shared_bytes": 300_000,
        "num_warps": 16,
        "mma": ["mma.sync"],
        "async_copies": 0,
        "tensor_memory_columns": 1024,
    }
    found = "\n".join(faults(90, {"case": "made up", "kernels": [spilled]}))
    for expected in ("spills", "warps", "shared memory", "wgmma", "load ahead", "tensor memory"):
        assert expected in found
