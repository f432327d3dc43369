"""What is seen on a frame: its quality, its regions, and the tracks that they form over time."""
