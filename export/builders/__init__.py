"""From a graph in its final precision to what a backend runs."""
