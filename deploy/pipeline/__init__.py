"""A frame on its way from the source to the screen and the disk."""
