"""Settings of the data: which images, and how they are changed at random while training."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from medisseg.data.official import SETS
from medisseg.schema import one_of, probabilities, require

# What becomes of images without a mask in a data folder.
UNMASKED = ("refuse", "negative", "skip")


@dataclass(frozen=True)
class SplitConfig:
    """Which images are trained on and which choose the epoch.

    Attributes:
        train: List of names (``train`` finds ``train.txt``; or a path); None: all images but the
            held-out ones; "auto": the list if the folder has one, else as None.
        validation: List that chooses the epoch; None: taken out of the training images; "auto":
            the list ``val`` if the folder has one, else as None.
        held_out: Lists reported on later, never trained on; a leak into them is refused.
        fraction: Share of the training images taken out when ``validation`` is None.
        groups: Json of sequences or patients (CSV) kept together by a seeded split; None: found
            in the data folder when it has one.
        seed: Of the seeded split; apart from the run's seed, so that seeds share a split.
        folds: Cross-validation: the training images in so many parts of whole groups, of which
            number ``fold`` (from 0) chooses the epoch and the others are trained on; 0: none.
        official: Public data set whose own lists these must be (medisseg.data.official); nothing
            is then drawn in their place. None: any lists, or a seeded split where there are none.
    """

    train: str | None = "train"
    validation: str | None = None
    held_out: tuple[str, ...] = ()
    fraction: float = 0.1
    groups: str | None = None
    seed: int = 0
    folds: int = 0
    fold: int = 0
    official: str | None = None

    def __post_init__(self) -> None:
        if self.official is not None:
            one_of("official", self.official, tuple(SETS))
        require(0 < self.fraction < 1, f"fraction is {self.fraction}; expected within (0, 1)")
        require(
            self.folds == 0 or self.folds >= 2, f"folds is {self.folds}; expected 2 or more, or 0"
        )
        require(
            0 <= self.fold < max(self.folds, 1),
            f"fold is {self.fold}; expected 0 to {max(self.folds, 1) - 1} for folds={self.folds}",
        )
        require(
            self.folds == 0 or self.validation in (None, "auto"),
            f"folds={self.folds} chooses the validation images, and so does "
            f"validation={self.validation}; set split.validation=null",
        )


@dataclass(frozen=True)
class DataFolder:
    """One of the data folders of a run.

    Attributes:
        path: The folder; a text alone stands for it.
        weight: How often an image is drawn in an epoch: 2 twice, 0.5 every second time.
        split: The folder's own lists; None: the run's. For folders without lesions only
            ``fraction`` counts: their last frames are taken out, as neighbours look alike.
    """

    path: str
    weight: float = 1.0
    split: SplitConfig | None = None

    def __post_init__(self) -> None:
        require(bool(self.path), "path is empty; expected a data folder")
        require(0 < self.weight <= 100, f"weight is {self.weight}; expected within (0, 100]")


@dataclass(frozen=True)
class ColorConfig:
    """Random changes of colour and sharpness; every ``*_p`` is the probability per image.

    ``jitter`` holds the largest relative change of brightness, contrast and saturation, and the
    largest turn of the hue circle; ``blur`` the range of the Gaussian's sigma in pixels.
    """

    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_p: float = 0.0
    gray_p: float = 0.0
    blur: tuple[float, float] = (0.1, 3.0)
    blur_p: float = 0.0

    def __post_init__(self) -> None:
        probabilities(self)
        require(0 < self.blur[0] <= self.blur[1], f"blur is {self.blur}; expected 0 < low <= high")
        require(
            min(self.jitter) >= 0 and max(self.jitter) <= 1,
            f"jitter is {self.jitter}; expected four values within [0, 1]",
        )


@dataclass(frozen=True)
class DegradeConfig:
    """What cables, codecs, processors and light do (``medisseg.data.degrade``), per image.

    Attributes:
        source: Height and width of the source's picture, each a factor of the network's input;
            what follows happens at that size, so that a codec's blocks and the camera's noise
            are as small in the input as those of a larger picture.
        gamma: Range of the exponent, drawn by its logarithm.
        white: Largest relative change of a colour channel's gain.
        motion: Length of motion blur, pixels.
        noise: Sigma of Gaussian noise, of 255.
        interlace: Pixels between two woven fields.
        screen: Height and width of the picture in a dark screen, as shares of the screen's.
        h264: Quantiser of an H.264 key frame, 0 to 51.
        jpeg: JPEG quality, 1 to 100.
        outline_p: A round picture or one with cut corners.
        inset_p: A small second picture at the border, which counts as background.
        text_p: Lines of text at the border.
    """

    source: tuple[float, float] = (1.0, 2.0)
    source_p: float = 0.0
    gamma: tuple[float, float] = (0.5, 2.0)
    gamma_p: float = 0.0
    white: float = 0.2
    white_p: float = 0.0
    motion: tuple[float, float] = (3.0, 15.0)
    motion_p: float = 0.0
    noise: tuple[float, float] = (2.0, 25.0)
    noise_p: float = 0.0
    interlace: tuple[float, float] = (1.0, 12.0)
    interlace_p: float = 0.0
    outline_p: float = 0.0
    screen: tuple[float, float] = (0.4, 1.0)
    screen_p: float = 0.0
    inset_p: float = 0.0
    text_p: float = 0.0
    h264: tuple[float, float] = (28.0, 46.0)
    h264_p: float = 0.0
    jpeg: tuple[float, float] = (5.0, 90.0)
    jpeg_p: float = 0.0

    def __post_init__(self) -> None:
        probabilities(self)
        require(0 <= self.white < 1, f"white is {self.white}; expected within [0, 1)")
        for name, low, high in (
            ("source", 0.5, 4), ("gamma", 0.1, 10), ("motion", 1, 64), ("noise", 0, 255),
            ("interlace", 0, 64), ("screen", 0.1, 1), ("h264", 0, 51), ("jpeg", 1, 100),
        ):  # fmt: skip
            value = getattr(self, name)
            require(
                low <= value[0] <= value[1] <= high,
                f"{name} is {value}; expected {low} <= low <= high <= {high}",
            )

    def any(self) -> bool:
        """Return whether anything can happen."""
        return any(getattr(self, item.name) for item in fields(self) if item.name.endswith("_p"))


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of an image, and of its mask where geometry is concerned.

    Every ``*_p`` is the probability per image. ``rotate`` is the largest angle in degrees;
    ``scale`` the range of zoom factors, 1 = as it is; ``shift`` the largest translation and
    ``hole_size`` a hole's side, as fractions of the image. ``sizes``: factors of the input size,
    one drawn per step (multi-scale training) or, if ``progressive``, taken in their order as the
    stage goes on (small and cheap first). ``paste_p`` is the probability that an image without
    lesion gets one of another image of its batch, or a patch of mucosa
    (:mod:`medisseg.data.paste`).
    """

    rotate: float = 0.0
    rotate_p: float = 0.0
    flip_horizontal_p: float = 0.0
    flip_vertical_p: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    scale_p: float = 0.0
    shift: float = 0.0
    holes: int = 10
    hole_size: float = 0.125
    holes_p: float = 0.0
    paste_p: float = 0.0
    sizes: tuple[float, ...] = (1.0,)
    progressive: bool = False
    color: ColorConfig = field(default_factory=ColorConfig)
    degrade: DegradeConfig = field(default_factory=DegradeConfig)

    def __post_init__(self) -> None:
        probabilities(self)
        require(
            0 < self.scale[0] <= self.scale[1], f"scale is {self.scale}; expected 0 < low <= high"
        )
        require(
            bool(self.sizes) and min(self.sizes) > 0,
            f"sizes is {self.sizes}; expected factors > 0",
        )
        require(0 <= self.holes <= 32, f"holes is {self.holes}; expected 0 to 32")
