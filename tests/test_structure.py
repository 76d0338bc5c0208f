"""The house stays as CONTRIBUTING.md draws it: who imports whom, no shadowed names, one clone per environment."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import pruning

ROOT = Path(__file__).parents[1]
ROOMS = ("GLUE_tasks", "llm_tasks", "pruning", "quantization", "analysis", "harness", "scripts", "tests")
MAY_IMPORT = {
    "harness": {"harness"},
    "GLUE_tasks": {"GLUE_tasks", "pruning", "analysis", "harness"},
    "llm_tasks": {"llm_tasks", "pruning", "quantization", "analysis", "harness"},
    "quantization": {"quantization", "pruning", "harness"},
    "pruning": {"pruning", "harness"},
    "analysis": {"analysis", "harness"},
    "scripts": {"GLUE_tasks", "llm_tasks", "pruning", "quantization", "analysis", "harness"},
    "tests": {"GLUE_tasks", "llm_tasks", "pruning", "quantization", "analysis", "harness"},
}
ANALYSIS_NEEDS = {"numpy", "scipy", "matplotlib", "filelock"}
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports; a relative import gives "."."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." if node.level else node.module.partition(".")[0])
    return names


def test_there_are_sources():
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_absolute_and_stay_in_the_rooms_they_may_enter(path: Path):
    room = path.relative_to(ROOT).parts[0]
    names = imported(path)
    assert "." not in names
    ours = names & {*ROOMS, *(source.stem for source in SOURCES if source.parent.name == "scripts")}
    assert ours <= MAY_IMPORT[room], f"{room} may not import {ours - MAY_IMPORT[room]}"


def test_what_is_special_to_cpus_stands_behind_one_door():
    behind = ("fused_layers", "bf16_kernels")
    for path in (ROOT / "llm_tasks").rglob("*.py"):
        if path.stem not in ("cpu", *behind):
            text = path.read_text()
            assert not [name for name in behind if f"engine import {name}" in text or f"engine.{name}" in text], path


def test_plot_results_and_analysis_run_without_torch():
    plotting = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == "analysis"]
    plotting += [ROOT / "scripts" / name for name in ("plot_results.py", "max_strength.py")]
    for path in plotting:
        third_party = imported(path) - set(sys.stdlib_module_names) - {"analysis", "harness"}
        assert third_party <= ANALYSIS_NEEDS, f"{path.name} imports {third_party - ANALYSIS_NEEDS}"


@pytest.mark.slow
def test_settings_load_no_library_before_they_need_it():
    """Together they take a third of the memory that remains: 130 MB."""
    heavy = {"datasets", "pandas", "pyarrow", "numba"}
    code = f"import sys, llm_tasks.run, llm_tasks.settings; print(*sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_no_file_shadows_a_package_or_a_standard_module():
    taken = set(sys.stdlib_module_names) | set(packages_distributions())
    taken -= {*ROOMS, "conftest"}
    assert not [path.name for path in SOURCES if path.stem in taken and path.stem != "__init__"]


def test_installed_packages_are_this_clone():
    assert Path(pruning.__file__).is_relative_to(ROOT), "the environment serves another clone: pip install -e ."


def test_no_source_loads_a_pickle():
    """pickle, and torch.load by itself, run what a file says; weights alone are tensors and nothing else."""
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] == "tests":
            continue
        assert not imported(path) & {"pickle", "dill", "joblib"}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), path.name
