"""What a frame becomes: a drawn picture, a part of a video, a line of results."""
