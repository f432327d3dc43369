"""Videos as processors and recorders send them: fields, pixels, colours, tracks, clocks.

Each case is tried on a generated video, and on the real example where ../shared is.
"""

from __future__ import annotations

import shutil
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy import options
from deploy.sources.clock import Clock
from deploy.sources.opening import open_source
from deploy.sources.source import Arrival
from medisseg.errors import UserError


@pytest.fixture(scope="session")
def cases(shared: Path) -> Path:
    return shared / "cases" / "video"


def arrivals_of(*words: object) -> tuple[list[Arrival], Any]:
    given = [str(word) for word in words]
    source = open_source(given[0], options.parse([*given, "--model", "m"]))
    return list(source.frames(threading.Event(), lambda connected, reason: None)), source


def write(
    path: Path, pictures: list[np.ndarray], fps: int = 25, codec: str = "libx264", **tags: Any
) -> Path:
    """Encode pictures without loss; ``tags`` are set on the codec, ``frame_*`` on the frames."""
    import av

    with av.open(str(path), "w") as container:
        height, width = pictures[0].shape[:2]
        stream: Any = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"qp": "0", "preset": "ultrafast", **tags.pop("options", {})}
        field_order = tags.pop("field_order", None)
        on_frames = {k[6:]: tags.pop(k) for k in list(tags) if k.startswith("frame_")}
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            for name, value in on_frames.items():
                setattr(frame, name, value)
            if field_order:
                frame = marked(frame, field_order)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def marked(frame: Any, field_order: str) -> Any:
    """Return a frame that says which of its fields comes first."""
    from av.filter import Graph

    graph = Graph()
    graph.link_nodes(
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        ),
        graph.add("setfield", field_order),
        graph.add("buffersink"),
    ).configure()
    graph.push(frame)
    return graph.pull()


def grey(arrival: Arrival) -> np.ndarray:
    assert arrival.picture is not None
    return arrival.picture.to_ndarray(format="gray").astype(int)


def combing(picture: np.ndarray) -> float:
    """Share of places that differ from the rows above and below alike, noise averaged away."""
    smooth = np.apply_along_axis(np.convolve, 1, picture, np.full(9, 1 / 9), "valid")
    middle = smooth[1:-1]
    return float(((middle - smooth[:-2]) * (middle - smooth[2:]) > 250).mean())


def field_video(path: Path, top_first: bool) -> tuple[Path, list[np.ndarray]]:
    """A bright bar that moves by 6 pixels a field, woven; also the fields, two a frame."""
    fields = []
    for moment in range(16):
        picture = np.full((64, 128, 3), 60, np.uint8)
        picture[:, 10 + 6 * moment : 26 + 6 * moment] = 200
        fields.append(picture)
    woven = []
    for first, second in zip(fields[::2], fields[1::2], strict=True):
        frame = first.copy()
        frame[1 if top_first else 0 :: 2] = second[1 if top_first else 0 :: 2]
        woven.append(frame)
    order = "tff" if top_first else "bff"
    return write(path, woven, options={"flags": "+ildct+ilme"}, field_order=order), fields


@pytest.mark.parametrize("top_first", [True, False])
def test_fields_become_whole_frames_in_their_order(tmp_path: Path, top_first: bool) -> None:
    path, fields = field_video(tmp_path / "fields.mkv", top_first)
    woven, _ = arrivals_of(path, "--deinterlace", "off")
    whole, _ = arrivals_of(path)
    assert len(woven) == len(whole) == 8
    assert [a.time for a in whole] == pytest.approx([a.time for a in woven])
    for index in range(1, 7):
        assert np.abs(grey(woven[index]) - grey(whole[index])).max() > 100
        expected = fields[2 * index][..., 0].astype(int)  # a frame shows the first of its fields
        kept = slice(0 if top_first else 1, None, 2)
        assert np.abs(grey(whole[index])[kept] - expected[kept]).max() <= 3
        assert np.abs(grey(whole[index]) - expected).mean() < 4


def test_progressive_frames_pass_untouched(lab: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "p.mkv", [lab.numbered_frame(i) for i in range(4)])
    for plain, auto in zip(arrivals_of(path, "--deinterlace", "off")[0], arrivals_of(path)[0],
                           strict=True):  # fmt: skip
        np.testing.assert_array_equal(grey(plain), grey(auto))
    doubled, _ = arrivals_of(path, "--deinterlace", "on")  # unmarked fields, on request
    assert len(doubled) == 4 and np.abs(grey(doubled[1]) - grey(plain)).max() > 0


def test_frames_too_low_for_fields_are_shown_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "low.mkv", [np.full((2, 64, 3), 90, np.uint8)] * 3)
    arrivals, source = arrivals_of(path, "--deinterlace", "on")
    assert len(arrivals) == 3 and "cannot be deinterlaced" in source.notes.texts[0]


def test_the_real_interlaced_case(cases: Path) -> None:
    path = cases / "interlaced" / "tff.ts"
    woven, _ = arrivals_of(path, "--deinterlace", "off")
    whole, _ = arrivals_of(path)
    assert len(whole) == len(woven) == 8
    before = np.mean([combing(grey(a)) for a in woven])
    after = np.mean([combing(grey(a)) for a in whole])
    assert before > 5 * after, (before, after)


@pytest.mark.parametrize("aspect", [Fraction(16, 15), Fraction(64, 45)])
def test_recordings_keep_the_aspect_of_pixels(
    play: Any, lab: Any, tmp_path: Path, aspect: Fraction
) -> None:
    pictures = [lab.numbered_frame(i) for i in range(4)]
    check_aspect(play, write(tmp_path / "v.mkv", pictures, sample_aspect_ratio=aspect), aspect)


def test_the_real_pixel_aspect_case(play: Any, cases: Path) -> None:
    check_aspect(play, cases / "pixel-aspect" / "pal.mkv", Fraction(16, 15))


def check_aspect(play: Any, path: Path, aspect: Fraction) -> None:
    import av

    run = play(path)
    for name in ("overlay-000.mp4", "raw-000.mp4"):
        with av.open(str(run.folder / name)) as container:
            assert container.streams.video[0].sample_aspect_ratio == aspect


def test_an_absurd_aspect_is_no_aspect(lab: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "v.mkv", [lab.numbered_frame(0)], sample_aspect_ratio=Fraction(1, 99))
    assert [a.aspect for a in arrivals_of(path)[0]] == [1]


@pytest.mark.parametrize("tag", ["color_primaries", "color_trc", "colorspace"])
def test_no_colour_tag_ends_a_stream(play: Any, lab: Any, tmp_path: Path, tag: str) -> None:
    pictures = [lab.numbered_frame(i) for i in range(2)]
    values = [value for value in range(1, 19) if not (tag == "color_trc" and value in (16, 18))]
    paths = [write(tmp_path / f"{v}.mkv", pictures, **{f"frame_{tag}": v, tag: v}) for v in values]
    run = play(*paths, "--record", "both")
    run.check_accounts()
    assert run.report["frames"]["processed"] == 2 * len(values)
    assert not any(stream["stopped"] for stream in run.report["streams"])
    for stream in range(1, len(values) + 1):
        numbers = [lab.read_number(picture) for picture in run.video(f"raw-{stream}")]
        assert numbers == [0, 1]


@pytest.mark.parametrize("name", ["ycgco.mp4", "mid.ts"])
def test_the_real_colour_cases(play: Any, cases: Path, name: str) -> None:
    run = play(cases / "colour-matrix" / "good.mp4", cases / "colour-matrix" / name)
    run.check_accounts()
    frames = [stream["frames"] for stream in run.report["streams"]]
    assert all(counts["processed"] == counts["in"] >= 10 for counts in frames)
    assert any("read as BT.601" in note for note in run.report["streams"][1]["notes"])


def pq(nits: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: the signal, 0 to 1, of a luminance in cd/m2."""
    power = (nits / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def test_hdr_is_mapped_to_what_a_screen_shows(lab: Any, tmp_path: Path) -> None:
    import av

    path, nits = tmp_path / "hdr.mkv", np.array([0, 1, 20, 100, 203, 1000.0])
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx265", rate=25, options={"x265-params": "qp=1"})
        stream.width, stream.height, stream.pix_fmt = 32 * len(nits), 64, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = 16, 9, 9
        frame = av.VideoFrame(stream.width, 64, "yuv420p10le")
        row = np.repeat(np.round(64 + 876 * pq(nits)).astype(np.uint16), 32)
        for plane, value in zip(frame.planes, (row, None, None), strict=True):
            rows = np.full((plane.height, plane.line_size // 2), 512, np.uint16)
            if value is not None:
                rows[:, : len(value)] = value
            plane.update(rows.tobytes())
        frame.color_trc, frame.color_primaries, frame.colorspace = 16, 9, 9
        frame.color_range, frame.pts, frame.time_base = 1, 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (arrival,), source = arrivals_of(path)
    assert source.notes.texts == ["HDR (PQ): its tones are mapped to BT.709"]
    assert arrival.picture is not None and arrival.picture.format.name == "yuv420p"
    shown = arrival.picture.to_ndarray(format="rgb24")[32, 16::32].astype(int)
    assert np.ptp(shown, axis=1).max() <= 4  # grey stays grey
    # Unmapped, 20 and 100 cd/m2 would be 89 and 127: everything flat and grey.
    brightness = shown.mean(1)
    assert brightness[0] <= 2 and 60 < brightness[2] < 90 and 115 < brightness[3] < 145
    assert (np.diff(brightness) > 10).all() and brightness[5] < 250  # highlights keep their shape


def cover_first(path: Path, pictures: list[np.ndarray], default: bool = True) -> Path:
    """A Matroska file whose first video is one small picture, the second the examination."""
    import av
    from av.stream import Disposition

    with av.open(str(path), "w") as container:
        cover: Any = container.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        video: Any = container.add_stream("libx264", rate=25, options={"qp": "0"})
        video.height, video.width = pictures[0].shape[:2]
        video.disposition = Disposition.default if default else Disposition(0)
        black = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
        container.mux(cover.encode(black))
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(cover.encode(None))
        container.mux(video.encode(None))
    return path


@pytest.mark.parametrize("default", [True, False])
def test_a_cover_picture_is_not_the_video(lab: Any, tmp_path: Path, default: bool) -> None:
    pictures = [lab.numbered_frame(i) for i in range(6)]
    arrivals, source = arrivals_of(cover_first(tmp_path / "v.mkv", pictures, default))
    numbers = [lab.read_number(a.picture.to_ndarray(format="rgb24")) for a in arrivals]
    assert numbers == [*range(6)]
    assert len(source.notes.texts) == 1 and "320 x 240" in source.notes.texts[0]


def test_the_real_cover_case(play: Any, cases: Path) -> None:
    run = play(cases / "cover-art-first" / "cover.mp4")
    assert run.report["frames"]["processed"] == 10
    assert {tuple(line["size"]) for line in run.lines} == {(240, 320)}
    assert "320 x 240" in run.report["streams"][0]["notes"][0]


def jump(path: Path, lab: Any, seconds: float) -> Path:
    times = [i / 10 + (seconds if i >= 10 else 0) for i in range(20)]
    pictures = map(lab.numbered_frame, range(20))
    return lab.write_video(path, pictures, fps=10, times=times.__getitem__)


@pytest.mark.parametrize("seconds", [36_000, 1e6])
def test_a_clock_that_jumps_begins_a_new_part(
    play: Any, lab: Any, tmp_path: Path, seconds: float
) -> None:
    check_jump(play, jump(tmp_path / "jump.mkv", lab, seconds), tmp_path)


def test_the_real_jump_case(play: Any, cases: Path, tmp_path: Path) -> None:
    check_jump(play, cases / "time-jump" / "jump.ts", tmp_path)


def check_jump(play: Any, path: Path, tmp_path: Path) -> None:
    from deploy.replay.player import main as replay

    run = play(path)
    run.check_accounts()
    times = [line["time_s"] for line in run.processed()]
    assert len(times) == 20 and np.diff(times) == pytest.approx([0.1] * 19, abs=0.02)
    for prefix in ("overlay", "raw"):
        assert [part["frames"] for part in run.report["streams"][0][prefix]] == [10, 10]
    shown = play(path, "--realtime", "--stale-s", 5)
    shown.check_accounts()
    lines = shown.processed()
    assert lines[-1]["id"] == 19 and lines[-1]["monotonic_s"] - lines[0]["monotonic_s"] < 20
    again = tmp_path / "again.mp4"
    assert not replay([str(run.folder), "--out", str(again)])
    assert again.stat().st_size > 0


def clocked(times: list[float | None], rate: float = 25) -> tuple[list[float], list[int]]:
    clock = Clock(rate)
    found = [(clock(moment), clock.part) for moment in times]
    return [moment for moment, _ in found], [part for _, part in found]


def test_times_go_on_over_every_kind_of_break() -> None:
    rest = [100.0, 100.04, 100.08]
    for later in (10_000.0, 0.0, 99.0, 1e9, -1e9):
        times, parts = clocked([*rest, later, later + 0.04])
        assert times == pytest.approx([0, 0.04, 0.08, 0.12, 0.16]) and parts == [0, 0, 0, 1, 1]
    # A gap of some seconds is time; steps back by less than half a second are damage.
    assert clocked([0.0, 0.04, 4.0])[0] == pytest.approx([0, 0.04, 4.0])
    assert clocked([0.0, 0.04, 0.02, None, 0.16]) == (
        pytest.approx([0, 0.04, 0.08, 0.12, 0.16]),
        [0] * 5,
    )


def test_what_a_clock_claims_is_bounded() -> None:
    times, parts = clocked([601.0 * i for i in range(30)], rate=1 / 601)
    assert max(np.diff(times)) <= 15 and parts[-1] <= 15
    wild = [1e6 * (i % 3) for i in range(1000)]
    times, parts = clocked([*wild])
    assert times[-1] == pytest.approx(999 / 25) and parts[-1] == 4  # a part in ten seconds at most


def test_a_name_that_is_no_utf8(play: Any, lab: Any, tmp_path: Path) -> None:
    plain = lab.write_video(tmp_path / "plain.mp4", map(lab.numbered_frame, range(3)))
    odd = str(tmp_path / "exam") + "\udce9.mp4"  # the byte E9, as Windows' sticks have it
    shutil.copy(plain, odd)
    run = play(odd)
    assert run.report["frames"]["processed"] == 3
    assert run.report["streams"][0]["source"].endswith("exam\ufffd.mp4")
    assert "exam\ufffd.mp4" in (run.folder / "report.html").read_text()


def test_a_picture_of_absurd_size_is_refused_before_it_is_decoded(
    play: Any, lab: Any, tmp_path: Path
) -> None:
    import resource

    huge = write(tmp_path / "huge.mkv", [np.zeros((6400, 6400, 3), np.uint8)] * 2)
    good = lab.write_video(tmp_path / "good.mp4", map(lab.numbered_frame, range(5)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = play(huge, good)
    run.check_accounts()
    bad, fine = (stream["frames"] for stream in run.report["streams"])
    assert bad["processed"] == 0 and bad["failed"] >= 2 and fine["processed"] == 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    failed = next(line for line in run.lines if line["outcome"] == "failed")
    assert "6400 x 6400" in failed["error"]


def test_a_stream_that_no_encoder_takes_keeps_the_others_alive(
    play: Any, lab: Any, tmp_path: Path
) -> None:
    from PIL import Image

    wide = tmp_path / "wide"
    wide.mkdir()
    for index in range(2):
        Image.fromarray(np.full((64, 17_000, 3), 90, np.uint8)).save(wide / f"{index}.png")
    good = lab.write_video(tmp_path / "good.mp4", map(lab.numbered_frame, range(5)))
    run = play(wide, good)
    run.check_accounts()
    assert run.report["streams"][1]["frames"]["processed"] == 5
    assert len(run.video("overlay-2")) == 5


def test_a_video_without_video_says_so(tmp_path: Path) -> None:
    sound = tmp_path / "s.srt"
    sound.write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    with pytest.raises(UserError, match="no video in it"):
        arrivals_of(sound)


def test_a_picture_that_stands_still_is_noticed(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    from deploy.sources import stillness

    now = [100.0]
    monkeypatch.setattr(stillness.time, "monotonic", lambda: now[0])
    watch, noise = stillness.Stillness(), np.random.default_rng(5)

    def shown(picture: np.ndarray) -> bool:
        now[0] += 0.5
        return watch(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p"))

    frozen, other = lab.numbered_frame(1), lab.numbered_frame(2)
    assert [shown(frozen) for _ in range(7)] == [False] * 5 + [True] * 2
    assert not shown(other) and not shown(frozen)
    noisy = [np.clip(frozen + noise.normal(0, 3, frozen.shape), 0, 255) for _ in range(8)]
    assert not any(shown(picture.astype(np.uint8)) for picture in noisy)  # a camera's noise


def test_every_frame_and_part_knows_its_hour(play: Any, numbered: Path) -> None:
    from datetime import datetime

    import av

    run = play(numbered, "--frames", 10)

    def read(text: str) -> datetime:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 knows no Z

    moments = [read(line["utc"]) for line in run.lines]
    began, ended = (read(run.report["audit"][key]) for key in ("started", "ended"))
    assert began <= moments[0] and moments == sorted(moments) and moments[-1] <= ended
    for name in ("overlay-000.mp4", "raw-000.mp4"):
        with av.open(str(run.folder / name)) as container:
            created = read(container.metadata["creation_time"])
        assert began.replace(microsecond=0) <= created <= ended
