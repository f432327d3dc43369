"""Weights of a checkpoint in a network: the whole network, or its encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medisseg.checkpoint import Checkpoint, read_header, read_state
from medisseg.errors import UserError
from medisseg.model.create import create_model
from medisseg.model.foreign import check_allowed, is_foreign

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from medisseg.model.network import Network


def load_checkpoint(path_or_name: str | Path, device: str | torch.device = "cpu") -> Network:
    """Load a network in evaluation mode; ``model.info`` is the checkpoint's header.

    Args:
        path_or_name: A file, or a packaged name such as "edge-polyp".
        device: Where to put it.

    Raises:
        UserError: The file is absent, damaged, or does not fit the network it names.

    Example:
        >>> model = load_checkpoint("edge-polyp")
        >>> model.info.convention.size
        (256, 256)
    """
    info = read_header(path_or_name)
    if is_foreign(info.architecture):
        check_allowed(info.architecture, path_or_name)
    state = read_state(path_or_name)
    if not is_foreign(info.architecture):
        _check_described(info, state, str(path_or_name))
    model = create_model(info.architecture, info.stage, info.classes, **info.options)
    fill(model, state, str(path_or_name))
    model.info = info
    return model.to(device).eval()


def _check_described(info: Checkpoint, state: Mapping[str, Tensor], source: str) -> None:
    """Refuse a header whose network the file's tensors are not, before that network has memory.

    Raises:
        UserError: The network cannot be made, or has other tensors.
    """
    import torch

    try:
        with torch.device("meta"):
            model = create_model(info.architecture, info.stage, info.classes, **info.options)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{source} describes a network that cannot be made: {error}") from error
    _compare(model.state_dict(), state, source)


def average(paths_or_names: Sequence[str | Path]) -> Network:
    """Return the network whose weights are the mean of several checkpoints' (a model soup).

    Of checkpoints that were trained on from one another; of any others the mean is no network.
    Wortsman et al., Model soups, ICML 2022. The header is the first one's, without its metrics.

    Raises:
        UserError: A file is absent, damaged, or another architecture, stage, classes or options.

    Example:
        >>> model = average(["second/best.safetensors", "third/last.safetensors"])
    """
    first, *others = [load_checkpoint(path) for path in paths_or_names]
    for path, other in zip(paths_or_names[1:], others, strict=True):
        _check_same(other.info, first.info, str(path), str(paths_or_names[0]), "classes")
    start, *rest = [model.double().state_dict() for model in (first, *others)]
    sums = {k: sum((state[k] for state in rest), start=value) for k, value in start.items()}
    first.load_state_dict({k: value / (1 + len(rest)) for k, value in sums.items()})
    first.info = replace(first.info, metrics={})
    return first.float()


def load_network(model: Network, path_or_name: str | Path) -> list[str]:
    """Copy a checkpoint's weights into a network of the same architecture, to train it further.

    With another number of classes the last convolution keeps the values that it has.

    Returns:
        The names of what was not copied.

    Raises:
        UserError: Another architecture, stage or options.
    """
    theirs, ours = read_header(path_or_name), model.info
    if ours.options.keys() - theirs.options.keys():  # options that came later keep their defaults
        defaults = create_model(theirs.architecture, theirs.stage, theirs.classes, **theirs.options)
        theirs = replace(theirs, options=defaults.info.options)
    _check_same(theirs, ours, f"{path_or_name}", "the network to train")
    state, own = read_state(path_or_name), model.state_dict()
    fresh: list[str] = []
    if theirs.classes != ours.classes:
        fresh = [k for k in own if k in state and own[k].shape != state[k].shape]
    fill(model, state | {name: own[name] for name in fresh}, str(path_or_name))
    return fresh


def _check_same(one: Checkpoint, other: Checkpoint, name: str, named: str, *more: str) -> None:
    for what in ("architecture", "stage", "options", *more):
        if (its := getattr(one, what)) != (theirs := getattr(other, what)):
            raise UserError(f"{name} has {what} {its!r}, {named} {theirs!r}; give both the same")


def load_encoder(model: Network, path_or_name: str | Path) -> None:
    """Copy the encoder of a checkpoint, usually of Stage I, into a network of the same encoder."""
    info = read_header(path_or_name)
    for option in ("encoder", "stride_in"):
        ours, theirs = getattr(model.options, option), info.options.get(option)
        if ours != theirs:
            raise UserError(
                f"the encoder of {path_or_name} has {option} {theirs!r}, the network {ours!r}; "
                f"train both stages with the same {option}"
            )
    state = read_state(path_or_name)
    for name in ("encoder", "encoder_gates"):
        module = getattr(model, name)
        prefix = f"{name}."
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if module is not None:
            fill(module, part, str(path_or_name))


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict; every name and shape must agree.

    Raises:
        UserError: Entries are missing, unknown or misshapen; the first of each kind are listed.
    """
    _compare(module.state_dict(), state, source)
    module.load_state_dict(state)


def _compare(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    problems = {
        "missing": [k for k in wanted if k not in state],
        "unknown": [k for k in state if k not in wanted],
        "misshapen": [
            f"{k} {tuple(state[k].shape)} instead of {tuple(v.shape)}"
            for k, v in wanted.items()
            if k in state and state[k].shape != v.shape
        ],
    }
    differences = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in problems.items()
        if names
    ]
    if differences:
        raise UserError(f"{source} is the checkpoint of another network: {'; '.join(differences)}")
