"""A rank but the first of `bench._gpu_systems.Gridserve`: `python -m bench._gpu_rank RENDEZVOUS CONFIG_JSON RANK`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bench._gpu_systems import load_runner
from engine.config import EngineConfig
from engine.rank_group import RankGroup
from engine.rank_worker import main

if TYPE_CHECKING:
    from engine.build import Runner


def load(config: EngineConfig, group: RankGroup) -> Runner:
    """Random weights of the shape that the configuration names."""
    return load_runner(config.model, config, group)[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], load))
