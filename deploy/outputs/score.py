"""A run against reference masks: Dice, lesions found, false regions, alarms.

Frames are scored as ``medisseg evaluate`` scores images: regions at the frame's own size, the
free-response curve over thresholds at the network's. It loads SciPy, which only ``--truth`` needs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.analysis.alarms import AlarmScore
from deploy.outputs.results import Truth
from medisseg.convention import InputConvention
from medisseg.data.folder import resize_mask
from medisseg.evaluation.detection import Detection, detect, summarize, sweep
from medisseg.evaluation.metrics import dice
from medisseg.picture import Picture
from medisseg.predictor import Prediction


class VideoScore:
    """The score of raw masks, of shown masks and of the alarms over frames with a reference.

    Args:
        truth: The reference masks.
        convention: How a frame's picture becomes the network's input.
    """

    def __init__(self, truth: Truth, convention: InputConvention) -> None:
        self.truth, self.convention = truth, convention
        self.alarms = AlarmScore()
        self.raw: list[float] = []
        self.shown: list[float] = []
        self.detections: list[Detection] = []
        self._sweeps: list[npt.NDArray[np.int64]] = []

    def add(
        self,
        frame_id: int,
        size: tuple[int, int],
        raw: npt.NDArray[np.uint8] | None,
        shown: npt.NDArray[np.uint8] | None,
        moment: float,
        logits: npt.NDArray[np.float32] | None = None,
        place: Picture | None = None,
    ) -> float | None:
        """Compare a frame at ``moment`` s with its reference; return the raw mask's Dice or None.

        Args:
            frame_id: Number of the frame and of its reference.
            size: (height, width) of the frame.
            raw, shown: Masks [H, W]; None: empty.
            moment: Seconds.
            logits: Those of the network [K, h, w]; None: it was not asked and found nothing.
            place: Where they stand on the frame; None: all of it.
        """
        reference = self.truth.read(frame_id, size)
        if reference is None:
            return None
        true, void = reference
        found = np.zeros(size, bool) if raw is None else (raw > 0) & ~void
        drawn = np.zeros(size, bool) if shown is None else (shown > 0) & ~void
        self.raw.append(dice(found, true))
        self.shown.append(dice(drawn, true))
        self.detections.append(detect(found, true))
        self._sweeps.append(self._sweep(true, void, logits, place or Picture.whole(size)))
        self.alarms.add(moment, drawn, true)
        return self.raw[-1]

    def _sweep(
        self,
        true: npt.NDArray[np.bool_],
        void: npt.NDArray[np.bool_],
        logits: npt.NDArray[np.float32] | None,
        place: Picture,
    ) -> npt.NDArray[np.int64]:
        top, left, height, width = self.convention.content(place.size)
        inside = np.s_[top : top + height, left : left + width]

        def shrink(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
            return resize_mask(place.crop(mask.astype(np.uint8)), self.convention)[inside] > 0

        small = shrink(true)
        if logits is None:
            return sweep(np.zeros(small.shape, np.float32), small)
        foreground = Prediction(logits[:, inside[0], inside[1]]).foreground
        return sweep(foreground * ~shrink(void), small)

    def sweeps(self) -> npt.NDArray[np.int64]:
        """Return :func:`~medisseg.evaluation.detection.sweep` of every frame, [N, T, 3]."""
        return np.stack(self._sweeps)

    def summary(self) -> dict[str, Any]:
        """Return ``dice_video``, ``dice_video_shown``, the numbers of masks behind them,
        ``detection`` (of raw masks, as ``metrics.json`` has it) and ``alarms_against_truth``."""
        return {
            "dice_video": float(np.mean(self.raw)) if self.raw else None,
            "dice_video_shown": float(np.mean(self.shown)) if self.shown else None,
            "truth": {"masks": len(self.truth.paths), "compared": len(self.raw)},
            "detection": summarize(self.detections) if self.detections else None,
            "alarms_against_truth": self.alarms.summary(),
        }
