"""The real-time runner: video in, annotated video and records out."""
