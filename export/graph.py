"""Network to ONNX: standard operators only, dynamic batch, nothing that only training needs.

TeLU arrives as Min, Exp, Tanh, Mul (a pointwise fusion in every backend), window mixing in its
convolution form, BatchNorm folded. ``raw_frames.py`` puts preprocessing and threshold into a graph.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.rewrites import merge_projections
from medisseg.errors import UserError

if TYPE_CHECKING:
    from torch import nn

OPSET = 20
OPSET_BF16 = 22  # the first in which Conv and pooling take bfloat16
MARKED_BATCH = 127
INT64 = TensorProto.INT64
# Operators that a parser refuses, that only training has, or that should have been folded away.
REFUSED = ("Col2Im", "Dropout", "BatchNormalization", "RandomNormalLike", "If", "Loop", "Scan")


def export_graph(
    network: nn.Module,
    size: tuple[int, int],
    outputs: tuple[str, ...] = ("logits",),
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Export an inference network to ONNX in float32, and check it.

    Args:
        network: What ``for_inference(model)`` returned: images [N, 3, H, W] to logits [N, K, H, W]
            (and the uncertainty map [N, 1, H, W]).
        size: Input (height, width).
        outputs: Names of the outputs.
        opset: ONNX operator set, 20 or newer.

    Returns:
        A checked graph with input "images", a dynamic batch and layer names as node names.

    Raises:
        UserError: The network holds an operator that engines refuse.
    """
    model = trace(network, size, outputs, opset)
    merge_projections(model)
    drop_unused(model)
    check(model)
    return model


def trace(
    network: nn.Module, size: tuple[int, int], outputs: tuple[str, ...], opset: int
) -> onnx.ModelProto:
    """Trace a network to ONNX without checks; arguments as for :func:`export_graph`."""
    import onnx_ir
    import torch
    from onnxscript import optimizer
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.rules import common

    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 64))  # constants made on first use must not become traced
    # zeros() of this size is never touched, so it costs no memory: the trace runs on shapes.
    sample = torch.zeros(MARKED_BATCH, 3, *size)
    with torch.no_grad(), _quiet():
        program = torch.export.export(network.eval(), (sample,), strict=False)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=["images"],
            output_names=list(outputs),
            optimize=False,
            verbose=False,
        )
    assert exported is not None
    # The exporter's whole optimiser takes minutes on this network; folding is what it needs.
    folded = exported.model
    optimizer.fold_constants(folded, input_size_limit=1 << 26, output_size_limit=1 << 26)
    optimizer.remove_unused_nodes(folded)
    # Ours are folded before; somebody else's network has them still.
    if any(node.op_type == "BatchNormalization" for node in folded.graph):
        rules = [
            common.fuse_batchnorm_into_conv_rule,
            common.fuse_batchnorm_into_conv_transpose_rule,
        ]
        folded = rewrite(folded, pattern_rewrite_rules=rules)
    model = onnx_ir.serde.serialize_model(folded)
    tidy(model)
    free_batch(model)
    drop_unused(model)
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)  # older parsers read it
    return model


def _freed(
    node: onnx.NodeProto,
    i: int,
    values: npt.NDArray[np.int64],
    marked: npt.NDArray[np.bool_],
    sides: list[int],
) -> onnx.TensorProto:
    """Return the shape that replaces ``values`` at input ``i`` of a node, for any batch size."""
    values, at = values.copy(), int(marked.argmax())
    where = (node.op_type, i) if marked.sum() == 1 else None
    if where == ("Reshape", 1) and at == 0 and values[:1] == MARKED_BATCH == (sides or [0])[0]:
        values[at] = 0
        del node.attribute[:]  # allowzero, under which 0 would mean an empty tensor
    elif where == ("Reshape", 1) and -1 not in values:
        values[at] = -1
    elif where == ("Expand", 1):
        values[at] = 1
    elif where == ("Resize", 3) and at == 0 and len(sides) == 4:
        factors = [scale_factor(*pair) for pair in zip(sides[2:], values[2:].tolist(), strict=True)]
        return numpy_helper.from_array(np.array([1, 1, *factors], np.float32))
    else:
        raise UserError(f"the batch is fixed in {node.name}, shape {values.tolist()}")
    return numpy_helper.from_array(values)


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove constants that no node reads."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def free_batch(model: onnx.ModelProto) -> None:
    """Make the batch dynamic in a graph that was traced with ``MARKED_BATCH`` images.

    Tracing with a symbolic batch takes three times as long (61 against 23 s of one core for
    ``edge``). The batch is a prime that occurs nowhere else, so a shape that holds a multiple of it
    follows the batch: a Reshape that keeps the batch in front copies it (0), another gets -1 there,
    which keeps the element count by definition, and an Expand gets 1, which broadcasts.

    Raises:
        UserError: Another operator has the batch in its constants.
    """
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    sides = {
        value.name: [side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input)
    }
    shapes = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == INT64}
    for node in graph.node:
        for i, name in enumerate(node.input):
            values = np.atleast_1d(shapes.get(name, 0))
            marked = (values != 0) & (values % MARKED_BATCH == 0) & (np.abs(values) < 2**31)
            if not marked.any():
                continue
            freed = _freed(node, i, values, marked, sides.get(node.input[0], []))
            freed.name = f"{name}_{node.name}"
            node.input[i] = freed.name
            graph.initializer.append(freed)
            if node.op_type == "Resize":
                node.input[:] = [node.input[0], "", freed.name]
    for tensor in graph.initializer:
        if any(side % MARKED_BATCH == 0 for side in tensor.dims):
            raise UserError(f"the batch is fixed in the constant {tensor.name} {list(tensor.dims)}")
    for value in (*graph.input, *graph.output):
        dimension = value.type.tensor_type.shape.dim[0]
        if dimension.dim_value != MARKED_BATCH:
            raise UserError(f"{value.name} has no batch: its first dimension is {dimension}")
        dimension.dim_param = "batch"
    del graph.value_info[:]


def tidy(model: onnx.ModelProto) -> None:
    """Name nodes by their module, turn constants into initializers, drop the exporter's notes.

    The notes hold stack traces with paths of the machine that exported.
    """
    graph = model.graph
    numbers: Counter[str] = Counter()
    kept = []
    for node in graph.node:
        if node.op_type == "Constant":
            graph.initializer.append(_constant(node))
            continue
        if node.op_type == "Clip" and len(node.input) == 3 and not node.input[1]:
            node.op_type = "Min"  # TeLU's bound: Min, Exp, Tanh, Mul is one pointwise fusion
            del node.input[1]
        name = f"{_scope(node)}/{node.op_type}".lstrip("/")
        numbers[name] += 1
        node.name = name if numbers[name] == 1 else f"{name}_{numbers[name]}"
        kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    for thing in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del thing.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    model.producer_name = "medisseg"
    model.producer_version = ""
    graph.doc_string = ""


def check(model: onnx.ModelProto) -> None:
    """Check a graph: valid, standard operators only, dynamic batch, no training node.

    Raises:
        UserError: What is wrong, and where.
    """
    onnx.checker.check_model(model, full_check=True)
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type in REFUSED:
            raise UserError(
                f"the graph holds {node.domain or 'ai.onnx'}::{node.op_type} at {node.name}, which "
                "engines refuse; export for_inference(model)"
            )
    for value in (*model.graph.input, *model.graph.output):
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise UserError(f"the batch of {value.name} is fixed; use x.shape[0] in the network")


def scale_factor(before: int, after: int) -> float:
    """Return the float32 scale that every library rounds to ``after``.

    Sizes would be exact, but TensorRT refuses them with a dynamic batch. Some libraries multiply in
    float64: there 200 x float32(1.28) is 255.999998, which would become 255.
    """
    factor = np.float32(after / before)
    while before * float(factor) < after:
        factor = np.nextafter(factor, np.float32(np.inf))
    return float(factor)


def _constant(node: onnx.NodeProto) -> onnx.TensorProto:
    """Return a Constant node's value as an initializer."""
    value = helper.get_attribute_value(node.attribute[0])
    if isinstance(value, onnx.TensorProto):
        value.name = node.output[0]
        return value
    whole = node.attribute[0].name in ("value_int", "value_ints")
    array = np.asarray(value, np.int64 if whole else np.float32)
    return numpy_helper.from_array(array, node.output[0])


def _scope(node: onnx.NodeProto) -> str:
    """Return the path of the module that a node comes from, as the exporter noted it."""
    for note in node.metadata_props:
        if note.key == "pkg.torch.onnx.name_scopes":
            scopes = [part.strip(" '\"[]") for part in note.value.split(",")]
            return next((part for part in reversed(scopes[:-1]) if part), "")
    return ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's prints and warnings within a block; its errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
