"""Compile the C++ sources of this folder into one shared library in the user's cache, once for each CPU and compiler.

The library has a plain C interface and includes no torch header: all of it compiles in a few seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs

SOURCE_FOLDER = Path(__file__).parent
# Contraction stays off because it would let two instances of one template round differently.
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden")
COMPILE_TIMEOUT_S = 300.0


class BuildError(RuntimeError):
    """The library could not be built; the message is one line that says why."""


def cache_folder() -> Path:
    """`GRIDSERVE_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("GRIDSERVE_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("gridserve"))


def find_compiler() -> str:
    """The C++ compiler: `CXX` where set, else the first of g++, c++, clang++ on the path.

    Raises:
        BuildError: there is none.
    """
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else ("g++", "c++", "clang++"):
        found = shutil.which(name)
        if found:
            return found
    raise BuildError(f"no C++ compiler ({wanted or 'g++, c++ or clang++'}) on the path: install g++ or set CXX")


def native_arch() -> str:
    """The compiler's name for this CPU; `GRIDSERVE_CPU_ARCH` (a value of `-march`) overrides it."""
    return os.environ.get("GRIDSERVE_CPU_ARCH") or "native"


def build_library(arch: str | None = None) -> Path:
    """Path of the library for `arch` (a value of `-march`), compiled now unless the cache has it.

    Safe to call from several processes at once: one compiles, the others wait for it.

    Raises:
        BuildError: no compiler, a failed compilation, or nowhere to write.
    """
    arch = arch or native_arch()
    compiler = find_compiler()
    flags = (*FLAGS, f"-mcpu={arch}" if platform.machine() == "aarch64" else f"-march={arch}")
    target = cache_folder() / "cpu" / f"gridserve-cpu-{_digest(compiler, flags)}.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_suffix(".lock")):
            if not target.exists():
                print("gridserve: compiling the CPU kernels for this machine (once, a few seconds)", file=sys.stderr)
                _compile(compiler, flags, target)
    except OSError as error:
        raise BuildError(f"cannot write {target.parent} ({error.strerror}): set GRIDSERVE_CACHE") from error
    return target


def _digest(compiler: str, flags: tuple[str, ...]) -> str:
    """Changes with the sources, the flags, the compiler and the instruction sets of this CPU."""
    stat = os.stat(os.path.realpath(compiler))
    parts = [compiler, str(stat.st_size), str(stat.st_mtime_ns), *flags, platform.machine(), _cpu_flags()]
    digest = hashlib.sha256("\0".join(parts).encode())
    for source in sorted((*SOURCE_FOLDER.glob("*.cpp"), *SOURCE_FOLDER.glob("*.h"))):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:20]


def _cpu_flags() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        for line in cpuinfo:
            if line.startswith(("flags", "Features")):
                return line.partition(":")[2].strip()
    return platform.processor()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(compiler: str, flags: tuple[str, ...], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        sources = sorted(SOURCE_FOLDER.glob("*.cpp"))
        objects = [Path(folder) / f"{source.stem}.o" for source in sources]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            jobs = [
                pool.submit(_run, compiler, *flags, "-c", str(source), "-o", str(made))
                for source, made in zip(sources, objects)
            ]
            for job in jobs:
                job.result()
        library = Path(folder) / "library.so"
        _run(compiler, "-shared", "-pthread", *map(str, objects), "-o", str(library))
        os.replace(library, target)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} took longer than {COMPILE_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        first = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        raise BuildError(f"{command[0]} failed: {first.strip()}")
