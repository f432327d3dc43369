"""A runtime in place of TensorRT's, with the signatures of its real bindings and its rules.

A call that no real overload would take is refused, so is a name that the version does not have.
What a real engine would crash on, or answer wrongly for, raises ``Broken``. A plan is JSON; the
answer to images x is ``logits = mean over channels of x + 1`` and ``uncertainty = -logits``.
"""

from __future__ import annotations

import ctypes
import json
import types
from typing import Any

import numpy as np
from fake_cuda import Cuda
from signatures import Signatures


class Broken(AssertionError):
    """A rule of TensorRT was broken."""


def plan(profile: tuple[int, int, int] = (1, 1, 4), scratch: int = 4096, **more: Any) -> bytes:
    """Return a plan that the fake opens."""
    return json.dumps({"profile": profile, "scratch": scratch, "side": (64, 96), **more}).encode()


class _Checked:
    """Every method, read and write of a subclass goes through the signatures."""

    _kind = ""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        signatures, kind = self._world.signatures, self._kind
        if not signatures.has(f"{kind}.{name}"):
            raise AttributeError(f"{kind} has no {name}")
        found = object.__getattribute__(self, name)
        if not callable(found):
            return found

        def call(*args: Any, **named: Any) -> Any:
            signatures.check(kind, name, args, named)
            return found(*args, **named)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            member = self._world.signatures.found.get(self._kind, {}).get(name, {})
            if not member.get("writes"):
                raise AttributeError(f"{self._kind}.{name} cannot be written")
        object.__setattr__(self, name, value)


def build(signatures: Signatures, cuda: Cuda, version: str, name: str = "tensorrt") -> Any:
    """Return a module that stands in for ``tensorrt`` or ``tensorrt_rtx``."""
    world = types.SimpleNamespace(
        signatures=signatures, cuda=cuda, contexts=[], compiled=0, plans=[], dla=-1, host_code=False
    )

    class Checked(_Checked):
        _world = world

    class Dims(tuple):
        pass

    class IRuntimeCache(Checked):
        _kind = "IRuntimeCache"

        def __init__(self) -> None:
            self._kernels: set[str] = set()

        def deserialize(self, blob: bytes) -> bool:
            if not blob.startswith(b"kernels:"):
                return False
            self._kernels = set(filter(None, bytes(blob)[8:].decode().split(",")))
            return True

        def serialize(self) -> bytes:
            return b"kernels:" + ",".join(sorted(self._kernels)).encode()

    class IRuntimeConfig(Checked):
        _kind = "IRuntimeConfig"

        def __init__(self) -> None:
            lazy = module.DynamicShapesKernelSpecializationStrategy.LAZY
            object.__setattr__(self, "dynamic_shapes_kernel_specialization_strategy", lazy)
            object.__setattr__(self, "cuda_graph_strategy", module.CudaGraphStrategy.DISABLED)
            self._strategy = module.ExecutionContextAllocationStrategy.STATIC
            self._cache: Any = None

        def create_runtime_cache(self) -> IRuntimeCache:
            return IRuntimeCache()

        def set_runtime_cache(self, cache: Any) -> bool:
            self._cache = cache
            return True

        def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
            self._strategy = strategy

    class IExecutionContext(Checked):
        _kind = "IExecutionContext"

        def __init__(self, engine: Any, user: bool, config: Any) -> None:
            self._engine, self._user, self._config = engine, user, config
            self._shape: tuple[int, ...] | None = None
            self._addresses: dict[str, int] = {}
            self._memory: int | None = None
            self._ran: tuple[int, ...] | None = None
            self._fallback = True
            world.contexts.append(self)

        def set_input_shape(self, name: str, shape: Any) -> bool:
            low, _, high = self._engine._plan["profile"]
            self._shape = tuple(shape) if low <= shape[0] <= high else None
            return self._shape is not None

        def infer_shapes(self) -> list[str]:
            return [] if self._shape else ["images"]

        def get_tensor_shape(self, name: str) -> Dims:
            if not self._shape:
                raise Broken("shapes asked before set_input_shape")
            return Dims((self._shape[0], *self._engine.get_tensor_shape(name)[1:]))

        def set_tensor_address(self, name: str, memory: int) -> bool:
            if world.cuda.homes.get(memory) != self._engine._device:
                raise Broken(f"{name} lies on device {world.cuda.homes.get(memory)}")
            self._addresses[name] = memory
            return True

        def set_device_memory(self, memory: int, size: int) -> None:
            self._give(memory, size)

        def _give(self, memory: int, size: int) -> None:
            if size < self._engine._plan["scratch"] or world.cuda.sizes[memory] < size:
                raise Broken("scratch memory is too small")
            if world.cuda.homes[memory] != self._engine._device:
                raise Broken("scratch memory lies on another device")
            self._memory = memory

        @property
        def device_memory(self) -> int:
            raise AttributeError("unreadable attribute")

        @device_memory.setter
        def device_memory(self, memory: int) -> None:
            self._give(memory, world.cuda.sizes[memory])

        def execute_async_v3(self, stream_handle: int) -> bool:
            stream = world.cuda.streams[stream_handle]
            here = (world.cuda.device_now, stream.device)
            if here != (self._engine._device,) * 2:
                raise Broken(f"enqueued with device and stream of {here}")
            if self._user and self._memory is None:
                raise Broken("no scratch memory was given")
            if set(self._addresses) != set(self._engine._tensors) or not self._shape:
                return False
            if stream.capturing is not None:
                if world.cuda.refuse_enqueue:
                    return False
                if self._ran != self._shape:
                    raise RuntimeError("kernels were loaded inside a capture")
                if self._fallback:
                    raise Broken("a fallback kernel was captured")
            self._compile()
            shape, addresses = self._shape, dict(self._addresses)
            stream.add(lambda: self._compute(shape, addresses))
            self._ran = self._shape
            return True

        def _compile(self) -> None:
            if self._config is None:
                self._fallback = name == "tensorrt_rtx"  # it compiles in the background
                return
            kind = self._config.dynamic_shapes_kernel_specialization_strategy.name
            cache, key = self._config._cache, "x".join(map(str, self._shape))
            if kind == "EAGER":
                if cache is None or key not in cache._kernels:
                    world.compiled += 1
                if cache is not None:
                    cache._kernels.add(key)
                self._fallback = False

        def _compute(self, shape: tuple[int, ...], addresses: dict[str, int]) -> None:
            images = _memory(addresses["images"], shape, np.float32)
            logits = images.mean(1, keepdims=True) + 1
            _memory(addresses["logits"], logits.shape, np.float32)[:] = logits
            if "uncertainty" in addresses:
                _memory(addresses["uncertainty"], logits.shape, np.float32)[:] = -logits

    class ICudaEngine(Checked):
        _kind = "ICudaEngine"

        def __init__(self, content: bytes) -> None:
            self._plan = json.loads(bytes(content))
            self._device = world.cuda.device_now
            self._tensors = ["images", "logits", *self._plan.get("outputs", [])]
            for key in ("device_memory_size", "device_memory_size_v2"):
                object.__setattr__(self, key, self._plan["scratch"])
            object.__setattr__(self, "num_io_tensors", len(self._tensors))

        def get_tensor_name(self, index: int) -> str:
            return self._tensors[index]

        def get_tensor_mode(self, name: str) -> Any:
            return getattr(module.TensorIOMode, "INPUT" if name == "images" else "OUTPUT")

        def get_tensor_shape(self, name: str) -> Dims:
            return Dims((-1, 3 if name == "images" else 1, *self._plan["side"]))

        def get_tensor_dtype(self, name: str) -> Any:
            return module.float32

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
            return [Dims((n, 3, *self._plan["side"])) for n in self._plan["profile"]]

        def create_runtime_config(self) -> IRuntimeConfig:
            return IRuntimeConfig()

        def create_execution_context_without_device_memory(self) -> IExecutionContext:
            return self._context(True, None)

        def create_execution_context(self, strategy: Any = None) -> IExecutionContext:
            config = strategy if isinstance(strategy, IRuntimeConfig) else None
            chosen = config._strategy if config else strategy
            return self._context(getattr(chosen, "name", "STATIC") == "USER_MANAGED", config)

        def _context(self, user: bool, config: Any) -> IExecutionContext:
            if world.cuda.device_now != self._device:
                raise Broken(f"context made with device {world.cuda.device_now} current")
            return IExecutionContext(self, user, config)

    class Runtime(Checked):
        _kind = "Runtime"

        def __init__(self, log: Any) -> None:
            signatures.check("Runtime", "__init__", (log,), {})
            if world.cuda.no_driver:
                raise TypeError("pybind11::init(): factory function returned nullptr")
            object.__setattr__(self, "DLA_core", -1)
            object.__setattr__(self, "engine_host_code_allowed", False)

        def deserialize_cuda_engine(self, content: bytes) -> ICudaEngine | None:
            if not bytes(content).startswith(b"{"):
                return None
            engine = ICudaEngine(content)
            if engine._plan.get("dla", -1) != self.DLA_core:
                return None
            if engine._plan.get("host_code", False) and not self.engine_host_code_allowed:
                return None
            return engine

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    module: Any = types.ModuleType(name)
    for kind in (Dims, IRuntimeConfig, IRuntimeCache, ICudaEngine, Runtime, ILogger):
        if kind.__name__ in signatures.found[""]:
            setattr(module, kind.__name__, kind)
    enums = ("TensorIOMode", "DataType", "ExecutionContextAllocationStrategy",
             "DynamicShapesKernelSpecializationStrategy", "CudaGraphStrategy")  # fmt: skip
    for kind_name in enums:
        members = signatures.found.get(kind_name, {})
        if members:
            made = type(kind_name, (), {})
            for member, about in members.items():
                if "value" in about:
                    value = made()
                    value.name, value.value = member, about["value"]
                    setattr(made, member, value)
            setattr(module, kind_name, made)
    for short, member in (("float32", "FLOAT"), ("float16", "HALF"), ("uint8", "UINT8")):
        setattr(module, short, getattr(module.DataType, member))
    module.__version__, module._world = version, world
    return module


def _memory(address: int, shape: tuple[int, ...], dtype: Any) -> Any:
    """The array that lies at an address."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = (ctypes.c_char * count).from_address(address)
    return np.frombuffer(raw, dtype).reshape(shape)
