"""Open an engine: choose the backend of a bundle or checkpoint, refuse what cannot run here."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from export.bundle import ONNX_PART, Bundle
from export.model_info import BACKENDS, ModelInfo
from export.runtime.engine import BaseEngine
from medisseg.checkpoint import is_bundle, is_served
from medisseg.device import check_device, pick_device
from medisseg.errors import UserError

if TYPE_CHECKING:
    from medisseg.checkpoint import Checkpoint

log = logging.getLogger(__name__)
OPENVINO_PARTS = ("network.xml", "network.bin")
TENSORRT_PARTS = {
    "tensorrt": "network.engine",
    "tensorrt-rtx": "network.engine",
    "torch-tensorrt": "network.ep",
}


def load_engine(
    source: str | Path,
    device: str = "auto",
    backend: str = "auto",
    *,
    threads: int | None = None,
    precision: str = "auto",
    trusted_key: str | Path | None = None,
) -> BaseEngine:
    """Open a bundle, a checkpoint file or a checkpoint by name, ready to answer.

    A bundle runs in the backend that it was built for, unless another is named that can run its
    ONNX graph ("openvino", "onnx"). A checkpoint runs in PyTorch, on a GPU where there is one.

    Args:
        source: Folder or ``.mdsg`` file of a bundle, ``.safetensors`` file, a name such as
            "edge-polyp", or the address of a model on a Triton server, "grpc://HOST:8001/NAME".
        device: "auto", "cpu", "cuda" or "cuda:N".
        backend: "auto" or one of ``BACKENDS``.
        threads: CPU threads of one run; None for all cores.
        precision: "auto" (the bundle's, or the device's best), "fp32", "bf16" or "fp16".
        trusted_key: Public key of who must have signed the bundle; None asks for no signature.

    Raises:
        UserError: Damaged, of another version, GPU or network, or not runnable here; the message
            has the command that builds it again.

    Example:
        >>> with load_engine("edge-polyp") as engine:
        ...     logits = engine.infer(engine.convention.preprocess(image)[None])
    """
    if backend not in ("auto", *BACKENDS):
        raise UserError(f"backend is {backend!r}; expected auto or one of {', '.join(BACKENDS)}")
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}; expected 1 or more")
    check_device(device)
    if is_served(source):
        engine = _from_server(str(source), device, backend, threads, precision, trusted_key)
    elif is_bundle(source):
        opened = Bundle.open(source, trusted_key)
        engine = _from_bundle(opened, device, backend, threads, precision)
    else:
        if trusted_key is not None:
            raise UserError(
                f"{source} is a checkpoint, which carries no signature, and --trusted-key "
                f"{trusted_key} was named; build a bundle with --sign and run that"
            )
        engine = _from_checkpoint(source, device, backend, threads, precision)
    log.info("%s runs in %s", source, engine.name)
    return engine


def _from_bundle(
    bundle: Bundle, device: str, backend: str, threads: int | None, precision: str
) -> BaseEngine:
    built = bundle.manifest["backend"]
    chosen = built if backend == "auto" else backend
    if precision == "auto" and chosen == built:
        precision = bundle.manifest["precision"]
    if chosen == "onnx":
        from export.runtime.onnx_engine import OnnxEngine

        graph = bundle.read(ONNX_PART)
        return OnnxEngine(graph, bundle.model_info, bundle.manifest["precision"], threads)
    if chosen == "openvino":
        from export.runtime.openvino_engine import OpenVinoEngine

        parts: tuple[bytes, bytes | None] = (bundle.read(ONNX_PART), None)
        if built == "openvino":
            parts = (bundle.read(OPENVINO_PARTS[0]), bundle.read(OPENVINO_PARTS[1]))
        return OpenVinoEngine(*parts, bundle.model_info, precision, threads)
    if chosen != built:
        raise UserError(
            f"{bundle.path} was built for {built}, not {chosen}; build it for that: "
            f"medisseg build CHECKPOINT --backend {chosen}"
        )
    reason = runs_here(bundle)
    if reason:
        raise UserError(
            f"{bundle.path} is for {built}: {reason}; open its ONNX graph with backend openvino or "
            "onnx, or build with --backend openvino"
        )
    from export.runtime.opening import open_tensorrt

    return open_tensorrt(bundle, TENSORRT_PARTS[built], device)


def _from_checkpoint(
    source: str | Path, device: str, backend: str, threads: int | None, precision: str
) -> BaseEngine:
    from medisseg.model.inference import for_inference
    from medisseg.model.loading import load_checkpoint

    if backend not in ("auto", "pytorch"):
        raise UserError(
            f"{source} is a checkpoint, which runs in PyTorch; for {backend} build it first: "
            f"medisseg build {source} --backend {backend}"
        )
    from export.runtime.torch_engine import TorchEngine

    place = pick_device(device)
    model = load_checkpoint(source, device="cpu")
    network = for_inference(model, portable=place == "cpu")
    return TorchEngine(network, model_info_of(model.info), place, precision, threads)


def _from_server(
    source: str,
    device: str,
    backend: str,
    threads: int | None,
    precision: str,
    trusted_key: str | Path | None,
) -> BaseEngine:
    chosen = {"--device": device, "--backend": backend, "--precision": precision}
    given = [f"{option} {value}" for option, value in chosen.items() if value != "auto"]
    given += [] if threads is None else [f"--threads {threads}"]
    given += [] if trusted_key is None else [f"--trusted-key {trusted_key}"]
    if given:
        raise UserError(
            f"{given[0]} does not go with {source}: the server decides what its models run on and "
            "which it loads; leave it out"
        )
    from export.runtime.triton_engine import open_triton

    return open_triton(source)


def runs_here(bundle: Bundle) -> str | None:
    """Return why a bundle's engine cannot run on this machine, or None where it can."""
    built = bundle.manifest["backend"]
    if built not in TENSORRT_PARTS:
        return None
    import torch

    if not torch.cuda.is_available():
        return "it needs an NVIDIA GPU, and PyTorch sees none here"
    return None


def model_info_of(info: Checkpoint, max_batch: int = 64) -> ModelInfo:
    """Return the model information of a checkpoint's header; PyTorch takes batches of any size."""
    return ModelInfo(info.convention, info.threshold, info.classes, max_batch, labels=info.labels)
