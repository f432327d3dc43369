"""The two-stage training, its run folder and the studies of the paper."""
