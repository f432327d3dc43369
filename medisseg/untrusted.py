"""Files from elsewhere: what they claim about their size is bounded before it is believed."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from medisseg.errors import UserError

MOST_TEXT = 16 << 20  # bytes of a manifest, a configuration or a header
MOST_YAML_VALUES = 100_000  # of a document with every alias written out
MOST_JSON_VALUES = 50_000_000  # COCO's 2017 training set has about 45 million in 450 MB
DEEPEST = 100  # levels of nesting
MOST_DIGITS = 400  # of a whole number


class Excessive(UserError):
    """A file that claims more than any honest one does; never to be passed over in silence."""


def read_bytes(path: str | Path, most: int) -> bytes:
    """Return a regular file's bytes.

    Args:
        path: The file, or a link to one.
        most: Largest size in bytes.

    Raises:
        Excessive: A larger file.
        UserError: A device, a pipe or a folder.
        OSError: It cannot be read.
    """
    # Opening a pipe that nobody writes to waits for ever without O_NONBLOCK.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is no regular file; expected a file, not a device or a pipe")
    with open(descriptor, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise Excessive(
            f"{path} has {state.st_size} bytes; expected at most {most}: it is damaged or not ours"
        )
    return content


def read_yaml(path: str | Path) -> object:
    """Return the value of a YAML file; None for an empty one.

    Raises:
        Excessive: Nested too deeply, or one whose aliases expand beyond ``MOST_YAML_VALUES``
            values: 341 bytes can claim a gigabyte.
        UserError: Not YAML.
        OSError: It cannot be read.
    """
    import yaml

    try:
        text = read_bytes(path, MOST_TEXT).decode("utf-8")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}, 0) > MOST_YAML_VALUES:
            raise Excessive(f"{path} expands to more than {MOST_YAML_VALUES} values; use fewer *")
        return loader.construct_document(node)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; expected YAML") from error
    except RecursionError as error:
        raise Excessive(f"{path} is nested more than {DEEPEST} levels deep") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: no such date
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def parse_json(text: str, path: str | Path) -> object:
    """Return the value of a JSON text that was read from ``path``.

    Raises:
        Excessive: Nested too deeply, or of more than ``MOST_JSON_VALUES`` values: a list of empty
            lists takes twenty times its file's size.
        ValueError: Not JSON.
    """
    if (values := sum(map(text.count, ",[{"))) > MOST_JSON_VALUES:
        raise Excessive(f"{path} has {values} values; expected at most {MOST_JSON_VALUES}")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise Excessive(f"{path} is nested too deeply to be read") from error


def _values(node: object, counted: dict[int, int], depth: int) -> int:
    """Count the values under a node, those behind an alias each time it is named."""
    import yaml

    if depth > DEEPEST:  # an alias that holds itself, too
        raise RecursionError
    digits = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
    if digits > MOST_DIGITS and getattr(node, "tag", "").endswith(":int"):
        raise yaml.YAMLError(f"a number of {digits} digits")  # Python cannot even print it
    if id(node) not in counted:
        children: list[object] = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        counted[id(node)] = 1 + sum(_values(child, counted, depth + 1) for child in children)
    return counted[id(node)]
