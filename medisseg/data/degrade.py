"""Random degradations of endoscopic images, as light, camera, processor and codec cause them.

On the CPU; images are uint8 RGB [H, W, 3], masks uint8 class indices [H, W]. In the order in which
they arise: the size of the source's picture, light (gamma, white balance), camera (motion blur,
noise), interlaced fields of a moving camera, the round or octagonal picture, the processor's screen
with text and a small second picture, the codec. The mask follows the geometry; the small second
picture is background. With OpenCV and, for H.264, the real encoder (PyAV).
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medisseg.data.options import DegradeConfig
from medisseg.errors import UserError
from medisseg.video import h264_encoder

Pixels = npt.NDArray[np.uint8]
Random = np.random.Generator
TEXT = string.ascii_uppercase + string.digits + "     :/.-"
TEXT_COLORS = ((255, 255, 255), (255, 255, 0), (0, 255, 0), (0, 255, 255), (160, 160, 160))


def degrade(
    images: Tensor, masks: Tensor, config: DegradeConfig, key: Sequence[int], indices: Tensor
) -> tuple[Tensor, Tensor]:
    """Degrade a batch, each image by its own draws.

    Args:
        images: Float RGB [B, 3, H, W] in [0, 1]; a GPU's go through the CPU and back.
        masks: Class indices uint8 [B, H, W].
        config: Probabilities and ranges.
        key: Non-negative integers that name the occasion, e.g. (use, seed, stage, epoch).
        indices: Of the images, int64 [B].

    Returns:
        The changed images (8 bit a channel, as a cable carries them) and masks.
    """
    if not config.any():
        return images, masks
    pixels = (images * 255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    labels = masks.cpu().numpy()
    pairs = [
        degrade_one(pixels[k], labels[k], config, np.random.default_rng((*key, int(index))))
        for k, index in enumerate(indices)
    ]
    changed = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2)
    followed = torch.from_numpy(np.stack([mask for _, mask in pairs]))
    return changed.to(images.device, images.dtype) / 255, followed.to(masks.device)


def degrade_one(
    image: Pixels, mask: Pixels, config: DegradeConfig, random: Random
) -> tuple[Pixels, Pixels]:
    """Degrade one image uint8 RGB [H, W, 3]; its mask uint8 [H, W] follows."""

    def happens(probability: float) -> bool:
        return probability > 0 and random.random() < probability

    def between(limits: tuple[float, float]) -> float:
        return random.uniform(*limits)

    size = mask.shape
    if happens(config.source_p):
        height, width = (round(side * between(config.source)) for side in size)
        image, mask = resized(image, mask, (height, width))
    whole = image
    if happens(config.gamma_p):
        low, high = config.gamma
        image = gamma(image, low * (high / low) ** random.random())
    if happens(config.white_p):
        image = white_balance(image, 1 + random.uniform(-config.white, config.white, 3))
    if happens(config.motion_p):
        image = motion_blur(image, between(config.motion), random.uniform(0, 180))
    if happens(config.noise_p):
        image = noise(image, between(config.noise), random)
    if happens(config.interlace_p):
        image = interlace(image, between(config.interlace) * random.choice((-1, 1)))
    if happens(config.outline_p):
        image, mask = outline(image, mask, random)
    if happens(config.screen_p):
        image, mask = screen(image, mask, config.screen, random)
    if happens(config.inset_p):
        image, mask = inset(image, mask, whole, random)
    if happens(config.text_p):
        image = text(image, random)
    if happens(config.h264_p):
        image = h264(image, round(between(config.h264)))
    if happens(config.jpeg_p):
        image = jpeg(image, round(between(config.jpeg)))
    return resized(image, mask, size)


def resized(image: Pixels, mask: Pixels, size: tuple[int, ...]) -> tuple[Pixels, Pixels]:
    """Bring image [H, W, 3] and mask [H, W] to ``size`` (height, width); reduced without
    antialiasing, as the network's input is."""
    import cv2

    if mask.shape == size:
        return image, mask
    how = cv2.INTER_CUBIC if size[0] > mask.shape[0] else cv2.INTER_LINEAR
    height, width = size
    pixels = np.asarray(cv2.resize(image, (width, height), interpolation=how), np.uint8)
    labels = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    return pixels, np.asarray(labels, np.uint8)


def gamma(image: Pixels, exponent: float) -> Pixels:
    """Raise intensities in [0, 1] to ``exponent``: below 1 brightens, above 1 darkens."""
    table = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
    return table[image]


def white_balance(image: Pixels, gains: npt.NDArray[np.float64]) -> Pixels:
    """Multiply red, green and blue by ``gains`` [3]."""
    return np.clip(np.rint(image * gains.astype(np.float32)), 0, 255).astype(np.uint8)


def motion_blur(image: Pixels, length: float, angle: float) -> Pixels:
    """Average an image [H, W, 3] along a line of ``length`` pixels at ``angle`` degrees."""
    import cv2

    side = 2 * math.ceil(length / 2) + 1
    across, down = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    kernel = np.zeros((side, side), np.float32)
    for step in np.linspace(-length / 2, length / 2, 4 * side):
        kernel[round(side // 2 + step * down), round(side // 2 + step * across)] += 1
    blurred = cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)
    return blurred.astype(np.uint8, copy=False)


def noise(image: Pixels, sigma: float, random: Random) -> Pixels:
    """Add Gaussian noise of ``sigma`` of 255, independent in every element of [H, W, 3]."""
    added = image + sigma * random.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(added), 0, 255).astype(np.uint8)


def interlace(image: Pixels, shift: float) -> Pixels:
    """Weave two fields between which the picture moved by ``shift`` pixels: the even rows stand
    half of it to the left of the odd ones, so that the mask stays where it is on average."""
    columns = np.arange(image.shape[1])
    left, right = math.floor(shift / 2), math.ceil(shift / 2)
    woven = image.copy()
    woven[::2] = image[::2][:, np.clip(columns + left, 0, len(columns) - 1)]
    woven[1::2] = image[1::2][:, np.clip(columns - right, 0, len(columns) - 1)]
    return woven


def outline(image: Pixels, mask: Pixels, random: Random) -> tuple[Pixels, Pixels]:
    """Blacken image [H, W, 3] and mask [H, W] outside an ellipse or an octagon."""
    height, width = mask.shape
    y = np.abs(np.linspace(-1, 1, height))[:, None]
    x = np.abs(np.linspace(-1, 1, width))[None]
    if random.random() < 0.5:
        inside = x**2 + y**2 <= random.uniform(1.0, 1.6)
    else:
        inside = x + y <= random.uniform(1.4, 1.8)
    return image * inside[..., None], mask * inside


def screen(
    image: Pixels, mask: Pixels, share: tuple[float, float], random: Random
) -> tuple[Pixels, Pixels]:
    """Place the picture in a dark screen; its height and width there are shares of the screen's."""
    import cv2

    height, width = mask.shape
    rows = max(8, round(height * math.sqrt(random.uniform(share[0] ** 2, share[1] ** 2))))
    columns = max(8, round(width * random.uniform(*share)))
    top = int(random.integers(height - rows + 1))
    left = int(random.integers(width - columns + 1))
    inside = np.s_[top : top + rows, left : left + columns]
    canvas = np.full_like(image, int(random.integers(0, 24)))
    canvas[inside] = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    labels = np.zeros_like(mask)
    labels[inside] = cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_NEAREST)
    return canvas, labels


def inset(image: Pixels, mask: Pixels, picture: Pixels, random: Random) -> tuple[Pixels, Pixels]:
    """Put ``picture`` [h, w, 3] small at a border of [H, W, 3]; what it covers is background."""
    import cv2

    height, width = mask.shape
    rows, columns = (max(8, round(side * random.uniform(0.12, 0.3))) for side in (height, width))
    top = int(random.choice((0, height - rows, random.integers(height - rows + 1))))
    left = int(random.choice((0, width - columns)))
    inside = np.s_[top : top + rows, left : left + columns]
    image, mask = image.copy(), mask.copy()
    image[inside] = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA)
    mask[inside] = 0
    return image, mask


def text(image: Pixels, random: Random) -> Pixels:
    """Write a few lines at a border or corner, as processors write names, dates and settings."""
    import cv2

    height, width = image.shape[:2]
    image = image.copy()
    scale = random.uniform(0.2, 0.5) * width / 256
    color = TEXT_COLORS[random.integers(len(TEXT_COLORS))]
    left = int(random.choice((2, width * 2 // 3)))
    top = int(random.uniform(0.04, 0.9) * height)
    for line in range(int(random.integers(1, 8))):
        written = "".join(random.choice(list(TEXT), int(random.integers(2, 14))))
        place = left, top + round(line * 32 * scale)
        cv2.putText(image, written, place, cv2.FONT_HERSHEY_SIMPLEX, scale, color, 1, cv2.LINE_AA)
    return image


def jpeg(image: Pixels, quality: int) -> Pixels:
    """Store an image [H, W, 3] as JPEG of ``quality`` 1 to 100 and read it back."""
    import cv2

    _, stored = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    back = cv2.imdecode(stored, cv2.IMREAD_COLOR)
    assert back is not None
    return np.ascontiguousarray(back[..., ::-1], dtype=np.uint8)


def h264(image: Pixels, quantizer: int) -> Pixels:
    """Encode [H, W, 3] as an H.264 key frame of ``quantizer`` 0 to 51 (4:2:0), and decode.

    Raises:
        UserError: PyAV was built without an H.264 encoder.
    """
    import av

    height, width = (side - side % 2 for side in image.shape[:2])
    settings = {"preset": "ultrafast", "tune": "zerolatency", "qp": str(quantizer)}
    try:
        encoder = h264_encoder((height, width), 25, **settings)
    except UserError as error:
        raise UserError(f"{error}, or set augment.degrade.h264_p=0") from error
    even = np.ascontiguousarray(image[:height, :width])
    packets = [*encoder.encode(av.VideoFrame.from_ndarray(even, "rgb24")), *encoder.encode(None)]
    decoder = av.VideoCodecContext.create("h264", "r")
    decoder.thread_count = 1
    frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    back = image.copy()
    back[:height, :width] = frames[0].to_ndarray(format="rgb24")
    return back
