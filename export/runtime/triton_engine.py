"""A model on a Triton Inference Server, behind the same interface as an engine of this machine.

What the model is (input convention, threshold, classes) comes from its own configuration, where
``medisseg build --triton`` wrote the bundle's manifest. The version found when it opens is named in
every request, so that an update of the server can not change the network under a running video.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from export.bundle import Bundle, read_manifest
from export.runtime.engine import BaseEngine, Images, Outputs
from export.runtime.triton_address import Address
from export.runtime.triton_client import KINDS, PARAMETER, Client, Region, ServerError, Unreachable
from medisseg.errors import UserError
from medisseg.schema import Json

log = logging.getLogger(__name__)
# Four of these bytes are a NaN: an answer that was not written is no number, and not an old mask.
UNWRITTEN = b"\xff" * 4
MOST_VALUES = 1 << 28  # of one image's input or output: a server's word for a size is not believed


class TritonEngine(BaseEngine):
    """A served model. Used by the thread that opened it.

    Args:
        address: Where it is.

    Raises:
        UserError: No server or no such model there, or one that ``medisseg build --triton`` did
            not write.

    Example:
        >>> with load_engine("grpc://gpu-rack:8001/edge-polyp") as engine:
        ...     logits = engine.infer(engine.convention.preprocess(image)[None])
    """

    backend = "triton"

    def __init__(self, address: Address) -> None:
        self.address = address
        self._number = 0
        self._memory: _Memory | None = None
        self._client: Client | None = Client(address)
        try:
            self._open(self._client)
        except BaseException:
            self.close()
            raise

    def _open(self, client: Client) -> None:
        config, metadata, server = client.describe()
        self.manifest = _manifest(self.address, config)
        self._version = _version(self.address, config, metadata)
        self._input, self._outputs = _interface(self.address, config)
        digest = str(self.manifest["digest"])
        name = f"Triton {server} at {self.address.place}: {self.address.name} version "
        super().__init__(
            Bundle(Path(str(self.address)), self.manifest).model_info,
            f"{name}{self._version} ({digest[:12]})",
        )
        self.max_batch = min(self.max_batch, int(config["max_batch_size"]))
        maps = self._outputs.get("logits", ("", [0]))[1][0]
        if maps != self.classes:
            raise ServerError(
                f"{self.address} gives {maps} maps of logits; expected {self.classes}"
            )
        if self.address.local and self.address.shared_memory:
            self._memory = _share(client, self._input, self._outputs, self.max_batch)

    def _run(self, batch: Images) -> Outputs:
        if self._client is None:
            raise Unreachable(f"{self.name} is closed or lost; open it again with load_engine")
        until = time.monotonic() + self.address.deadline_ms / 1e3
        try:
            try:
                return self._ask(self._client, batch, until)
            except Unreachable:  # restarted since the last batch: this batch once more, no other
                if time.monotonic() > until - self.address.deadline_ms / 2e3:
                    raise
                self._reconnect()
                return self._ask(self._client, batch, until)
        except BaseException:
            # The server may still write into shared memory: it is never used again.
            self.close()
            raise

    def _reconnect(self) -> None:
        before = self.manifest["digest"]
        self.close()
        self._client = Client(self.address)
        self._open(self._client)
        if self.manifest["digest"] != before:
            raise ServerError(f"{self.address} serves another model since it was opened")

    def _ask(self, client: Client, batch: Images, until: float) -> Outputs:
        self._number += 1
        name, kind, _ = self._input
        images = cast("Images", np.ascontiguousarray(batch))
        count, memory = len(images), self._memory
        region, places = None, dict.fromkeys(self._outputs)
        if memory is not None:
            region, places = memory.lay_out(images, self._outputs)
        seconds = max(0.001, until - time.monotonic())
        asked = (name, kind, images, region)
        found = client.infer(asked, places, self._version, str(self._number), seconds)
        answers: Outputs = {}
        for output, (dtype, shape) in self._outputs.items():
            if output not in found:
                raise ServerError(f"{self.address} left out {output!r}; it gave {sorted(found)}")
            said, sizes, sent = found[output]
            place = places[output]
            content = memory.read(place) if memory is not None and place is not None else sent
            values = _values((said, sizes, content or b""), dtype, [count, *shape])
            if isinstance(values, str):
                raise ServerError(f"{self.address}: {output!r} {values}")
            answers[output] = values
        return answers

    def close(self) -> None:
        """Close the connection and free shared memory."""
        client, self._client = self._client, None
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close(client)
        if client is not None:
            client.close()


class _Memory:
    """Shared memory for one batch and its answer."""

    def __init__(self, client: Client, size_in: int, size_out: int) -> None:
        self._blocks: dict[str, SharedMemory] = {}
        for name, size in (("in", size_in), ("out", size_out)):
            block = SharedMemory(
                f"medisseg-{os.getpid()}-{secrets.token_hex(4)}-{name}", create=True, size=size
            )
            self._blocks[name] = block
        self._shared: list[str] = []
        try:
            for block in self._blocks.values():
                client.share(block.name, f"/{block.name}", block.size)
                self._shared.append(block.name)
        except BaseException:
            self.close(client)
            raise

    def lay_out(
        self, images: Images, outputs: dict[str, tuple[str, list[int]]]
    ) -> tuple[Region, dict[str, Region | None]]:
        """Copy the images in, wipe the last answer, and return where everything lies."""
        source, target = self._blocks["in"], self._blocks["out"]
        np.ndarray(images.shape, images.dtype, source.buf)[:] = images
        places: dict[str, Region | None] = {}
        offset = 0
        for name, (kind, shape) in outputs.items():
            size = len(images) * _size(kind, shape)
            places[name] = Region(target.name, size, offset)
            offset += size
        np.ndarray(offset, np.uint8, target.buf).fill(UNWRITTEN[0])
        return Region(source.name, images.nbytes), places

    def read(self, place: Region) -> bytes:
        """Return a copy of an answer; nothing where it was not written."""
        whole = np.ndarray(self._blocks["out"].size, np.uint8, self._blocks["out"].buf)
        content = whole[place.offset : place.offset + place.size].tobytes()
        return b"" if content.endswith(UNWRITTEN) else content

    def close(self, client: Client | None) -> None:
        """Free the memory; the server forgets it where it can be reached."""
        for name in self._shared:
            with contextlib.suppress(UserError):
                if client is not None:
                    client.unshare(name)
        for block in self._blocks.values():
            block.close()
            with contextlib.suppress(FileNotFoundError):
                block.unlink()


def _share(
    client: Client,
    given: tuple[str, str, list[int]],
    outputs: dict[str, tuple[str, list[int]]],
    most: int,
) -> _Memory | None:
    sizes = (_size(*given[1:]), sum(_size(*output) for output in outputs.values()))
    try:
        return _Memory(client, *(most * size for size in sizes))
    except (UserError, OSError) as error:
        log.warning("images go over the connection, not through shared memory: %s", error)
        return None


def _size(kind: str, shape: list[int]) -> int:
    return int(np.prod(shape)) * np.dtype(KINDS[kind]).itemsize


def _values(
    answer: tuple[str, list[int], bytes], kind: str, shape: list[int]
) -> npt.NDArray[Any] | str:
    """Return an output as float32 or uint8, or what is wrong with its type, shape or length.

    With numpy 2, the Python backend of an older server answers OK and sends 0 bytes.
    """
    said, sizes, content = answer
    if (said, sizes) != (kind, shape):
        return f"is {said} {sizes}; expected {kind} {shape}"
    size = _size(kind, shape)
    if len(content) != size:
        return (
            f"has {len(content)} bytes; expected {size} of {kind} {shape} (a Python backend of "
            "24.08 and older needs numpy below 2)"
        )
    values = np.frombuffer(content, KINDS[kind]).reshape(shape)
    return values.copy() if kind == "UINT8" else values.astype(np.float32)


def _manifest(address: Address, config: Json) -> Json:
    text = config.get("parameters", {}).get(PARAMETER, {}).get("string_value")
    if not isinstance(text, str):
        raise ServerError(
            f"{address} was not written by medisseg: its configuration has no manifest; write it "
            "with: medisseg build BUNDLE --triton REPOSITORY"
        )
    return read_manifest(text.encode(), str(address), f"parameter {PARAMETER}")


def _version(address: Address, config: Json, metadata: Json) -> str:
    """Return the version to ask for, which must be the one that the configuration describes."""
    served = [str(number) for number in metadata.get("versions", [])]
    policy = config.get("version_policy", {}).get("specific", {})
    described = [str(number) for number in policy.get("versions", [])]
    wanted = str(address.version) if address.version else (described or served or ["?"])[-1]
    if wanted not in served or (described and wanted not in described):
        raise ServerError(
            f"{address}: version {wanted} is not served; the server has {', '.join(served)}"
        )
    return wanted


def _interface(
    address: Address, config: Json
) -> tuple[tuple[str, str, list[int]], dict[str, tuple[str, list[int]]]]:
    """Return the input's name, type and shape, and the outputs', without the batch."""
    try:
        tensors = {
            group: [
                (t["name"], t["data_type"].removeprefix("TYPE_"), [int(d) for d in t["dims"]])
                for t in config[group]
            ]
            for group in ("input", "output")
        }
        (given,) = tensors["input"]
        for name, kind, dims in (given, *tensors["output"]):
            if kind not in KINDS or min(dims) < 1 or math.prod(dims) > MOST_VALUES:
                raise ValueError(f"{name!r} is {kind} {dims}")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ServerError(f"{address}: the model's interface is not ours ({error})") from error
    return given, {name: (kind, dims) for name, kind, dims in tensors["output"]}


def open_triton(source: str) -> TritonEngine:
    """Open a served model by its address."""
    return TritonEngine(Address.parse(source))
