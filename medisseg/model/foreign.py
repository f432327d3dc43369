"""Any ``nn.Module`` of the user's own code, or of an official clone, under our protocol.

``preset=module:package.file.Class`` (or ``package.file:Class``) imports the class from the Python
path and calls it with the configuration's ``options``. Options of ours say how to read its answer:

    maps           how many maps of its answer are trained and which is the mask's: the index of the
                   mask's (default 0, the first; -1 the last); the others are deep supervision
    probabilities  true where the maps are sigmoid's or softmax's answers rather than logits
    encoder        dotted name of the part that ``encoder_weights=FILE`` is loaded into, and that
                   trains at ``encoder_lr`` times the rate

A checkpoint names the class, and running it runs that class's code: loading one asks for the
user's word, which a configuration that names the class gives, or ``MEDISSEG_ALLOW_MODULES``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medisseg.checkpoint import new_checkpoint
from medisseg.errors import UserError
from medisseg.model.baselines import Baseline
from medisseg.model.pretrained import read_pickle

PREFIX = "module:"
VARIABLE = "MEDISSEG_ALLOW_MODULES"
MULTIPLE = 32  # every encoder of five halvings
OURS = ("maps", "probabilities", "encoder")

_allowed: set[str] = set()


def is_foreign(architecture: str) -> bool:
    """Whether a preset's name is that of a class to import."""
    return ":" in architecture


def allow(architecture: str) -> None:
    """Take the user's word for a class: it may be imported when a checkpoint names it."""
    _allowed.add(_split(architecture)[2])


def check_allowed(architecture: str, source: object) -> None:
    """Refuse to import what only a file names.

    Raises:
        UserError: Neither a configuration of this process nor the environment names the class.
    """
    name = _split(architecture)[2]
    named = {_split(word.strip())[2] for word in os.environ.get(VARIABLE, "").split(",") if word}
    if name not in _allowed | named:
        raise UserError(
            f"{source} is a checkpoint of {name}, and loading it runs that module's code from your "
            f"Python path; if you trust it, set {VARIABLE}={name}"
        )


def _split(architecture: str) -> tuple[str, str, str]:
    """Return module, class and "module:class" of a name in either spelling."""
    text = architecture.removeprefix(PREFIX)
    module, _, name = text.rpartition(":" if ":" in text else ".")
    parts = [*module.split("."), name]
    if not module or not all(part.isidentifier() for part in parts):
        raise UserError(
            f"{architecture!r} names no class; expected module:package.file.Class, such as "
            "module:lib.pranet.PraNet"
        )
    return module, name, f"{module}:{name}"


class Foreign(Baseline):
    """A class of somebody else's; its answer may be a map, or a list, tuple or table of maps.

    Args:
        network: The class's instance.
        classes: Logit maps K that every map of the answer must have.
        main: Index of the mask's map in the answer.
        probabilities: Whether its maps are probabilities.
        label: What errors call it.
        encoder: Dotted name of the part that is its encoder; "": none.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        main: int,
        probabilities: bool,
        label: str,
        encoder: str = "",
    ) -> None:
        super().__init__(network, classes, MULTIPLE, encoder)
        self.main, self.probabilities, self.label = main, probabilities, label

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the mask's logits and the others', all enlarged to the input's size."""
        answer = self.network(x)
        found = list(_tensors(answer))
        if not found or not -len(found) <= self.main < len(found):
            raise UserError(
                f"{self.label} answers {len(found)} maps; options.maps={self.main} is none of them"
            )
        chosen = found.pop(self.main)
        return [self._logits(part, x) for part in ([chosen, *found] if self.training else [chosen])]

    def _logits(self, part: Tensor, x: Tensor) -> Tensor:
        if part.ndim == 3:
            part = part.unsqueeze(1)
        if part.ndim != 4 or part.shape[:2] != (len(x), self.classes):
            raise UserError(
                f"{self.label} answers a map of shape {list(part.shape)} to {list(x.shape)}; "
                f"expected [{len(x)}, {self.classes}, H, W] (classes={self.classes})"
            )
        if self.probabilities:
            small = torch.finfo(part.dtype).eps
            kept = part.clamp(small, 1 - small)
            part = torch.logit(kept) if self.classes == 1 else kept.log()
        if part.shape[2:] != x.shape[2:]:
            part = F.interpolate(part, size=x.shape[2:], mode="bilinear", align_corners=False)
        return part


def _tensors(answer: object) -> list[Tensor]:
    """Return the maps of an answer in their order."""
    if isinstance(answer, Tensor):
        return [answer]
    parts = list(answer.values()) if isinstance(answer, Mapping) else answer
    if isinstance(parts, list | tuple):
        return [tensor for part in parts for tensor in _tensors(part)]
    return []


def create_foreign(
    architecture: str,
    stage: int = 2,
    classes: int = 1,
    encoder_weights: str | Path | None = None,
    **options: Any,
) -> Foreign:
    """Build a network of a class on the Python path; the arguments are those of ``create_model``.

    Raises:
        UserError: No such module or class, no ``nn.Module``, options that it does not take, or
            encoder weights without the option ``encoder``.
    """
    module, name, label = _split(architecture)
    if stage != 2:
        raise UserError(f"{label} has one stage; train it with stages=[2]")
    theirs = {key: value for key, value in options.items() if key not in OURS}
    main, probabilities = options.get("maps", 0), options.get("probabilities", False)
    if not isinstance(main, int) or isinstance(main, bool) or not isinstance(probabilities, bool):
        raise UserError(
            f"options.maps is {main!r} and options.probabilities {probabilities!r}; expected the "
            "index of a map, and true or false"
        )
    kind = _find(module, name, label)
    try:
        network = kind(**theirs)
    except Exception as error:  # the class's own code, which may raise anything
        wrap = "; a class that opens files of its authors' needs a wrapper (docs/guide/compare.md)"
        raise UserError(
            f"{label} cannot be made with options {theirs}: {said(error)}"
            f"{wrap if isinstance(error, OSError) else ''}"
        ) from error
    encoder = options.get("encoder", "")
    if encoder != "":
        _part(network, encoder, label)
    if encoder_weights is not None:
        _load_encoder(network, encoder, Path(encoder_weights), label)
    model = Foreign(network, classes, main, probabilities, label, encoder)
    model.info = new_checkpoint(label, stage, classes, options)
    return model


def _find(module: str, name: str, label: str) -> type[nn.Module]:
    try:
        there = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{label}: {error}; put the folder that holds it on PYTHONPATH, and install what it "
            "imports"
        ) from error
    except Exception as error:  # the module's own code, which may raise anything
        raise UserError(f"{label}: importing it failed with {error!r}") from error
    kind = getattr(there, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        networks = [
            key
            for key, value in vars(there).items()
            if isinstance(value, type) and issubclass(value, nn.Module)
        ]
        raise UserError(
            f"{module} has no network class {name}; its nn.Module classes are: "
            f"{', '.join(networks[:8]) or 'none'}"
        )
    return kind


def said(error: Exception) -> str:
    """Return the kind and the first line of somebody else's error."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _part(network: nn.Module, part: object, label: str) -> nn.Module:
    try:
        return network.get_submodule(str(part))
    except AttributeError as error:
        names = ", ".join(name for name, _ in network.named_children())
        raise UserError(f"{label} has no part {part!r}; its parts are: {names}") from error


def _load_encoder(network: nn.Module, part: object, path: Path, label: str) -> None:
    """Fill a part of the network with a plain state dict; its other entries are left out."""
    if part == "":
        raise UserError(
            f"encoder_weights of {label} need options.encoder=NAME, the part that they belong to, "
            "or leave encoder_weights empty where the class loads its own"
        )
    encoder = _part(network, part, label)
    if not path.is_file():
        raise UserError(f"encoder weights {path} are no file; give a state dict as a path")
    state, wanted = read_pickle(path), encoder.state_dict()
    fitting = {k: v for k, v in state.items() if k in wanted and wanted[k].shape == v.shape}
    lacking = [key for key in wanted if key not in fitting and "num_batches" not in key]
    if lacking:
        raise UserError(
            f"{path} does not fit {part} of {label}: {len(lacking)} of {len(wanted)} entries are "
            f"missing or of another shape, such as {lacking[0]}"
        )
    encoder.load_state_dict(fitting, strict=False)
