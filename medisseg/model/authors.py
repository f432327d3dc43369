"""The authors' release: its names for our entries, and its input convention.

The mapping is a table of prefixes. Entries of the ResNet keep their names within a block; the
release's Linear layers that act on every position are 1x1 convolutions here, so their weights gain
two dimensions of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from medisseg.convention import InputConvention

if TYPE_CHECKING:
    from medisseg.model.network import Network

CONVENTION = InputConvention(color="BGR", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

BRANCHES = {"fg": "foreground", "bg": "background", "uc": "uncertainty"}
DECODERS = {"small": "small", "middle": "medium", "large": "large"}
ENCODER = {
    "layer0.0": "encoder.conv1",
    "layer0.1": "encoder.bn1",
    "layer1.1": "encoder.layer1",
    "layer2": "encoder.layer2",
    "layer3": "encoder.layer3",
}


def authors_prefixes(stage: int, aux_blocks: int = 5) -> dict[str, str]:
    """Return the release's module names -> ours, for medisseg-r50 or condseg-r50.

    Args:
        stage: 1 or 2.
        aux_blocks: Blocks of a branch of the auxiliary head.
    """
    names = dict(ENCODER)
    if stage == 1:
        for level in range(4):
            names |= _block(f"head.conv{level + 1}", f"head.projections.{level}")
            names |= _elat(f"head.att{level + 1}", f"head.gates.{level}")
        return names | {"head.conv_fuse": "head.logits"}
    for level in range(4):
        names |= _receptive_field(f"dconv{level + 1}", f"fields.{level}")
        names |= _aggregation(f"cdfa{level + 1}", f"aggregations.{level}")
    for theirs, ours in BRANCHES.items():
        for index in range(3):
            names |= _block(f"decouple_layer.cbt_{theirs}.{index}", f"decoupling.{ours}.{index}")
        for index in range(aux_blocks):  # an upsampling layer sits between two blocks
            names |= _block(
                f"aux_head.branch_{theirs}.{2 * index}", f"auxiliary.{ours}.blocks.{index}"
            )
        names[f"aux_head.branch_{theirs}.{2 * aux_blocks - 1}"] = f"auxiliary.{ours}.logits"
    for theirs in ("fg", "bg"):
        for level in range(4):
            names |= _guide(theirs, level)
    for theirs, ours in DECODERS.items():
        names |= _decoder(f"decoder_{theirs}", f"decoders.{ours}")
    for theirs, ours in {"fuse": "fuse", "c1": "refine", "c2": "reduce"}.items():
        names |= _block(f"output_block.{theirs}", f"output.{ours}")
    return names | {"output_block.c3": "output.logits"}


def _block(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.conv.0": f"{ours}.conv", f"{theirs}.conv.1": f"{ours}.norm"}


def _elat(theirs: str, ours: str) -> dict[str, str]:
    names = {f"{theirs}.fc.0": f"{ours}.reduce", f"{theirs}.fc.2": f"{ours}.expand"}
    names |= {f"{theirs}.spatial_conv{i + 1}": f"{ours}.scales.{i}" for i in range(3)}
    return names | {f"{theirs}.spatial_fuse": f"{ours}.fuse"}


def _gate(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.fc1": f"{ours}.reduce", f"{theirs}.fc2": f"{ours}.expand"}


def _receptive_field(theirs: str, ours: str) -> dict[str, str]:
    names = _block(f"{theirs}.c5", f"{ours}.fuse") | _block(f"{theirs}.c6", f"{ours}.shortcut")
    for index in range(4):
        names |= _block(f"{theirs}.c{index + 1}.0", f"{ours}.fields.{index}")
        names |= _gate(f"{theirs}.c{index + 1}.1", f"{ours}.gates.{index}")
    return names | {f"{theirs}.sa.conv1": f"{ours}.spatial.conv"}


def _guide(theirs: str, level: int) -> dict[str, str]:
    ours, doublings = f"guides_{BRANCHES[theirs]}.{level}.blocks", 3 - level
    base = f"preprocess_{theirs}{level + 1}"
    names = _block(f"{base}.c1", f"{ours}.0")  # the one before any doubling
    for index in range(doublings):
        names |= _block(f"{base}.preprocess.conv_{index}", f"{ours}.{index + 1}")
    return names


def _aggregation(theirs: str, ours: str) -> dict[str, str]:
    names = {
        f"{theirs}.v": f"{ours}.value",
        f"{theirs}.attn_fg": f"{ours}.attend_foreground",
        f"{theirs}.attn_bg": f"{ours}.attend_background",
        f"{theirs}.proj": f"{ours}.project",
    }
    for index in range(2):
        names |= _block(f"{theirs}.input_cbt.{index}", f"{ours}.before.{index}")
        names |= _block(f"{theirs}.output_cbt.{index}", f"{ours}.after.{index}")
    return names


def _decoder(theirs: str, ours: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for short, name in {"c1": "join", "c2": "second", "c3": "third", "c4": "fourth"}.items():
        names |= _block(f"{theirs}.{short}", f"{ours}.{name}")
    names |= _gate(f"{theirs}.ca", f"{ours}.channel")
    return names | {
        f"{theirs}.sa.conv1": f"{ours}.spatial.conv",
        f"{theirs}.cbam.channel_mlp.2": f"{ours}.attention.reduce",
        f"{theirs}.cbam.channel_mlp.4": f"{ours}.attention.expand",
        f"{theirs}.cbam.spatial_conv": f"{ours}.attention.spatial.conv",
    }


def import_state(
    state: Mapping[str, Tensor], stage: int, source: str = "the state dict"
) -> Network:
    """Return a network of ours with the authors' weights, in evaluation mode.

    A checkpoint without attention units in its decoders (and, in Stage I, without ELAT) is
    ConDSeg's; else it is Med-DisSeg's.

    Args:
        state: The release's state dict; a "module." prefix of DataParallel is dropped.
        stage: 1 or 2.
        source: What to call it in errors.

    Raises:
        UserError: Entries are unknown, missing or misshapen; they are listed.
    """
    from medisseg.model.create import create_model
    from medisseg.model.loading import fill

    state = {name.removeprefix("module."): value for name, value in state.items()}
    gated = any(".cbam." in name or ".att1." in name for name in state)
    model = create_model("medisseg-r50" if gated else "condseg-r50", stage)
    prefixes, wanted = authors_prefixes(stage), model.state_dict()
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        ours = rename(name, prefixes)
        if ours is None or ours not in wanted:
            ours = f"{name} (theirs)"
        elif value.ndim == 2 and wanted[ours].shape == (*value.shape, 1, 1):
            value = value[:, :, None, None]
        renamed[ours] = value
    fill(model, renamed, source)
    model.info = replace(
        model.info, convention=CONVENTION, data="imported from the authors' checkpoint"
    )
    return model.eval()


def rename(name: str, prefixes: Mapping[str, str]) -> str | None:
    """Return our name of one of the release's entries, or None when there is none."""
    head = name
    while head:
        if head in prefixes:
            return prefixes[head] + name[len(head) :]
        head = head.rpartition(".")[0]
    return None


def guess_stage(state: Mapping[str, Tensor]) -> int:
    """Return 1 when the release's Stage I head is there, else 2."""
    return 1 if any(name.removeprefix("module.").startswith("head.") for name in state) else 2
