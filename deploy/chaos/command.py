"""Try the runner's behaviour under faults on this machine: ``medisseg run chaos``.

Files are damaged, a source is killed, the engine breaks, the disk is full, the process is killed;
a table says what was expected and what happened. Everything is generated, on this machine's
loopback, in a temporary folder, and bounded in time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from deploy.chaos.bench import Bench, Failed, Unable
from deploy.chaos.faults import WITHIN
from deploy.chaos.processes import APART, start
from export.runtime.engine import Engine
from medisseg.arguments import Parser
from medisseg.errors import UserError

EXAMPLE = """examples:
  medisseg run chaos
  medisseg run chaos --model runs/demo/engine --json
  medisseg run chaos --only "source lost and back" --only "slow model\""""
MODEL = "edge-polyp"
LONGEST_S = 600.0  # of one fault that still gets on
MET, FAILED, NOT_RUN = "as expected", "FAILED", "not run"


@dataclass(frozen=True)
class FaultOutcome:
    """One row of the table; ``result`` is "as expected", "FAILED" or "not run"."""

    fault: str
    expected: str
    happened: str
    result: str
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the faults; return 1 when one was not met as expected."""
    parser = Parser(
        prog="medisseg run chaos",
        description="Break things on purpose and see that the runner meets it as promised.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=MODEL, help=f"bundle, checkpoint or name ({MODEL})")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--only", action="append", metavar="FAULT", help="only this (repeatable)")
    parser.add_argument("--limit-s", type=float, default=60.0, help="start no fault later (60)")
    args = parser.parse_args(argv)
    names = [*WITHIN, *APART]
    if unknown := set(args.only or ()) - set(names):
        raise UserError(f"--only {min(unknown)!r}; expected some of: {', '.join(names)}")
    outcomes = run_faults(args.model, args.only or names, args.limit_s)
    if args.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
    else:
        print_table(outcomes)
    return int(any(outcome.result == FAILED for outcome in outcomes))


def run_faults(
    model: str,
    names: Sequence[str],
    limit_s: float = 60.0,
    open_engine: Callable[[str], Engine] | None = None,
    runner: tuple[str, ...] = (),
) -> list[FaultOutcome]:
    """Run the named faults through a model and return what came of each.

    Args:
        model: Bundle, checkpoint or name.
        names: Keys of ``WITHIN`` and ``APART``.
        limit_s: No fault is started after so many seconds.
        open_engine: Opens the engine (``export.runtime.load_engine``).
        runner: Command that starts a run of its own (``medisseg run``).
    """
    if open_engine is None:
        from export.runtime import load_engine

        open_engine = load_engine
    until = time.monotonic() + limit_s
    progress = sys.stderr
    with tempfile.TemporaryDirectory(prefix="medisseg-chaos-") as folder, quiet():
        engine = open_engine(model)
        bench = Bench(Path(folder), engine, model, runner)
        try:
            return list(_each(bench, names, until, progress))
        finally:
            bench.close()
            engine.close()


def _each(
    bench: Bench, names: Sequence[str], until: float, progress: TextIO
) -> Iterator[FaultOutcome]:
    """Yield the outcome of each fault; those in processes of their own run in parallel."""
    attempts = [Attempt(name, *start(bench, name)) for name in APART if name in names]
    for name in (name for name in WITHIN if name in names):
        act = WITHIN[name]
        if time.monotonic() > until:
            yield FaultOutcome(name, str(act.__doc__), "out of time: --limit-s", NOT_RUN, 0.0)
            continue
        show_progress(progress, f"{name} ...")
        yield Attempt(name, act, bench).outcome(LONGEST_S)
    show_progress(progress, "waiting for the processes that were killed ...")
    for attempt in attempts:
        yield attempt.outcome(LONGEST_S)
    show_progress(progress, "")


def show_progress(terminal: TextIO, text: str) -> None:
    """Replace the line of progress on a terminal; nothing is written elsewhere."""
    if terminal.isatty():
        print(f"\r\x1b[K{text}", end="", file=terminal, flush=True)


class Attempt:
    """One fault, tried in a thread of its own."""

    def __init__(self, name: str, act: Callable[..., str], *arguments: object) -> None:
        self._name, self._expected = name, str(act.__doc__)
        self._found: list[tuple[str, str]] = []
        self._began = self._ended = time.monotonic()
        self._thread = threading.Thread(target=self._work, args=(act, *arguments), daemon=True)
        self._thread.start()

    def _work(self, act: Callable[..., str], *arguments: object) -> None:
        try:
            found = act(*arguments), MET
        except Unable as error:
            found = str(error), NOT_RUN
        except Failed as error:
            found = str(error), FAILED
        except Exception as error:  # whatever it is, it is the finding
            found = f"{type(error).__name__}: {error}"[:200], FAILED
        self._ended = time.monotonic()
        self._found.append(found)

    def outcome(self, most_s: float) -> FaultOutcome:
        """Wait until ``most_s`` seconds after the beginning at most; return the outcome."""
        self._thread.join(max(0.0, self._began + most_s - time.monotonic()))
        if not self._found:
            happened = f"no end within {most_s:g} s"
            return FaultOutcome(self._name, self._expected, happened, FAILED, most_s)
        seconds = round(self._ended - self._began, 2)
        return FaultOutcome(self._name, self._expected, *self._found[0], seconds)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output of the runs within a block: the table reports them."""
    log = logging.getLogger("deploy")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    hidden = io.StringIO()
    try:
        with contextlib.redirect_stdout(hidden), contextlib.redirect_stderr(hidden):
            yield
    finally:
        log.setLevel(level)


def print_table(outcomes: list[FaultOutcome]) -> None:
    """Print a row for each fault: what was expected, what happened, seconds."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Faults on this machine")
    for column in ("fault", "expected", "happened", "s", ""):
        table.add_column(column, justify="right" if column == "s" else "left")
    styles = {MET: "green", FAILED: "bold red", NOT_RUN: "yellow"}
    for outcome in outcomes:
        table.add_row(
            Text(outcome.fault),
            Text(outcome.expected),
            Text(outcome.happened[:140] + "…" * (len(outcome.happened) > 140)),
            f"{outcome.seconds:.1f}",
            Text(outcome.result, style=styles[outcome.result]),
        )
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    counts = {result: sum(o.result == result for o in outcomes) for result in styles}
    print(", ".join(f"{count} {result}" for result, count in counts.items() if count))
