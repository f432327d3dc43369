"""Train both stages with frozen BatchNorm statistics and store the gradients of their first steps.

Run by test_distributed in one process, or in two.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from medisseg.config import load_config
from medisseg.training import modules, run


class Frozen(modules.SegmentationModule):
    """BatchNorm averages over a process's own images on the CPU, so it must not average here."""

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def on_train_start(self) -> None:
        """Take the statistics of all images, or features and gradients vanish with the depth."""
        super().on_train_start()
        norms = [module for module in self.network.modules() if isinstance(module, nn.BatchNorm2d)]
        for module in norms:
            module.momentum = 1.0
        with torch.no_grad():
            self.network.train()(self._input(self.data.train.images.float() / 255))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        path = Path(self.config.out) / f"gradients{self.number}.pt"
        if self.global_rank == 0 and not path.exists():
            named = self.network.named_parameters()
            torch.save({name: p.grad for name, p in named if p.grad is not None}, path)


if __name__ == "__main__":
    setattr(run, "SegmentationModule", Frozen)  # noqa: B010
    run.train(load_config("edge", sys.argv[1:]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
