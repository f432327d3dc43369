"""What training minimises: mask terms, the dispersive term, and the two stages' sums.

The names that options of the losses may take are defined here, so that configurations can be
checked without importing PyTorch.
"""

VARIANTS = ("infonce_l2", "infonce_cosine", "hinge", "covariance")  # kernels.dispersive.VARIANTS
PLACEMENTS = ("early", "middle", "late", "all")
GRANULARITIES = ("image", "pixel")
NORMALIZE = ("unit", "none")
MASKS = ("cross_entropy_dice", "focal_dice", "tversky")  # medisseg.losses.mask
