"""Order in the house: sizes, dependencies, shapes in docstrings, public names."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ucgm

REPO = Path(__file__).parents[1]
FILES = sorted((REPO / "ucgm").rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
# What a module is called where its package has another name.
IMPORTED_AS = {
    "docstring-parser": "docstring_parser",
    "huggingface-hub": "huggingface_hub",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "torch-fidelity": "torch_fidelity",
}
SHAPE = re.compile(r"\((?:\w[\w +]*|\.\.\.)?,[^()]*\)|\(\)|\bscalars?\b|\bany shape\b")


def imported_names():
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
            elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
                yield from (a.value for a in node.args if isinstance(a, ast.Constant))


def test_every_dependency_is_imported_by_the_package():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    found = {str(name).split(".")[0] for name in imported_names()}
    unused = {d for d in declared if IMPORTED_AS.get(d, d) not in found}
    assert not unused, f"declared in pyproject.toml and imported by nothing: {unused}"


def test_no_file_holds_two_ideas():
    assert {p.name: n for p in FILES if (n := len(p.read_text().splitlines())) > 300} == {}
    long = {
        f"{path.name}:{node.name}": node.end_lineno - node.lineno
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno > 60
    }
    assert long == {}


def takes_tensors(node):
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return any(
        a.annotation and re.search(r"\bTensor\b", ast.unparse(a.annotation)) for a in arguments
    )


def public_functions(tree):
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and (
                    not inner.name.startswith("_") or inner.name == "__call__"
                ):
                    yield f"{node.name}.{inner.name}", inner


def inherited(tree):
    """Docstrings of the methods that the classes of a file override, by Class.method."""
    classes = {n.name: n for t in TREES.values() for n in t.body if isinstance(n, ast.ClassDef)}
    for node in tree.body:
        bases = [node] if isinstance(node, ast.ClassDef) else []
        while bases:
            base = bases.pop()
            bases += [
                classes[b.id] for b in base.bases if isinstance(b, ast.Name) and b.id in classes
            ]
            for inner in base.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}.{inner.name}", ast.get_docstring(inner) or ""


def test_every_public_function_of_tensors_says_their_shapes():
    silent = []
    for path, tree in TREES.items():
        above = {}
        for name, text in inherited(tree):
            above[name] = above.get(name, "") + text
        silent += [
            f"{path.relative_to(REPO)}:{name}"
            for name, node in public_functions(tree)
            if takes_tensors(node)
            and not SHAPE.search((ast.get_docstring(node) or "") + above.get(name, ""))
        ]
    assert silent == []


@pytest.mark.parametrize(
    "lines",
    [
        "import ucgm; ucgm.train; import ucgm.training",
        "import ucgm.training; import ucgm; ucgm.train",
        "from ucgm import train; import ucgm.training, ucgm",
    ],
)
def test_train_is_a_function_at_every_access(lines):
    code = f"{lines}; assert callable(ucgm.train) and callable(ucgm.train)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_package_is_installed():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"]) - {"ucgm.assets", "ucgm.configs"}
    found = {"ucgm"} | {m.name for m in pkgutil.walk_packages(ucgm.__path__, "ucgm.") if m.ispkg}
    assert listed == found


def test_public_class_paths_lead_to_their_classes():
    from ucgm.runs.config import POLYMORPHIC, class_path

    for name in ("objective", "nn", "data", "integrations", "transport"):
        importlib.import_module(f"ucgm.{name}")
    todo, seen = list(POLYMORPHIC), 0
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        if cls.__module__.startswith("ucgm.") and not inspect.isabstract(cls):
            package, _, name = class_path(cls).rpartition(".")
            assert getattr(importlib.import_module(package), name, None) is cls, class_path(cls)
            seen += 1
    assert seen > 20
