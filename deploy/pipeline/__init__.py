"""The pipeline: stages from the source to the screen and the disk, in threads."""
