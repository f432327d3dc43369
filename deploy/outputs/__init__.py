"""The outputs of a run: drawn pictures, videos, lines of results."""
