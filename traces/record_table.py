"""Request records in columns: some 150 bytes a request, so that a million of them fit beside the run that made them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from traces.record import Outcome, RequestRecord

COUNTS = (
    "index",
    "requested_input_tokens",
    "requested_output_tokens",
    "recorded_output_tokens",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
)
SECONDS = ("scheduled_s", "sent_s", "first_token_s", "last_token_s")
NUMBERS = (*COUNTS, *SECONDS, "energy_j", "co2e_g")
TEXTS = ("outcome", "finish_reason", "error", "task", "session_id", "directive", "energy_method")
_PLACE = {name: place for place, name in enumerate(NUMBERS)}

Column = NDArray[np.float64]
Mask = NDArray[np.bool_]


class RecordTable(Sequence[RequestRecord]):
    """A sequence of `RequestRecord`s, each made when asked for.

    `numbers`: rows of `NUMBERS`, NaN where unknown; counts are exact up to 2^53. `codes`: rows of places in `texts`, in
    the order of `TEXTS`. `ids` and `gaps` (`itl_s`): one for each row; without `ids` a record is named `sim-INDEX`.
    """

    def __init__(
        self,
        numbers: Column,
        codes: NDArray[np.int32],
        texts: Sequence[str | None],
        ids: Sequence[str] | None = None,
        gaps: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self.numbers = numbers
        self.codes = codes
        self.texts = texts
        self.ids = ids
        self.gaps = gaps

    @classmethod
    def of(cls, records: Iterable[RequestRecord]) -> RecordTable:
        """The records in columns; a table as it is."""
        if isinstance(records, cls):
            return records
        builder = TableBuilder()
        ids, gaps = [], []
        for record in records:
            builder.append(record)
            ids.append(record.request_id)
            gaps.append(record.itl_s)
        table = builder.table()
        return cls(table.numbers, table.codes, table.texts, ids, gaps)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> RequestRecord: ...
    @overload
    def __getitem__(self, place: slice) -> RecordTable: ...
    def __getitem__(self, place: int | slice) -> RequestRecord | RecordTable:
        if isinstance(place, slice):
            ids = None if self.ids is None else self.ids[place]
            gaps = None if self.gaps is None else self.gaps[place]
            return RecordTable(self.numbers[place], self.codes[place], self.texts, ids, gaps)
        values: dict[str, Any] = {}
        for name, value in zip(NUMBERS, self.numbers[place].tolist()):
            unknown = value != value
            values[name] = None if unknown else int(value) if name in COUNTS else value
        for name, code in zip(TEXTS, self.codes[place].tolist()):
            values[name] = self.texts[code]
        values["outcome"] = Outcome(values["outcome"])
        values["request_id"] = f"sim-{values['index']}" if self.ids is None else self.ids[place]
        if self.gaps is not None:
            values["itl_s"] = self.gaps[place]
        return RequestRecord(**values)

    def __iter__(self) -> Iterator[RequestRecord]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other))

    __hash__ = None  # type: ignore[assignment]

    def column(self, name: str) -> Column:
        """Of `NUMBERS`; NaN where unknown."""
        found: Column = self.numbers[:, _PLACE[name]]
        return found

    def text_codes(self, name: str) -> NDArray[np.int32]:
        """Of `TEXTS`: places in `texts`."""
        found: NDArray[np.int32] = self.codes[:, TEXTS.index(name)]
        return found

    def of_outcome(self, outcome: Outcome) -> Mask:
        return self.of_text("outcome", (outcome.value,))

    def of_text(self, name: str, wanted: Sequence[str | None]) -> Mask:
        """Which rows have one of the wanted texts."""
        places = [place for place, text in enumerate(self.texts) if text in wanted]
        return np.isin(self.text_codes(name), places)

    def texts_of(self, name: str) -> list[str | None]:
        """The different values of a text, in order of appearance."""
        codes, first = np.unique(self.text_codes(name), return_index=True)
        return [self.texts[code] for code in codes[np.argsort(first)]]

    def where(self, mask: Mask) -> RecordTable:
        """Only the rows of `mask`."""
        places = np.flatnonzero(mask).tolist()
        ids = None if self.ids is None else [self.ids[place] for place in places]
        gaps = None if self.gaps is None else [self.gaps[place] for place in places]
        return RecordTable(self.numbers[mask], self.codes[mask], self.texts, ids, gaps)

    def in_order(self) -> RecordTable:
        """Rows by their index."""
        order = np.argsort(self.column("index"), kind="stable")
        ids = None if self.ids is None else [self.ids[place] for place in order]
        gaps = None if self.gaps is None else [self.gaps[place] for place in order]
        return RecordTable(self.numbers[order], self.codes[order], self.texts, ids, gaps)

    def with_column(self, name: str, values: Column) -> RecordTable:
        """The same rows with another column of `NUMBERS`."""
        numbers = self.numbers.copy()
        numbers[:, _PLACE[name]] = values
        return RecordTable(numbers, self.codes, self.texts, self.ids, self.gaps)


class TableBuilder:
    """Takes records one by one, in any order; their names and gaps are not kept."""

    def __init__(self) -> None:
        self._numbers = array("d")
        self._codes = array("i")
        self._texts: dict[str | None, int] = {}

    def __len__(self) -> int:
        return len(self._numbers) // len(NUMBERS)

    def append(self, record: RequestRecord) -> None:
        unknown = np.nan
        self._numbers.extend(
            [unknown if value is None else value for name in NUMBERS for value in (getattr(record, name),)]
        )
        texts = self._texts
        for name in TEXTS:
            text = getattr(record, name)
            text = text.value if isinstance(text, Outcome) else text
            self._codes.append(texts.setdefault(text, len(texts)))

    def add(self, numbers: Sequence[float], texts: Sequence[str | None]) -> None:
        """A row in the order of `NUMBERS` and of `TEXTS`; NaN where a number is unknown."""
        self._numbers.extend(numbers)
        known = self._texts
        for text in texts:
            self._codes.append(known.setdefault(text, len(known)))

    def table(self) -> RecordTable:
        """All rows as they came; the builder takes no more of them."""
        if not self._numbers:
            return RecordTable(np.empty((0, len(NUMBERS))), np.empty((0, len(TEXTS)), dtype=np.int32), ())
        numbers = np.frombuffer(self._numbers, dtype=np.float64).reshape(-1, len(NUMBERS))
        codes = np.frombuffer(self._codes, dtype=np.int32).reshape(-1, len(TEXTS))
        return RecordTable(numbers, codes, tuple(self._texts))
