"""Answers to compare, the remedy when they differ, and the commands ``inspect`` and ``verify``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export import layers, precision, verify
from export.bundle import Bundle
from export.graph import OPSET_BF16
from export.runtime.engine import BaseEngine
from export.samples import Frame, frames_from, source_name
from export.traits import Traits
from medisseg.errors import UserError
from medisseg.schema import Json
from medisseg.text import safe

if TYPE_CHECKING:
    import onnx

    from export.settle import Settled
    from export.subject import Subject

ONNX_PART = "network.onnx"


def resized(frames: Sequence[Frame], traits: Traits) -> list[Frame]:
    """Bring frames to the size that a graph with preprocessing inside takes."""
    if traits.frame_size is None:
        return list(frames)
    import cv2

    height, width = traits.frame_size
    out = []
    for frame in frames:
        image = np.asarray(cv2.resize(frame.image, (width, height)), np.uint8)
        mask = frame.mask
        if mask is not None:
            small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
            mask = np.asarray(small, np.uint8)
        out.append(Frame(image, mask, frame.name))
    return out


def engine_answer(engine: BaseEngine) -> verify.Answer:
    """Return what an engine answers to an image: logits, and the mask where the graph draws it."""
    if engine.traits.frame_size is None:
        return verify.answer_with(engine.infer, engine.convention)

    def answer(image: verify.Image) -> tuple[verify.Array, verify.Image]:
        outputs = engine.frame_outputs(_in_color(image, engine.traits)[None])
        return outputs["logits"], outputs["mask"][0]

    return answer


def emulated_answer(
    emulation: onnx.ModelProto,
    traits: Traits,
    infer: Callable[[verify.Array], verify.Array] | None = None,
) -> verify.Answer:
    """Return what the float32 emulation of a precision answers to an image.

    Args:
        emulation: The graph.
        traits: What the network is.
        infer: Runs that graph on preprocessed images, where it is open already.
    """
    if infer is not None and traits.frame_size is None:
        return verify.answer_with(infer, traits.convention)
    session = layers.session_of(emulation)
    name = session.get_inputs()[0].name
    outputs = [output.name for output in session.get_outputs()]
    if traits.frame_size is None:
        return verify.answer_with(
            lambda batch: session.run(outputs[:1], {name: batch})[0], traits.convention
        )

    def answer(image: verify.Image) -> tuple[verify.Array, verify.Image]:
        mask, logits = session.run(outputs[:2], {name: _in_color(image, traits)[None]})
        return logits, mask[0]

    return answer


def _in_color(image: verify.Image, traits: Traits) -> verify.Image:
    """Return an RGB image in the channel order that the graph takes."""
    return np.ascontiguousarray(image[..., ::-1]) if traits.frame_color == "BGR" else image


def remedy(
    exact: onnx.ModelProto, settled: Settled, image: verify.Image, traits: Traits, wanted: str
) -> str:
    """Say which layer of the final graph parts first from the float32 graph, and what to do.

    Args:
        exact: The float32 graph, from "images".
        settled: The graph in its final precision, before preprocessing was put inside.
        image: A frame at which they differ.
        traits: What the network is.
        wanted: The precision asked for.
    """
    batch = traits.convention.preprocess(image)[None]
    emulation = settled.emulation
    if emulation is exact and wanted in precision.TYPES:  # OpenVINO rounds when it compiles
        emulation = precision.emulated(precision.typed(_for_bfloat16(exact), wanted))
    found = layers.first_divergence(exact, emulation, batch, settled.islands)
    where = f"first to diverge: {found[0]} (error {found[1]:.1%}); " if found else ""
    return (
        where
        + {
            "int8": "calibrate on more frames (--calibration-images), or use --precision fp16",
            "fp16": "use --precision bf16 or fp32",
            "bf16": "use --precision fp32, or fp16 on a GPU, or allow more with --tolerance 0.02",
            "fp32": "the export itself differs: report it with the checkpoint",
        }[wanted]
    )


def _for_bfloat16(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in the operator set that knows bfloat16; its operators mean the same there."""
    copied: onnx.ModelProto = type(graph).FromString(graph.SerializeToString())
    copied.opset_import[0].version = max(copied.opset_import[0].version, OPSET_BF16)
    return copied


def main(argv: Sequence[str]) -> int:
    """``inspect BUNDLE`` or ``verify BUNDLE [--data DIR]``."""
    parser = argparse.ArgumentParser(prog="medisseg build")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("inspect", help="say what a bundle is and check every part")
    show.add_argument("bundle", metavar="BUNDLE")
    show.add_argument("--json", action="store_true", help="print the manifest itself")
    show.add_argument("--layers", action="store_true", help="print the engine's kernels as a table")
    again = commands.add_parser("verify", help="compare a bundle with its network once more")
    again.add_argument("bundle", metavar="BUNDLE")
    again.add_argument("--data", metavar="DIR", help="images (and masks); default: phantoms")
    again.add_argument("--split", help="list of --data (default: val, else all)")
    again.add_argument("--images", type=int, default=0, help="how many; 0 for all (default)")
    again.add_argument("--checkpoint", help="default: the one that the manifest names")
    again.add_argument("--tolerance", type=float, help="default: the bundle's own")
    again.add_argument("--out", metavar="FILE", help="write the result as JSON")
    for one in (show, again):
        one.add_argument("--trusted-key", metavar="PUB", help="public key of who must have signed")
    args = parser.parse_args(argv)
    bundle = Bundle.open(args.bundle, args.trusted_key)
    bundle.check()
    if args.command == "inspect":
        if args.layers:
            print(safe(kernel_table(bundle), "\n"))
            return 0
        print(json.dumps(bundle.manifest, indent=2) if args.json else safe(described(bundle), "\n"))
        return 0
    checked = verified(bundle, args.data, args.split, args.images, args.checkpoint)
    print(summary(checked))
    if args.out:
        from medisseg.files import replacing

        with replacing(args.out) as temporary:
            temporary.write_text(json.dumps(checked.to_dict(), indent=2) + "\n")
    wrong = checked.failures(args.tolerance or bundle.manifest["tolerance"])
    if wrong:
        raise UserError(f"{bundle.path} is not the network: {'; '.join(wrong)}; {bundle.rebuild}")
    return 0


def verified(
    bundle: Bundle,
    data: str | Path | None,
    split: str | None = None,
    images: int = 0,
    checkpoint: str | None = None,
) -> verify.Verification:
    """Compare a bundle with the checkpoint it was built from.

    Where its engine cannot run here, the emulation of its precision answers instead.

    Raises:
        UserError: The checkpoint is gone, or is another one than the bundle was built from.
    """
    import onnx

    from export.runtime import load_engine
    from export.runtime.loading import runs_here
    from export.subject import open_subject
    from medisseg.checkpoint import resolve
    from medisseg.files import sha256

    manifest, traits = bundle.manifest, bundle.traits
    named = checkpoint or manifest["checkpoint"]["name"]
    path = resolve(named)
    if sha256(path) != manifest["checkpoint"]["sha256"]:
        raise UserError(
            f"{path} is not the checkpoint that {bundle.path} was built from; give that one with "
            "--checkpoint, or build again"
        )
    subject = open_subject(named, traits)
    frames = resized(frames_from(data, images, split, traits.classes), traits)
    if runs_here(bundle) is None:
        with load_engine(bundle.path) as engine:
            answer, by = engine_answer(engine), engine.name
            return _compared(subject, answer, by, frames, source_name(data))
    shipped = onnx.load_model_from_string(bundle.read(ONNX_PART))
    rounded = precision.emulated(shipped)
    by = f"{manifest['precision']} emulated in ONNX Runtime"
    return _compared(subject, emulated_answer(rounded, traits), by, frames, source_name(data))


def _compared(
    subject: Subject, answer: verify.Answer, by: str, frames: Sequence[Frame], source: str
) -> verify.Verification:
    traits = subject.traits
    verify.check_extremes(answer, traits.frame_size or traits.convention.size, by)
    return verify.compare(
        subject.answer, answer, frames, traits.convention, traits.threshold, by=by, source=source
    )


def kernel_table(bundle: Bundle) -> str:
    """Return a table of the kernels that an engine of the TensorRT family was built of.

    Raises:
        UserError: The bundle is of another backend, or was built before kernels were kept.
    """
    from export.builders import tensorrt_layers
    from export.builders.spec import LAYERS

    if LAYERS not in bundle.manifest["files"]:
        raise UserError(
            f"{bundle.path} lists no kernels: --layers is for engines of tensorrt and tensorrt-rtx"
        )
    return tensorrt_layers.table(tensorrt_layers.from_json(bundle.read(LAYERS)))


def described(bundle: Bundle) -> str:
    """Return a bundle's manifest for people."""
    m = bundle.manifest
    size, batch = "x".join(map(str, m["size"])), ":".join(map(str, m["batch"]))
    source = m["checkpoint"]
    metrics = ", ".join(f"{k} {v:.4g}" for k, v in source["metrics"].items() if _number(v))
    gpus = ", ".join(m["compute_capabilities"]) or "none needed"
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(m["convolutions"].items()))
    raw = m.get("raw_frames")
    lines = [
        ("bundle", f"{bundle.path} (every part is what was built)"),
        ("network", f"{source['architecture']} stage {source['stage']}, {m['classes']} class(es)"),
        ("checkpoint", f"{source['name']} (SHA-256 {source['sha256'][:12]}) {metrics}"),
        ("backend", f"{m['backend']} {m['backend_version']}, {m['precision']}"),
        ("convolutions", f"{kinds} in the {m['inspected']}; {m['fp16_share']:.0%} in FP16"),
        *_built_of(m),
        ("kept layers", ", ".join(m["islands"]) or "none were needed"),
        ("GPUs", gpus),
        ("input", f"{size}, batch {batch}, {m['convention']['color']}"
                  + (f"; takes {raw['color']} frames {raw['size']}" if raw else "")),
        ("threshold", str(m["threshold"])),
        ("verified", summary(verify.Verification(**m["verification"]))),
        ("parts", ", ".join(f"{name} {digest[:12]}" for name, digest in m["files"].items())),
        ("built", f"{m['built']} by medisseg {m['medisseg_version']} on {m['machine']}"),
        ("command", m["command"]),
    ]  # fmt: skip
    return "\n".join(f"{name:15} {text}" for name, text in lines)


def _built_of(manifest: Json) -> list[tuple[str, str]]:
    """Return the lines about an engine's kernels, where it is one of the TensorRT family."""
    kinds = manifest.get("kernels")
    if not kinds:
        return []
    total, half = sum(kinds.values()), kinds.get("FP16", 0)
    scratch = manifest.get("scratch_mb")
    text = f"{total}, {half / total:.0%} give FP16"
    text += f"; {scratch:.1f} MB of scratch memory" if scratch is not None else ""
    return [("kernels", f"{text}; inspect --layers lists them")]


def summary(checked: verify.Verification) -> str:
    """Return one line about a verification."""
    text = (
        f"{checked.images} {checked.source} images, {checked.by}: Dice between masks "
        f"{checked.dice_agreement:.4f}, probability difference at most {checked.max_abs:.4f} "
        f"(p99.9 {checked.p999_abs:.4f})"
    )
    if checked.dice_network is not None and checked.dice_change is not None:
        text += f", Dice against the truth {checked.dice_network:.4f} {checked.dice_change:+.4f}"
    return text


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
