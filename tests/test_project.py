"""The house rules that a machine can check: one version, typed, and imports that point downwards.

The rules are read off the source (`ast`), so they hold for lines that no test runs. What importing
the package really loads is looked at in a fresh interpreter.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import tinytensor

ROOT = Path(__file__).parent.parent
ENGINE = ROOT / "tinytensor"
MODEL = ROOT / "gpt"

# The rooms of the engine, from the ground up: each may import those below it and its neighbours.
FLOORS = [
    {"backend"},
    {"random"},
    {"autograd"},
    {"tensor", "func"},
    {"ops"},
    {"cpu", "cuda"},
    {
        "amp",
        "backends",
        "composed",
        "creation",
        "functions",
        "inplace",
        "methods",
        "printing",
        "rearranging",
        "sampling",
    },
    {"nn", "optim", "serialization", "distributed", "inspect", "testing", "utils"},
    {"__init__", "__main__", "doctor"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# What `gpt` may import from: the modules that PyTorch has too, and the engine's own front rooms.
PUBLIC_MODULES = {
    "tinytensor",
    "tinytensor.autograd",
    "tinytensor.cuda",
    "tinytensor.distributed",
    "tinytensor.func",
    "tinytensor.inspect",
    "tinytensor.nn",
    "tinytensor.nn.functional",
    "tinytensor.nn.init",
    "tinytensor.nn.utils",
    "tinytensor.optim",
    "tinytensor.optim.lr_scheduler",
    "tinytensor.testing",
    "tinytensor.utils.checkpoint",
    "tinytensor.utils.data",
}


def sources(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[str, str | None, int]]:
    """`(module, name or None, line)` of every import that is not for the type checker alone."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()

    def walk(node: ast.AST) -> Iterator[tuple[str, str | None, int]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield module, alias.name, node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            yield ast.unparse(node.args[0]).strip("\"'"), None, node.lineno
        type_checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in node.orelse if type_checking else ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(parse(path))


def room_of(module: str) -> str:
    """`tinytensor.nn.functional` is in the room `nn`; the package's front page is `__init__`."""
    return module.split(".")[1] if "." in module else "__init__"


def deferred_lines(path: Path) -> set[int]:
    """The lines inside functions: an import there happens when the function is called."""
    lines: set[int] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


# ---- the package ----


def test_version_has_one_source():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    source = ROOT / project["tool"]["hatch"]["version"]["path"]
    stated = re.findall(r'^__version__ = "(.+)"$', source.read_text(encoding="utf-8"), re.MULTILINE)
    assert stated == [tinytensor.__version__]
    try:
        installed = version("tinytensor-gpt")
    except PackageNotFoundError:
        return  # run from a checkout that was not installed
    assert installed == tinytensor.__version__, "reinstall: pip install -e ."


def test_package_says_that_it_is_typed():
    assert (ENGINE / "py.typed").is_file()


def test_every_marker_with_a_requirement_is_registered(pytestconfig):
    registered = {line.split(":")[0] for line in pytestconfig.getini("markers")}
    assert {"parity", "cuda", "gpu", "mpi", "compiler", "nightly"} <= registered


@pytest.mark.parametrize("path", sources(ENGINE) + sources(MODEL), ids=name_of)
def test_every_file_opens_with_a_paragraph(path):
    assert ast.get_docstring(parse(path)), f"{name_of(path)} does not say what it is"


def test_lines_of_kernels_are_as_wide_as_those_of_python_at_most():
    folder = ROOT / "kernels"
    files = [
        path for path in sorted(folder.iterdir()) if path.suffix in {".cu", ".cuh", ".h", ".cpp"}
    ]
    assert files
    wide = [
        f"{name_of(path)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 100
    ]
    assert not wide, "\n".join(wide)


# ---- who may import whom ----


def test_engine_does_not_know_gpt():
    for path in sources(ENGINE):
        for module, _, line in imports(path):
            assert module.split(".")[0] != "gpt", f"{name_of(path)}:{line} imports {module}"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("torch", ()),  # cuda/bench_lab.py asks importlib for it, as a yardstick
        ("cupy", ("tinytensor/backend.py",)),
        ("hypothesis", ("tinytensor/testing",)),
    ],
)
def test_library_is_imported_in_one_place_only(library, allowed):
    for path in sources(ENGINE) + sources(MODEL):
        for module, _, line in imports(path):
            if module.split(".")[0] == library:
                assert name_of(path).startswith(allowed), f"{name_of(path)}:{line} imports {module}"


def test_engine_imports_point_downwards():
    wrong = []
    for path in sources(ENGINE):
        room = room_of(module_name(path))
        assert room in FLOOR_OF, f"{name_of(path)}: there is no room '{room}' in FLOORS; add it"
        deferred = deferred_lines(path)
        for module, name, line in imports(path):
            if module.split(".")[0] != "tinytensor":
                continue
            target = room_of(module)
            if module == "tinytensor" and name in FLOOR_OF:  # from . import autograd
                target = name
            if target not in FLOOR_OF:
                continue  # reported at the file of that room
            if FLOOR_OF[target] > FLOOR_OF[room] and line not in deferred:
                wrong.append(f"{name_of(path)}:{line}: {room} imports {target}, which is above it")
    assert not wrong, "\n".join(wrong)


def test_gpt_uses_only_public_names_of_the_engine():
    wrong = []
    for path in sources(MODEL):
        bound = {}  # local name -> the module of the engine that it stands for
        for node in ast.walk(parse(path)):
            for alias in node.names if isinstance(node, ast.Import) else ():
                if alias.name.split(".")[0] == "tinytensor":
                    bound[alias.asname or "tinytensor"] = (
                        alias.name if alias.asname else "tinytensor"
                    )
        for module, name, line in imports(path):
            if module.split(".")[0] != "tinytensor":
                continue
            if name is not None and f"{module}.{name}" in PUBLIC_MODULES:
                continue
            if module not in PUBLIC_MODULES:
                wrong.append(f"{name_of(path)}:{line}: {module} is not a public module")
            elif name is not None and not is_public(module, name):
                wrong.append(f"{name_of(path)}:{line}: {module}.{name} is not public")
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = bound.get(node.value.id)
                if module and not is_public(module, node.attr):
                    wrong.append(
                        f"{name_of(path)}:{node.lineno}: {module}.{node.attr} is not public"
                    )
    assert not wrong, "\n".join(wrong)


def is_public(module: str, name: str) -> bool:
    loaded = importlib.import_module(module)
    if name.startswith("_") and name != "__version__":
        return False
    return hasattr(loaded, name) and name in getattr(loaded, "__all__", [name])


@pytest.mark.parametrize("package", ["tinytensor", "gpt"])
def test_importing_loads_only_what_computing_needs(package):
    unwanted = ["torch", "cupy", "hypothesis", "matplotlib", "mpi4py", "pooch", "tqdm", "tyro"]
    program = f"import sys, {package}; print(*(m for m in {unwanted} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
