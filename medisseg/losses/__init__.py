"""What training minimises: mask terms, the dispersive term, and the two stages' sums.

Here stand the names that the dispersive term's options may take, for whoever must know them
without PyTorch.
"""

VARIANTS = ("infonce_l2", "infonce_cosine", "hinge", "covariance")  # kernels.dispersive.VARIANTS
PLACEMENTS = ("early", "middle", "late", "all")
GRANULARITIES = ("image", "pixel")
NORMALIZE = ("unit", "none")
MASKS = ("cross_entropy_dice", "focal_dice", "tversky")  # medisseg.losses.mask
