"""A rank of a tensor-parallel engine but the first: loads its part of the model and follows, step by step.

It has no scheduler: batches come as frames on standard input (`engine.step_frames`). It draws the tokens that the first
rank draws, since both see the same logits and draws are keyed by request, so it tells nothing back.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.config import EngineConfig
from engine.rank_processes import frames
from engine.step_frames import Probe, Step, StepReader, decoder
from kernels.threads import configure_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.build import Runner
    from engine.rank_group import RankGroup

logger = logging.getLogger("gridserve.rank")


def follow(arrived: queue.SimpleQueue[bytes], runner: Runner) -> None:
    """Run what arrives, for ever."""
    from engine.device_runner import DeviceRunner

    reader = StepReader()
    in_flight: object | None = None
    while True:
        match decoder.decode(arrived.get()):
            case Probe():
                runner.probe()
            case Step() as step:
                batch = reader.batch(step)
                if not isinstance(runner, DeviceRunner):
                    runner.run(batch)
                    continue
                launched = runner.launch(batch)
                if in_flight is not None:
                    # What a step holds on the host may go when the device has done it.
                    runner.collect(in_flight)
                in_flight = launched


def read_until_closed(arrived: queue.SimpleQueue[bytes]) -> None:
    """Standard input to the queue; the process leaves with it, also from the middle of a step."""
    with os.fdopen(0, "rb") as pipe:
        for frame in frames(pipe):
            arrived.put(frame)
    os._exit(0)


def load(config: EngineConfig, group: RankGroup) -> Runner:
    """This rank's part of the configured model."""
    from engine.build import load_runner

    return load_runner(config, lambda stage, done=0, total=0: None, group).runner


def main(argv: list[str], load: Callable[[EngineConfig, RankGroup], Runner] = load) -> int:
    """`python -m engine.rank_worker RENDEZVOUS CONFIG_JSON RANK`, started by `engine.rank_processes`."""
    rendezvous, config_json, rank = argv
    logging.basicConfig(
        level=os.environ.get("GRIDSERVE_LOG_LEVEL", "INFO"), format=f"%(levelname)s %(name)s {rank}: %(message)s"
    )
    # Signals to the whole process group are for the first rank, which closes the pipe when it stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=read_until_closed, args=(arrived,), name="frames", daemon=True).start()
    configure_environment()
    from engine.build import join_group

    config = msgspec.json.decode(config_json, type=EngineConfig)
    try:
        runner = load(config, join_group(config, int(rank), Path(rendezvous)))
    except (ValueError, OSError, MemoryError) as error:
        logger.error("cannot start: %s", str(error) or type(error).__name__)
        return 1
    follow(arrived, runner)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
