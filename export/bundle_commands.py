"""The commands ``medisseg build inspect BUNDLE`` and ``medisseg build verify BUNDLE``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export import precision, verify
from export.answers import emulated_answer, engine_answer, resized
from export.bundle import ONNX_PART, Bundle
from export.samples import ReferenceFrame, frames_from, source_name
from medisseg.arguments import Parser
from medisseg.errors import UserError
from medisseg.schema import Json
from medisseg.text import safe

if TYPE_CHECKING:
    from export.reference import ReferenceModel


def main(argv: Sequence[str]) -> int:
    """Run ``inspect BUNDLE`` or ``verify BUNDLE [--data DIR]``; return the exit code."""
    parser = Parser(prog="medisseg build")
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
    told = bundle.manifest
    wrong = checked.failures(args.tolerance or told["tolerance"], told["precision"])
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

    from export.reference import open_reference
    from export.runtime import load_engine
    from export.runtime.loading import runs_here
    from medisseg.checkpoint import resolve
    from medisseg.files import sha256

    manifest, model_info = bundle.manifest, bundle.model_info
    named = checkpoint or str(manifest["checkpoint"].get("name", ""))
    path = resolve(named) if checkpoint else _named_by(bundle, named)
    if sha256(path) != manifest["checkpoint"].get("sha256"):
        raise UserError(
            f"{path} is not the checkpoint that {bundle.path} was built from; give that one with "
            "--checkpoint, or build again"
        )
    reference = open_reference(named, model_info)
    frames = resized(frames_from(data, images, split, model_info.classes), model_info)
    if runs_here(bundle) is None:
        with load_engine(bundle.path) as engine:
            answer, by = engine_answer(engine), engine.name
            return _compared(reference, answer, by, frames, source_name(data))
    shipped = onnx.load_model_from_string(bundle.read(ONNX_PART))
    rounded = precision.emulated(shipped)
    by = f"{manifest['precision']} emulated in ONNX Runtime"
    return _compared(reference, emulated_answer(rounded, model_info), by, frames, source_name(data))


def _named_by(bundle: Bundle, name: str) -> Path:
    """Return the checkpoint that a manifest names: it must not choose a file of another kind."""
    from medisseg.checkpoint import read_header, resolve

    if Path(name).name != name and Path(name).suffix != ".safetensors":
        raise UserError(f"{bundle.path} names {name!r}, no checkpoint; give it with --checkpoint")
    path = resolve(name)
    read_header(path)
    return path


def _compared(
    reference: ReferenceModel,
    answer: verify.Answer,
    by: str,
    frames: Sequence[ReferenceFrame],
    source: str,
) -> verify.Verification:
    model_info = reference.model_info
    verify.check_extremes(answer, model_info.frame_size or model_info.convention.size, by)
    return verify.compare(
        reference.answer,
        answer,
        frames,
        model_info.convention,
        model_info.threshold,
        by=by,
        source=source,
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
    """Return what a bundle's manifest says, as lines to print."""
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
    """Return one line: Dice between the masks, largest difference of probability, images."""
    text = (
        f"{checked.images} {checked.source} images, {checked.by}: Dice between masks "
        f"{checked.dice_agreement:.4f}, probability difference at most {checked.max_abs:.4f} "
        f"(p99.9 {checked.p999_abs:.4f})"
    )
    if checked.dice_network is not None and checked.dice_change is not None:
        text += f", Dice against the truth {checked.dice_network:.4f} {checked.dice_change:+.4f}"
    if checked.dice_own_size is not None:
        text += f" (the network at the size it was trained at: {checked.dice_own_size:.4f})"
    return text


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
