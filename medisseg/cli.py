"""The ``medisseg`` command: one subcommand a job, each in the module that does the job.

A subcommand's module has ``EXAMPLE`` (shown by ``--help``),
``add_arguments(parser)`` and ``run(args)``. It is imported only when it is asked for.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

import medisseg
from medisseg.errors import command

COMMANDS = {
    "train": ("medisseg.training.command", "train a network in two stages, or run a study"),
    "evaluate": ("medisseg.evaluation.evaluate_command", "measure a checkpoint on labelled images"),
    "predict": ("medisseg.evaluation.predict_command", "segment images: masks and overlays"),
    "explain": ("medisseg.evaluation.explain_command", "picture what the features look at"),
    "phantom": (
        "medisseg.phantom.command",
        "generate colonoscopy images and video with exact masks",
    ),
    "import-checkpoint": (
        "medisseg.model.import_command",
        "convert the authors' checkpoint to ours",
    ),
    "doctor": ("medisseg.doctor", "say what this machine can do and what is missing"),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the top level; the subcommands' own options are added on demand."""
    top = argparse.ArgumentParser(prog="medisseg", description=medisseg.__doc__)
    top.add_argument("--version", action="version", version=f"medisseg {medisseg.__version__}")
    listed = "\n".join(f"  {name:18} {text}" for name, (_, text) in COMMANDS.items())
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.epilog = f"commands:\n{listed}\n\nmedisseg COMMAND --help shows an example of each."
    top.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    top.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return top


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one subcommand; return its exit code."""
    chosen = parser().parse_args(argv)
    module = importlib.import_module(COMMANDS[chosen.command][0])
    own = argparse.ArgumentParser(
        prog=f"medisseg {chosen.command}",
        description=COMMANDS[chosen.command][1].capitalize() + ".",
        epilog=f"example:\n  {module.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(own)
    return module.run(own.parse_intermixed_args(chosen.arguments))


def entry() -> None:
    """Console entry point."""
    command(main)
