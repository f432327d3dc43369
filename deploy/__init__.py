"""The real-time runner: video in, annotated video and records out."""

from medisseg.cli import Command

COMMAND = Command(
    "deploy.run", "segment a video, live or recorded; replay, compare, chaos", "entry"
)
