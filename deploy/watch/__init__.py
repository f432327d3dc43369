"""Live outputs of a run: the page, a window, metrics for Prometheus."""
