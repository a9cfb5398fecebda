"""`gridserve models`: fetch models and show which are on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from serving.commands import CommandError

if TYPE_CHECKING:
    from engine.builtin_model import PullProgress
    from serving.commands import Subparsers

EXAMPLES = """examples:
  gridserve models pull smollm2-135m-instruct
  gridserve models pull Qwen/Qwen3-0.6B
  gridserve models list --json
"""


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "models",
        help="fetch models, list them",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    pull = actions.add_parser("pull", help="fetch a model and print its path")
    pull.add_argument("name", help="a built-in name (see `gridserve models list`) or a hub name, org/name[@revision]")
    pull.set_defaults(run=run_pull)
    listing = actions.add_parser("list", help="built-in models and those in the Hugging Face cache")
    listing.add_argument("--json", action="store_true", help="print a JSON array")
    listing.set_defaults(run=run_list)


def run_pull(arguments: argparse.Namespace) -> int:
    from engine.builtin_model import ModelUnavailableError
    from engine.checkpoint import open_checkpoint
    from engine.model_store import resolve_model

    try:
        path = resolve_model(arguments.name, terminal_progress())
        open_checkpoint(path)
    except (ModelUnavailableError, ValueError, OSError) as error:
        raise CommandError(str(error)) from error
    print(path)
    return 0


def run_list(arguments: argparse.Namespace) -> int:
    from engine.model_store import list_models

    models = list_models()
    if arguments.json:
        rows = [
            {
                "name": model.name,
                "source": model.source,
                "path": str(model.path) if model.path else None,
                "size_bytes": model.size_bytes,
            }
            for model in models
        ]
        print(json.dumps(rows, indent=2))
        return 0
    width = max(len(model.name) for model in models)
    print(f"{'NAME':<{width}}  {'SIZE':>9}  WHERE")
    for model in models:
        size = "-" if model.size_bytes is None else f"{model.size_bytes / 1e6:.1f} MB"
        where = model.path or f"not here; gridserve models pull {model.name}"
        print(f"{model.name:<{width}}  {size:>9}  {where}")
    return 0


def terminal_progress() -> PullProgress | None:
    """A progress bar on stderr when that is a terminal, otherwise nothing."""
    if not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    bars: dict[str, tqdm] = {}

    def show(stage: str, done_bytes: int, total_bytes: int) -> None:
        if stage not in bars:
            bars[stage] = tqdm(total=total_bytes, desc=stage, unit="B", unit_scale=True, unit_divisor=1000)
        bars[stage].update(done_bytes - bars[stage].n)
        if done_bytes >= total_bytes:
            bars[stage].close()

    return show
