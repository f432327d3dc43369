"""Training configuration: frozen dataclasses that YAML and ``key=value`` overrides must match.

A file may name another one to start from (``base: edge.yaml``). An unknown key, a value of the
wrong kind or out of range is a :class:`UserError` that says where and what was expected.

Example:
    >>> config = load_config("edge", ["data=polyps", "stage2.epochs=20", "epochs=20"])
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from medisseg.convention import InputConvention
from medisseg.data.options import (
    UNMASKED,
    AugmentConfig,
    ColorConfig,
    DataFolder,
    SplitConfig,
)
from medisseg.errors import UserError
from medisseg.labels import make_labels
from medisseg.losses import GRANULARITIES, MASKS, NORMALIZE, PLACEMENTS, VARIANTS
from medisseg.schema import Json, build, merge, one_of, plain, require
from medisseg.untrusted import read_yaml

CONFIGS = Path(__file__).parent / "configs"
# Settings that are paths or names, and those of them that may begin with ~.
TEXTS = ("data", "negatives", "out", "name", "data_name", "stage_one", "start_from")
PATHS = ("out", "stage_one", "start_from", "encoder_weights")

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("cosine", "plateau", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
LABELS = ("auto", "classes", "inverted")
EPOCHS = ("best", "last")
# (lambda_1, lambda_2) of the paper, for networks that it disperses.
PAPER_WEIGHTS = (0.2, 0.6)


@dataclass(frozen=True)
class StageConfig:
    """One stage of training.

    Attributes:
        epochs: At most so many passes over the training images.
        batch: Images per optimiser step, over all processes together.
        lr: Peak learning rate; the encoder's is ``lr * encoder_lr``.
        schedule: "cosine" towards ``final_lr * lr``, "plateau" (on validation Dice), "constant".
        warmup: Share of the stage during which the rate rises linearly.
        plateau: Epochs without a better Dice before "plateau" divides the rate by ten.
        weight_decay: Of weight matrices and filters (adamw: decoupled), not of norms and biases.
        accumulate: Parts of a batch that go through the network one after the other, so that it
            takes less memory; batch normalisation then sees the parts.
        clip: Largest gradient norm; 0: no clipping.
        ema: Decay of the averaged weights that are validated and kept; 0: none.
        patience: Epochs without a better validation Dice before the stage ends; 0: never.
        validate_every: Epochs between validations.
        share: Share of ``budget_minutes`` for this stage, relative to the other's.
    """

    epochs: int = 300
    batch: int = 4
    lr: float = 1e-4
    encoder_lr: float = 1.0
    optimizer: str = "adam"
    schedule: str = "cosine"
    final_lr: float = 0.0
    warmup: float = 0.0
    plateau: int = 30
    weight_decay: float = 0.0
    accumulate: int = 1
    clip: float = 0.0
    ema: float = 0.0
    patience: int = 100
    validate_every: int = 1
    share: float = 1.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("schedule", self.schedule, SCHEDULES)
        for name in ("epochs", "batch", "validate_every", "plateau", "accumulate"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected >= 1")
        require(
            self.batch % self.accumulate == 0,
            f"accumulate is {self.accumulate}; expected a divisor of batch={self.batch}",
        )
        for name in ("lr", "share"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; expected > 0")
        for name in ("encoder_lr", "weight_decay", "clip", "patience", "final_lr"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; expected >= 0")
        for name in ("warmup", "ema"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} is {value}; expected within [0, 1)")


@dataclass(frozen=True)
class LossConfig:
    """The objectives' weights and the dispersive term.

    Attributes:
        dispersive: (lambda_1, lambda_2) of the two stages; 0 switches the term off. None: as the
            network was published, (0.2, 0.6) for Med-DisSeg and (0, 0) for ConDSeg and baselines.
        variant: A form of the dispersive loss, or "published", the release's (no gradient).
        placement, granularity: Which feature is dispersed, and what counts as a representation.
        tau: Temperature of the InfoNCE variants.
        margin: Distance under which "hinge" pushes; unit representations are 0 to 2 apart.
        normalize: "unit" (representations of length 1) or "none" (features as they are).
        epsilon: Inside the logarithm of the InfoNCE variants.
        consistency: Weight of stage 1's consistency term.
        mask: Loss of the masks: "cross_entropy_dice", "focal_dice" or "tversky".
        gamma: Of the focal loss.
        tversky: Weights of false positives and of false negatives.
        boundary: Weight of a boundary loss beside it; 0: none.
        class_weights: Of the classes, background first, in cross-entropy or focal loss.
        dice_of_empty: Whether masks without foreground count in the Dice part; if not, the
            cross-entropy or focal part alone keeps them silent.
        area_weight: Largest weight of stage 2's auxiliary foreground and background maps, which
            is 1 / tanh of their mean area; 1: both weigh as much as the mask.
    """

    dispersive: tuple[float, float] | None = None
    variant: str = "infonce_l2"
    placement: str = "early"
    granularity: str = "image"
    tau: float = 0.8
    margin: float = 2.0
    normalize: str = "unit"
    epsilon: float = 1e-8
    consistency: float = 1.0
    mask: str = "cross_entropy_dice"
    gamma: float = 2.0
    tversky: tuple[float, float] = (0.3, 0.7)
    boundary: float = 0.0
    class_weights: tuple[float, ...] | None = None
    dice_of_empty: bool = True
    area_weight: float = 5.0

    def __post_init__(self) -> None:
        one_of("mask", self.mask, MASKS)
        require(
            self.dice_of_empty or self.mask != "tversky",
            "dice_of_empty has no effect with mask=tversky, which has no Dice part",
        )
        require(self.area_weight >= 1, f"area_weight is {self.area_weight}; expected >= 1")
        require(self.gamma >= 0, f"gamma is {self.gamma}; expected >= 0")
        require(min(self.tversky) > 0, f"tversky is {self.tversky}; expected two numbers > 0")
        require(self.boundary >= 0, f"boundary is {self.boundary}; expected >= 0")
        weights = self.class_weights
        require(
            weights is None or self.mask != "tversky",
            "class_weights have no effect with mask=tversky; set tversky=[FP,FN] instead",
        )
        require(
            weights is None or (len(weights) >= 2 and min(weights) >= 0 and sum(weights) > 0),
            f"class_weights is {weights}; expected a number >= 0 a class, background first",
        )
        one_of("variant", self.variant, (*VARIANTS, "published"))
        one_of("placement", self.placement, PLACEMENTS)
        one_of("granularity", self.granularity, GRANULARITIES)
        one_of("normalize", self.normalize, NORMALIZE)
        weights = self.dispersive or (0.0, 0.0)
        require(min(weights) >= 0, f"dispersive is {self.dispersive}; expected >= 0")
        require(self.tau > 0, f"tau is {self.tau}; expected > 0")
        require(self.margin > 0, f"margin is {self.margin}; expected > 0")
        require(0 <= self.epsilon < 1, f"epsilon is {self.epsilon}; expected within [0, 1)")
        if self.variant == "published":
            ignored = [
                name
                for name in ("placement", "granularity", "margin", "normalize", "epsilon")
                if getattr(self, name) != type(self).__dataclass_fields__[name].default
            ]
            require(
                not ignored,
                f"{', '.join(ignored)} has no effect with variant=published, which is fixed; "
                "leave it out or choose another variant",
            )


@dataclass(frozen=True)
class HardwareConfig:
    """Where and how the steps are computed; free to differ when a run is resumed.

    ``cuda_graph``: replay the network's passes as CUDA graphs, for GPUs that wait for launches.
    ``store_seconds``: least time between two writings of a run's state, which a killed run loses.
    """

    device: str = "auto"
    precision: str = "fp32"
    compile: bool = False
    cuda_graph: bool = False
    channels_last: bool = True
    threads: int = 0
    progress: bool = True
    store_seconds: float = 20.0

    def __post_init__(self) -> None:
        one_of("precision", self.precision, PRECISIONS)
        one_of("device", self.device.split(":")[0], ("auto", "cpu", "cuda"))
        require(self.threads >= 0, f"threads is {self.threads}; expected >= 0 (0: as it is)")
        require(
            not (self.compile and self.cuda_graph), "compile and cuda_graph are both on; choose one"
        )
        seconds = self.store_seconds
        require(seconds >= 0, f"store_seconds is {seconds}; expected >= 0 (0: every epoch)")


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on; written whole into the run folder.

    Attributes:
        name: Of the configuration; the default run folder is ``runs/NAME``.
        data: Data folders, ``DIR``, ``DIR,DIR`` or a list of tables with ``path``, ``weight`` and
            the folder's own ``split``; ``data_name`` is what the checkpoint's card calls them.
        negatives: Folders of images without lesion (no masks), written in the same ways.
        out: Run folder.
        stages: (1, 2), (1,) or (2,); stage 2 alone needs ``stage_one`` or starts from the
            encoder's own weights.
        stage_one: Checkpoint whose encoder stage 2 starts from when stage 1 is not run.
        stage_one_epoch: Epoch of stage 1 that stage 2 starts from: "best" on the validation
            images, or "last"; then they have chosen nothing in stage 2's last epoch.
        start_from: Checkpoint (or name) whose whole network stage 2 goes on from: fine-tuning;
            with another number of classes its last convolution starts anew.
        second_view: Stage 1's second view of an image is the first after this change.
        preset: Architecture, ``create_model``'s first argument; ``options`` its others.
        encoder_weights: "imagenet" (packaged for the edge presets; of a ResNet torchvision's file
            in the hub's cache), the path of a weights file, or None.
        class_names: Of the classes but the background, in the order of their indices; they go
            with the checkpoint to every picture of it. ``class_colors``: theirs, "#e69f00".
        labels: "auto" (binary or instance masks become 0 and 1), "classes" (indices kept), or
            "inverted" (masks mark the background).
        unmasked: Images without a mask in a data folder: "refuse", "negative" (there is nothing on
            them) or "skip".
        budget_minutes: Wall time for all stages together; the schedules are fitted to it.
    """

    name: str = "custom"
    data: tuple[DataFolder, ...] = (DataFolder("data"),)
    negatives: tuple[DataFolder, ...] = ()
    data_name: str = ""
    out: str = ""
    seed: int = 0
    stages: tuple[int, ...] = (1, 2)
    stage_one: str | None = None
    stage_one_epoch: str = "best"
    start_from: str | None = None
    preset: str = "medisseg-r50"
    classes: int = 1
    class_names: tuple[str, ...] = ()
    class_colors: tuple[str, ...] = ()
    labels: str = "auto"
    unmasked: str = "refuse"
    options: Json = field(default_factory=dict)
    encoder_weights: str | None = None
    budget_minutes: float | None = None
    split: SplitConfig = field(default_factory=SplitConfig)
    input: InputConvention = field(default_factory=InputConvention)
    second_view: ColorConfig = ColorConfig(
        jitter=(0.3, 0.3, 0.3, 0.1), jitter_p=1.0, gray_p=0.5, blur_p=1.0
    )
    stage1: StageConfig = field(default_factory=StageConfig)
    stage2: StageConfig = field(default_factory=StageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)

    def __post_init__(self) -> None:
        one_of("labels", self.labels, LABELS)
        one_of("unmasked", self.unmasked, UNMASKED)
        one_of("stage_one_epoch", self.stage_one_epoch, EPOCHS)
        require(
            self.stages in ((1,), (2,), (1, 2)),
            f"stages is {self.stages}; expected [1, 2], [1] or [2]",
        )
        require(
            self.start_from is None or self.stages == (2,),
            f"start_from goes with stages=[2], got stages={list(self.stages)}",
        )
        require(
            self.stage_one is None or 1 not in self.stages,
            "stage_one is used only where stage 1 is not run; set stages=[2], or leave it out",
        )
        require(bool(self.data), "data is empty; expected at least one data folder")
        require(self.classes >= 1, f"classes is {self.classes}; expected >= 1")
        make_labels(self.classes, self.class_names, self.class_colors)
        weights, wanted = self.loss.class_weights, max(2, self.classes)
        require(
            weights is None or len(weights) == wanted,
            f"loss.class_weights has {len(weights or ())} numbers; expected {wanted}, one a class",
        )
        require(
            self.budget_minutes is None or self.budget_minutes > 0,
            f"budget_minutes is {self.budget_minutes}; expected > 0",
        )
        if not self.out:
            object.__setattr__(self, "out", f"runs/{self.name}")

    def stage(self, number: int) -> StageConfig:
        """Return the settings of stage 1 or 2."""
        return self.stage1 if number == 1 else self.stage2

    def dispersive_weights(self) -> tuple[float, float]:
        """Return (lambda_1, lambda_2): as set, or as the network was published."""
        if self.loss.dispersive is not None:
            return self.loss.dispersive
        return PAPER_WEIGHTS if self.preset.startswith(("medisseg", "edge")) else (0.0, 0.0)

    def to_dict(self) -> Json:
        """Return plain values (lists for tuples), ready for YAML and JSON."""
        values: Json = plain(dataclasses.asdict(self))
        return values


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a configuration file (or the name of one of ours) and apply ``key=value`` overrides.

    Args:
        path: YAML file, or a name such as ``edge`` of a file in ``medisseg/configs``.
        overrides: ``data=DIR``, ``stage2.lr=1e-4``; a stage's key alone (``epochs=5``) sets both
            stages. Values are read as YAML.

    Raises:
        UserError: No such file, not YAML, an unknown key, a value of the wrong kind.
    """
    values = _read(_find(path))
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise UserError(f"got {override!r}; expected key=value, e.g. stage2.epochs=20")
        try:
            # A path or name is one text, whatever YAML would read in it: 007 is no number.
            plainly = key in TEXTS and text[:1] not in ("", "[", "{", '"', "'") and text != "null"
            value = text if plainly else yaml.safe_load(text) if text else None
        except yaml.YAMLError as error:
            raise UserError(f"{key}: {text!r} is not a YAML value") from error
        for target in _targets(key):
            _assign(values, target.split("."), value)
    return from_dict(values, source=str(path))


def from_dict(values: Json, source: str = "configuration") -> TrainConfig:
    """Build the configuration from plain values, checked; errors name ``source`` and the key."""
    folders = {key: _folders(values[key]) for key in ("data", "negatives") if values.get(key)}
    there = {key: values[key] for key in PATHS if isinstance(values.get(key), str)}
    paths = {key: os.path.expanduser(path) for key, path in there.items()}
    return build(TrainConfig, values | folders | paths, source)


def _folders(value: object) -> list[object]:
    """Return data folders as tables, from ``DIR``, ``DIR,DIR`` or a list of texts and tables."""
    if isinstance(value, str):
        value = [value] if os.path.isdir(value) else value.split(",")
    parts = value if isinstance(value, list | tuple) else [value]
    tables = [{"path": part.strip()} if isinstance(part, str) else part for part in parts]
    return [
        part | {"path": os.path.expanduser(part["path"])}
        if isinstance(part, dict) and isinstance(part.get("path"), str) else part
        for part in tables
    ]  # fmt: skip


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the full configuration as YAML, in the order of the fields."""
    path.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False, width=100))


def _find(path: str | Path) -> Path:
    for candidate in (Path(path), CONFIGS / f"{path}.yaml", CONFIGS / str(path)):
        if os.path.isfile(candidate):  # pathlib's raises where a name is too long
            return candidate
    ours = sorted(file.stem for file in CONFIGS.glob("*.yaml"))
    near = difflib.get_close_matches(Path(path).stem, ours, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; ours are: {', '.join(ours)}"
    raise UserError(f"no configuration file {path}{hint}")


def _read(path: Path, above: tuple[Path, ...] = ()) -> Json:
    if path.resolve() in above:
        raise UserError(f"{path} is its own base; expected base: to name another file")
    read = read_yaml(path)
    if not isinstance(read, dict):
        raise UserError(f"{path} holds {type(read).__name__}; expected a table of keys")
    values: Json = plain(read)  # YAML anchors share their tables; an override must change one alone
    base = values.pop("base", None)
    if base is None:
        return values
    local = path.parent / str(base)
    found = local if os.path.isfile(local) else _find(str(base))
    return merge(_read(found, (*above, path.resolve())), values)


def _targets(key: str) -> list[str]:
    top = {item.name for item in dataclasses.fields(TrainConfig)}
    head = key.split(".")[0]
    if head not in top and head in {item.name for item in dataclasses.fields(StageConfig)}:
        return [f"stage1.{key}", f"stage2.{key}"]
    if head not in top and head in {item.name for item in dataclasses.fields(SplitConfig)}:
        return [f"split.{key}"]
    return [key]


def _assign(values: Json, keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UserError(f"{'.'.join(keys)}: {key} is a value, not a table of keys")
    values[keys[-1]] = value
