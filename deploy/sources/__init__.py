"""Where frames come from: files, folders, standard input, cameras and network streams."""
