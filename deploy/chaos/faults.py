"""The faults of ``medisseg run chaos``; each returns in a few words what happened.

A fault that is not met as expected raises; its docstring says what is expected.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deploy.chaos.bench import Bench, Failed, Hook, Unable, counted, expect
from deploy.chaos.loopback import FPS, LoopbackSource
from deploy.chaos.videos import decoded, scene, screen
from deploy.outputs.recording import FEWEST
from deploy.status import AI_OFF, LIVE, OFFLINE
from export.runtime.engine import Array
from medisseg.errors import UserError
from medisseg.video import write_video

FRAMES = 30
LONG = 400  # frames: for the processes that are killed half way
LARGEST_MODEL = 1_000_000_000  # bytes that are copied at most, to be damaged
SLOW_MS = 250
INTERVAL_MS = 1000 / FPS


def refused(act: Callable[[], object]) -> str:
    """Return the one line with which something is refused."""
    try:
        act()
    except UserError as error:
        expect("\n" not in str(error), "refused, but in several lines")
        return f"refused: {error}"
    raise Failed("it was taken")


def empty_file(bench: Bench) -> str:
    """refused in one line"""
    path = bench.folder / "empty.mp4"
    path.touch()
    return refused(lambda: bench.play(path)).replace(f"{bench.folder}/", "")


def no_video(bench: Bench) -> str:
    """refused in one line"""
    path = bench.folder / "letter.mp4"
    path.write_bytes(b"this is not a video\n" * 500)
    return refused(lambda: bench.play(path)).replace(f"{bench.folder}/", "")


def damaged_model(bench: Bench) -> str:
    """refused in one line"""
    from medisseg.checkpoint import resolve

    try:
        path = Path(bench.model) if Path(bench.model).exists() else resolve(bench.model)
    except UserError as error:
        raise Unable(str(error)) from error
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if sum(file.stat().st_size for file in files) > LARGEST_MODEL:
        raise Unable("the model is too large to be copied for this")
    copy = bench.folder / f"damaged{path.suffix}"
    (shutil.copytree if path.is_dir() else shutil.copyfile)(path, copy)
    largest = max(files, key=lambda file: file.stat().st_size)
    victim = copy if path.is_file() else copy / largest.relative_to(path)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 0x10
    victim.write_bytes(data if path.is_dir() else data[: len(data) // 2])
    from export.runtime import load_engine

    return refused(lambda: load_engine(str(copy))).replace(str(bench.folder), "...")


def truncated_file(bench: Bench) -> str:
    """its beginning is shown, every frame counted"""
    whole = bench.video("whole.ts", FRAMES).read_bytes()
    path = bench.folder / "truncated.ts"
    path.write_bytes(whole[: len(whole) // 2])
    run = bench.play(path, "--realtime")
    frames = run.report["frames"]
    expect(frames["processed"] > 0 and frames["in"] < FRAMES, counted(frames))
    return counted(frames)


def flipped_bits(bench: Bench) -> str:
    """what can be read is shown, every frame counted"""
    data = bytearray(bench.video("whole.ts", FRAMES).read_bytes())
    for place in np.random.default_rng(3).integers(len(data) // 4, len(data), 40):
        data[place] ^= 0x55
    path = bench.folder / "flipped.ts"
    path.write_bytes(data)
    frames = bench.play(path, "--realtime").report["frames"]
    expect(frames["processed"] > 0, counted(frames))
    return counted(frames)


def size_change(bench: Bench) -> str:
    """a new part of the recording begins"""
    both = [bench.video("whole.ts", FRAMES), bench.video("larger.ts", 20, (360, 480))]
    path = bench.folder / "sizes.ts"
    path.write_bytes(b"".join(video.read_bytes() for video in both))
    run = bench.play(path, "--realtime")
    parts = run.report["streams"][0]["raw"]
    sizes = [f"{part['width']} x {part['height']}" for part in parts]
    expect(sizes == ["320 x 240", "480 x 360"], f"recorded as {', '.join(sizes) or 'nothing'}")
    return f"{' then '.join(sizes)}, {counted(run.report['frames'])}"


def lost_source(bench: Bench) -> str:
    """OFFLINE and no invented frame, then LIVE again"""
    source = LoopbackSource(scene)
    source.start()
    try:
        run = bench.start(source.url, "--timeout-s", 1.5)
        run.wait_for(lambda s: s.state == LIVE and s.frames["processed"] > 2, "LIVE")
        source.kill()
        began = time.monotonic()
        lost = run.wait_for(lambda s: s.state == OFFLINE and not s.frames["in_flight"], "OFFLINE")
        noticed = time.monotonic() - began
        time.sleep(0.5)
        silent = run.pipeline.live.status(0)
        invented = silent.frames["in"] - lost.frames["in"]
        expect(invented == 0, f"{invented} frames while there was no source")
        source.start()
        run.wait_for(lambda s: s.state == LIVE, "LIVE after its return")
        run.finish(stop=True)
    finally:
        source.kill()
    return f"OFFLINE after {noticed:.1f} s, LIVE again, {counted(run.report['frames'])}"


def slow_model(bench: Bench) -> str:
    """frames are dropped, what is shown stays fresh"""

    def slow(number: int, batch: np.ndarray) -> None:
        time.sleep(SLOW_MS / 1e3)

    run = bench.play(bench.video("long.mp4", LONG), "--realtime", "--frames", 50, hook=slow)
    frames = run.report["frames"]
    expect(frames["dropped"] > 20, f"nothing gave way: {counted(frames)}")
    shown = [line for line in run.lines() if line["outcome"] == "processed"]
    oldest = max(line["latency_ms"] for line in shown[len(shown) // 2 :])
    inference = max(line["ms"]["infer"] for line in shown)
    # Two intervals and one inference, in peace; a busy machine may come between.
    expect(oldest < 2 * INTERVAL_MS + 2 * inference, f"{oldest:.0f} ms, inference {inference:.0f}")
    return f"at most {oldest:.0f} ms with {inference:.0f} ms an inference, {counted(frames)}"


def ai_off_and_back(bench: Bench, hook: Hook, *words: object) -> str:
    """Run through an engine's fault, and see the AI go off and come back."""
    run = bench.start(bench.video("long.mp4", LONG), "--realtime", *words, hook=hook)
    off = run.wait_for(lambda s: s.state == AI_OFF, AI_OFF)
    run.wait_for(lambda s: s.state == LIVE and s.frame_id > off.frame_id + 2, "LIVE afterwards")
    run.finish(stop=True)
    restarts, frames = run.report["engine_restarts"], run.report["frames"]
    expect(restarts >= 1, "the engine was not restarted")
    return f"{off.reason[:60]}; {restarts} restart, {counted(frames)}"


def once(act: Callable[[Array], Array | None]) -> Hook:
    """Return a hook that acts on the tenth batch of all engines, and never again."""
    seen = [0]

    def hook(number: int, batch: Array) -> Array | None:
        seen[0] += 1
        return act(batch) if seen[0] == 10 else None

    return hook


def engine_error(bench: Bench) -> str:
    """AI-OFF, the video goes on, the engine is restarted"""

    def broken(batch: Array) -> None:
        raise RuntimeError("device lost (chaos)")

    return ai_off_and_back(bench, once(broken))


def engine_nonsense(bench: Bench) -> str:
    """AI-OFF, the video goes on, the engine is restarted"""

    def nonsense(batch: Array) -> Array:
        shape = (len(batch), bench.engine.classes, *batch.shape[2:])
        return np.full(shape, np.nan, np.float32)

    return ai_off_and_back(bench, once(nonsense))


def engine_hangs(bench: Bench) -> str:
    """AI-OFF, the video goes on, the engine is restarted"""
    released = threading.Event()

    def hang(batch: Array) -> None:
        released.wait(20)

    try:
        return ai_off_and_back(bench, once(hang), "--too-slow-ms", 700, "--hang-s", 1)
    finally:
        released.set()


def deaf_browser(bench: Bench) -> str:
    """the pipeline does not notice"""
    from websockets.sync.client import connect

    from deploy.watch.page import serve

    run = bench.start(bench.video("long.mp4", LONG), "--realtime", "--frames", 35)
    run.wait_for(lambda s: s.frames.get("processed", 0) > 2, "picture")
    live = run.pipeline.live
    with serve(live, "127.0.0.1:0") as page:
        more: dict[str, Any] = {"max_size": None, "proxy": None, "close_timeout": 0.1}
        with connect(f"ws://127.0.0.1:{page.port}/live", **more):
            run.finish()
    frames = run.report["frames"]
    expect(frames["failed"] == 0, counted(frames))
    return f"{run.report['latency_ms']['p50']:.0f} ms as before, {counted(frames)}"


def little_disk(bench: Bench) -> str:
    """recording stops with an alarm, the video goes on"""
    path = bench.video("whole.ts", FRAMES)
    report = bench.play(path, "--realtime", "--min-free-mb", 1e9).report
    stopped = report["streams"][0]["stopped"]
    expect(any("recording stopped" in reason for reason in stopped), "the recording went on")
    expect(report["frames"]["processed"] > 0, counted(report["frames"]))
    return f"{stopped[0]}; {counted(report['frames'])}"


def huge_frames(bench: Bench) -> str:
    """its recordings stop with an alarm, the other stream is whole"""
    wide = bench.folder / "wide.avi"
    frames = (scene(i, (64, 17_000)) for i in range(5))
    write_video(wide, frames, codec="mjpeg", pixels="yuvj420p")
    run = bench.play(bench.video("whole.ts", FRAMES), wide)
    whole, hurt = run.report["streams"]
    expect(not whole["stopped"], f"the other stream: {'; '.join(whole['stopped'])}")
    expect(whole["frames"]["processed"] == FRAMES, counted(whole["frames"]))
    recorded = decoded(sorted(run.out.glob("overlay-1-*.mp4")))
    expect(recorded == FRAMES, f"{recorded} frames of the other stream are recorded")
    expect(hurt["stopped"], "nothing was said of 17000 x 64 pixels")
    return f"{hurt['stopped'][0]}; the other stream: {counted(whole['frames'])}"


def clock_jump(bench: Bench) -> str:
    """no wait, no gap, a new part"""
    path = bench.folder / "jump.mkv"
    times = [i / FPS + 10**6 * (i >= 15) for i in range(FRAMES)]
    write_video(path, map(scene, range(FRAMES)), FPS, times.__getitem__, preset="ultrafast", g="10")
    run = bench.play(path, "--realtime")
    last = max(line["time_s"] for line in run.lines())
    expect(last < 2 * FRAMES / FPS, f"the last frame is at {last:.0f} s")
    parts = [part["frames"] for part in run.report["streams"][0]["overlay"]]
    shown = [line["id"] for line in run.lines() if line["outcome"] == "processed"]
    # A busy machine drops frames of --realtime, and a part of fewer frames is not ended.
    wanted = 2 if min(shown) < 15 and len(shown) > FEWEST else 1
    expect(len(parts) == wanted, f"{len(parts)} parts, expected {wanted}")
    return f"the last frame at {last:.2f} s, {len(parts)} parts, {counted(run.report['frames'])}"


def layout_change(bench: Bench) -> str:
    """the picture on the screen is found again"""
    run = bench.play(bench.video("screens.mp4", 75, picture=screen))
    lefts = [line["picture"][0] for line in run.lines() if line["outcome"] == "processed"]
    expect(abs(lefts[0]) < 8 and abs(lefts[-1] - 160) < 8, f"from {lefts[0]} to {lefts[-1]} px")
    found = next(i for i, left in enumerate(lefts) if abs(left - 160) < 8)
    return f"after {(found - 15) / FPS:.1f} s, {counted(run.report['frames'])}"


Fault = Callable[[Bench], str]
WITHIN: dict[str, Fault] = {
    "empty file": empty_file,
    "not a video": no_video,
    "damaged model": damaged_model,
    "truncated file": truncated_file,
    "flipped bits": flipped_bits,
    "size changes": size_change,
    "frames no encoder takes": huge_frames,
    "clock jumps": clock_jump,
    "screen layout changes": layout_change,
    "source lost and back": lost_source,
    "slow model": slow_model,
    "engine raises": engine_error,
    "engine answers NaN": engine_nonsense,
    "engine hangs": engine_hangs,
    "browser reads nothing": deaf_browser,
    "disk nearly full": little_disk,
}
