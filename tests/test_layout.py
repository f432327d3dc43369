"""Imports point one way, form no circle, and load nothing heavy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Container
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "kernels": {"kernels"},
    "medisseg": {"medisseg", "kernels"},
    "export": {"export", "medisseg", "kernels"},
    "deploy": {"deploy", "export", "medisseg", "kernels"},
}
MOST_ANY = 200  # uses of the word in the four packages; 616 before types were written


# Which parts of deploy (folders, and modules at its top) each part may import.
DEPLOY = {
    "status": set(),
    "audit": set(),
    "options": {"status"},
    "analysis": {"status"},
    "engine": set(),
    "gstreamer": {"analysis", "engine", "outputs"},
    "sources": {"options"},
    "outputs": {"analysis", "audit", "sources", "status"},
    "pipeline": {"analysis", "audit", "engine", "options", "outputs", "sources", "status"},
    "watch": {"options", "outputs", "pipeline", "status"},
    "report": {"engine", "options", "pipeline"},
    "replay": {"analysis", "options", "outputs", "pipeline", "status", "watch"},
    "runner": {"audit", "engine", "options", "outputs", "pipeline", "report", "sources", "watch"},
    "run": {"options", "runner"},
    "chaos": {"options", "outputs", "runner", "status", "watch"},
    "demo": {"demo_report", "run"},
    "demo_report": set(),
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


def modules() -> dict[str, Path]:
    """Return the path of every module of the four packages, by its dotted name."""
    found = {}
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imported(name: str, path: Path, known: Container[str], annotations: bool = False) -> set[str]:
    """Return the modules of ``known`` that a module imports, inside functions too.

    Imports for annotations alone (``if TYPE_CHECKING``) are never executed: they count on request.
    """
    tree = ast.parse(path.read_text())
    unexecuted = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test) == "TYPE_CHECKING"
        for part in test.body
        for node in ast.walk(part)
    }
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in unexecuted and not annotations:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: -(node.level - 1) or None] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                names.add(inner if inner in known else base)
    return {found for found in names if found in known and found != name}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Return the modules of one import circle, in order; empty where there is none."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(arrows[name]):
            if found := visit(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := visit(name, []))), [])


def test_there_is_no_import_circle() -> None:
    known = modules()
    arrows = {name: imported(name, path, known) for name, path in known.items()}
    assert " -> ".join(circle(arrows)) == ""
    # For annotations too, but for packages' own __init__, which name what they offer.
    files = {name: path for name, path in known.items() if path.name != "__init__.py"}
    arrows = {name: imported(name, path, files, True) for name, path in files.items()}
    assert " -> ".join(circle(arrows)) == ""


def test_a_circle_is_noticed(tmp_path: Path) -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    module = tmp_path / "m.py"
    module.write_text("def f():\n    from p import q\n    from .n import x\n")
    assert imported("p.m", module, {"p.q", "p.n", "p.m"}) == {"p.q", "p.n"}
    module.write_text("if TYPE_CHECKING:\n    import p.q\n")
    assert imported("p.m", module, {"p.q", "p.m"}) == set()
    assert imported("p.m", module, {"p.q", "p.m"}, annotations=True) == {"p.q"}


def test_parts_of_deploy_import_only_what_is_below_them() -> None:
    known = modules()
    wrong = {}
    for name, path in known.items():
        part = name.split(".")[1:2]
        if name.startswith("deploy.") and part:
            others = imported(name, path, known)
            found = {other.split(".")[1] for other in others if other.startswith("deploy.")}
            if more := found - DEPLOY[part[0]] - set(part):
                wrong[name] = more
    assert wrong == {}


def test_any_is_rare() -> None:
    """``Any`` hides what is handed on; where it is needed it stands for a library's own types."""
    texts = [path.read_text() for package in ALLOWED for path in (ROOT / package).rglob("*.py")]
    assert sum(len(re.findall(r"\bAny\b", text)) for text in texts) <= MOST_ANY


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


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "build", "run"])
def test_the_help_of_a_command_needs_no_heavy_library(name: str) -> None:
    """PyTorch alone takes longer to import than all the rest of a command's help, and numpy half
    as long: ``run --help`` took 0.25 s of CPU with it, 0.13 without."""
    heavy = ["torch", "onnxscript", "cv2", "av", "openvino", "scipy", "matplotlib", "pydantic"]
    heavy += [] if name == "build" else ["numpy", "yaml"]  # build's options ask its builders
    code = f"""
import sys
from medisseg.cli import main
try:
    main(["{name}", "--help"])
except SystemExit as end:
    print([m for m in {heavy!r} if m in sys.modules], end.code)
"""
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines()[-1] == "[] 0"


def outside_imports(source: str) -> set[str]:
    """Return the top-level modules that ``source`` imports, wherever in it."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            named.add(node.module.split(".")[0])
    return named


def test_what_is_declared_is_pinned() -> None:
    """What ``make setup`` installs is the same on every machine."""
    project = (ROOT / "pyproject.toml").read_text().partition("[project.scripts]")[0]
    declared = re.findall(r'^    "([\w.-]+)', project, re.MULTILINE)
    declared += (ROOT / "tools" / "build-requirements.txt").read_text().split()
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert {"torch", "tifffile", "mypy", "pybind11"} <= set(declared)
    assert {name.lower() for name in declared} - {pin.partition("==")[0] for pin in pins} == set()


def test_what_is_imported_is_declared() -> None:
    """An import that only this machine satisfies fails on the next one."""
    quoted = re.findall(r'^\s*"([\w.-]+)', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    declared = {re.sub(r"[-_.]+", "-", name).lower() for name in quoted}
    for line in re.findall(r'= \[("[^\]]*")\]', (ROOT / "pyproject.toml").read_text()):
        declared |= {re.split(r"[>=<;]", part)[0].strip(' "') for part in line.split(",")}
    owners = packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ALLOWED
        for path in (ROOT / folder).rglob("*.py")
        for name in outside_imports(path.read_text()) & owners.keys()
        if not {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners[name]} & declared
        and name not in {*ALLOWED, "typing_extensions", "pydantic_core"}  # of torch, of pydantic
    }
    assert not undeclared


def pinned(name: str) -> dict[str, list[str]]:
    """Return the requirements of a file of pins, each with its hashes."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    found: dict[str, list[str]] = {}
    for words in lines:
        hashes = [word for word in words if word.startswith("--hash=sha256:")]
        found[" ".join(word for word in words if word not in hashes)] = hashes
    return found


def test_what_set_up_installs_is_pinned_and_hashed() -> None:
    """``make constraints`` makes all three files; PyTorch's build differs by machine."""
    pins, lock = pinned("constraints.txt"), pinned("requirements.lock")
    build = pinned("tools/build-requirements.lock")
    apart = ("torch==", "nvidia-", "cuda-")
    assert {pin for pin in pins if not pin.startswith(apart)} == lock.keys()
    assert build.keys() <= lock.keys()
    assert not {pin for pin, hashes in (lock | build).items() if not hashes}
    names = {pin.split("==")[0] for pin in pins}
    toml = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r"^dependencies = \[.*?^\]|^dev = \[.*?^\]", toml, re.M | re.S)
    quoted = re.findall(r'^    "([\w.-]+)', "\n".join(wanted), re.M)
    assert len(wanted) == 2 and {re.sub(r"[-_.]+", "-", name).lower() for name in quoted} <= names
