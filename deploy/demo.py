"""The whole chain in one command: data, training, engines, video, report. ``make demo`` runs this.

Each step leaves its product under ``--out`` and is skipped when the product stands, so that a demo
that was interrupted goes on where it stopped and a second one is quick.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script, from any folder
    sys.path.insert(0, str(ROOT))

from medisseg.arguments import Parser  # noqa: E402
from medisseg.errors import UserError, command  # noqa: E402
from medisseg.files import replacing  # noqa: E402

PHANTOM = ["--images", "240", "--frames", "200", "--seed", "7"]
PACKAGED = "edge-polyp"
RTX_GPUS = ("sm86", "sm89")  # RTX 30 and RTX 40


def main(argv: Sequence[str] | None = None) -> int:
    """Train, build, stream; print a table, leave ``report.json`` and ``report.html``."""
    args = parse(argv)
    out: Path = args.out
    check_inputs(args)
    named = ("data", "video", "truth", "config", "minutes")
    begin(out, {key: str(getattr(args, key) or "") for key in named})
    data, video, truth = sources(args)
    checkpoint, dice = trained(data, args, out) if data else packaged()
    engine = out / "engine"
    step("build the engine", engine / "manifest.json", lambda: build(checkpoint, data, engine))
    rtx = build_rtx(checkpoint, data, out / "engine-rtx")
    streamed = stream(engine, video, truth, out / "video")
    result = {
        "dice_video": streamed.get("dice_video"),
        "dice_val": dice,
        **{key: streamed[key] for key in ("backend", "frames", "latency_ms", "fps")},
        "engine": str(engine),
        "rtx_engine": str(rtx) if rtx else None,
        "overlay": str(min((out / "video").glob("overlay-*.mp4"))),
        "video": str(video),
        "checkpoint": str(checkpoint),
    }
    with replacing(out / "report.json") as tmp_path:
        tmp_path.write_text(json.dumps(result, indent=2) + "\n")
    from deploy import demo_report

    demo_report.write_page(out, result, data)
    demo_report.print_table(out, result)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = Parser(
        prog="deploy/demo.py",
        description=__doc__,
        epilog="example:\n  python deploy/demo.py --data polyps --video exam.mp4 --out runs/mine",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="images/, masks/, train.txt, val.txt (generated)")
    parser.add_argument(
        "--video", type=Path, help=f"a video to stream (generated); alone: through {PACKAGED}"
    )
    parser.add_argument("--truth", type=Path, help="folder of the video's masks, one a frame")
    parser.add_argument("--config", default="demo", help="training configuration (demo)")
    parser.add_argument("--minutes", type=float, help="minutes of training (the configuration's)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (runs/demo)")
    return parser.parse_args(argv)


def check_inputs(args: argparse.Namespace) -> None:
    """Check data, video and masks before minutes are spent on training.

    Raises:
        UserError: One of them is absent or empty.
    """
    if args.minutes is not None and not args.minutes > 0:
        raise UserError(f"--minutes {args.minutes:g}; expected more than 0")
    if args.data is not None:
        from medisseg.data.folder import SegmentationFolder

        for split in ("train", "val"):
            SegmentationFolder(args.data, split)
    if args.video is not None:
        import av

        try:
            with av.open(str(args.video)) as container:
                next(container.decode(video=0))
        except (OSError, IndexError, StopIteration, av.FFmpegError) as error:
            raise UserError(f"{args.video} is not a video that can be decoded ({error})") from error
    if args.truth is not None and not args.truth.is_dir():
        raise UserError(f"--truth {args.truth} is not a folder; expected one mask a frame in it")


def begin(out: Path, settings: dict[str, str]) -> None:
    """Keep the files of an earlier demo with the same inputs; delete those of another."""
    marker = out / "settings.json"
    if marker.is_file() and json.loads(marker.read_text()) == settings:
        return
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another --out")
    if out.is_dir() and any(out.iterdir()):
        if not marker.is_file():
            raise UserError(f"{out} holds something else than a demo; choose another --out")
        print(f"{out} held a demo of other inputs or options: starting anew")
        shutil.rmtree(out, ignore_errors=True)
    with replacing(marker) as tmp_path:
        tmp_path.write_text(json.dumps(settings))


def step(what: str, product: Path, make: Callable[[], object]) -> None:
    """Run ``make`` unless the file that it produces exists; print its seconds."""
    from rich.console import Console

    stands = product.exists()
    note = " (stands from before)" if stands else ""
    Console().rule(f"[bold]{what}[/bold]{note}", align="left")
    if not stands:
        make()


def sources(args: argparse.Namespace) -> tuple[Path | None, Path, Path | None]:
    """Return the data folder, the video and the video's masks.

    Without a video both come from the phantom; a video alone needs no data: the packaged checkpoint
    looks at it.
    """
    if args.video is not None:
        return args.data, args.video, args.truth
    phantom = args.out / "phantom"
    step("phantom", phantom / "val.txt", lambda: medisseg("phantom", str(phantom), *PHANTOM))
    return args.data or phantom, phantom / "video.mp4", phantom / "video-masks"


def trained(data: Path, args: argparse.Namespace, out: Path) -> tuple[Path, float]:
    """Train and evaluate; return the checkpoint and its mean Dice on the validation images."""
    checkpoint = out / "train" / "stage2" / "best.safetensors"
    metrics = out / "evaluation" / "metrics.json"
    step("train", out / "train" / "summary.json", lambda: train(data, args, out / "train"))
    step("evaluate", metrics, lambda: evaluate(checkpoint, data, metrics.parent))
    return checkpoint, json.loads(metrics.read_text())["mdsc"]


def packaged() -> tuple[Path, float]:
    """Return the checkpoint that comes with the package and the Dice that its header states."""
    from medisseg.checkpoint import read_header, resolve

    checkpoint = resolve(PACKAGED)
    return checkpoint, read_header(checkpoint).metrics["val_dice"]


def medisseg(*arguments: str) -> None:
    """Run one ``medisseg`` command as a user would: in a process of its own, whose threads and
    memory are gone when the next begins."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "medisseg", *arguments], env={**os.environ, "PYTHONPATH": paths}
    )
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # it was told as well, and leaves its folder in order
        code = 130
    if code in (2, 130):  # it has said why, in one line
        sys.exit(code)
    if code:
        raise UserError(f"medisseg {arguments[0]} ended with exit code {code}; its reason is above")


def train(data: Path, args: argparse.Namespace, out: Path) -> None:
    """Train as the configuration says; a run that was interrupted goes on."""
    budget = [f"budget_minutes={args.minutes}"] if args.minutes else []
    medisseg("train", args.config, f"data={data}", f"out={out}", *budget)


def evaluate(checkpoint: Path, data: Path, out: Path) -> None:
    """Measure the checkpoint on the validation images."""
    medisseg("evaluate", str(checkpoint), "--data", str(data), "--split", "val", "--out", str(out))


def build(checkpoint: Path, data: Path | None, out: Path, **options: Any) -> None:
    """Build the engine for this machine: TensorRT FP16 with a GPU, OpenVINO without.

    A network that learned little has many pixels beside the threshold, so that FP16 may be refused:
    float32 is built then.
    """
    from export import build_engine
    from export.verify import Diverged

    try:
        build_engine.build(checkpoint, out=out, data=data, **options)
    except Diverged as error:
        print(f"{error}; the demo builds fp32")
        build_engine.build(checkpoint, out=out, data=data, precision="fp32", **options)


def build_rtx(checkpoint: Path, data: Path | None, out: Path) -> Path | None:
    """Build an engine for RTX 30 and 40 GPUs where TensorRT for RTX is installed."""
    from importlib.util import find_spec

    if find_spec("tensorrt_rtx") is None:
        print("TensorRT for RTX is not installed: no RTX engine (pip install '.[rtx]')")
        return None
    step(
        "build for RTX GPUs",
        out / "manifest.json",
        lambda: build(checkpoint, data, out, backend="tensorrt-rtx", gpu=RTX_GPUS),
    )
    return out


def stream(engine: Path, video: Path, truth: Path | None, out: Path) -> dict[str, Any]:
    """Run the video through the runner and return its report."""
    from deploy import run

    shutil.rmtree(out, ignore_errors=True)
    step("stream the video", out / "report.json", lambda: None)
    arguments = [str(video), "--model", str(engine), "--out", str(out)]
    code = run.main([*arguments, *(["--truth", str(truth)] if truth else [])])
    if code:
        raise UserError(f"the runner ended with exit code {code}; see {out}")
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


if __name__ == "__main__":
    command(main)
