"""The graph in the operators of opset 17, the newest that TensorRT 8.6's parser reads.

ONNX's own converter has no way down for Pad, Split, Resize and the reductions.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from medisseg.errors import UserError

OPSET, IR_VERSION = 17, 8
REDUCTIONS = {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"}
# Attributes that came after opset 17, with the value under which nothing changed.
NEW = {"antialias": 0, "keep_aspect_ratio_policy": b"stretch", "saturate": 1}


def lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same graph in opset 17.

    Args:
        model: A graph of opset 18 to 22 whose sizes are fixed but for the batch.

    Raises:
        UserError: It uses what came after opset 17, such as a convolution in bfloat16.
    """
    model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    sides = {
        value.name: [side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in graph.value_info
    }
    for node in graph.node:
        how = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        how = {name: value for name, value in how.items() if NEW.get(name, ...) != value}
        if node.op_type in REDUCTIONS and len(node.input) > 1:
            how["axes"] = numpy_helper.to_array(constants[node.input[1]]).tolist()
            how.pop("noop_with_empty_axes", None)
            del node.input[1:]
        elif how.pop("num_outputs", None) is not None:
            parts = np.array([sides[name][how["axis"]] for name in node.output], np.int64)
            graph.initializer.append(numpy_helper.from_array(parts, f"{node.name}/sizes"))
            node.input.append(f"{node.name}/sizes")
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(name, value) for name, value in how.items())
    model.opset_import[0].version, model.ir_version = OPSET, IR_VERSION
    del graph.value_info[:]
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the graph has no form in opset {OPSET}, the newest that TensorRT 8 reads ({reason}); "
            "use --precision fp16, or TensorRT 10"
        ) from error
    return model
