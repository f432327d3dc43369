"""The GStreamer element in pipelines that ``gst-launch-1.0`` runs, against the same frames here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from needs import lacking

from deploy.engine import device
from deploy.outputs.drawing import draw_mask
from export.bundle import Bundle
from export.runtime import load_engine
from kernels.frames import decode_rle

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "deploy/gstreamer"


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory):
    registry = tmp_path_factory.mktemp("registry") / "registry.bin"
    environment = {
        **os.environ, "GST_PLUGIN_PATH": str(PLUGIN), "GST_REGISTRY": str(registry),
        "OMP_NUM_THREADS": "1",
        # The loader takes the Python that is first on PATH, and only the system's has PyGObject.
        "PATH": f"/usr/bin:{os.environ['PATH']}",
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
    run.environment = environment
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
            processor.finish(engine.infer(each[None])[0], (180, width), engine.threshold)[0].mask
            for each in inputs
        ]
        strict = [
            processor.finish(engine.infer(each[None])[0], (180, width), 0.8)[0].mask
            for each in inputs
        ]
        assert engine.threshold < 0.8
    assert any(mask.any() for mask in strict) and sum(map(np.sum, strict)) < sum(map(np.sum, masks))
    model = f"model={bundle.path}"
    gray = through(launch, frames, tmp_path, model, "output=mask", "threshold=0.8")
    np.testing.assert_array_equal(gray[:, :, :width], np.stack(strict) * 255)
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


# Prints a line of JSON for each frame: its regions, and its bytes' values with their counts.
LOOK = """
import collections, json, sys, gi
gi.require_version("Gst", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import GLib, Gst, GstVideo
Gst.init(None)
pipe = Gst.parse_launch(sys.argv[1])
def look(pad, info):
    buffer, found = info.get_buffer(), []
    find = GstVideo.buffer_get_video_region_of_interest_meta_id
    while (meta := find(buffer, len(found))) is not None:
        mask = meta.get_param("segmentation")
        found.append({
            "type": GLib.quark_to_string(meta.roi_type), "box": [meta.x, meta.y, meta.w, meta.h],
            "area": mask.get_int("area")[1], "confidence": mask.get_double("confidence")[1],
            "counts": list(map(int, mask.get_string("counts").split())),
        })
    values = collections.Counter(buffer.extract_dup(0, buffer.get_size()))
    print(json.dumps({"regions": found, "values": values}))
    return Gst.PadProbeReturn.OK
pipe.get_by_name("end").get_static_pad("sink").add_probe(Gst.PadProbeType.BUFFER, look)
pipe.set_state(Gst.State.PLAYING)
kinds = Gst.MessageType.EOS | Gst.MessageType.ERROR
ended = pipe.get_bus().timed_pop_filtered(200 * Gst.SECOND, kinds)
if ended.type == Gst.MessageType.ERROR:
    print(ended.parse_error(), file=sys.stderr)
pipe.set_state(Gst.State.NULL)
"""


def looked_at(launch, code: str, frames: np.ndarray, folder: Path, element: str) -> list[Any]:
    """Send frames through the element and return what each of its buffers holds."""
    count, height, width = frames.shape[:3]
    (folder / "in.rgb").write_bytes(frames.tobytes())
    pipe = (
        f"filesrc location={folder}/in.rgb blocksize={frames[0].nbytes} ! video/x-raw,format=RGB,"
        f"width={width},height={height},framerate=25/1 ! medisseg {element} ! fakesink name=end"
    )
    said = launch("/usr/bin/python3", "-c", code, pipe)
    lines = [json.loads(line) for line in said.stdout.splitlines()]
    assert len(lines) == count, said.stderr
    return lines


def test_regions_and_their_masks_are_metadata(
    launch, bundle: Bundle, phantom: Path, tmp_path: Path
) -> None:
    frames = frames_of(phantom, 4, 240)
    model = f"model={bundle.path}"
    masks = through(launch, frames, tmp_path, model, "output=mask") > 0
    looked = looked_at(launch, LOOK, frames, tmp_path, f"{model} output=metadata")
    assert sum(len(one["regions"]) for one in looked) >= 2
    for one, mask, frame in zip(looked, masks, frames, strict=True):
        assert one["values"] == {str(k): v for k, v in Counter(frame.tobytes()).items()}
        put_together = np.zeros_like(mask)
        for region in one["regions"]:
            x, y, w, h = region["box"]
            part = decode_rle({"size": [h, w], "counts": region["counts"]}) > 0
            assert part.any(0).all() and part.any(1).all()  # the box is the region's
            assert region["type"] == "polyp" and region["area"] == part.sum()
            assert 0.5 < region["confidence"] <= 1
            put_together[y : y + h, x : x + w] |= part
        left_out = mask & ~put_together
        assert not (put_together & ~mask).any()
        assert all(area < 0.0005 * mask.size for area in areas(left_out))


def areas(mask: np.ndarray) -> list[int]:
    import cv2

    return cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2][1:, 4].tolist()


# An engine of known answers in the model's place: green is the first class on the left, the second
# on the right. After GStreamer, as in the element: PyTorch before it ends the process.
TWO = f"""
Gst.init(None)
import site, sys, sysconfig
version = "python" + sysconfig.get_python_version()
site.addsitedir("{ROOT}/.venv/lib/" + version + "/site-packages")
sys.path.insert(0, "{ROOT}")
import numpy as np
import export.runtime
from medisseg.convention import InputConvention
from medisseg.labels import Label
class TwoClasses:
    backend = name = "two classes"
    threshold, classes, max_batch, device = 0.5, 3, 1, "cpu"
    labels = (Label("adenoma", (255, 0, 255)), Label("serrated", (255, 255, 0)))
    convention = InputConvention(mean=(0, 0, 0), std=(1, 1, 1), size=(128, 128))
    def infer(self, batch):
        found = np.where(batch[:, 1:2] > batch[:, :1] + 0.2, 6.0, -6.0)
        right = np.arange(batch.shape[3]) >= batch.shape[3] // 2
        answers = [-found, np.where(right, -9.0, found), np.where(right, found, -9.0)]
        return np.concatenate(answers, 1).astype(np.float32)
    def close(self):
        pass
export.runtime.load_engine = lambda model: TwoClasses()
"""


def test_two_classes_keep_their_names_and_numbers(launch, tmp_path: Path) -> None:
    frame = np.full((1, 240, 320, 3), 90, np.uint8)
    frame[0, 60:120, 40:100] = frame[0, 60:120, 220:300] = (0, 200, 0)
    code = LOOK.replace("Gst.init(None)", TWO)
    (metadata,) = looked_at(launch, code, frame, tmp_path, "output=metadata")
    boxes = {region["type"]: region["box"] for region in metadata["regions"]}
    assert [region["type"] for region in metadata["regions"]] == ["serrated", "adenoma"]
    np.testing.assert_allclose(boxes["adenoma"], (40, 60, 60, 60), atol=8)
    np.testing.assert_allclose(boxes["serrated"], (220, 60, 80, 60), atol=8)
    (mask,) = looked_at(launch, code, frame, tmp_path, "output=mask")
    assert mask["values"].keys() == {"0", "1", "2"}
    for index, region in (("2", metadata["regions"][0]), ("1", metadata["regions"][1])):
        assert mask["values"][index] == region["area"]


# Sends one frame for each line that it reads, and says in JSON what came of it.
ASK = """
import json, sys, gi
gi.require_version("Gst", "1.0")
from gi.repository import Gst
Gst.init(None)
pipe = Gst.parse_launch(sys.argv[1])
frame = open(sys.argv[2], "rb").read()
pipe.set_state(Gst.State.PLAYING)
kinds = Gst.MessageType.WARNING | Gst.MessageType.INFO | Gst.MessageType.ERROR
read = {"warning": Gst.Message.parse_warning, "info": Gst.Message.parse_info,
        "error": Gst.Message.parse_error}
for _ in sys.stdin:
    pipe.get_by_name("in").emit("push-buffer", Gst.Buffer.new_wrapped(frame))
    sample = pipe.get_by_name("end").emit("pull-sample")
    said = []
    while (message := pipe.get_bus().pop_filtered(kinds)) is not None:
        kind = message.type.first_value_nick
        said.append(kind + " " + read[kind](message)[0].message)
    made = {"said": said}
    if sample is not None:
        buffer = sample.get_buffer()
        data = buffer.extract_dup(0, buffer.get_size())
        made |= {"raw": data == frame, "black": not any(data),
                 "gap": buffer.has_flags(Gst.BufferFlags.GAP)}
    print(json.dumps(made), flush=True)
"""


@pytest.mark.parametrize("output", ["overlay", "mask"])
def test_video_goes_on_without_its_server(
    launch, serve: Any, phantom: Path, tmp_path: Path, output: str
) -> None:
    """Killed, back, silent, back: raw or black meanwhile, said once when it begins and ends."""
    server = serve()
    (tmp_path / "frame.rgb").write_bytes(frames_of(phantom, 1, 240).tobytes())
    pipe = (
        "appsrc name=in format=time caps=video/x-raw,format=RGB,width=240,height=180,framerate=25/1"
        f" ! medisseg model={server.url()} output={output} too-slow-ms=4000"
        " ! appsink name=end sync=false"
    )
    words = ["/usr/bin/python3", "-c", ASK, pipe, str(tmp_path / "frame.rgb")]
    with subprocess.Popen(
        words, env=launch.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        said: list[str] = []

        def until(answered: bool) -> None:
            for _ in range(600):
                print("frame", file=process.stdin, flush=True)
                made = json.loads(process.stdout.readline())
                said.extend(made["said"])
                off = made["gap"] if output == "mask" else made["raw"]
                assert not off or (made["black"] if output == "mask" else made["raw"])
                if off != answered:
                    return
                time.sleep(0.1)
            raise AssertionError(f"{'no answer' if answered else 'answers'}: {said}")

        until(answered=True)
        assert not said
        server.kill()
        until(answered=False)
        server.start()
        until(answered=True)
        killed = len(said)
        server.pause()
        until(answered=False)
        server.go_on()
        until(answered=True)
        process.stdin.close()
    # Each break is said when it begins and when it ends; a busy machine may make further ones.
    kinds = [line.split(":")[0] for line in said]
    assert len(kinds) >= 4 and kinds == ["warning AI-OFF", "info AI is back"] * (len(kinds) // 2)
    assert "too slow: no answer in 4000 ms" in said[killed]
