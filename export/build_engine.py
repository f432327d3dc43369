"""Build an engine from a checkpoint, and verify that it answers as the network does.

    medisseg build CHECKPOINT --backend openvino --out runs/edge.mdsg
    medisseg build inspect BUNDLE
    medisseg build verify BUNDLE --data DIR
    medisseg build BUNDLE --triton REPOSITORY

Checkpoint -> inference network -> ONNX -> precision -> builder -> audit -> verification -> bundle.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":  # run as a script, from any folder
    sys.path[0] = str(ROOT)

from export import (  # noqa: E402
    answers,
    bundle_commands,
    signing,
    triton_repository,
    verify,
)
from export.builders import registry  # noqa: E402
from export.builders.spec import Built, Spec  # noqa: E402
from export.bundle import ONNX_PART, Bundle, building, refuse_other, write_bundle  # noqa: E402
from export.mixed_precision import PreparedGraph, prepare  # noqa: E402
from export.model_info import ModelInfo  # noqa: E402
from export.options import BuildOptions, add_arguments, from_arguments, read_options  # noqa: E402
from export.precision import convolution_types  # noqa: E402
from export.reference import BuildInput, ReferenceModel, open_input  # noqa: E402
from export.runtime.engine import BaseEngine  # noqa: E402
from export.samples import ReferenceFrame, frames_from, source_name  # noqa: E402
from export.steps import Steps  # noqa: E402
from medisseg.arguments import Parser  # noqa: E402
from medisseg.checkpoint import is_bundle  # noqa: E402
from medisseg.errors import UserError, command  # noqa: E402
from medisseg.files import sha256  # noqa: E402

if TYPE_CHECKING:
    import onnx

    from medisseg.convention import InputConvention

MOST_TOGETHER = {"cpu": 2, "cuda": 16}  # images of the one batch that is verified


def build(
    checkpoint: str | Path,
    out: str | Path | None = None,
    sign: str | Path | None = None,
    trusted_key: str | Path | None = None,
    **options: Any,
) -> Bundle:
    """Build, verify and write a bundle.

    Args:
        checkpoint: ``.safetensors`` file or the name of a packaged checkpoint.
        out: Folder or ``.mdsg`` file; None for ``runs/engines/NAME-BACKEND-PRECISION``.
        sign: Private key to sign the bundle with.
        trusted_key: Public key that the bundle must be signed for.
        **options: Fields of :class:`export.options.BuildOptions`.

    Returns:
        The bundle that was written.

    Raises:
        UserError: Anything that keeps the engine from being what was asked for; nothing is
            written then.

    Example:
        >>> bundle = build("edge-polyp", "runs/edge.mdsg", backend="openvino")
        >>> bundle.manifest["verification"]["dice_agreement"]
    """
    asked = read_options(options)
    chosen = asked.resolved()
    place = Path(out) if out else _default_place(checkpoint, chosen)
    refuse_other(place)
    _check_keys(sign, trusted_key)
    with Steps(chosen.quiet) as progress, building(place):
        given = open_input(checkpoint, chosen, progress)
        try:
            return _build(given, place, chosen, progress, sign)
        except verify.Diverged as error:
            # bfloat16 was our choice, not the user's: on frames that it cannot answer it is undone.
            if asked.precision != "auto" or chosen.precision != "bf16":
                raise
            progress(f"{error}; auto therefore builds fp32")
            exact = dataclasses.replace(asked, precision="fp32").resolved()
            return _build(given, place, exact, progress, sign)


def _check_keys(sign: str | Path | None, trusted_key: str | Path | None) -> None:
    """Refuse keys that cannot be read or do not belong together, before anything is built."""
    if sign is not None:
        signing.private_key(sign)
    if trusted_key is None:
        return
    if sign is None:
        raise UserError("--trusted-key needs --sign KEY: a bundle without it is not signed")
    if not signing.same_owner(sign, trusted_key):
        raise UserError(f"--sign {sign} does not belong to --trusted-key {trusted_key}")


def _build(
    given: BuildInput,
    place: Path,
    options: BuildOptions,
    progress: Steps,
    sign: str | Path | None = None,
) -> Bundle:
    """Set the precision, build, verify and write the bundle.

    Raises:
        Diverged: The engine's answers are beyond the tolerance.
        UserError: The backend cannot build the graph, or not in the precision asked for.
    """
    from export.graph import check
    from export.raw_frames import with_frames

    reference, graph, frames = given.reference, given.graph, given.frames
    model_info, convention = reference.model_info, reference.model_info.convention
    wanted, rest = registry.graph_precision(options.backend, options.precision)
    prepared = prepare(
        graph,
        wanted,
        [convention.preprocess(frames[0].image)[None]],
        extremes=[
            convention.preprocess(x)[None] for x in verify.extremes(convention.size).values()
        ],
        calibration=_calibration(convention, options),
        rest=rest,
    )
    prepared = dataclasses.replace(prepared, network=given.network)
    kept = "floating point" if wanted == "int8" else "float32"
    progress(f"precision {options.precision}: {len(prepared.fp32_nodes)} layers kept in {kept}")
    plain = prepared
    if model_info.frame_size is not None:
        prepared = dataclasses.replace(
            prepared,
            **{
                name: with_frames(getattr(prepared, name), convention, model_info.frame_size,
                                  model_info.frame_color, model_info.threshold)
                for name in ("model", "emulation")
            },
        )  # fmt: skip
    check(prepared.model)

    built = registry.BUILDERS[options.backend](prepared, _spec(options, model_info), progress.task)
    quantized = convolution_types(prepared.model).get("INT8")
    share = registry.audit(built, options.precision, options.backend, quantized)
    progress(f"built for {options.backend} {built.backend_version}: {_counts(built.convolutions)}")

    checked = _verify(reference, graph, plain, built, prepared, frames, options, progress)
    progress(f"verified: {bundle_commands.summary(checked)}")
    parts = {ONNX_PART: prepared.model.SerializeToString(), **built.parts}
    bundle = write_bundle(
        place,
        parts,
        _facts(given.name, place, reference, options, built, prepared.fp32_nodes, share, checked),
        sign,
    )
    progress(f"wrote {place}: {sum(map(len, parts.values())) / 1e6:.1f} MB")
    return bundle


def _calibration(convention: InputConvention, options: BuildOptions) -> list[verify.Array]:
    """Return the images that INT8 is calibrated on, float32 [1, 3, H, W] each; else none."""
    from medisseg.data.folder import SegmentationFolder
    from medisseg.data.splits import find

    if options.precision != "int8":
        return []
    assert options.data is not None
    images = SegmentationFolder(options.data, unmasked="negative").images()
    split = "train" if find(options.data, "train", images) else None
    frames = frames_from(options.data, options.calibration_images, split)
    return [convention.preprocess(frame.image)[None] for frame in frames]


def _spec(options: BuildOptions, model_info: ModelInfo) -> Spec:
    """Return what to build, with name and shape of the graph's input."""
    raw = model_info.frame_size
    shape = (*raw, 3) if raw else (3, *model_info.convention.size)
    name = "frames" if raw else "images"
    return dataclasses.replace(options.spec(options.precision), input_name=name, input_shape=shape)


def _verify(
    reference: ReferenceModel,
    graph: onnx.ModelProto,
    plain: PreparedGraph,
    built: Built,
    prepared: PreparedGraph,
    frames: Sequence[ReferenceFrame],
    options: BuildOptions,
    progress: Steps,
) -> verify.Verification:
    """Compare what was built (or the emulation of its precision) with the network.

    Raises:
        Diverged: Beyond the tolerance; the message names the layer and a remedy.
    """
    model_info = reference.model_info
    frames = answers.resized(frames, model_info)
    if built.open is not None:
        engine = built.open(model_info)
        by, answer = engine.name, answers.engine_answer(engine)
    else:
        engine = None
        by = f"{options.precision} emulated in ONNX Runtime"
        answer = answers.emulated_answer(prepared.emulation, model_info, prepared.infer)
    try:
        verify.check_extremes(answer, frames[0].image.shape[:2], by)
        checked = verify.compare(
            reference.answer,
            answer,
            frames,
            model_info.convention,
            model_info.threshold,
            source=source_name(options.data),
            by=by,
            progress=progress.track,
        )
        if engine is not None:
            _verify_batch(engine, frames, options)
    finally:
        if engine is not None:
            engine.close()
    wrong = checked.failures(options.tolerance or 0.0, options.precision)
    if wrong:
        raise verify.Diverged(
            f"{options.precision} in {by} is not the network: {'; '.join(wrong)} on "
            f"{checked.images} images. "
            + answers.remedy(graph, plain, frames[0].image, model_info, options.precision)
        )
    own = reference.info.convention
    if own.size == model_info.convention.size:
        return checked
    trained = dataclasses.replace(
        reference, model_info=dataclasses.replace(model_info, convention=own)
    )
    dice = verify.dice_against_truth(trained.answer, frames, own, model_info.threshold)
    return dataclasses.replace(checked, dice_own_size=dice)


def _verify_batch(
    engine: BaseEngine, frames: Sequence[ReferenceFrame], options: BuildOptions
) -> None:
    """Compare the answers to a batch with those to its images one by one.

    Raises:
        Diverged: They differ by more than the tolerance.
    """
    kind = str(engine.device).split(":")[0].lower()
    model_info, count = engine.model_info, min(engine.max_batch, MOST_TOGETHER.get(kind, 2))
    if count == 1:
        return
    images = [frames[i % len(frames)].image for i in range(count)]
    images = [np.roll(image, 16 * i, axis=1) for i, image in enumerate(images)]  # all different
    tolerance = options.tolerance or 0.0
    if model_info.frame_size is None:
        batch = np.stack([model_info.convention.preprocess(image) for image in images])
        verify.check_batch(engine.infer, batch, tolerance, engine.name)
    else:
        frames_in = np.stack(images)
        verify.check_batch(
            lambda f: engine.frame_outputs(f)["logits"], frames_in, tolerance, engine.name
        )


def _facts(
    checkpoint: str | Path,
    place: Path,
    reference: ReferenceModel,
    options: BuildOptions,
    built: Built,
    fp32_nodes: Sequence[str],
    share: float,
    checked: verify.Verification,
) -> dict[str, object]:
    """Return the manifest's contents."""
    import medisseg

    model_info, info = reference.model_info, reference.info
    raw = (
        {"size": model_info.frame_size, "color": model_info.frame_color}
        if model_info.frame_size
        else None
    )
    return {
        "backend": options.backend,
        "backend_version": built.backend_version,
        "precision": options.precision,
        "fp16_share": share,
        "convolutions": built.convolutions,
        "inspected": built.inspected,
        "islands": list(fp32_nodes),
        "compute_capabilities": list(built.compute_capabilities),
        "hardware_compatible": options.hardware_compatible,
        "version_compatible": options.version_compatible,
        "dla": options.dla,
        "gpu_name": built.gpu_name,
        "kernels": built.kernels,
        "scratch_mb": built.scratch_mb,
        "size": list(model_info.convention.size),
        "batch": list(options.batch),
        "threshold": model_info.threshold,
        "classes": model_info.classes,
        "labels": [dataclasses.asdict(label) for label in model_info.labels],
        "convention": model_info.convention.to_dict(),
        "uncertainty": model_info.uncertainty,
        "raw_frames": raw,
        "verification": checked.to_dict(),
        "tolerance": options.tolerance,
        "checkpoint": {
            "name": str(checkpoint),
            "sha256": sha256(reference.path),
            "architecture": info.architecture,
            "stage": info.stage,
            "metrics": info.metrics,
            "data": info.data,
            "version": info.version,
        },
        "command": _command(checkpoint, place, options),
        "machine": f"{platform.system()} {platform.machine()}",
        "medisseg_version": medisseg.__version__,
        "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _command(checkpoint: str | Path, place: Path, options: BuildOptions) -> str:
    words = ["medisseg", "build", str(checkpoint), *options.arguments()]
    return shlex.join([*words, "--out", str(place)])


def _default_place(checkpoint: str | Path, options: BuildOptions) -> Path:
    name = f"{Path(checkpoint).stem}-{options.backend}-{options.precision}"
    return Path("runs") / "engines" / name


def _counts(convolutions: dict[str, int]) -> str:
    total = sum(convolutions.values())
    shares = ", ".join(f"{count} {kind}" for kind, count in sorted(convolutions.items()))
    return f"{total} convolutions ({shares})"


def new_key(argv: Sequence[str]) -> int:
    """Run ``medisseg build new-key FILE``: make a key pair to sign bundles with."""
    parser = Parser(prog="medisseg build new-key")
    parser.add_argument("file", metavar="FILE", help="private key; the public one is FILE.pub")
    args = parser.parse_args(argv)
    public = signing.make_key(args.file)
    print(f"private key: {args.file} (keep it to yourself), public key: {public}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``medisseg build``: build, inspect, verify or make a key; return the exit code.

    Raises:
        UserError: What the user can mend, in one line.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("inspect", "verify"):
        return bundle_commands.main(words)
    if words and words[0] == "new-key":
        return new_key(words[1:])
    parser = Parser(
        prog="medisseg build",
        description=(__doc__ or "").splitlines()[0],
        epilog="medisseg build inspect BUNDLE | medisseg build verify BUNDLE [--data DIR] | "
        "medisseg build new-key FILE | medisseg build BUNDLE --triton REPOSITORY\n\n"
        "example:\n  medisseg build edge-polyp --backend openvino "
        "--data kvasir-seg --out edge.mdsg",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    triton_repository.add_arguments(parser)
    args = parser.parse_args(words)
    target, options = triton_repository.target_of(args), from_arguments(args)
    if target is not None and is_bundle(args.checkpoint):
        bundle = Bundle.open(args.checkpoint, args.trusted_key)
    else:
        bundle = build(args.checkpoint, args.out, args.sign, args.trusted_key, **options)
    if target is not None:
        place, version = triton_repository.write_model(bundle, target)
        print(f"wrote {place}: version {version} is served")
    return 0


if __name__ == "__main__":
    command(main)
