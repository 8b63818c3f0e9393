"""Tests of the architecture: which package may import which, and where heavy libraries may be imported."""

import ast
import graphlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import udc_model

# The architecture. A package may import itself and the packages in its entry; modules at the root count as packages.
# Packages of one layer do not import each other, except that data and models use native, and models model_files.
GROUND = ("errors", "files", "config", "records", "checksums", "csv_files")
LIBRARY = (*GROUND, "native", "data", "model_files", "models", "decisions")
APPLICATION = (*LIBRARY, "training", "inference", "evaluation", "tracking")
ALLOWED = {
    # ground tools
    "errors": (),
    "files": ("errors",),
    "program": ("errors", "files"),
    "ray_cluster": ("errors", "files"),
    "config": ("errors", "files"),
    "records": ("errors", "files", "config"),
    "checksums": ("errors", "files", "records"),
    "csv_files": (),
    "installed": ("errors", "records"),
    # library: images, networks, decisions
    "native": GROUND,
    "data": (*GROUND, "native"),
    "model_files": GROUND,
    "models": (*GROUND, "native", "model_files"),
    "decisions": GROUND,
    "fetch": (*GROUND, "data"),  # no other package needs it: the network stays out of the stages
    # application: what is done with the library; tracking knows nothing but MLflow and files
    "training": (*LIBRARY, "ray_cluster"),
    "inference": (*LIBRARY, "ray_cluster"),
    "evaluation": (*LIBRARY, "program"),  # figures.py is a program of its own
    "tracking": ("errors", "files", "records"),
    # entry points: pipeline stages, commands about experiments, the command line
    "stages": (*APPLICATION, "program", "installed", "ray_cluster"),
    "experiments": (*APPLICATION, "installed", "ray_cluster"),
    "project": (*GROUND, "data", "installed", "stages"),  # of stages: the code that each depends on
    "app": (*APPLICATION, "stages"),  # of stages: explanations, which are computed and stored there
    "maintenance": (*APPLICATION, "installed", "stages", "experiments", "project"),  # of all that a project has on disk
    "cli": (*APPLICATION, "program", "stages", "experiments", "fetch", "project", "app", "maintenance"),
}
ROOT_MODULES = {
    "__init__",
    "checksums",
    "csv_files",
    "errors",
    "files",
    "installed",
    "program",
    "ray_cluster",
    "records",
}
WITHOUT_TORCH = ("checksums", "config", "decisions", "model_files", "records", "tracking")
HEAVY = {"torch", "torchvision", "mlflow", "sklearn", "matplotlib", "pandas", "dvc", "optuna"}  # slow to import

SOURCE = Path(udc_model.__file__).parent


@dataclass(frozen=True)
class Import:
    """One imported module. ``is_immediate``: the import is executed when the importing module is imported."""

    target: str
    line: int
    is_immediate: bool


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package; a package has the name of its folder."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imports_of(source: str, module: str, is_package: bool = False) -> list[Import]:
    """Return all imports in a module: at the top, in functions and under TYPE_CHECKING."""
    return list(_imports(ast.parse(source), module, is_package, is_immediate=True))


def _imports(node: ast.AST, module: str, is_package: bool, is_immediate: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, is_immediate) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join([*parents[: len(parents) - child.level + 1], *filter(None, [child.module])])
            for alias in child.names:
                name = f"{base}.{alias.name}"
                yield Import(name if name in FILES else base, child.lineno, is_immediate)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(child, module, is_package, is_immediate=False)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for part in child.body:
                yield from _imports(ast.Module([part], []), module, is_package, is_immediate=False)
            for part in child.orelse:
                yield from _imports(ast.Module([part], []), module, is_package, is_immediate)
        else:
            yield from _imports(child, module, is_package, is_immediate)


IMPORTS = {
    module: imports_of(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
    for module, path in FILES.items()
}


def package_of(module: str) -> str | None:
    """Return the first name below udc_model, e.g. ``data``; None for udc_model itself and for other libraries."""
    parts = module.split(".")
    return parts[1] if parts[0] == "udc_model" and len(parts) > 1 else None


def forbidden_imports(module: str, imports: list[Import]) -> list[str]:
    """Return the imports of a module that `ALLOWED` does not contain."""
    package = package_of(module)
    if package is None:  # udc_model/__init__.py
        return [f"line {each.line}: {each.target}" for each in imports if package_of(each.target)]
    allowed = (None, package, *ALLOWED[package])
    return [f"line {each.line}: {each.target}" for each in imports if package_of(each.target) not in allowed]


def heavy_imports(start: str) -> list[str]:
    """Return the heavy libraries that ``import start`` imports through modules of this package, with the module."""
    pending, visited = [start], set()
    heavy = []
    while pending:
        module = pending.pop()
        if module in visited:
            continue
        visited.add(module)
        targets = [each.target for each in IMPORTS[module] if each.is_immediate]
        heavy += [f"{module} imports {target}" for target in targets if target.split(".")[0] in HEAVY]
        for target in [*targets, module]:
            parts = target.split(".")
            ancestors = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
            pending += [name for name in ancestors if name in FILES]
    return sorted(heavy)


def test_every_package_has_an_entry_in_the_table():
    assert {package_of(module) for module in FILES} - {None} == set(ALLOWED)


def test_every_folder_with_modules_is_a_package():
    """setuptools installs only folders with an ``__init__.py``."""
    assert [path.parent for path in FILES.values() if not (path.parent / "__init__.py").is_file()] == []


def test_root_has_no_other_modules():
    assert {path.stem for path in SOURCE.glob("*.py")} == ROOT_MODULES


@pytest.mark.parametrize("module", FILES)
def test_module_imports_only_allowed_packages(module):
    assert forbidden_imports(module, IMPORTS[module]) == []


@pytest.mark.parametrize("module", [module for module in FILES if package_of(module) in WITHOUT_TORCH])
def test_module_does_not_import_torch(module):
    if module == "udc_model.model_files.timm_networks":  # timm's networks are torch's; in functions only
        assert not any(each.is_immediate for each in IMPORTS[module] if each.target.split(".")[0] == "torch")
        return
    torch_imports = [each for each in IMPORTS[module] if each.target.split(".")[0] in ("torch", "torchvision")]
    assert torch_imports == []
    assert [line for line in heavy_imports(module) if " imports torch" in line] == []


@pytest.mark.parametrize("module", [module for module in FILES if package_of(module) == "cli"])
def test_command_line_imports_no_heavy_library_at_module_level(module):
    assert heavy_imports(module) == []


def test_modules_have_no_import_cycles():
    graph = {module: {each.target for each in imports if each.target in FILES} for module, imports in IMPORTS.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


EXAMPLE = """
import torch
from udc_model.data import splits
from ..errors import UdcError
if TYPE_CHECKING:
    from udc_model.stages.prepare import prepare
def f():
    class A:
        import pandas.testing
    try:
        from udc_model import cli
    except ImportError:
        pass
"""


def test_imports_are_found_everywhere():
    imports = [(each.target, each.is_immediate) for each in imports_of(EXAMPLE, "udc_model.training.example")]
    assert imports == [
        ("torch", True),
        ("udc_model.data.splits", True),
        ("udc_model.errors", True),
        ("udc_model.stages.prepare", False),
        ("pandas.testing", False),
        ("udc_model.cli", False),
    ]


def test_forbidden_imports_are_reported():
    imports = imports_of(EXAMPLE, "udc_model.training.example")
    assert forbidden_imports("udc_model.training.example", imports) == [
        "line 6: udc_model.stages.prepare",
        "line 11: udc_model.cli",
    ]
    assert heavy_imports("udc_model.training.loop")  # contains torch
