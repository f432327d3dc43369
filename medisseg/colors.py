"""Every colour that means something on a picture, a chart or a page: RGB in [0, 255].

Told apart with the common colour-vision deficiencies (after Okabe and Ito 2008). What one means
is the same everywhere: orange is missed on training's samples as on the pages of an evaluation.
"""

from __future__ import annotations

Color = tuple[int, int, int]

GREEN, ORANGE, SKY, PURPLE = (0, 158, 115), (230, 159, 0), (86, 180, 233), (204, 60, 160)
BLUE, VERMILION, YELLOW = (0, 114, 178), (213, 94, 0), (240, 228, 66)
VIOLET, GREY, TEAL = (140, 86, 200), (160, 160, 160), (11, 138, 143)
WHITE = (255, 255, 255)

# Classes without colours of their own, in the order of their indices.
PALETTE: tuple[Color, ...] = (
    GREEN, ORANGE, SKY, PURPLE, BLUE, VERMILION, YELLOW, VIOLET, GREY,
)  # fmt: skip
# A prediction against its reference.
FOUND, MISSED, FALSE = GREEN, ORANGE, PURPLE
# The mask and the tracks of a network without named classes: a tone that is rare in mucosa.
LESION = (0, 220, 170)
# Two runs of one video.
BOTH, ONLY_A, ONLY_B = LESION, YELLOW, SKY
# The rim of the endoscopic picture: thin and grey, apart from everything that is found.
RIM = (120, 120, 120)
# The curves of a chart, in order.
CURVES: tuple[Color, ...] = (TEAL, ORANGE, SKY, PURPLE, BLUE, VERMILION, VIOLET, GREY)


def css(color: Color) -> str:
    """Return a colour as pages and Matplotlib read it.

    Example:
        >>> css(ORANGE)
        '#e69f00'
    """
    return "#{:02x}{:02x}{:02x}".format(*color)
