"""What the features look at and how they are spread: the views of the paper's Fig. 4.

Maps: Seg-Grad-CAM (Vinogradova et al. 2020): the gradient of the predicted region's logits with
respect to a feature, averaged over positions, weighs the feature's channels. Embeddings: the
feature's mean over each image, and its values at single positions inside and outside the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from medisseg.convention import InputConvention
from medisseg.data.folder import Sample, resize_mask
from medisseg.errors import UserError
from medisseg.evaluation.collapse import collapse
from medisseg.evaluation.names import labels
from medisseg.predictor import logit

if TYPE_CHECKING:
    from medisseg.model.network import Network
    from medisseg.model.output import TrainingOutput


@dataclass(frozen=True)
class Embeddings:
    """A placement's features over a data set.

    Attributes:
        images: Mean over positions, one row an image [N, C].
        positions: Single positions [P, C], as many inside as outside the masks where possible.
        inside: Whether a position is inside the mask, bool [P].
    """

    images: npt.NDArray[np.float32]
    positions: npt.NDArray[np.float32]
    inside: npt.NDArray[np.bool_]

    def measures(self) -> dict[str, dict[str, float]]:
        """Return the collapse measures by granularity, "image" and "pixel"."""
        return {"image": collapse(self.images), "pixel": collapse(self.positions)}


class FeatureView:
    """A network in evaluation mode whose features can be looked at.

    Args:
        model: A network of ours (not a baseline), as ``load_checkpoint`` returns it.
        name: For captions.
        device: Where to run it.

    Raises:
        UserError: The network has no features by placement.
    """

    def __init__(self, model: Network, name: str, device: str = "cpu") -> None:
        self.model, self.name, self.device = model.to(device).eval(), name, device
        self.info = model.info
        with torch.no_grad():
            features = self.forward(torch.zeros(1, 3, *self.info.convention.size)).features
        if not features:
            raise UserError(f"{name} is a {self.info.architecture}, whose features have no names")

    def forward(self, x: Tensor) -> TrainingOutput:
        """Return the training output of [N, 3, h, w], with every BatchNorm in evaluation mode."""
        # Only the outermost module looks at its own flag to choose what it returns.
        self.model.training = True
        try:
            output: TrainingOutput = self.model(x.to(self.device))
            return output
        finally:
            self.model.training = False

    def activation_map(
        self, image: npt.NDArray[np.uint8], placement: str = "early"
    ) -> npt.NDArray[np.float32]:
        """Return where the feature speaks for the predicted region: [H, W] in [0, 1].

        Without a predicted region, the hundredth of the pixels with the highest logits is
        explained.
        """
        convention = self.info.convention
        x = torch.from_numpy(convention.preprocess(image))[None]
        with torch.enable_grad():
            output = self.forward(x.requires_grad_())
            feature = output.features[placement]
            (gradient,) = torch.autograd.grad(self._evidence(output.logits), feature)
        weights = gradient.float().mean((2, 3), keepdim=True)
        cam = F.relu((weights * feature.detach().float()).sum(1, keepdim=True))
        cam = F.interpolate(cam, convention.size, mode="bilinear", align_corners=False)
        height, width = image.shape[:2]
        restored = convention.restore(cam[0].cpu().numpy(), (height, width))[0]
        scaled: npt.NDArray[np.float32] = restored / max(float(restored.max()), 1e-12)
        return scaled

    def _evidence(self, logits: Tensor) -> Tensor:
        """Sum of the logits of the pixels predicted as foreground; logits [1, K, h, w]."""
        if logits.shape[1] == 1:
            best = logits[0, 0]
            region = best > logit(self.info.threshold)
        else:
            best = logits[0, 1:].amax(0)
            region = logits[0].argmax(0) > 0
        if not region.any():
            region = best >= best.flatten().quantile(0.99)
        return best[region].sum()

    def embeddings(
        self,
        samples: Sequence[Sample],
        placement: str = "early",
        positions: int = 16,
        seed: int = 0,
        advance: Callable[[int], object] = lambda images: None,
    ) -> Embeddings:
        """Return the embeddings of labelled samples.

        Args:
            samples: Images with masks.
            placement: "early", "middle" or "late".
            positions: Positions drawn from each image: half inside the mask, half outside.
            seed: Of that draw.
            advance: Told the number of images done.
        """
        generator = np.random.default_rng(seed)
        means, rows, labels = [], [], []
        for sample in (samples[i] for i in range(len(samples))):
            x = torch.from_numpy(self.info.convention.preprocess(sample.image))[None]
            with torch.no_grad():
                feature = self.forward(x).features[placement].float().cpu()
            means.append(feature.mean((2, 3))[0].numpy())
            height, width = feature.shape[-2:]
            share = mask_share(sample.mask, self.info.convention, (height, width))
            flat = feature[0].flatten(1).numpy()
            for inside, places in ((True, share > 0.75), (False, share < 0.05)):
                found = np.flatnonzero(places)
                drawn = generator.choice(found, min(positions // 2, found.size), replace=False)
                rows.append(flat[:, drawn].T)
                labels.append(np.full(drawn.size, inside))
            advance(1)
        return Embeddings(np.stack(means), np.concatenate(rows), np.concatenate(labels))


def mask_share(
    mask: npt.NDArray[np.uint8], convention: InputConvention, size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Return how much of each position of a feature [h, w] a mask [H, W] covers, in [0, 1]."""
    small = torch.from_numpy((resize_mask(mask, convention) > 0).astype(np.float32))
    return F.adaptive_avg_pool2d(small[None], size)[0].numpy()


def open_views(checkpoints: Sequence[str], device: str) -> list[FeatureView]:
    """Open checkpoints by path or name; files of one name are told apart by their folders."""
    from medisseg.checkpoint import is_bundle
    from medisseg.model.loading import load_checkpoint

    views = []
    for checkpoint, name in zip(checkpoints, labels(checkpoints), strict=True):
        if is_bundle(checkpoint):
            raise UserError(
                f"{checkpoint} is a bundle, whose features are folded away; give a checkpoint"
            )
        views.append(FeatureView(load_checkpoint(checkpoint), name, device))
    return views
