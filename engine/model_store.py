"""Finding a model by what the user calls it, fetching it when that takes a download."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from engine.builtin_model import (
    BUILTIN_MODELS,
    ModelUnavailableError,
    PullProgress,
    pull_builtin,
    stored_path,
)

CACHE_VARIABLE = "GRIDSERVE_CACHE"
HUB_FILES = ("*.safetensors", "*.json", "*.jinja")
_HUB_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model that `--model` knows by name. `path` and `size_bytes` are None while it is not on this machine."""

    name: str
    source: str
    path: Path | None
    size_bytes: int | None


def cache_folder() -> Path:
    """Where downloads are kept: the environment's `GRIDSERVE_CACHE`, else the user's cache folder."""
    configured = os.environ.get(CACHE_VARIABLE)
    return Path(configured).expanduser() if configured else platformdirs.user_cache_path("gridserve")


def models_folder() -> Path:
    return cache_folder() / "models"


def resolve_model(name: str, progress: PullProgress | None = None) -> Path:
    """The file or folder of a model, downloaded when it is missing.

    Args:
        name: a built-in name, a Hugging Face folder, a GGUF file, or a hub name `org/name`, perhaps `@revision`.

    Raises `ValueError` when nothing is called so, `ModelUnavailableError` when a download fails.
    """
    if name in BUILTIN_MODELS:
        return pull_builtin(BUILTIN_MODELS[name], models_folder(), progress)
    path = Path(name).expanduser()
    if path.exists():
        return path
    hub_name = _HUB_NAME.fullmatch(name)
    if hub_name is not None and not name.endswith(".gguf"):
        return _pull_from_hub(hub_name["repository"], hub_name["revision"])
    raise ValueError(
        f"no model is called {name!r}; give a folder, a GGUF file, a hub name (org/name) or one of: "
        f"{', '.join(BUILTIN_MODELS)}"
    )


def list_models() -> list[StoredModel]:
    """Built-in models, there or not, then the models in the Hugging Face cache."""
    models = []
    for model in BUILTIN_MODELS.values():
        path = stored_path(model, models_folder())
        models.append(StoredModel(model.name, model.requirement, path, path.stat().st_size if path else None))
    return models + _hub_models()


def _pull_from_hub(repository: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    from engine.checkpoint import open_checkpoint

    def snapshot(files: Sequence[str], local_files_only: bool) -> Path:
        # Files in sub-folders are other formats of the same weights.
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(files),
            ignore_patterns=["*/*"],
            local_files_only=local_files_only,
        )
        return Path(folder)

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        # Whether the model is supported is known before gigabytes are fetched.
        open_checkpoint(snapshot(("config.json",), local_files_only=False))
        return snapshot(HUB_FILES, local_files_only=False)
    except RepositoryNotFoundError as error:
        raise ModelUnavailableError(
            f"the hub has no model {repository} that you may read; check the name, or log in with `hf auth login`"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = _first_line(error)
    try:
        return snapshot(HUB_FILES, local_files_only=True)
    except LocalEntryNotFoundError as error:
        raise ModelUnavailableError(
            f"cannot fetch {repository} from the Hugging Face hub and it is not in the cache ({reason}). Without a "
            f"network: give the path of a downloaded folder, set HF_ENDPOINT to a mirror, or use a built-in model: "
            f"{', '.join(BUILTIN_MODELS)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _hub_models() -> list[StoredModel]:
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return []
    models = []
    for repository in sorted(cache.repos, key=lambda found: str(found.repo_id)):
        revisions = sorted(repository.revisions, key=lambda found: found.last_modified, reverse=True)
        usable = [found for found in revisions if (found.snapshot_path / "config.json").is_file()]
        if repository.repo_type == "model" and usable:
            newest = usable[0]
            models.append(StoredModel(repository.repo_id, "hub", Path(newest.snapshot_path), int(newest.size_on_disk)))
    return models
