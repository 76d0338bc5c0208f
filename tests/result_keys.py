"""The keys of all_results.json that docs/run_folder.md explains."""

import json
from pathlib import Path

from printed_commands import quoted

from harness import run_folder

TEXT = (Path(__file__).parents[1] / "docs" / "run_folder.md").read_text()
SCORES = "eval_"  # how the names of metrics begin in results of fine-tuning


def told(heading: str) -> set[str]:
    """The names in the first column of the table below a heading."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return {name for line in section.splitlines() if line.startswith("| `") for name in quoted(line.split("|")[1])}


def assert_keys_are_told(tree: Path) -> None:
    """Every key of the results below a folder, and of their levels, stands in the tables; there are results."""
    known, of_level = told("Keys of all_results.json"), told("Keys of a level")
    results = [json.loads(path.read_text()) for path in tree.rglob(run_folder.RESULT_FILE)]
    lacking = {name for result in results for name in result if not name.startswith(SCORES)} - known
    lacking |= {name for result in results for level in result["levels"] for name in level} - of_level
    assert results
    assert not lacking, f"docs/run_folder.md does not say what these are: {', '.join(sorted(lacking))}"
