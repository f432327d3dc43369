"""Checkpoints: safetensors files whose header says everything needed to use them.

A checkpoint is tensors and one JSON text under the metadata key "medisseg"; nothing in it is
executed when it is read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
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
        """Return the header that :meth:`to_dict` wrote; unknown fields raise TypeError."""
        convention = InputConvention.from_dict(values["convention"])
        labels = read_labels(values.get("labels", ()), values["classes"])
        return cls(**{**values, "convention": convention, "labels": labels})


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
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path} has a header that this version cannot read: {error}") from error


def read_state(path_or_name: str | Path) -> dict[str, Tensor]:
    """Return a checkpoint's tensors on the CPU, floating ones as float32."""
    from safetensors.torch import load_file

    state = load_file(resolve(path_or_name))
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
