"""Which formats there are, and which one a file is in."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from traces.formats.azure import AZURE, AZURE_MULTIMODAL
from traces.formats.burstgpt import BURSTGPT_V1, BURSTGPT_V3
from traces.formats.engine_logs import LLMSERVINGSIM
from traces.formats.layout import CsvLayout, Layout
from traces.formats.native import NATIVE
from traces.formats.prefix_traces import BAILIAN, MOONCAKE, RAGPULSE
from traces.formats.simulators import SPLITWISE, VIDUR, VIDUR_LENGTHS

LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        NATIVE,
        AZURE,
        AZURE_MULTIMODAL,
        BURSTGPT_V1,
        BURSTGPT_V3,
        MOONCAKE,
        BAILIAN,
        RAGPULSE,
        VIDUR,
        VIDUR_LENGTHS,
        SPLITWISE,
        LLMSERVINGSIM,
    )
}
_GZIP_MAGIC = b"\x1f\x8b"


def open_bytes(path: Path) -> BinaryIO:
    """A file or a gzip file, told by its first bytes. Raises `ValueError` where there is no such file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    stream = path.open("rb")
    magic = stream.read(2)
    stream.seek(0)
    if magic != _GZIP_MAGIC:
        return stream
    return cast(BinaryIO, io.BufferedReader(_OwningGzip(stream)))


class _OwningGzip(gzip.GzipFile):
    """Closes the file below with itself."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(fileobj=stream, mode="rb")
        self._below = stream

    def close(self) -> None:
        super().close()
        self._below.close()


def layout_named(name: str) -> Layout:
    if name not in LAYOUTS:
        raise ValueError(f"unknown trace format {name!r}; known: {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def detect_layout(path: Path) -> Layout:
    """Tell the format from the first line; of several that fit, the one that asks for most columns.

    Raises `ValueError` with what the first line holds where none fits.
    """
    with open_bytes(path) as stream:
        first = stream.readline().decode("utf-8-sig", "backslashreplace").strip()
    if first.startswith("{"):
        try:
            found = _keys(json.loads(first))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:1:{error.colno}: not JSON: {error.msg}") from None
    else:
        found = set(next(csv.reader([first]), []))
    fitting = [
        layout
        for layout in LAYOUTS.values()
        if isinstance(layout, CsvLayout) != first.startswith("{") and _fits(layout, found)
    ]
    if not fitting:
        held = ", ".join(sorted(found)) or "nothing"
        raise ValueError(
            f"{path}:1:1: no known trace format has these columns: {held}. Name one with --format "
            f"({', '.join(LAYOUTS)}); ServeGen folders are read by `gridserve traces synthesize --servegen`"
        )
    return max(fitting, key=lambda layout: len(layout.required))


def _keys(record: Any) -> set[str]:
    keys = set(record)
    for name, value in record.items():
        if isinstance(value, dict):
            keys.update(f"{name}.{inner}" for inner in value)
    return keys


def _fits(layout: Layout, found: set[str]) -> bool:
    if isinstance(layout, CsvLayout):
        return found.issuperset(layout.required) and found.isdisjoint(layout.refused)
    return "format" in found if layout.header_format else found.issuperset(layout.required)
