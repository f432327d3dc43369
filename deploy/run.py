"""Segment polyps in a video, live or recorded: ``medisseg run SOURCE --model M --out DIR``.

Exit codes: 0 at the end of the source; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP (the
report is written all the same); 2 for something that you can mend.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script, from any folder
    sys.path.insert(0, str(ROOT))
if sys.path[0] == str(ROOT / "deploy"):  # a module of ours must never hide a library
    del sys.path[0]

from deploy import options as options_module  # noqa: E402
from medisseg.errors import command  # noqa: E402
from medisseg.text import log_to_stderr  # noqa: E402

if TYPE_CHECKING:
    from deploy.options import Options
    from export.runtime.engine import Engine

OTHER_COMMANDS = {
    "replay": "deploy.replay.player",
    "compare": "deploy.replay.compare",
    "chaos": "deploy.chaos.command",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Raises:
        UserError: What the user can mend: an option, a source, the engine or the folder.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    log_to_stderr()
    if words and words[0] in OTHER_COMMANDS:
        return import_module(OTHER_COMMANDS[words[0]]).main(words[1:]) or 0
    chosen = options_module.parse(words)
    from deploy import runner  # brings numpy, PyAV and OpenCV, which --help does without

    return runner.run(chosen, lambda: _open_engine(chosen))


def _open_engine(options: Options) -> Engine:
    from export.runtime import load_engine

    return load_engine(
        options.model,
        options.device,
        options.backend,
        threads=options.threads,
        precision=options.precision,
        trusted_key=options.trusted_key,
    )


def entry(
    words: Sequence[str] | None = None,
    run_command: Callable[[Sequence[str] | None], int | None] = main,
) -> NoReturn:
    """Run as a command, and end even where a library holds on to a thread (a hung engine)."""
    try:
        command(lambda _: run_command(words))
    except SystemExit as end:
        if any(thread.daemon for thread in threading.enumerate()):
            # Python would kill such a thread inside its library, which aborts the process.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(end.code or 0))
        raise


if __name__ == "__main__":
    entry()
