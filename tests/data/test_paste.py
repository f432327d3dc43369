"""Lesions put into images without: what is labelled is a lesion, what is not is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medisseg.config import load_config
from medisseg.data.paste import paste
from medisseg.losses.mask import VOID

SIDE, COUNT = 96, 60


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One image with a striped lesion of class 2 on a plain red, and many plain brown ones."""
    images = torch.empty(COUNT, 3, SIDE, SIDE)
    images[:] = torch.tensor([0.5, 0.3, 0.2])[:, None, None]
    images[0] = torch.tensor([0.8, 0.2, 0.2])[:, None, None]
    masks = torch.zeros(COUNT, SIDE, SIDE, dtype=torch.uint8)
    masks[0, 20:44, 10:30] = 2
    for row in range(20, 44, 6):  # only the lesion has rows that differ
        images[0, 2, row : row + 3, 10:30] = 1.0
    return images, masks, torch.arange(COUNT)


def test_half_get_the_lesion_and_half_plain_mucosa() -> None:
    images, masks, indices = batch()
    changed, labels = paste(images, masks, 1.0, (1, 2), indices)
    assert torch.equal(changed[0], images[0]) and torch.equal(labels[0], masks[0])
    with_lesion = (labels[1:] > 0).any(2).any(1)
    assert 0.3 < with_lesion.float().mean() < 0.7
    stripes = (changed[1:, 2, 1:] - changed[1:, 2, :-1]).abs()  # blue, between rows
    striped = stripes.amax((1, 2)) > 0.2
    assert torch.equal(striped, with_lesion)
    assert (changed[1:] != images[1:]).any(3).any(2).any(1).float().mean() > 0.75
    for label, stripe in zip(labels[1:][with_lesion], stripes[with_lesion], strict=True):
        assert set(label.unique().tolist()) == {0, 2}
        assert 0.25 * 480 * 0.8 < (label > 0).sum() < 1.44 * 480 * 1.2
        assert (label[1:][stripe > 0.2] > 0).float().mean() > 0.75
    assert float(changed.min()) >= 0 and float(changed.max()) <= 1


def test_draws_belong_to_the_image_and_the_occasion() -> None:
    images, masks, indices = batch()
    first = paste(images, masks, 0.5, (1, 2), indices)
    again = paste(images, masks, 0.5, (1, 2), indices)
    other = paste(images, masks, 0.5, (1, 3), indices)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    touched = (first[0][1:] != images[1:]).any(3).any(2).any(1).float().mean()
    assert 0.3 < touched < 0.7


def test_nothing_without_probability_or_lesion_and_void_is_no_lesion() -> None:
    images, masks, indices = batch()
    assert paste(images, masks, 0.0, (1,), indices)[0] is images
    assert paste(images[1:], masks[1:], 1.0, (1,), indices[1:])[0] is not None
    assert torch.equal(paste(images[1:], masks[1:], 1.0, (1,), indices[1:])[0], images[1:])
    masks[0] = torch.where(masks[0] > 0, VOID, 0)
    changed, labels = paste(images, masks, 1.0, (1,), indices)
    assert torch.equal(changed, images) and torch.equal(labels, masks)


def test_a_lesion_over_the_whole_image_is_made_smaller() -> None:
    images, masks, indices = batch()
    masks[0] = 1
    _, labels = paste(images, masks, 1.0, (1,), indices)
    widest = (labels[1:] > 0).any(1).sum(1).max()
    assert 0 < widest <= 0.7 * SIDE + 1


def test_the_option_is_a_probability() -> None:
    assert load_config("edge-polyp", ["stage2.augment.paste_p=0.6"]).stage2.augment.paste_p == 0.6
    with pytest.raises(Exception, match="paste_p"):
        load_config("edge-polyp", ["stage2.augment.paste_p=1.5"])


def test_sizes_that_differ_do_not_matter() -> None:
    """A batch of non-square images keeps its shapes."""
    images, masks, indices = batch()
    wide, flat = images[:, :, :, :64].contiguous(), masks[:, :, :64].contiguous()
    changed, labels = paste(wide, flat, 1.0, (1,), indices)
    assert changed.shape == wide.shape and labels.shape == flat.shape
    assert np.isfinite(changed.numpy()).all()
