"""The results of a run: one JSON line a frame, events, and the reference masks of ``--truth``."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from deploy.audit import utc_now
from deploy.sources.source import IMAGES, is_image, natural_order
from medisseg.data import masks
from medisseg.data.reading import BadFile
from medisseg.errors import UserError

log = logging.getLogger(__name__)
EVENT_COLUMNS = (
    "time_s",
    "stream",
    "frame",
    "event",
    "track",
    "area",
    "confidence",
    "detail",
    "utc",
)


class Results:
    """Writes ``results.jsonl`` and ``events.csv``; a full disk stops it with an alarm.

    Lines are in the order in which frames were finished: one dropped on the way comes before an
    older one that was still being segmented.

    Raises:
        UserError: The folder cannot be written or holds another run.
    """

    def __init__(self, folder: Path) -> None:
        self.stopped = ""
        self._lines: IO[str] | None = _create(folder / "results.jsonl")
        self._table: IO[str] | None = _create(folder / "events.csv")
        csv.writer(self._table).writerow(EVENT_COLUMNS)

    def frame(self, line: dict[str, Any]) -> None:
        """Append a frame's line."""
        # Standard JSON has no NaN; results of a sick engine must stay readable everywhere.
        self._write(self._lines, json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")

    def event(self, **values: object) -> None:
        """Append an event; values by the names of ``EVENT_COLUMNS``."""
        if self._table is not None and not self.stopped:
            try:
                csv.DictWriter(self._table, EVENT_COLUMNS).writerow({**values, "utc": utc_now()})
                self._table.flush()
            except OSError as error:
                self._stop(error)

    def close(self) -> None:
        """Close both files."""
        for file in (self._lines, self._table):
            if file is not None:
                try:
                    file.close()
                except OSError as error:
                    self._stop(error)
        self._lines = self._table = None

    def _write(self, file: IO[str] | None, text: str) -> None:
        if file is None or self.stopped:
            return
        try:
            file.write(text)
            file.flush()  # a line is there the moment its frame is; after SIGKILL too
        except OSError as error:
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        if not self.stopped:
            self.stopped = f"results stopped: {error.strerror or error}"
            log.error(self.stopped)


def _create(path: Path) -> IO[str]:
    try:
        return path.open("x", newline="", encoding="utf-8")
    except FileExistsError as error:
        raise UserError(f"{path.parent} holds another run; choose another --out") from error
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); choose another --out") from error


class Truth:
    """Reference masks of a folder: frame k's is the k-th file in natural order.

    They are read as ``medisseg evaluate`` reads them: 0 and 255, 0 and 1, palettes, indices and
    colours; what the values mean is decided once, for all files together.

    Raises:
        UserError: No folder, no masks in it, or pictures that are no masks.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"--truth {folder} is not a folder; expected one mask a frame in it")
        found = [path for path in folder.iterdir() if is_image(path)]
        if not found:
            raise UserError(
                f"--truth {folder} holds no masks; expected some of {', '.join(IMAGES)}"
            )
        self.paths = natural_order(found)
        try:
            self._convention = masks.decide(self.paths)
            self.read(0, (16, 16))
        except BadFile as error:
            raise UserError(f"--truth: {error}") from error
        for note in self._convention.notes:
            log.info("--truth: %s", note)

    def read(
        self, frame_id: int, size: tuple[int, int]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]] | None:
        """Return frame ``frame_id``'s mask at ``size`` (height, width) and the pixels that count
        for nothing; None beyond the last.

        Raises:
            UserError: The file cannot be read, or its values are not the folder's.
        """
        import cv2

        if frame_id >= len(self.paths):
            return None
        path = self.paths[frame_id]
        mask, void = masks.apply(masks.read_stored(path), self._convention, path=path)
        both = np.stack([mask, np.zeros_like(mask) if void is None else void], 2).astype(np.uint8)
        if mask.shape != size:
            both = cv2.resize(both, size[::-1], interpolation=cv2.INTER_NEAREST).astype(np.uint8)
        return both[..., 0] > 0, both[..., 1] > 0
