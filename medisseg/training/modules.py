"""One stage of training as a LightningModule: batch -> augment -> network -> objective -> step."""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional

from medisseg.config import StageConfig, TrainConfig
from medisseg.data import augment
from medisseg.data.degrade import degrade
from medisseg.data.paste import paste
from medisseg.errors import UserError
from medisseg.losses.mask import without_void
from medisseg.losses.objective import Terms, gradient_shares, weighted_sum
from medisseg.schema import Json
from medisseg.training.batches import Batches, Data, train_batches, validation_batches
from medisseg.training.graphs import GraphedNetwork

# First element of a key of random numbers, so that no two uses share their draws.
ORDER, GEOMETRY, COLOR, SECOND_VIEW, SIZE, DEGRADE, PASTE = range(7)
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Pairs = tuple[tuple[list[Tensor], list[Tensor]], ...]


class SegmentationModule(LightningModule):
    """Trains one stage of a network.

    Args:
        network: Returns a ``TrainingOutput`` in training mode, logits [N, K, H, W] otherwise.
        objective: Stage 1: (view 1, view 2, target), stage 2: (output, target) to
            (total, parts); target: class indices int64 [N, H, W].
        config: The run's configuration.
        number: Stage, 1 or 2.
        data: Training and validation images.
        budget: Seconds this stage may take, validation included; None: as its epochs take.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: nn.Module,
        config: TrainConfig,
        number: int,
        data: Data,
        budget: float | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.objective = objective
        self.config, self.number, self.data, self.budget = config, number, data, budget
        self.stage: StageConfig = config.stage(number)
        self.ema = _frozen_copy(network) if self.stage.ema else None
        self._pairs: Pairs | None = None
        self._averaged = -1  # step after which the weights were averaged last
        self._watched: Watched | None = None
        self.elapsed = 0.0
        self.validation_seconds = 0.0
        self._quickest = math.inf  # seconds of a step: the first ones also compile and allocate
        self.losses: dict[str, list[Tensor]] = defaultdict(list)
        self.shares: dict[str, float] = {}  # of the gradient, by term, in the epoch's first step
        self.scores: dict[str, float] = {}
        self.plateau = {"best": -math.inf, "waited": 0, "factor": 1.0}
        self.graphed: GraphedNetwork | None = None
        if config.hardware.cuda_graph:
            self.graphed = GraphedNetwork(network, TYPES[config.hardware.precision])
        if config.hardware.channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    # Batches

    def train_dataloader(self) -> Batches:
        """Return the epoch's batches; Lightning asks again at every epoch."""
        key = (ORDER, self.config.seed, self.number, self.current_epoch)
        part = self.stage.batch // self.stage.accumulate
        return train_batches(self.data.train, part, key, self.global_rank, self.trainer.world_size)

    def val_dataloader(self) -> Batches:
        """Return this process's validation images."""
        return validation_batches(
            self.data.validation,
            max(1, self.stage.batch // self.trainer.world_size),
            self.global_rank,
            self.trainer.world_size,
        )

    def transfer_batch_to_device(
        self, batch: dict[str, Tensor], device: torch.device, dataloader_idx: int
    ) -> dict[str, Tensor]:
        """Send the images; their indices stay on the CPU, where random numbers are drawn."""
        return {
            name: part if name == "index" else part.to(device, non_blocking=True)
            for name, part in batch.items()
        }

    def on_after_batch_transfer(
        self, batch: dict[str, Tensor], dataloader_idx: int
    ) -> dict[str, Tensor]:
        """Augment (training only) and normalise, on the device."""
        with torch.autocast(self.device.type, enabled=False):
            images, masks = batch["image"].float() / 255, batch["mask"]
            if not self.trainer.training:
                return {**batch, "input": self._input(images)}
            indices, settings = batch["index"], self.stage.augment
            draw = (self.config.seed, self.number, self.current_epoch)
            uniform = augment.draws((GEOMETRY, *draw), indices, augment.GEOMETRY_DRAWS)
            images, masks = augment.geometry(images, masks, settings, uniform)
            images, masks = paste(images, masks, settings.paste_p, (PASTE, *draw), indices)
            uniform = augment.draws((COLOR, *draw), indices, augment.COLOR_DRAWS)
            images = augment.color(images, settings.color, uniform)
            images, masks = degrade(images, masks, settings.degrade, (DEGRADE, *draw), indices)
            images, masks = augment.to_size(images, masks, self._step_size())
            batch = {**batch, "input": self._input(images), "mask": masks}
            if self.number == 1:
                uniform = augment.draws((SECOND_VIEW, *draw), indices, augment.COLOR_DRAWS)
                second = augment.color(images, self.config.second_view, uniform)
                batch["second"] = self._input(second)
        return batch

    def _input(self, images: Tensor) -> Tensor:
        pixels = augment.normalize(images, self.config.input)
        if self.config.hardware.channels_last:
            return pixels.contiguous(memory_format=torch.channels_last)
        return pixels

    def _step_size(self) -> tuple[int, int]:
        """Return the step's input size, of ``sizes``, the same in every process."""
        sizes = self.stage.augment.sizes
        if self.stage.augment.progressive:
            position = min(self.progress(), 1 - 1e-9)
        else:
            key = (SIZE, self.config.seed, self.number)
            position = float(augment.draws(key, torch.tensor([self.global_step]), 1))
        factor = sizes[int(position * len(sizes))]
        height, width = (max(32, round(side * factor / 32) * 32) if factor != 1 else side
                         for side in self.config.input.size)  # fmt: skip
        return height, width

    # Steps

    def on_train_start(self) -> None:
        """Start the stage's clock; validation and writing count too."""
        self._clock = time.monotonic()

    def on_train_epoch_start(self) -> None:
        """Seed what draws from the global generator (dropout), from the epoch alone."""
        seed = hash((self.config.seed, self.number, self.current_epoch, self.global_rank))
        torch.manual_seed(seed % 2**63)
        self.losses.clear()
        if self.current_epoch + 1 >= self.stage.epochs:
            self._validate_this_epoch()

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Set the learning rate from how much of the stage is over."""
        self._tick()
        factor = self.rate(self.progress())
        optimizer = self.optimizers(use_pl_optimizer=False)
        for group in optimizer.param_groups:  # type: ignore[union-attr]
            group["lr"] = group["peak"] * factor

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the objective of one batch."""
        target = batch["mask"].long()
        views = [batch[name] for name in ("input", "second") if name in batch]
        outputs = self._outputs(views)
        terms: Terms = cast(Any, self.objective).terms(*outputs, target)
        total, parts = weighted_sum(terms)
        if batch_idx == 0:
            self.shares = self._gradient_shares(terms, outputs[0].features)
        self.check_loss()  # of the step before: asked for this one's, a GPU would stand still
        self._watched = Watched(total.detach(), parts, batch["index"], self.global_step)
        for name, value in {"loss": total, **parts}.items():
            self.losses[name].append(torch.as_tensor(value).detach().float())
        return total

    def _outputs(self, views: list[Tensor]) -> list[Any]:
        """Return the network's output of every view."""
        try:
            return self.graphed(*views) if self.graphed else [self.network(x) for x in views]
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"stage {self.number} trains on {len(views[0])} image at a time, which its batch "
                "normalisation cannot take; expected batch=2 or more, and as many training images"
            ) from error

    def _gradient_shares(self, terms: Terms, features: dict[str, Tensor]) -> dict[str, float]:
        """Return each term's share of the gradient at the encoder's deepest feature.

        Not where passes are replayed as CUDA graphs, which have one backward pass, and not of a
        network with one term, whose share is 1.
        """
        if self.graphed or "early" not in features or len(terms) < 2:
            return {}
        return gradient_shares(terms, features["early"])

    def check_loss(self) -> None:
        """Stop where the last watched step's loss was not finite."""
        last = self._watched
        if last is None or last.finite():
            return
        every = self.data.train.names
        names = [every[index % len(every)] for index in last.indices.tolist()]
        broken = [name for name, value in last.parts.items() if not math.isfinite(float(value))]
        raise UserError(
            f"the loss is {float(last.total)} in stage {self.number}, "
            f"epoch {self.current_epoch + 1}, step {last.step} "
            f"(part: {', '.join(broken) or 'sum'}; images: {', '.join(names[:4])}); the "
            f"checkpoints before it are kept. Lower stage{self.number}.lr, set "
            f"stage{self.number}.clip=1 or hardware.precision=fp32"
        )

    def check_weights(self) -> None:
        """Refuse weights that the epoch's last step made infinite, before they are kept."""
        self.check_loss()
        finite = torch.stack([weights.isfinite().all() for weights in self.network.parameters()])
        if not finite.all():
            raise UserError(
                f"stage {self.number}, epoch {self.current_epoch + 1} ended with weights that are "
                f"not finite; the checkpoints before it are kept. Lower stage{self.number}.lr, set "
                f"stage{self.number}.clip=1 or hardware.precision=fp32"
            )

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        """Average the weights, and stop the stage where its time is over."""
        stepped = self.global_step != self._averaged
        if self.ema is not None and stepped:
            self._averaged = self.global_step
            self._pairs = self._pairs or _pairs(self.ema, self.network)
            _average(self._pairs, self.stage.ema, self.global_step)
        before = self.elapsed
        self._tick()
        self._quickest = min(self._quickest, self.elapsed - before)
        if self.budget and self.elapsed + self._reserve() >= self.budget:
            self.trainer.should_stop = True
            self._validate_this_epoch()

    def _validate_this_epoch(self) -> None:
        """Validate a last epoch whatever ``validate_every`` says: it is often the best."""
        self.trainer.check_val_every_n_epoch = 1

    def _reserve(self) -> float:
        """Return the seconds to keep for the last validation: as long as the one before it took,
        or an estimate from the quickest step so far (forward is about a third of a step)."""
        if self.validation_seconds:
            return self.validation_seconds
        batches = math.ceil(len(self.data.validation) / self.stage.batch)
        return 0.4 * batches * self._quickest

    # Validation

    def on_validation_epoch_start(self) -> None:
        """Start the sums over the images of each data folder."""
        self._sources = list(dict.fromkeys(self.data.validation.sources))
        shape = len(self._sources), 4
        self._sums = torch.zeros(shape, dtype=torch.float64, device=self.device)
        cases = len(set(self.data.validation.cases or ()))
        pixels = cases, max(1, self.config.classes - 1), 2
        self._pixels = torch.zeros(pixels, dtype=torch.float64, device=self.device)
        self._tick()
        self._validation_start = self._clock

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add a batch's loss, Dice and IoU per image."""
        logits = (self.ema or self.network)(batch["input"]).float()
        target = batch["mask"].long()
        scores = image_scores(logits, target)
        if self.data.validation.cases:
            cases = [self.data.validation.cases[index] for index in batch["index"].tolist()]
            of_each = torch.tensor(cases, device=scores.device)
            self._pixels.index_add_(0, of_each, overlaps(logits, target))
        scores = torch.cat([scores, scores.new_ones(len(scores), 1)], 1)
        sources = [self.data.validation.sources[index] for index in batch["index"].tolist()]
        rows = torch.tensor([self._sources.index(name) for name in sources], device=scores.device)
        self._sums.index_add_(0, rows, scores)

    def on_validation_epoch_end(self) -> None:
        """Average over all images of all processes; stop if nothing of the budget is left."""
        sums = torch.as_tensor(self.trainer.strategy.reduce(self._sums, reduce_op="sum"))
        loss, dice, iou, count = sums.sum(0).tolist()
        if self.data.validation.cases:  # a volume counts once, however many slices it has
            pixels = torch.as_tensor(self.trainer.strategy.reduce(self._pixels, reduce_op="sum"))
            dice, iou = (count * float(part.mean()) for part in dice_and_iou(pixels))
        self.scores = {"loss": loss / count, "dice": dice / count, "iou": iou / count}
        if len(self._sources) > 1:
            of_each = (sums[:, 1] / sums[:, 3]).tolist()
            self.scores |= {
                f"dice_{name}": part for name, part in zip(self._sources, of_each, strict=True)
            }
        self._tick()
        self.validation_seconds = self._clock - self._validation_start
        if self.budget and self.elapsed >= self.budget:
            self.trainer.should_stop = True
        if self.stage.schedule == "plateau":
            self._wait_on_plateau(self.scores["dice"])

    # Schedule

    def _tick(self) -> None:
        now = time.monotonic()
        self.elapsed += now - self._clock
        self._clock = now
        if self.budget and self.trainer.world_size > 1:
            self.elapsed = self.trainer.strategy.broadcast(self.elapsed)

    def progress(self) -> float:
        """Return how much of the stage is over, in [0, 1]: by steps or, where the time will not do
        for all of them, by time if that is more."""
        steps = max(1, self.data.train.drawn // self.stage.batch) * self.stage.epochs
        by_steps = min(1.0, self.global_step / steps)
        if not self.budget or math.isinf(self._quickest):
            return by_steps
        left = (1 - by_steps) * steps * self.stage.accumulate * self._quickest
        if self.elapsed + left <= self.budget:  # a budget that does not bind changes nothing
            return by_steps
        return min(1.0, max(by_steps, self.elapsed / self.budget))

    def rate(self, progress: float) -> float:
        """Return the learning rate at ``progress`` as a share of its peak."""
        stage = self.stage
        if progress < stage.warmup:
            return max(progress / stage.warmup, 1e-3)
        if stage.schedule == "plateau":
            return self.plateau["factor"]
        if stage.schedule == "constant":
            return 1.0
        over = (progress - stage.warmup) / (1 - stage.warmup)
        return stage.final_lr + (1 - stage.final_lr) * 0.5 * (1 + math.cos(math.pi * over))

    def _wait_on_plateau(self, dice: float) -> None:
        state = self.plateau
        if dice > state["best"]:
            state.update(best=dice, waited=0)
            return
        state["waited"] += 1
        if state["waited"] > self.stage.plateau:
            state.update(waited=0, factor=state["factor"] / 10)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm; Lightning's own way refuses fused optimisers under autocast."""
        if gradient_clip_val:
            nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser with the encoder's own rate; norms and biases do not decay."""
        groups: dict[tuple[bool, bool], list[Tensor]] = defaultdict(list)
        prefix = str(getattr(self.network, "encoder_prefix", ""))  # "": it has no encoder
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                encoder = bool(prefix) and name.startswith(prefix)
                groups[encoder, parameter.ndim > 1].append(parameter)
        stage = self.stage
        kind = torch.optim.AdamW if stage.optimizer == "adamw" else torch.optim.Adam
        return kind(
            [
                {
                    "params": parameters,
                    "peak": stage.lr * (stage.encoder_lr if encoder else 1.0),
                    "weight_decay": stage.weight_decay if decays else 0.0,
                }
                for (encoder, decays), parameters in groups.items()
            ],
            lr=stage.lr,
            fused=self.config.hardware.precision != "fp16",  # scaled, and clipped unscaled
        )

    # State that a resumed run needs beside weights and optimiser

    def on_save_checkpoint(self, checkpoint: Json) -> None:
        """Add the clock and the plateau's state."""
        checkpoint["medisseg"] = {
            "elapsed": self.elapsed,
            "validation_seconds": self.validation_seconds,
            "plateau": dict(self.plateau),
        }

    def on_load_checkpoint(self, checkpoint: Json) -> None:
        """Take the clock and the plateau's state up again."""
        state = checkpoint["medisseg"]
        self.elapsed = state["elapsed"]
        self.validation_seconds = state["validation_seconds"]
        self.plateau = state["plateau"]


@dataclass
class Watched:
    """A step's loss on its way to the CPU, its parts and the indices of its images."""

    total: Tensor
    parts: Mapping[str, Tensor | float]
    indices: Tensor
    step: int

    def __post_init__(self) -> None:
        self._finite = torch.isfinite(self.total).to("cpu", non_blocking=True)
        self._there = torch.cuda.Event() if self.total.is_cuda else None
        if self._there:
            self._there.record()

    def finite(self) -> bool:
        """Wait for the loss and say whether it is finite."""
        if self._there:
            self._there.synchronize()
        return bool(self._finite)


def image_scores(logits: Tensor, target: Tensor) -> Tensor:
    """Return loss, Dice and IoU of every image, [N, 3].

    Dice and IoU at a probability of 0.5, or of the largest logit: then the mean over the classes
    (without background) that are in the image's truth or prediction. Nothing in both: 1.

    Args:
        logits: [N, K, H, W] float32.
        target: Class indices int64 [N, H, W]; void pixels are background in both.
    """
    logits, target = without_void(logits, target)
    if logits.shape[1] == 1:
        loss = functional.binary_cross_entropy_with_logits(
            logits[:, 0], target.float(), reduction="none"
        )
    else:
        loss = functional.cross_entropy(logits, target, reduction="none")
    means = dice_and_iou(overlaps(logits, target))
    return torch.stack([loss.mean((1, 2)).double(), *means], 1)


def overlaps(logits: Tensor, target: Tensor) -> Tensor:
    """Return, by image and foreground class, the pixels in both masks and the sum of their areas.

    Args:
        logits: [N, K, H, W] float32.
        target: Class indices int64 [N, H, W].

    Returns:
        float64 [N, max(1, K - 1), 2]; they add up over the slices of a volume.
    """
    if logits.shape[1] == 1:
        predicted, truth = logits > 0, target.unsqueeze(1) > 0
    else:
        labels = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, 1, 1)
        predicted, truth = logits.argmax(1, keepdim=True) == labels, target.unsqueeze(1) == labels
    both = (predicted & truth).sum((2, 3)).double()
    return torch.stack([both, (predicted.sum((2, 3)) + truth.sum((2, 3))).double()], 2)


def dice_and_iou(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return Dice and IoU [N] of :func:`overlaps`, over the classes that are in truth or
    prediction; 1 where none is."""
    both, sizes = pixels.unbind(2)
    there = sizes > 0
    dice = torch.where(there, 2 * both / sizes.clamp(min=1), 0.0)
    iou = torch.where(there, both / (sizes - both).clamp(min=1), 0.0)
    count = there.sum(1)
    one, two = (
        torch.where(count > 0, part.sum(1) / count.clamp(min=1), 1.0) for part in (dice, iou)
    )
    return one, two


def _frozen_copy(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).eval().requires_grad_(False)


def _pairs(average: nn.Module, network: nn.Module) -> Pairs:
    """Return the averaged and the network's tensors: those to average, then those to copy."""
    pairs = list(zip(average.state_dict().values(), network.state_dict().values(), strict=True))
    floating = [pair for pair in pairs if pair[0].is_floating_point()]
    counts = [pair for pair in pairs if not pair[0].is_floating_point()]
    return tuple(([a for a, _ in some], [b for _, b in some]) for some in (floating, counts))


@torch.no_grad()
def _average(pairs: Pairs, decay: float, step: int) -> None:
    """Move the averaged weights towards the network's; early steps count more, or the first
    weights would weigh for 1 / (1 - decay) steps."""
    (averages, weights), (old, new) = pairs
    torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + step) / (10 + step)))
    torch._foreach_copy_(old, new)
