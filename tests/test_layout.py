"""The house keeps its shape: imports point one way, and nothing heavy happens at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "kernels": {"kernels"},
    "medisseg": {"medisseg", "kernels"},
    "export": {"export", "medisseg", "kernels"},
    "deploy": {"deploy", "export", "medisseg", "kernels"},
}


def upward_imports(package: str, source: str) -> set[str]:
    """Return the packages of ours that ``source``, a module of ``package``, must not import."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            named.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            named |= {
                str(argument.value).split(".")[0]
                for argument in node.args
                if isinstance(argument, ast.Constant)
            }
    return (named & (ALLOWED.keys() | {"tests", "benchmarks"})) - ALLOWED[package]


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in (ROOT / package).rglob("*.py")
        if (found := upward_imports(package, path.read_text()))
    }
    assert not wrong


def test_an_upward_import_is_noticed() -> None:
    assert upward_imports("kernels", "from medisseg import x") == {"medisseg"}
    assert upward_imports("medisseg", "def f():\n    import export.runtime") == {"export"}
    assert upward_imports("medisseg", "importlib.import_module('deploy.run')") == {"deploy"}


@pytest.mark.parametrize("package", ALLOWED)
def test_importing_a_package_is_light(package: str) -> None:
    heavy = [
        "triton",
        "tensorrt",
        "tensorrt_rtx",
        "cv2",
        "openvino",
        "av",
        "onnxruntime",
        "lightning",
    ]
    code = f"import sys, {package}; print([m for m in {heavy!r} if m in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"
