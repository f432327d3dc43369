"""The ``medisseg`` command: one subcommand a job, each in the module that does the job.

A subcommand of ours is a module with ``EXAMPLE`` (shown by ``--help``), ``add_arguments(parser)``
and ``run(args)``. Other packages add theirs through the entry-point group ``medisseg.commands``,
whose entries name a :class:`Command`. A module is imported only when its subcommand is asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import medisseg
from medisseg.arguments import Parser
from medisseg.errors import UserError, command

GROUP = "medisseg.commands"


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        module: Where it is done.
        help: What it does, in a few words.
        function: Takes the subcommand's words and returns its exit code; None for a module of
            ours.
    """

    module: str
    help: str
    function: str | None = None


COMMANDS = {
    "data": Command(
        "medisseg.data.command", "say what is in a data folder before it is trained on"
    ),
    "train": Command("medisseg.training.command", "train a network in two stages, or run a study"),
    "evaluate": Command(
        "medisseg.evaluation.evaluate_command", "measure a checkpoint on labelled images"
    ),
    "compare": Command(
        "medisseg.evaluation.compare_command", "several systems on the same images, with tests"
    ),
    "predict": Command("medisseg.evaluation.predict_command", "segment images: masks and overlays"),
    "explain": Command("medisseg.evaluation.explain_command", "picture what the features look at"),
    "phantom": Command(
        "medisseg.phantom.command", "generate colonoscopy images and video with exact masks"
    ),
    "import-checkpoint": Command(
        "medisseg.model.import_command", "convert the authors' checkpoint to ours"
    ),
    "doctor": Command("medisseg.doctor", "say what this machine can do and what is missing"),
}
ADDED = ("build", "run")  # by the packages export and deploy, where they are installed


def commands(name: str = "") -> dict[str, Command]:
    """Return every subcommand by name, those of other packages last.

    Entry points are read from every installed package: 0.09 of the 0.31 s that ``--help`` took.
    So a ``name`` that is ours, or that came with us, is not looked for in the others.
    """
    from importlib import metadata

    if name in COMMANDS:
        return COMMANDS
    points: metadata.EntryPoints | None = None
    if name in ADDED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            points = metadata.distribution("medisseg").entry_points.select(group=GROUP, name=name)
    points = points or metadata.entry_points(group=GROUP)
    return COMMANDS | {point.name: point.load() for point in points}


def parser(known: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Return the parser of the top level; the subcommands' own options are added on demand."""
    top = Parser(prog="medisseg", description=medisseg.__doc__)
    top.add_argument("--version", action="version", version=f"medisseg {medisseg.__version__}")
    listed = "\n".join(f"  {name:18} {one.help}" for name, one in known.items())
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.epilog = f"commands:\n{listed}\n\nmedisseg COMMAND --help shows an example of each."
    top.add_argument("command", choices=list(dict.fromkeys([*known, *ADDED])), metavar="COMMAND")
    top.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return top


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one subcommand; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    known = commands(words[0] if words else "")
    chosen = parser(known).parse_args(words)
    name = chosen.command
    if name not in known:
        raise UserError(
            f"medisseg {name} comes with the installed package, and it is not installed; "
            "run: pip install -e ."
        )
    module = importlib.import_module(known[name].module)
    if (function := known[name].function) is not None:
        code: int | None = getattr(module, function)(chosen.arguments)
        return code
    own = Parser(
        prog=f"medisseg {name}",
        description=known[name].help.capitalize() + ".",
        epilog=f"example:\n  {module.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(own)
    code = module.run(own.parse_intermixed_args(chosen.arguments))
    return code


def entry() -> None:
    """Console entry point."""
    command(main)
