"""A model repository of NVIDIA Triton Inference Server from a bundle.

    REPOSITORY/NAME/config.pbtxt    what is served, and the bundle's whole manifest
    REPOSITORY/NAME/1/              model.plan, .onnx, .xml and .bin, or model.py and bundle/
    REPOSITORY/NAME/1/config.pbtxt  the same text: copied one folder up, it serves this version

A version is never written over: another bundle becomes the next number, and the configuration names
the one version that is served, so that convention and threshold in it are that version's.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.bundle import MANIFEST, Bundle
from export.runtime.loading import ONNX_PART, OPENVINO_PARTS, TENSORRT_PARTS
from export.runtime.triton_client import PARAMETER, configurations
from medisseg.errors import UserError
from medisseg.files import replacing

if TYPE_CHECKING:
    import onnx

CONFIG = "config.pbtxt"
BACKENDS = ("auto", "python")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# model.py of Triton's Python backend: the code is the installed package's.
MODEL_PY = '''"""Med-DisSeg in Triton's Python backend; the server's Python needs medisseg."""

from export.runtime.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class Target:
    """Where a bundle is served from.

    Attributes:
        repository: Folder of models that a server reads; made where it is absent.
        name: The model's name; "" for the bundle's own.
        backend: "auto" (the server's backend for the bundle's), or "python": our own runtime in
            the server's Python backend.
        instances: Copies of the engine that answer side by side.
    """

    repository: Path
    name: str = ""
    backend: str = "auto"
    instances: int = 1

    def __post_init__(self) -> None:
        if self.name and not NAME.fullmatch(self.name):
            raise UserError(
                f"--triton-name is {self.name!r}; expected letters, digits, '.', '_' and '-', "
                "such as edge-polyp"
            )
        if self.backend not in BACKENDS:
            raise UserError(f"--triton-backend is {self.backend!r}; expected auto or python")
        if not 1 <= self.instances <= 64:
            raise UserError(f"--triton-instances is {self.instances}; expected 1 to 64")

    def check(self) -> None:
        """Refuse a place that cannot be a repository, before anything is built.

        Raises:
            UserError: A file, a bundle or a single model stands there; or the client library,
                which knows the configuration's format, is not installed.
        """
        configurations()
        if self.repository.exists() and not self.repository.is_dir():
            raise UserError(f"--triton {self.repository} is a file; expected a folder of models")
        for name in (MANIFEST, CONFIG):
            if (self.repository / name).exists():
                what = "a bundle" if name == MANIFEST else "one model of a repository"
                raise UserError(
                    f"--triton {self.repository} is {what}; expected the folder above the models"
                )


def write_model(bundle: Bundle, target: Target) -> tuple[Path, int]:
    """Write a bundle as the next version of a model, and make the configuration serve it.

    The version is whole before the configuration names it; either is replaced in one step. A
    bundle that is there already is not written twice, only served again.

    Returns:
        The model's folder, and the version that is served from now on.

    Raises:
        UserError: The folder is no model of ours, or the bundle cannot be served.
    """
    target.check()
    place = target.repository / (target.name or _own_name(bundle))
    known = _versions(place)
    same = [number for number, served in known.items() if served == _identity(bundle, target)]
    number = same[-1] if same else max(known, default=0) + 1
    text = _config(bundle, target, place.name, number)
    if not same:
        with replacing(place / str(number)) as folder:
            folder.mkdir()
            _write_version(bundle, target, folder)
            (folder / CONFIG).write_text(text)
    for file in (place / str(number) / CONFIG, place / CONFIG):
        with replacing(file) as temporary:
            temporary.write_text(text)
    return place, number


def _own_name(bundle: Bundle) -> str:
    stem = Path(str(bundle.manifest["checkpoint"].get("name", ""))).stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:64]
    return name or "medisseg"


def _identity(bundle: Bundle, target: Target) -> tuple[str, str]:
    return str(bundle.manifest["digest"]), _backend(bundle, target)


def _versions(place: Path) -> dict[int, tuple[str, str]]:
    """Return (bundle's digest, backend) of every version that stands, by its number."""
    if not place.exists():
        return {}
    numbers = (
        sorted(int(entry.name) for entry in place.iterdir() if entry.name.isdigit())
        if place.is_dir()
        else []
    )
    try:
        if not numbers and (not place.is_dir() or any(place.iterdir())):
            raise ValueError("no versions")
        return {number: _served(place / str(number) / CONFIG) for number in numbers}
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"{place} exists and was not written by medisseg build ({error}); choose another "
            "--triton-name"
        ) from error


def _served(config: Path) -> tuple[str, str]:
    from google.protobuf import text_format

    read = text_format.Parse(config.read_text(), configurations().ModelConfig())
    return json.loads(read.parameters[PARAMETER].string_value)["digest"], read.backend


def _write_version(bundle: Bundle, target: Target, folder: Path) -> None:
    backend = _backend(bundle, target)
    if backend == "python":
        (folder / "model.py").write_text(MODEL_PY)
        if bundle.path.is_dir():
            shutil.copytree(bundle.path, folder / "bundle")
        else:
            shutil.copy(bundle.path, folder / "bundle.mdsg")
        return
    files: Mapping[str, str] = {
        "tensorrt": {"model.plan": TENSORRT_PARTS["tensorrt"]},
        "onnxruntime": {"model.onnx": ONNX_PART},
        "openvino": {"model.xml": OPENVINO_PARTS[0], "model.bin": OPENVINO_PARTS[1]},
    }[backend]
    for name, part in files.items():
        (folder / name).write_bytes(bundle.read(part))


def _backend(bundle: Bundle, target: Target) -> str:
    """Return the server's backend: TensorRT for RTX and Torch-TensorRT have none of their own."""
    if target.backend == "python":
        return "python"
    own = {"tensorrt": "tensorrt", "onnx": "onnxruntime", "openvino": "openvino"}
    return own.get(bundle.manifest["backend"], "python")


def _config(bundle: Bundle, target: Target, name: str, version: int) -> str:
    """Return the text of ``config.pbtxt``."""
    from google.protobuf import text_format

    config = configurations().ModelConfig
    smallest, best, most = bundle.manifest["batch"]
    if smallest != 1:
        raise UserError(
            f"{bundle.path} takes batches from {smallest}, and a server must be able to run one "
            f"image; build it with --batch 1:{best}:{most}"
        )
    inputs, outputs = _interface(bundle)
    backend = _backend(bundle, target)
    kind = "KIND_GPU" if bundle.manifest["compute_capabilities"] else "KIND_CPU"
    description: dict[str, Any] = {
        "name": name,
        "backend": backend,
        "max_batch_size": most,
        "input": inputs,
        "output": outputs,
        "version_policy": {"specific": {"versions": [version]}},
        "instance_group": [{"kind": kind, "count": target.instances}],
        # Runs together what waits together, and waits for nothing. A queue policy, be it a limit of
        # time or of size, has the server wake its batcher only where an instance waits already: a
        # request that follows an answer too closely then lies for half a second (Triton 2.51).
        "dynamic_batching": {},
        "model_warmup": [_warm_up(inputs, count) for count in sorted({1, best, most})],
        "parameters": {PARAMETER: {"string_value": json.dumps(bundle.manifest)}},
    }
    if backend == "tensorrt":
        description["platform"] = "tensorrt_plan"
    if backend == "openvino":
        description["parameters"]["PERFORMANCE_HINT"] = {"string_value": "LATENCY"}
    head = f"# Written by medisseg build from {bundle.path.name}; do not edit the manifest in it.\n"
    text: str = text_format.MessageToString(config(**description))
    return head + text


def _warm_up(inputs: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """Run zeros of each batch size before the model is called ready."""
    values = {
        given["name"]: {
            "data_type": given["data_type"],
            "dims": given["dims"],
            "zero_data": True,
        }
        for given in inputs
    }
    return {"name": f"batch of {count}", "batch_size": count, "inputs": values}


def _interface(bundle: Bundle) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return inputs and outputs (name, type, shape without the batch) of the bundle's graph."""
    import onnx

    graph = onnx.load_model_from_string(bundle.read(ONNX_PART)).graph
    return [_tensor(value) for value in graph.input], [_tensor(value) for value in graph.output]


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    import onnx

    kinds: dict[int, str] = {
        onnx.TensorProto.FLOAT: "TYPE_FP32",
        onnx.TensorProto.FLOAT16: "TYPE_FP16",
        onnx.TensorProto.UINT8: "TYPE_UINT8",
    }
    tensor = value.type.tensor_type
    dims = [axis.dim_value for axis in tensor.shape.dim][1:]
    return {"name": value.name, "data_type": kinds[tensor.elem_type], "dims": dims}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a model repository to a parser."""
    add = parser.add_argument
    add("--triton", metavar="REPOSITORY", type=Path,
        help="also write the bundle into a Triton server's folder of models")  # fmt: skip
    add("--triton-name", default="", metavar="NAME", help="its name there (the checkpoint's)")
    add("--triton-backend", default="auto", help="auto, or python: our runtime in the server")
    add("--triton-instances", type=int, default=1, help="engines that answer side by side (1)")


def target_of(args: argparse.Namespace) -> Target | None:
    """Return what the options ask for, checked; None without ``--triton``."""
    if args.triton is None:
        return None
    target = Target(args.triton, args.triton_name, args.triton_backend, args.triton_instances)
    target.check()
    return target
