"""Those who watch a run: the live page, a window, Prometheus."""
