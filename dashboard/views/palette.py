"""Colours that colour-blind readers can tell apart (Okabe and Ito, 2008), for light and dark ground."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    blue: str
    orange: str
    green: str
    red: str
    sky: str
    purple: str
    yellow: str
    grey: str
    text: str
    grid: str

    def series(self) -> tuple[str, ...]:
        return (self.blue, self.orange, self.green, self.purple, self.sky, self.red, self.yellow, self.grey)


LIGHT = Palette(
    blue="#0072B2",
    orange="#B36B00",
    green="#007A5A",
    red="#C44A00",
    sky="#3A8FC4",
    purple="#A8568A",
    yellow="#8F7F00",
    grey="#64748B",
    text="#334155",
    grid="#E2E8F0",
)
DARK = Palette(
    blue="#56B4E9",
    orange="#E69F00",
    green="#2BC79A",
    red="#F27F3D",
    sky="#8FD0F5",
    purple="#DB9CC2",
    yellow="#F0E442",
    grey="#94A3B8",
    text="#CBD5E1",
    grid="#263449",
)


def palette(theme: str | None) -> Palette:
    """Of `st.context.theme.type`."""
    return DARK if theme == "dark" else LIGHT
