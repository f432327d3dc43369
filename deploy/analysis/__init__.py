"""Analysis of frames: their quality, the regions of their masks, and tracks over time."""
