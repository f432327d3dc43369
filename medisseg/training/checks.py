"""What a run refuses and warns about before any image is read."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from medisseg.checkpoint import read_header
from medisseg.config import LossConfig, TrainConfig
from medisseg.convention import InputConvention
from medisseg.errors import UserError
from medisseg.model.baselines import BASELINES, check_weights
from medisseg.model.create import create_model
from medisseg.model.foreign import allow, is_foreign, said
from medisseg.model.network import Network
from medisseg.model.pretrained import find_weights

# Settings of the dispersive term beside its weights.
DISPERSIVE = ("variant", "placement", "granularity", "tau", "margin", "normalize", "epsilon")


def check(config: TrainConfig) -> list[str]:
    """Refuse wrong names, options, weights and checkpoints before any image is read.

    Returns:
        Warnings about settings that this network does not use.

    Raises:
        UserError: A name, an option, weights or a checkpoint is none, or does not fit.
    """
    stage, classes, weights = config.stages[0], config.classes, starting_weights(config)
    if is_foreign(config.preset):
        allow(config.preset)
        network = create_model(config.preset, stage, classes, weights, **config.options)
        try_answer(network, config)
    else:
        if config.preset in BASELINES:
            check_weights(config.preset, weights)
        with torch.device("meta"):
            network = create_model(config.preset, stage, classes, **config.options)
    for path in (config.start_from, config.stage_one):
        if path is not None:
            check_convention(path, config.input)
    if isinstance(network, Network) and weights is not None:
        find_weights(network.options.encoder, weights)
    return unused_settings(config, network)


def starting_weights(config: TrainConfig) -> str | None:
    """Return the encoder's weights to load; none where ``start_from`` replaces packaged ones."""
    packaged = config.start_from is not None and config.encoder_weights == "imagenet"
    return None if packaged else config.encoder_weights


def try_answer(network: nn.Module, config: TrainConfig) -> None:
    """Let somebody else's network answer: its errors and its answers' shapes are its own.

    Raises:
        UserError: It fails, or answers something else than a map a class.
    """
    height, width = config.input.size
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, height, width))
            network.train()(torch.zeros(2, 3, height, width))  # other maps, often
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{config.preset} fails on images of {height} x {width}: {said(error)}; expected a "
            "class that takes [N, 3, H, W], at this input.size"
        ) from error


def unused_settings(config: TrainConfig, network: nn.Module) -> list[str]:
    """Return warnings about settings that were changed and have no effect here."""
    loss, ours = config.loss, isinstance(network, Network)
    idle: dict[str, str] = {}
    weights = [config.dispersive_weights()[number - 1] for number in config.stages]
    if not ours:
        reason = f"{config.preset} has the mask loss alone"
        idle = dict.fromkeys((*DISPERSIVE, "consistency", "area_weight"), reason)
        if any(loss.dispersive or ()):
            idle["dispersive"] = reason
    elif not any(weights):
        idle = dict.fromkeys(DISPERSIVE, "the weights of the dispersive loss are 0")
    else:
        if loss.variant != "hinge":
            idle["margin"] = f"loss.variant is {loss.variant}"
        if loss.variant in ("hinge", "covariance"):
            idle |= dict.fromkeys(("tau", "epsilon"), f"loss.variant is {loss.variant}")
    if loss.mask != "focal_dice":
        idle["gamma"] = f"loss.mask is {loss.mask}"
    if loss.mask != "tversky":
        idle["tversky"] = f"loss.mask is {loss.mask}"
    set_here = differences(dataclasses.asdict(LossConfig()), dataclasses.asdict(loss))
    unused: dict[str, list[str]] = {}
    for key in set_here:
        if key in idle:
            unused.setdefault(idle[key], []).append(f"loss.{key}")
    warnings = [f"{reason}; not used: {', '.join(keys)}" for reason, keys in unused.items()]
    rates = [n for n in config.stages if config.stage(n).encoder_lr != 1]
    if rates and is_foreign(config.preset) and not getattr(network, "encoder_prefix", ""):
        keys = ", ".join(f"stage{number}.encoder_lr" for number in rates)
        warnings.append(
            f"{config.preset} names no encoder (options.encoder=NAME); not used: {keys}"
        )
    return warnings


def check_convention(path: str, ours: InputConvention) -> None:
    """Refuse a checkpoint that was trained on inputs of another kind (colour order, scale, norm).

    Its filters would see other numbers than those they were trained on. The size may differ.
    """
    theirs = read_header(path).convention
    for name in ("color", "scale", "mean", "std"):
        was, now = getattr(theirs, name), getattr(ours, name)
        if was != now:
            value = list(was) if isinstance(was, tuple) else was
            raise UserError(
                f"{path} was trained with input.{name} {value}, this run has {now}; "
                f"set 'input.{name}={value}' to go on with its inputs"
            )


def differences(one: object, other: object, prefix: str = "") -> list[str]:
    """Return the dotted keys in which two nested tables differ."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [prefix.rstrip(".")]
    keys = dict.fromkeys([*one, *other])
    return [
        found
        for key in keys
        for found in differences(one.get(key), other.get(key), f"{prefix}{key}.")
    ]
