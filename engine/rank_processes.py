"""The other ranks of a tensor-parallel engine: child processes that compute the steps they are told.

They read frames from a pipe and leave when it closes, whatever ended this process. When one of them ends, or a step
takes longer than `rank_timeout_s`, this process ends too, and whoever started it starts all of them again: no step can
hang.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec

from engine.config import EngineConfig

logger = logging.getLogger(__name__)

EXIT_DEVICE_LOST = 70
# A step that fails by itself after a rank's end still says so to its requests.
LAST_WORDS_S = 2.0
# Ranks leave at once when their pipe closes; one that stands still does not.
LEAVE_S = 5.0
_LENGTH = struct.Struct("<I")


class RankProcesses:
    """Ranks 1 and up of `config.tensor_parallel`, started at once.

    Args:
        command: starts a rank, given the rendezvous file, the configuration as JSON and the rank's number.
        end: called with an exit status when the group is lost; does not return.
    """

    def __init__(
        self,
        config: EngineConfig,
        command: Sequence[str] = (sys.executable, "-m", "engine.rank_worker"),
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._end = end
        self._timeout_s = config.rank_timeout_s
        self._folder = Path(tempfile.mkdtemp(prefix="gridserve-ranks-"))
        self.rendezvous = self._folder / "rendezvous"
        self._deadline_s: float | None = None
        self._closing = threading.Event()
        settings = msgspec.json.encode(config).decode()
        self._processes = [
            subprocess.Popen([*command, str(self.rendezvous), settings, str(rank)], stdin=subprocess.PIPE)
            for rank in range(1, config.tensor_parallel)
        ]
        for rank, process in enumerate(self._processes, start=1):
            self._watch(f"rank-{rank}", partial(self._wait_for, rank, process))
        self._watch("rank-deadline", self._keep_time)

    def send(self, frame: bytes) -> None:
        """Give every rank a frame. Raises `OSError` when one is gone."""
        for process in self._processes:
            pipe = process.stdin
            assert pipe is not None
            pipe.write(_LENGTH.pack(len(frame)) + frame)
            pipe.flush()

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Inside, work that needs every rank: it ends within `rank_timeout_s`, or this process does."""
        self._deadline_s = time.monotonic() + self._timeout_s
        try:
            yield
        finally:
            self._deadline_s = None

    def close(self) -> None:
        """Let the ranks go, and wait for them."""
        self._closing.set()
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _watch(self, name: str, watch: Callable[[], None]) -> None:
        threading.Thread(target=watch, name=name, daemon=True).start()

    def _wait_for(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        if not self._closing.wait(LAST_WORDS_S):
            logger.error("rank %d ended (exit status %d); the engine cannot go on without it", rank, status)
            self._end(EXIT_DEVICE_LOST)

    def _keep_time(self) -> None:
        while not self._closing.wait(self._timeout_s / 8):
            deadline_s = self._deadline_s
            if deadline_s is not None and time.monotonic() > deadline_s:
                logger.error("a step has taken more than %g s; a rank does not answer", self._timeout_s)
                self._end(EXIT_DEVICE_LOST)


def frames(pipe: BinaryIO) -> Iterator[bytes]:
    """The frames of `RankProcesses.send`, until the pipe closes."""
    while len(head := pipe.read(_LENGTH.size)) == _LENGTH.size:
        (length,) = _LENGTH.unpack(head)
        frame = pipe.read(length)
        if len(frame) < length:
            return
        yield frame
