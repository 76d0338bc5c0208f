"""The house stays as CONTRIBUTING.md draws it: who imports whom, no circle, values for namespaces, short files."""

import ast
import functools
import graphlib
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import pruning

ROOT = Path(__file__).parents[1]
ROOMS = ("GLUE_tasks", "llm_tasks", "pruning", "quantization", "analysis", "harness", "scripts", "tests")
# Pure functions on arrays: a run's own standard error and a table's are one function.
PURE = {"analysis.estimators", "analysis.resampling", "analysis.metrics"}
# Rooms, and of other rooms single modules.
MAY_IMPORT = {
    "harness": {"harness"},
    "pruning": {"pruning", "harness"},
    "quantization": {"quantization", "pruning", "harness"},
    "GLUE_tasks": {"GLUE_tasks", "pruning", "harness", *PURE},
    "llm_tasks": {"llm_tasks", "pruning", "quantization", "harness", *PURE},
    "analysis": {"analysis", "harness"},
    "scripts": {"GLUE_tasks", "llm_tasks", "pruning", "quantization", "analysis", "harness"},
    "tests": {"GLUE_tasks", "llm_tasks", "pruning", "quantization", "analysis", "harness"},
}
PURE_NEED = {"numpy", "scipy"}
ANALYSIS_NEEDS = {"numpy", "scipy", "matplotlib", "filelock"}
# Of harness, what knows a run folder: neither torch nor a model is needed to read one.
READS_RUNS = {"harness.run_folder", "harness.records", "harness.leases"}
BANNED_STEMS = {
    "utils", "util", "helpers", "helper", "common", "misc", "core", "base", "tools", "contents", "counterparts",
    "wording", "storage", "problem", "line_results", "task_files",
}  # fmt: skip
MOST_FILE_LINES, MOST_FUNCTION_LINES = 500, 60
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
PRODUCT = [path for path in SOURCES if path.relative_to(ROOT).parts[0] != "tests"]


def name_of(path: Path) -> str:
    """The module that a file is, by its name from the root."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


MODULES = {name_of(path) for path in SOURCES}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imported(path: Path) -> set[str]:
    """All modules that a file imports, at its top or when a function is called; a relative import gives "."."""
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            names.add(".")
        elif isinstance(node, ast.ImportFrom):
            below = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES
            names |= below or {node.module}
    return names


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


@functools.cache
def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_there_are_sources():
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_imports_are_absolute_and_stay_in_the_rooms_they_may_enter(path: Path):
    names = imported(path)
    assert "." not in names
    siblings = {source.stem for source in SOURCES if source.parent.name == "scripts"}
    allowed = MAY_IMPORT[room_of(path)]
    entered = {name for name in names if name.partition(".")[0] in {*ROOMS, *siblings}}
    refused = {name for name in entered if name not in allowed and name.partition(".")[0] not in allowed}
    assert not refused, f"{label(path)} may not import {refused}"


def test_no_modules_import_each_other_in_a_circle():
    graph = {name_of(path): imported(path) & MODULES - {name_of(path)} for path in SOURCES}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # a circle raises CycleError, which names it


def test_analysis_reads_run_folders_and_nothing_else_of_harness():
    for path in PRODUCT:
        if room_of(path) == "analysis":
            entered = {name for name in imported(path) if name.startswith("harness")}
            assert entered <= READS_RUNS, f"{label(path)} may not import {entered - READS_RUNS}"


def reached(path: Path) -> set[Path]:
    """The file and all of ours that importing it imports."""
    files = {name_of(source): source for source in SOURCES}
    seen, left = set(), [path]
    while left:
        current = left.pop()
        if current not in seen:
            seen.add(current)
            left += [files[name] for name in imported(current) & MODULES]
    return seen


@pytest.mark.parametrize("name", ["scripts/plot_results.py", "scripts/max_strength.py", "analysis/report.py"])
def test_plotting_needs_no_torch(name: str):
    for path in reached(ROOT / name):
        needed = packages(path) - set(sys.stdlib_module_names) - set(ROOMS)
        assert needed <= ANALYSIS_NEEDS, f"{label(path)} imports {needed - ANALYSIS_NEEDS}"


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_functions_need_numpy_and_scipy_alone(module: str):
    for path in reached(ROOT / f"{module.replace('.', '/')}.py"):
        needed = packages(path) - set(sys.stdlib_module_names) - {"analysis"}
        assert needed <= PURE_NEED, f"{label(path)} imports {needed - PURE_NEED}"


def test_a_namespace_is_read_in_entry_stages_alone():
    """argparse's options become values once: where a parser is built, checked and read, in the files named options."""
    for path in PRODUCT:
        for function in functions(path):
            if any("Namespace" in hint for hint in hints_of(function)):
                assert is_entry_stage(path, function), f"{label(path)}: {function.name} takes a namespace"


def parameters(function: ast.FunctionDef) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def hints_of(function: ast.FunctionDef) -> list[str]:
    return [ast.unparse(argument.annotation) for argument in parameters(function) if argument.annotation]


def test_every_parameter_of_a_function_has_a_hint():
    """So that a namespace is seen where it is handed on."""
    for path in PRODUCT:
        for function in functions(path):
            bare = [
                own.arg for own in parameters(function) if own.annotation is None and own.arg not in ("self", "cls")
            ]
            assert not bare, f"{label(path)}: {function.name} has no hint for {', '.join(bare)}"


def is_entry_stage(path: Path, function: ast.FunctionDef) -> bool:
    """Whether a function turns options into values: in a file of options or a script, or with a parser at hand."""
    has_parser = any("ArgumentParser" in hint for hint in hints_of(function))
    return "options" in path.stem or room_of(path) == "scripts" or has_parser or is_script(path)


def is_script(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text()


@pytest.mark.parametrize("path", PRODUCT, ids=label)
def test_files_and_functions_are_short(path: Path):
    """Docstrings are not counted: none is to be cut short for it."""
    assert len(path.read_text().splitlines()) <= MOST_FILE_LINES
    for function in functions(path):
        first = function.body[0]
        told = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) else 0
        length = function.end_lineno - function.lineno + 1 - told
        assert length <= MOST_FUNCTION_LINES, f"{function.name} has {length} lines"


STAGES = {
    "llm_tasks.run", "llm_tasks.plan", "llm_tasks.options", "llm_tasks.option_values", "llm_tasks.evaluation",
    "llm_tasks.compressed_model",
}  # fmt: skip


WITHOUT_STAGES = [
    path for room in ("settings", "tasks", "engine") for path in (ROOT / "llm_tasks" / room).glob("[!_]*.py")
]


@pytest.mark.parametrize("path", sorted(WITHOUT_STAGES), ids=label)
def test_settings_data_sets_and_the_engine_import_no_stage_and_no_setting(path: Path):
    assert not [name for name in imported(path) if name in STAGES or name.startswith("llm_tasks.settings")]


def test_the_command_lines_of_language_models_are_read_in_files_of_options():
    files = sorted((ROOT / "llm_tasks").rglob("*.py"))
    assert [path.name for path in files if "argparse" in imported(path)] == ["options.py", "options.py"]


def test_what_is_special_to_cpus_stands_behind_one_door():
    behind = ("fused_layers", "bf16_kernels")
    for path in (ROOT / "llm_tasks").rglob("*.py"):
        if path.stem not in ("cpu", *behind):
            text = path.read_text()
            assert not [name for name in behind if f"engine import {name}" in text or f"engine.{name}" in text], path


@pytest.mark.slow
def test_settings_load_no_library_before_they_need_it():
    """Together they take a third of the memory that remains: 130 MB."""
    heavy = {"datasets", "pandas", "pyarrow", "numba"}
    code = f"import sys, llm_tasks.run; print(*sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_names_of_files_say_what_they_hold():
    taken = set(sys.stdlib_module_names) | set(packages_distributions())
    taken -= {*ROOMS, "conftest"}
    assert not [label(path) for path in SOURCES if path.stem in taken | BANNED_STEMS and path.stem != "__init__"]


def test_installed_packages_are_this_clone():
    assert Path(pruning.__file__).is_relative_to(ROOT), "the environment serves another clone: pip install -e ."


def test_no_source_loads_a_pickle():
    """pickle, and torch.load by itself, run what a file says; weights alone are tensors and nothing else."""
    for path in PRODUCT:
        assert not packages(path) & {"pickle", "dill", "joblib"}
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), path.name


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_no_body_defines_a_name_twice(path: Path):
    """The second would silently take the place of the first; a property's setter is of its name."""
    bodies = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Module | ast.ClassDef)]
    for body in bodies:
        names = [
            node.name for node in body.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.decorator_list
        ]  # fmt: skip
        assert len(names) == len(set(names)), f"{label(path)} defines {max(names, key=names.count)} twice"
