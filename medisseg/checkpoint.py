"""Checkpoints: safetensors files whose header says everything needed to use them.

A checkpoint is tensors and one JSON text under the metadata key "medisseg"; nothing in it is
executed when it is read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import medisseg
from medisseg.convention import InputConvention
from medisseg.errors import UserError
from medisseg.files import replacing
from medisseg.labels import Label, read_labels
from medisseg.schema import Json

if TYPE_CHECKING:
    from torch import Tensor, nn

KEY = "medisseg"
BUNDLE_SUFFIX, BUNDLE_MANIFEST = ".mdsg", "manifest.json"
SERVED = ("grpc", "grpcs", "http", "https")  # schemes of a model on a Triton server
# Bounds of a header: what it names is made in memory before a tensor of the file is read.
MOST_CLASSES, LONGEST_SIDE, MOST_OPTION = 256, 4096, 8192
WEIGHTS = Path(__file__).resolve().parent / "weights"


@dataclass(frozen=True)
class Checkpoint:
    """The header of a checkpoint.

    Attributes:
        architecture: Preset's name, such as "medisseg-r50".
        stage: 1 or 2.
        classes: Logit maps: 1 for binary masks.
        convention: What the network's input must look like.
        options: Fields of :class:`~medisseg.model.options.NetworkOptions`.
        metrics: Name to fraction, measured on ``data``.
        data: What it was trained and measured on, in words.
        version: Version of medisseg that wrote it.
        threshold: Probability above which a pixel is foreground.
        labels: Names and colours of the classes but the background; none for one unnamed class.
    """

    architecture: str
    stage: int
    classes: int
    convention: InputConvention
    options: Json = field(default_factory=dict)
    metrics: Json = field(default_factory=dict)
    data: str = ""
    version: str = medisseg.__version__
    threshold: float = 0.5
    labels: tuple[Label, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Json) -> Checkpoint:
        """Return the header that :meth:`to_dict` wrote, checked.

        Raises:
            TypeError, ValueError, KeyError: An unknown field, or a value of another type or beyond
                the bounds.
        """
        convention = InputConvention.from_dict(values["convention"])
        header = cls(**{**values, "convention": convention, "labels": ()})
        header.check()  # first: a label is made for each class
        labels = read_labels(values.get("labels", ()), header.classes)
        return dataclasses.replace(header, labels=labels)

    def check(self) -> None:
        """Raise TypeError or ValueError where a field is of another type or beyond the bounds."""
        for name in ("architecture", "data", "version"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} is {getattr(self, name)!r}; expected text")
        for name, most in (("stage", 2), ("classes", MOST_CLASSES)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name} is {value!r}; expected a whole number from 1 to {most}")
        if isinstance(self.threshold, bool) or not 0 < self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold!r}; expected a number between 0 and 1")
        if max(self.convention.size) > LONGEST_SIDE:
            raise ValueError(f"size is {self.convention.size}; expected at most {LONGEST_SIDE}")
        if not isinstance(self.options, dict) or not isinstance(self.metrics, dict):
            raise TypeError("options and metrics are expected to be tables")
        for name in ("encoder_weights", "architecture", "stage", "classes"):
            if name in self.options:  # nothing in a checkpoint names a file
                raise ValueError(f"options name {name!r}; expected options of the network alone")
        _check_option("options", self.options)


def _check_option(name: str, value: object) -> None:
    """Raise ValueError where an option is a huge number, or holds one or a huge list."""
    parts: Sequence[object] = ()
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = value
    elif isinstance(value, int | float) and not abs(value) <= MOST_OPTION:
        raise ValueError(f"{name} has {value!r}; expected at most {MOST_OPTION}")
    if len(parts) > MOST_CLASSES:
        raise ValueError(f"{name} has {len(parts)} values; expected at most {MOST_CLASSES}")
    for part in parts:
        _check_option(name, part)


def new_checkpoint(architecture: str, stage: int, classes: int, options: Json) -> Checkpoint:
    """Return the header of a network that is not trained yet, in the default convention."""
    return Checkpoint(architecture, stage, classes, InputConvention(), options)


def save_checkpoint(
    path: str | Path,
    model_or_state: nn.Module | Mapping[str, Tensor],
    info: Checkpoint,
    half: bool = False,
) -> Path:
    """Write a checkpoint, whole or not at all.

    Args:
        path: Where to; parents are made.
        model_or_state: A network or its state dict.
        info: The header.
        half: Store convolution and linear weights as float16 (they load as float32); vectors,
            such as BatchNorm's statistics, stay float32.

    Returns:
        The path.

    Raises:
        UserError: The disk is full or the place cannot be written.
    """
    import torch
    from safetensors.torch import save

    state = model_or_state if isinstance(model_or_state, Mapping) else model_or_state.state_dict()
    tensors = {}
    for name, tensor in state.items():
        value = tensor.detach().to("cpu", memory_format=torch.contiguous_format)
        shrink = half and value.is_floating_point() and value.ndim > 1
        # A clone, since two names may share storage, which the format refuses.
        tensors[name] = value.half() if shrink else value.contiguous().clone()
    with replacing(path) as temporary:
        # Written by us: the library's own writer hides a full disk behind an error of its own.
        temporary.write_bytes(save(tensors, metadata={KEY: json.dumps(info.to_dict())}))
    return Path(path)


def is_bundle(source: object) -> bool:
    """Whether a path is a bundle of an engine: a folder with a manifest, or an ``.mdsg`` file."""
    if not isinstance(source, str | Path):
        return False
    path = Path(source)
    return path.suffix == BUNDLE_SUFFIX or (path / BUNDLE_MANIFEST).is_file()


def is_served(source: object) -> bool:
    """Whether a model is named by the address of a Triton server, as in grpc://HOST:8001/NAME."""
    return isinstance(source, str) and source.partition("://")[0] in SERVED and "://" in source


def resolve(path_or_name: str | Path) -> Path:
    """Return the file of a checkpoint given by path or by the name of a packaged one.

    Raises:
        UserError: There is neither such a file nor such a name.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    packaged = WEIGHTS / f"{path_or_name}.safetensors"
    if path.name == str(path_or_name) and packaged.is_file():
        return packaged
    what = "is a folder, and no bundle (no manifest.json)" if path.is_dir() else "does not exist"
    if is_bundle(path):
        what = "is a bundle"
    names = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.safetensors"))) or "none"
    raise UserError(
        f"checkpoint {path_or_name} {what}; give a .safetensors file or a packaged name ({names})"
    )


def read_header(path_or_name: str | Path) -> Checkpoint:
    """Return a checkpoint's header without reading its tensors.

    Raises:
        UserError: The file is absent, damaged, or no checkpoint of ours.
    """
    from safetensors import SafetensorError, safe_open

    path = resolve(path_or_name)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(
            f"{path} is no safetensors file, or a damaged one ({error}); "
            "convert an authors' .pth by: medisseg import-checkpoint"
        ) from error
    if KEY not in metadata:
        raise UserError(
            f"{path} is a safetensors file without our header; not a checkpoint of ours"
        )
    try:
        return Checkpoint.from_dict(json.loads(metadata[KEY]))
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} has a header that this version cannot read: {error}") from error


def read_state(path_or_name: str | Path) -> dict[str, Tensor]:
    """Return a checkpoint's tensors on the CPU, floating ones as float32."""
    from safetensors.torch import load_file

    state = load_file(resolve(path_or_name))
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
