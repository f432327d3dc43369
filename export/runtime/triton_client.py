"""The calls to a Triton Inference Server that an engine makes, over gRPC or HTTP.

``tritonclient`` does the talking; this module gives its two clients one form, turns their many
errors into two, and looks at the bytes of an answer before they are taken for numbers.
"""

from __future__ import annotations

import importlib
import ssl
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from export.runtime.triton_address import Address
from medisseg.errors import UserError
from medisseg.schema import Json

PARAMETER = "medisseg"  # of a model's configuration: its bundle's manifest as JSON
KINDS: dict[str, type[np.generic]] = {"FP32": np.float32, "FP16": np.float16, "UINT8": np.uint8}
INSTALL = "pip install 'tritonclient[grpc,http]'"
# A channel that lost its server tries again at once and then every second; gRPC's own pause grows
# to two minutes, during which a server that is back would be called lost.
_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]


# Of one output: datatype, shape, and its bytes; None where they went into shared memory.
Output: TypeAlias = "tuple[str, list[int], bytes | None]"
Answer: TypeAlias = "tuple[tuple[str, str, str], dict[str, Output]]"  # model, version, request


class ServerError(UserError):
    """The server's answer is an error, or not the outputs asked for."""


class Unreachable(UserError, ConnectionError):
    """The server is away, starting, or too busy: it may answer the next time it is asked."""


@dataclass(frozen=True)
class Region:
    """A part of shared memory that the server reads an input from, or writes an output to."""

    name: str
    size: int
    offset: int = 0


def library(part: str) -> Any:
    """Return ``tritonclient.grpc`` or ``tritonclient.http``.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(f"tritonclient.{part}")
    except ImportError as error:
        raise UserError(
            f"a Triton server needs the package tritonclient ({error}); {INSTALL}"
        ) from error


def configurations() -> Any:
    """Return the module whose ``ModelConfig`` is what ``config.pbtxt`` holds."""
    return library("grpc").model_config_pb2


class Client:
    """One connection to a server. Over HTTP it belongs to the thread that made it.

    Args:
        address: Where the server is.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._part = library("grpc" if address.grpc else "http")
        self._errors = importlib.import_module("tritonclient.utils").InferenceServerException
        self._seconds = address.deadline_ms / 1e3
        self._limit: Json = {"client_timeout": self._seconds} if address.grpc else {}
        more = self._grpc_options() if address.grpc else self._http_options()
        self._client = self._call(self._part.InferenceServerClient, address.place, **more)

    def _grpc_options(self) -> Json:
        to = self.address
        files = {"root_certificates": to.ca, "private_key": to.key, "certificate_chain": to.cert}
        named = {name: str(path) for name, path in files.items() if path is not None}
        return {"ssl": to.tls, "channel_args": _CHANNEL, **named}

    def _http_options(self) -> Json:
        limits = {"connection_timeout": self._seconds, "network_timeout": self._seconds}
        to = self.address
        if not to.tls:
            return limits
        try:
            context = ssl.create_default_context(cafile=to.ca and str(to.ca))
            if to.cert is not None:
                context.load_cert_chain(to.cert, to.key)
        except OSError as error:
            raise UserError(
                f"{to}: a certificate or its key cannot be read ({_line(error)}); expected PEM"
            ) from error
        return {**limits, "ssl": True, "ssl_context_factory": lambda: context}

    def describe(self) -> tuple[Json, Json, str]:
        """Return the model's configuration and its metadata, and the server's version.

        Raises:
            Unreachable: No server there, or the model is not ready.
            ServerError: It does not speak Triton's protocol.
        """
        name, version = self.address.name, str(self.address.version or "")
        form = {"as_json": True, **self._limit} if self.address.grpc else {}
        ready = self._call(self._client.is_model_ready, name, version, **self._limit)
        if not ready:
            raise Unreachable(f"{self.address}: the server has no such model, or it is not ready")
        config = self._call(self._client.get_model_config, name, version, **form)
        metadata = self._call(self._client.get_model_metadata, name, version, **form)
        server = self._call(self._client.get_server_metadata, **form)
        return config.get("config", config), metadata, str(server.get("version", "unknown"))

    def share(self, name: str, key: str, size: int) -> None:
        """Tell the server of a region of system shared memory."""
        self._call(self._client.register_system_shared_memory, name, key, size, **self._limit)

    def unshare(self, name: str) -> None:
        """Make the server forget a region."""
        self._call(self._client.unregister_system_shared_memory, name, **self._limit)

    def infer(
        self,
        images: tuple[str, str, npt.NDArray[Any], Region | None],
        outputs: Mapping[str, Region | None],
        version: str,
        request: str,
        seconds: float,
    ) -> dict[str, Output]:
        """Send one request and return its outputs.

        Args:
            images: Input's name, datatype, values, and where in shared memory they lie (None: they
                are sent).
            outputs: Names of outputs, and where in shared memory they are to be written.
            version: Of the model.
            request: A number of this request; the answer must carry it.
            seconds: How long it may take; over gRPC the server drops it after that, too, unless
                an instance has it already.

        Returns:
            The outputs by name.

        Raises:
            Unreachable, ServerError: As the class says.
        """
        name, kind, values, region = images
        given = self._part.InferInput(name, list(values.shape), kind)
        if region is None:
            given.set_data_from_numpy(values)
        else:
            given.set_shared_memory(region.name, region.size, region.offset)
        wanted = [self._part.InferRequestedOutput(name) for name in outputs]
        for output, place in zip(wanted, outputs.values(), strict=True):
            if place is not None:
                output.set_shared_memory(place.name, place.size, place.offset)
        limit = {"client_timeout": seconds} if self.address.grpc else {}
        result = self._call(
            self._client.infer, self.address.name, [given], version, wanted, request, **limit
        )
        shared = {name for name, place in outputs.items() if place is not None}
        read = _grpc_answer if self.address.grpc else _http_answer
        answer: Answer = self._call(read, result, shared)
        said, found = answer
        if said != (self.address.name, version, request):
            raise ServerError(
                f"{self.address} answered request {said[2]!r} of {said[0]} version {said[1]}; "
                f"expected {request!r} of version {version}"
            )
        return found

    def _call(self, function: Callable[..., Any], *words: Any, **more: Any) -> Any:
        try:
            return function(*words, **more)
        except self._errors as error:
            status = str(error.status())
            text = _line(error.message())
            if "DEADLINE" in status:
                raise Unreachable(f"{self.address}: no answer in {self._seconds:g} s") from error
            # A server that was restarted has forgotten the memory that it was told of.
            forgot = "shared memory region" in text
            if forgot or "UNAVAILABLE" in status or status == "503":
                raise Unreachable(f"{self.address} cannot be reached now ({text})") from error
            raise ServerError(f"{self.address}: {text}") from error
        except TimeoutError as error:
            raise Unreachable(f"{self.address}: no answer in {self._seconds:g} s") from error
        except (OSError, EOFError) as error:
            raise Unreachable(f"{self.address} cannot be reached now ({_line(error)})") from error
        except Exception as error:  # whatever else an answer does to the library that reads it
            raise ServerError(
                f"{self.address} does not answer as a Triton server does ({_line(error)}); "
                "is this the port of the protocol that the address names?"
            ) from error

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _grpc_answer(result: Any, shared: Container[str]) -> Answer:
    response = result.get_response()
    found: dict[str, Output] = {}
    sent = iter(response.raw_output_contents)
    for output in response.outputs:  # one that went into shared memory has an empty content
        content = next(sent, b"")
        placed = None if output.name in shared else content
        found[output.name] = output.datatype, list(output.shape), placed
    return (response.model_name, response.model_version, response.id), found


def _http_answer(result: Any, shared: Container[str]) -> Answer:
    response = result.get_response()
    found: dict[str, Output] = {}
    for output in response["outputs"]:
        name, content = output["name"], None
        if name not in shared:
            sent = output.get("parameters", {}).get("binary_data_size")
            content = result.as_numpy(name).tobytes() if sent else b""
        found[name] = output["datatype"], list(output["shape"]), content
    return (response["model_name"], response["model_version"], response.get("id", "")), found
