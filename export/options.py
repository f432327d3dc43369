"""What a build is asked for: checked on construction, and the command line that says the same."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from export.builders import registry
from export.builders.spec import GPUS, Spec, local_gpu
from export.model_info import BACKENDS, PRECISIONS, parse_size
from export.verify import TOLERANCES
from medisseg.errors import UserError
from medisseg.schema import Json, build, not_one_of

BUILDABLE = tuple(name for name in BACKENDS if name != "pytorch")
TENSORRT = ("tensorrt", "tensorrt-rtx", "torch-tensorrt")


@dataclass(frozen=True)
class BuildOptions:
    """What to build and how to prove it.

    Attributes:
        backend: "auto" or one of ``BUILDABLE``; auto takes the first of TensorRT and TensorRT for
            RTX that is installed where there is an NVIDIA GPU, then OpenVINO, ONNX Runtime.
        precision: "auto", "fp16", "bf16", "fp32" or "int8"; auto is fp16 on GPUs, bf16 for
            OpenVINO on a CPU with AMX, else fp32.
        size: Input (height, width) in pixels, multiples of 16; None for the checkpoint's.
        batch: Smallest, best and largest batch.
        gpu: Compute capabilities such as ("sm86", "sm89"); empty for this machine's GPU.
        data: Folder of images (and masks) to verify and calibrate on; None for phantom images.
        split: List of ``data`` to verify on; None for "val" where there is one, else all.
        images: How many images to verify on while building; 0 for all.
        calibration_images: How many to calibrate INT8 on.
        tolerance: How far mean Dice between the masks may fall short of 1; None for the
            precision's own (``verify.TOLERANCES``).
        uncertainty: Keep the uncertainty branch as a second output.
        raw_frames: (height, width) of uint8 frames that the graph takes instead of preprocessed
            images; (0, 0) for the network's own size; None for the usual graph.
        raw_color: Channel order of those frames.
        timing_cache: File of TensorRT's kernel timings, read and written; TensorRT for RTX, which
            times nothing while it builds, leaves it alone.
        workspace: Limit of TensorRT's scratch memory in MiB; 0 for none.
        hardware_compatible: One TensorRT engine for every GPU from Ampere on.
        version_compatible: A TensorRT engine that newer versions open.
        dla: Core of a Jetson's accelerator; -1 for none.
        opset: ONNX operator set; 0 for 20 (22 for bf16).
        quiet: Print nothing.
    """

    backend: str = "auto"
    precision: str = "auto"
    size: tuple[int, int] | None = None
    batch: tuple[int, int, int] = (1, 1, 4)
    gpu: tuple[str, ...] = ()
    data: Path | None = None
    split: str | None = None
    images: int = 4
    calibration_images: int = 64
    tolerance: float | None = None
    uncertainty: bool = False
    raw_frames: tuple[int, int] | None = None
    raw_color: str = "RGB"
    timing_cache: Path | None = None
    workspace: int = 0
    hardware_compatible: bool = False
    version_compatible: bool = False
    dla: int = -1
    opset: int = 0
    quiet: bool = False

    def __post_init__(self) -> None:
        _one_of("--backend", self.backend, ("auto", *BUILDABLE))
        _one_of("--precision", self.precision, ("auto", *PRECISIONS))
        _one_of("--raw-color", self.raw_color, ("RGB", "BGR"))
        for gpu in self.gpu:
            _one_of("--gpu", gpu, GPUS)
        if self.size and any(side < 16 or side % 16 for side in self.size):
            height, width = (max(16, round(side / 16) * 16) for side in self.size)
            raise UserError(
                f"--size is {self.size[0]}x{self.size[1]}; both must be multiples of 16, "
                f"for example {height}x{width}"
            )
        low, best, high = self.batch
        if not 1 <= low <= best <= high:
            raise UserError(
                f"--batch is {low}:{best}:{high}; expected 1 <= MIN <= BEST <= MAX, such as 1:1:4"
            )
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise UserError(f"--tolerance is {self.tolerance}; expected between 0 and 1, as 0.002")
        for option, value, least in (
            ("--images", self.images, "0 (all) or more"),
            ("--calibration-images", self.calibration_images, "1 or more"),
            ("--workspace", self.workspace, "0 (no limit) or more, in MiB"),
            ("--dla", self.dla, "-1 (none) or the number of a core, 0 or 1"),
        ):
            if value < int(least.split()[0]):
                raise UserError(f"{option} is {value}; expected {least}")
        if self.raw_frames and self.raw_frames != (0, 0) and min(self.raw_frames) < 1:
            height, width = self.raw_frames
            raise UserError(f"--raw-frames is {height}x{width}; expected HxW, such as 1080x1920")
        if self.opset and not 20 <= self.opset <= 23:
            raise UserError(f"--opset is {self.opset}; expected 20 to 23")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.dla >= 0 and self.backend not in ("auto", "tensorrt"):
            raise UserError(f"--dla needs --backend tensorrt; {self.backend} has no DLA")
        if self.dla >= 0 and self.batch[0] != self.batch[-1]:
            raise UserError("--dla takes one batch size; use --batch 1:1:1")
        if self.dla >= 0 and self.precision not in ("auto", "fp16"):
            raise UserError(f"--dla takes FP16, not {self.precision}; use --precision fp16")
        if self.precision == "int8" and self.data is None:
            raise UserError("--precision int8 needs --data DIR: real frames to calibrate on")
        if self.gpu and self.backend in ("openvino", "onnx"):
            raise UserError(f"--gpu is for the TensorRT family; {self.backend} runs on the CPU")
        for option in ("hardware_compatible", "version_compatible"):
            if getattr(self, option) and self.backend in ("openvino", "onnx"):
                raise UserError(
                    f"--{option.replace('_', '-')} is for --backend tensorrt; {self.backend} runs "
                    "on any CPU: leave it out"
                )
        if self.backend == "tensorrt-rtx" and {"sm87", "sm90"} & set(self.gpu):
            raise UserError(
                "TensorRT for RTX does not build for sm87 (Orin) or sm90 (H100); "
                "use --backend tensorrt on that machine"
            )
        if self.backend == "tensorrt-rtx" and self.hardware_compatible:
            raise UserError("--hardware-compatible is for tensorrt; name the GPUs with --gpu")
        if self.backend == "tensorrt-rtx" and self.version_compatible:
            raise UserError("--version-compatible is for tensorrt; build again for a newer version")
        if self.backend == "torch-tensorrt":
            self._check_torch_tensorrt()
        if self.raw_frames and self.uncertainty:
            raise UserError("--raw-frames gives masks only; leave --uncertainty out")

    def _check_torch_tensorrt(self) -> None:
        refused = {
            "--raw-frames": self.raw_frames is not None,
            "--precision int8": self.precision == "int8",
            "--gpu": bool(self.gpu),
            f"--batch {self.batch[0]}:...": self.batch[0] > 1,
        }
        for option in (name for name, given in refused.items() if given):
            raise UserError(
                f"{option}: torch-tensorrt compiles the PyTorch network for this GPU, batches from "
                "1 and images as the network takes them, in fp16, bf16, fp32; use tensorrt"
            )

    def resolved(self) -> BuildOptions:
        """Return the options with every "auto" decided for this machine.

        Raises:
            UserError: The backend is not installed.
        """
        backend = self.backend if self.backend != "auto" else self._automatic()
        reason = registry.available(backend)
        if reason:
            raise UserError(reason)
        if backend == "tensorrt-rtx" and not self.gpu and local_gpu() is None:
            raise UserError(
                "no NVIDIA GPU here to build for: name them, for example --gpu sm86,sm89"
            )
        precision = self.precision
        if precision == "auto":
            precision = registry.default_precision(backend)
        registry.refuse(backend, self.spec(precision))
        if (backend, precision) == ("onnx", "bf16"):
            raise UserError(
                "ONNX Runtime has no bfloat16 convolution on a CPU; use --precision fp32, fp16 or "
                "int8, or --backend openvino"
            )
        opset = self.opset or (22 if precision == "bf16" and backend in TENSORRT else 20)
        tolerance = self.tolerance or TOLERANCES[precision]
        return dataclasses.replace(
            self, backend=backend, precision=precision, opset=opset, tolerance=tolerance
        )

    def _automatic(self) -> str:
        import torch

        wished = bool(self.gpu) or self.dla >= 0
        for backend in ("tensorrt", "tensorrt-rtx", "openvino", "onnx"):
            on_gpu = backend in TENSORRT
            if on_gpu and not (wished or torch.cuda.is_available()):
                continue
            if not on_gpu and wished:
                continue
            # TensorRT builds for the GPU at hand alone, TensorRT for RTX for those that are named.
            if backend == "tensorrt" and self.gpu and self.gpu != (local_gpu(),):
                continue
            if backend == "tensorrt-rtx" and self.dla >= 0:
                continue
            if registry.available(backend) is None:
                return backend
        raise UserError("--gpu and --dla need TensorRT: pip install tensorrt-rtx, or tensorrt")

    def spec(self, precision: str) -> Spec:
        """Return what a builder is asked for; the fields about the network are the default's."""
        return Spec(
            precision=precision,
            batch=self.batch,
            gpus=self.gpu,
            workspace=self.workspace,
            timing_cache=self.timing_cache,
            hardware_compatible=self.hardware_compatible,
            version_compatible=self.version_compatible,
            dla=self.dla,
        )

    def arguments(self) -> list[str]:
        """Return the command line that asks for these options."""
        words: list[str] = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == field.default or field.name == "quiet":
                continue
            words.append(f"--{field.name.replace('_', '-')}")
            if value is not True:
                joint = {"size": "x", "raw_frames": "x", "batch": ":", "gpu": ","}.get(field.name)
                words.append(joint.join(map(str, value)) if joint else str(value))
        return words


def read_options(values: Json) -> BuildOptions:
    """Return the options of a table of values, such as :func:`from_arguments` makes.

    Args:
        values: Fields of :class:`BuildOptions`; sizes may be text, such as "256x320", and the batch
            text or one number, such as "1:1:4" or 4.

    Raises:
        UserError: An unknown key (answered with the nearest known one), a wrong kind, a value out
            of range, or values that do not go together.
    """
    parsed: Json = {}
    for key, option in (("size", "--size"), ("raw_frames", "--raw-frames")):
        if isinstance(given := values.get(key), str | int):
            parsed[key] = parse_size(str(given), option)
    if isinstance(batch := values.get("batch"), int | str) and not isinstance(batch, bool):
        parsed["batch"] = parse_batch(str(batch))
    return build(BuildOptions, values | parsed, "build")


def parse_batch(text: str) -> tuple[int, int, int]:
    """Read "MIN:BEST:MAX", or "N" for 1:N:N, as the smallest, best and largest batch.

    Raises:
        UserError: Neither.
    """
    parts = text.split(":")
    if len(parts) == 1:
        parts = ["1", parts[0], parts[0]]
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise UserError(f"--batch is {text!r}; expected MIN:BEST:MAX or N, for example 1:1:4")
    low, best, high = map(int, parts)
    return low, best, high


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a build to a parser."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=".safetensors file, or a packaged name")
    add("--backend", default="auto", help=f"auto, {', '.join(BUILDABLE)}")
    add("--precision", default="auto", help=f"auto, {', '.join(PRECISIONS)}")
    add("--size", metavar="HxW", help="input size, multiples of 16 (default: the checkpoint's)")
    add("--batch", default="1:1:4", metavar="MIN:BEST:MAX", help="default 1:1:4")
    add("--gpu", default="", metavar="smNN,...", help="GPUs to build for (default: this machine's)")
    add("--data", metavar="DIR", help="images (and masks) to verify and calibrate on")
    add("--split", help="list of --data to verify on (default: val, else all)")
    add("--images", type=int, default=4, help="images to verify on; 0 for all (default 4)")
    add("--calibration-images", type=int, default=64, help="images for int8 (default 64)")
    add("--tolerance", type=float, help="Dice between masks may fall this short of 1 (fp16: 0.002)")
    add("--uncertainty", action="store_true", help="keep the uncertainty map as a second output")
    add("--raw-frames", nargs="?", const="0x0", metavar="HxW",
        help="uint8 frames in, masks out (default size: the network's)")  # fmt: skip
    add("--raw-color", default="RGB", help="channel order of those frames: RGB or BGR")
    add("--out", metavar="PATH", help="folder, or one file that ends in .mdsg")
    add("--sign", metavar="KEY", help="private key to sign the bundle with (new-key makes one)")
    add("--trusted-key", metavar="PUB", help="public key that the bundle must be signed for")
    add("--timing-cache", metavar="FILE", help="TensorRT's kernel timings, read and written")
    add("--workspace", type=int, default=0, metavar="MiB", help="limit of TensorRT's memory")
    add("--hardware-compatible", action="store_true", help="one engine for Ampere and newer")
    add("--version-compatible", action="store_true", help="an engine newer TensorRT opens")
    add("--dla", type=int, default=-1, metavar="CORE", help="a Jetson's accelerator core")
    add("--opset", type=int, default=0, help="ONNX operator set (default 20; 22 for bf16)")
    add("--quiet", action="store_true", help="print nothing")


def from_arguments(args: argparse.Namespace) -> Json:
    """Turn parsed arguments into values for :func:`read_options`."""
    fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(BuildOptions)}
    fields["raw_color"] = args.raw_color.upper()
    fields["gpu"] = tuple(part.strip().lower() for part in args.gpu.split(",") if part.strip())
    return fields


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(not_one_of(option, value, allowed))
