"""The GStreamer element in pipelines that ``gst-launch-1.0`` runs, against the same frames here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from needs import lacking

from deploy.engine import device
from deploy.outputs.drawing import draw_mask
from export.bundle import Bundle
from export.runtime import load_engine

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "deploy/gstreamer"


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory):
    registry = tmp_path_factory.mktemp("registry") / "registry.bin"
    environment = {
        **os.environ, "GST_PLUGIN_PATH": str(PLUGIN), "GST_REGISTRY": str(registry),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, words)), env=environment, capture_output=True, text=True, timeout=300
        )

    if shutil.which("gst-inspect-1.0") is None:
        lacking("gstreamer", "no gst-inspect-1.0: apt install gstreamer1.0-tools")
    if run("gst-inspect-1.0", "python").returncode:
        lacking(
            "gstreamer", "no Python plugin loader: apt install gstreamer1.0-python3-plugin-loader"
        )
    known = run("gst-inspect-1.0", "medisseg")
    assert known.returncode == 0, known.stderr
    return run


def frames_of(phantom: Path, count: int, width: int) -> np.ndarray:
    from PIL import Image

    pictures = sorted((phantom / "images").iterdir())[:count]
    size = (width, 180)
    return np.stack([np.asarray(Image.open(path).convert("RGB").resize(size)) for path in pictures])


def padded(frames: np.ndarray) -> np.ndarray:
    """Rows of bytes as GStreamer lays them out: a multiple of 4."""
    rows = frames.reshape(len(frames), frames.shape[1], -1)
    return np.pad(rows, ((0, 0), (0, 0), (0, -rows.shape[2] % 4)))


def through(launch, frames: np.ndarray, folder: Path, *element: str) -> np.ndarray:
    """Send frames through the element and return the rows of bytes that come out."""
    count, height, width = frames.shape[:3]
    (folder / "in.rgb").write_bytes(padded(frames).tobytes())
    caps = f"video/x-raw,format=RGB,width={width},height={height},framerate=25/1"
    size = padded(frames)[0].nbytes
    done = launch(
        "gst-launch-1.0", "-q", "filesrc", f"location={folder}/in.rgb", f"blocksize={size}", "!",
        caps, "!", "medisseg", *element, "!", "filesink", f"location={folder}/out.raw",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return np.fromfile(folder / "out.raw", np.uint8).reshape(count, height, -1)


@pytest.mark.parametrize("width", [240, 242])  # 242 x 3 is no multiple of 4: rows are padded
def test_masks_and_overlays_are_ours(
    launch, bundle: Bundle, phantom: Path, tmp_path: Path, width: int
) -> None:
    frames = frames_of(phantom, 3, width)
    with load_engine(bundle.path) as engine:
        processor = device.choose(engine.convention, engine.device, engine.classes)
        inputs = [processor.prepare(frame) for frame in frames]
        masks = [
            processor.finish(engine.infer(each[None])[0], (180, width), 0.5)[0].mask
            for each in inputs
        ]
    assert any(mask.any() for mask in masks)
    model = f"model={bundle.path}"
    gray = through(launch, frames, tmp_path, model, "output=mask", "threshold=0.5")
    np.testing.assert_array_equal(gray[:, :, :width], np.stack(masks) * 255)
    drawn = through(launch, frames, tmp_path, model, "opacity=0.6")
    for frame, mask in zip(frames, masks, strict=True):
        draw_mask(frame, mask, 0.6)
    np.testing.assert_array_equal(drawn[:, :, : width * 3], padded(frames)[:, :, : width * 3])


WRONG = {
    "no model": (["model=nobody"], "checkpoint nobody does not exist"),
    "no server": (["model=grpc://127.0.0.1:9/edge"], "cannot be reached now"),
    "no such output": (["output=picture"], "expected one of overlay, mask, metadata"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_once(launch, case: str) -> None:
    words, message = WRONG[case]
    done = launch("gst-launch-1.0", "videotestsrc", "num-buffers=1", "!", "medisseg", *words, "!",
                  "fakesink")  # fmt: skip
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "medisseg: " in line]
    assert said and message in said[0] and "Traceback" not in done.stderr


LOOK = """
import sys, gi
gi.require_version("Gst", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import GLib, Gst, GstVideo
Gst.init(None)
pipe = Gst.parse_launch(sys.argv[1])
def look(pad, info):
    meta = GstVideo.buffer_get_video_region_of_interest_meta_id(info.get_buffer(), 0)
    print(meta and (GLib.quark_to_string(meta.roi_type), meta.x, meta.y, meta.w, meta.h))
    return Gst.PadProbeReturn.OK
pipe.get_by_name("end").get_static_pad("sink").add_probe(Gst.PadProbeType.BUFFER, look)
pipe.set_state(Gst.State.PLAYING)
kinds = Gst.MessageType.EOS | Gst.MessageType.ERROR
pipe.get_bus().timed_pop_filtered(200 * Gst.SECOND, kinds)
pipe.set_state(Gst.State.NULL)
"""


def test_regions_are_metadata(launch, bundle: Bundle, phantom: Path, tmp_path: Path) -> None:
    import cv2

    frames = frames_of(phantom, 1, 240)
    (tmp_path / "in.rgb").write_bytes(frames.tobytes())
    mask = through(launch, frames, tmp_path, f"model={bundle.path}", "output=mask")[0]
    _, _, stats, _ = cv2.connectedComponentsWithStats((mask > 0).astype(np.uint8))
    large = [tuple(row[:4]) for row in stats[1:].tolist() if row[4] >= 0.0005 * mask.size]
    pipe = (
        f"filesrc location={tmp_path}/in.rgb blocksize={frames.nbytes} ! video/x-raw,format=RGB,"
        f"width=240,height=180,framerate=25/1 ! medisseg model={bundle.path} output=metadata ! "
        "fakesink name=end"
    )
    said = launch("/usr/bin/python3", "-c", LOOK, pipe)
    assert said.stdout.strip() == str(("polyp", *large[0]) if large else None), said.stderr
