"""Who imports whom inside llm_tasks: no circle, no setting another, no namespace beyond the command line."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOM = Path(__file__).parents[2] / "llm_tasks"
FILES = sorted(ROOM.rglob("*.py"))
STAGES = {"llm_tasks.run", "llm_tasks.plan", "llm_tasks.options", "llm_tasks.evaluation", "llm_tasks.compressed_model"}


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOM.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """The modules of llm_tasks that a file imports, at its start or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


def test_no_import_closes_a_circle():
    graph = {name: imports(path) for name, path in MODULES.items()}
    assert len(tuple(TopologicalSorter(graph).static_order())) == len(MODULES) > 30


@pytest.mark.parametrize("path", sorted((ROOM / "settings").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_setting_imports_no_stage_and_no_other_setting(path: Path):
    assert not [name for name in imports(path) if name in STAGES or name.startswith("llm_tasks.settings")]


@pytest.mark.parametrize("folder", ["tasks", "engine"])
def test_data_sets_and_engine_import_no_stage_and_no_setting(folder: str):
    for path in (ROOM / folder).glob("*.py"):
        assert not [name for name in imports(path) if name in STAGES or name.startswith("llm_tasks.settings")], path


def test_the_command_line_is_read_in_one_file():
    assert [path.name for path in FILES if "import argparse" in path.read_text()] == ["options.py"]


def test_files_and_functions_stay_short():
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") <= 500, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"
