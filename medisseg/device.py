"""The device that a word names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from medisseg.errors import UserError

if TYPE_CHECKING:
    import torch


def pick_device(device: str = "auto", name: str = "device") -> str:
    """Return "cuda" or "cpu" for "auto", and a device that was named, if it exists.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        name: What the user calls it, for the message.

    Raises:
        UserError: Not a device, or a GPU that PyTorch does not see.
    """
    import torch

    check_device(device, name)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    count = torch.cuda.device_count()
    if kind == "cuda" and int(index or 0) >= count:
        seen = f"{count} NVIDIA GPU{'s' if count > 1 else ''}" if count else "no NVIDIA GPU"
        raise UserError(
            f"{name} is {device}, but PyTorch sees {seen}; use cpu, or ask medisseg doctor"
        )
    return device


def check_device(device: str, name: str = "device") -> None:
    """Refuse what names no device on any machine.

    Raises:
        UserError: Not "auto", "cpu", "cuda" or "cuda:N".
    """
    if not re.fullmatch("auto|cpu(:0)?|cuda(:[0-9]{1,4})?", device):
        raise UserError(f"{name} is {device!r}; expected auto, cpu, cuda or cuda:N")


def lost(device: torch.device | str) -> str:
    """Return why this process can use ``device`` no more, or "" where it can.

    After some faults (an illegal address, a launch that failed) every later call of CUDA returns
    the same error until the process ends; no new engine heals that. Too little memory is not such.
    """
    if not str(device).startswith("cuda"):
        return ""
    import torch

    try:
        torch.cuda.synchronize(device)
    except torch.AcceleratorError as error:
        return str(error).strip().splitlines()[0]
    return ""
