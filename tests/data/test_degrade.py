"""Degradations: what each does to values and to the mask, on a picture whose answer is known."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medisseg.data import degrade as d
from medisseg.data.options import DegradeConfig
from medisseg.errors import UserError

SIDE = 96


def random() -> np.random.Generator:
    return np.random.default_rng(7)


def picture() -> tuple[np.ndarray, np.ndarray]:
    """Smooth tissue with a bright disc, and the disc as mask."""
    y, x = np.mgrid[:SIDE, :SIDE]
    disc = (y - 40) ** 2 + (x - 50) ** 2 < 15**2
    image = np.stack([120 + x // 2, 60 + y // 2, 50 + 0 * x], 2) + 60 * disc[..., None]
    return image.astype(np.uint8), disc.astype(np.uint8)


def test_gamma_and_white_balance_change_values_as_said() -> None:
    image = np.full((4, 4, 3), 64, np.uint8)
    assert d.gamma(image, 0.5)[0, 0, 0] == 128 and d.gamma(image, 2.0)[0, 0, 0] == 16
    assert d.white_balance(image, np.array([1.5, 1.0, 5.0]))[0, 0].tolist() == [96, 64, 255]


def test_motion_blur_averages_along_its_line_only() -> None:
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[:, SIDE // 2] = 240
    along, across = d.motion_blur(image, 8, 90), d.motion_blur(image, 8, 0)
    assert along[SIDE // 2, SIDE // 2, 0] == 240 and not along[:, SIDE // 2 + 2].any()
    row = across[SIDE // 2, :, 0]
    assert row.max() < 60 and row[SIDE // 2 - 3] > 10 and abs(int(row.sum()) - 240) < 12


def test_noise_has_the_asked_sigma() -> None:
    gray = np.full((256, 256, 3), 128, np.uint8)
    error = d.noise(gray, 20, random()).astype(float) - 128
    assert abs(error.std() - 20) < 0.3 and abs(error.mean()) < 0.3
    assert abs(np.corrcoef(error[..., 0].ravel(), error[..., 1].ravel())[0, 1]) < 0.02


def test_interlacing_sets_the_fields_apart_by_the_shift() -> None:
    image = np.zeros((8, 32, 3), np.uint8)
    image[:, 16] = 255
    woven = d.interlace(image, 7)[..., 0]
    even, odd = woven[0].argmax(), woven[1].argmax()
    assert odd - even == 7 and (even + odd) / 2 == pytest.approx(16, abs=0.5)
    assert (woven[::2] == woven[0]).all() and (woven[1::2] == woven[1]).all()


@pytest.mark.parametrize("seed", range(6))
def test_outline_blackens_the_corners_and_their_mask(seed: int) -> None:
    image, _ = picture()
    seen, mask = d.outline(image, np.ones((SIDE, SIDE), np.uint8), np.random.default_rng(seed))
    assert not seen[0, 0].any() and not mask[-1, -1] and mask[48, 48] == 1
    assert ((seen.sum(2) > 0) == (mask > 0)).all() and 0.6 < mask.mean() < 0.99


def test_a_screen_moves_picture_and_mask_together() -> None:
    image, mask = picture()
    seen, labels = d.screen(image, mask, (0.5, 0.6), random())
    inside = seen.astype(int).sum(2) > 3 * 24
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    assert 45 <= len(rows) <= 58 and 45 <= len(columns) <= 58
    assert labels.sum() / mask.sum() == pytest.approx(inside.sum() / SIDE**2, rel=0.05)
    bright, surroundings = seen[labels > 0].mean(), seen[inside & (labels == 0)].mean()
    assert bright > surroundings + 40  # the mask lies on the disc


def test_a_second_picture_is_background() -> None:
    image, _ = picture()
    seen, mask = d.inset(image, np.ones((SIDE, SIDE), np.uint8), 255 - image, random())
    changed = (seen != image).any(2)
    assert 0.01 < changed.mean() < 0.1 and (mask[changed] == 0).all()
    assert (mask == 0).mean() < 0.1


def test_text_writes_over_a_small_part() -> None:
    image, _ = picture()
    changed = (d.text(image, random()) != image).any(2)
    assert 0.002 < changed.mean() < 0.3


@pytest.mark.parametrize(("codec", "weak", "strong"), [("jpeg", 90, 5), ("h264", 10, 46)])
def test_codecs_keep_the_picture_and_lose_more_when_asked_to(
    codec: str, weak: int, strong: int
) -> None:
    image, _ = picture()
    image = d.noise(image, 6, random())
    errors = [
        np.abs(getattr(d, codec)(image, amount).astype(float) - image).mean()
        for amount in (weak, strong)
    ]
    assert errors[0] < 6 < 1.2 * errors[1] and errors[1] > errors[0] + 1
    assert getattr(d, codec)(image, strong)[..., 0].mean() == pytest.approx(
        image[..., 0].mean(), abs=4
    )  # no swap of red and blue


def test_a_build_without_h264_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    create = av.VideoCodecContext.create
    monkeypatch.setattr(
        av, "VideoCodecContext", SimpleNamespace(create=lambda _, mode: create("absent", mode))
    )
    with pytest.raises(UserError, match=r"no H.264 encoder.*or set augment.degrade.h264_p=0"):
        d.h264(np.zeros((32, 32, 3), np.uint8), 20)


def test_h264_takes_odd_sides() -> None:
    image = picture()[0][:95, :93]
    assert d.h264(image, 20).shape == image.shape


def test_a_batch_is_drawn_by_image_and_not_by_its_company() -> None:
    every = {item.name: 0.5 for item in dataclasses.fields(DegradeConfig) if item.name[-2:] == "_p"}
    config = DegradeConfig(**every)
    image, mask = picture()
    images = torch.from_numpy(image).permute(2, 0, 1).expand(6, -1, -1, -1).float() / 255
    masks = torch.from_numpy(mask).expand(6, -1, -1)
    whole = d.degrade(images, masks, config, (5, 1), torch.arange(6))
    part = d.degrade(images[:2], masks[:2], config, (5, 1), torch.tensor([4, 2]))
    for every_one, some in zip(whole, part, strict=True):
        assert torch.equal(every_one[[4, 2]], some)
    assert len({tuple(one.flatten().tolist()) for one in whole[0]}) == 6
    assert whole[1].dtype == torch.uint8 and whole[0].min() >= 0 and whole[0].max() <= 1


def test_a_larger_source_has_finer_noise_and_finer_blocks() -> None:
    image, mask = picture()
    gray, nothing = np.full((256, 256, 3), 128, np.uint8), np.zeros((256, 256), np.uint8)

    def blocks(factor: float) -> float:
        config = DegradeConfig(source=(factor, factor), source_p=1, jpeg=(10, 10), jpeg_p=1)
        rough = d.noise(gray, 30, random())
        seen = d.degrade_one(rough, nothing, config, random())[0].astype(float)
        steps = np.abs(np.diff(seen[..., 1], axis=1)).mean(0)
        return steps[7::8].mean() / steps.mean()  # edges of blocks of 8 stand out

    def noise(factor: float) -> float:
        config = DegradeConfig(source=(factor, factor), source_p=1, noise=(20, 20), noise_p=1)
        return d.degrade_one(gray, nothing, config, random())[0].std()

    assert blocks(1) > 1.3 > blocks(1.5)
    assert noise(1) == pytest.approx(20, abs=0.5) and 9 < noise(2) < 12  # mean of four
    alone = DegradeConfig(source=(1.4, 1.8), source_p=1)
    seen, labels = d.degrade_one(image, mask, alone, random())
    assert seen.shape == image.shape and np.abs(seen.astype(int) - image).mean() < 1
    assert (labels != mask).mean() < 0.01


def test_nothing_asked_changes_nothing() -> None:
    images, masks = torch.rand(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8)
    assert d.degrade(images, masks, DegradeConfig(), (0,), torch.arange(2))[0] is images
    with pytest.raises(ValueError, match=r"jpeg is \(0, 90\); expected 1 <= low"):
        DegradeConfig(jpeg=(0, 90))
