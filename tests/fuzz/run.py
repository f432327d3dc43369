"""Fuzz what reads untrusted input, led by coverage: ``make fuzz SECONDS=60``.

    python tests/fuzz/run.py [NAME ...] [--seconds S] [--folder build/fuzz]

Each harness (manifest, checkpoint, settings, results, page, frames) runs in a process of its own,
two at a time, from its seeds and from what earlier runs kept in ``FOLDER/NAME/corpus``. Only the
errors that a harness expects may escape; an input that makes another one, or takes more than 3 GB
or 300 s (0.2 s of work took 66 s under coverage on a machine with a load of 11), is kept in
``FOLDER/NAME``, and the exit code is 1. A finding that was mended goes into
``tests/fuzz/findings/NAME`` and is a test from then on. Needs atheris (Linux, x86-64) and, for the
branches of the C++ extension, clang++.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAMES = ("frames", "manifest", "checkpoint", "settings", "results", "page")
LED_BY = ["deploy", "export", "medisseg", "kernels", "yaml", "starlette"]
CPP_FLAGS = (
    "-g1 -fsanitize=fuzzer-no-link,undefined -fno-sanitize=vptr,function -fsanitize-trap=undefined"
)


def main() -> int:
    """Fuzz, print a line for each harness; 1 where something was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (all)")
    parser.add_argument("--seconds", type=int, default=60, help="for each harness (60)")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs; 0: another every time")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("--out", type=Path, help="JSON file for what was run and found")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"{min(unknown)!r}; expected some of {', '.join(NAMES)}")
    if args.inside:
        fuzz(args.names[0], args.seconds, args.folder, args.seed)
        return 0
    # Two at a time: CI has two cores, and a harness keeps one busy.
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        rows = list(
            pool.map(
                lambda name: watch(name, args.seconds, args.folder, args.seed), args.names or NAMES
            )
        )
    if args.out:
        args.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    return int(any(row["findings"] for row in rows))


def fuzz(name: str, seconds: int, folder: Path, seed: int) -> None:
    """Fuzz one harness in this process, which ends with it."""
    import atheris

    sys.path.insert(0, str(ROOT))
    with atheris.instrument_imports(include=LED_BY, enable_loader_override=False):
        harness: Any = importlib.import_module(f"tests.fuzz.{name}")
    corpus = folder / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(harness.seeds()):
        (corpus / f"seed-{number}").write_bytes(start)
    known = HERE / "findings" / name
    words = [sys.argv[0], str(corpus), *([str(known)] if known.is_dir() else [])]
    words += [f"-max_total_time={seconds}", "-timeout=300", "-rss_limit_mb=3000", "-max_len=8192"]
    words += [f"-artifact_prefix={folder / name}/", "-print_final_stats=1", f"-seed={seed}"]
    atheris.Setup(words, harness.one)
    atheris.Fuzz()


def watch(name: str, seconds: int, folder: Path, seed: int) -> dict[str, Any]:
    """Fuzz one harness in a process of its own; return and print what came of it."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if name == "frames" and (built := instrumented(folder)):
        environment["MEDISSEG_FUZZ_EXTENSION"] = str(built)
    command = [sys.executable, __file__, name, "--inside", "--seconds", str(seconds)]
    command += ["--seed", str(seed)]
    log = place / "log"
    with log.open("wb") as file:
        code = subprocess.run(
            [*command, "--folder", str(folder)], stdout=file, stderr=file, env=environment, cwd=ROOT
        ).returncode
    text = log.read_text(errors="replace")
    row: dict[str, Any] = {"harness": name, "seconds": seconds}
    row["native"] = "MEDISSEG_FUZZ_EXTENSION" in environment
    for key, pattern in (
        ("runs", r"number_of_executed_units: (\d+)"),
        ("coverage", r"#\d+\s+DONE\s+cov: (\d+)"),
        ("features", r"#\d+\s+DONE\s+cov: \d+ ft: (\d+)"),
    ):
        found = re.findall(pattern, text)
        row[key] = int(found[-1]) if found else None
    row["findings"] = 0 if code == 0 and row["runs"] else 1
    print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if row["findings"]:
        print("\n".join(text.splitlines()[-30:]), file=sys.stderr)
        print(f"error: {name} ended with {code}; see {log}", file=sys.stderr)
    return row


def instrumented(folder: Path) -> Path | None:
    """Build the extension's CPU part with counters for libFuzzer; None without clang++."""
    compiler = shutil.which(os.environ.get("FUZZ_CXX", "clang++"))
    if compiler is None:
        print("no clang++: the extension is fuzzed without its own branches", file=sys.stderr)
        return None
    import pybind11

    build = folder / "extension"
    build.mkdir(parents=True, exist_ok=True)
    options = [f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_CXX_FLAGS={CPP_FLAGS}"]
    # Only the extension is linked: a program would lack the counters, which atheris has.
    options += ["-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY"]
    options += ["-DMEDISSEG_CUDA=OFF", "-DCMAKE_BUILD_TYPE=None"]
    options += [f"-DPython_EXECUTABLE={sys.executable}"]
    options += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    cmake = shutil.which("cmake") or str(Path(sys.executable).parent / "cmake")
    with (build / "log").open("wb") as log:
        for words in (["-S", str(ROOT), "-B", str(build), *options], ["--build", str(build), "-j"]):
            subprocess.run([cmake, *words], check=True, stdout=log, stderr=log)
    (found,) = build.rglob("_frames*.so")
    return found


if __name__ == "__main__":
    sys.exit(main())
