"""scripts/*.sh: which Python they take, when they install, and what they say when that fails. pip is a stand-in."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci/run"]

# What `python -m pip install --log FILE …` runs in the tests.
PIP = """
import os, pathlib, sys
with open({calls!r}, "a") as stream:
    print(os.getcwd(), *sys.argv[1:], file=stream)
failure = os.environ.get("PIP_FAILURE")
if failure:
    pathlib.Path(sys.argv[sys.argv.index("--log") + 1]).write_text(failure)
    sys.exit(1)
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with what environment.sh needs of the project."""
    folder = tmp_path / "a clone"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/environment.sh", folder / "scripts")
    (folder / "requirements.txt").write_text("torch\n")
    (folder / "pyproject.toml").touch()
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment whose pip writes its calls to <environment>/calls."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False)
    (package,) = folder.glob("lib/python*/site-packages")
    (package / "pip").mkdir()
    (package / "pip/__init__.py").touch()
    (package / "pip/__main__.py").write_text(PIP.format(calls=str(folder / "calls")))
    return folder


def prepare(clone: Path, **variables: str) -> subprocess.CompletedProcess:
    """Source environment.sh from another folder and print which python it chose."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return subprocess.run(
        ["bash", "-c", 'set -euo pipefail; source "$1/scripts/environment.sh"; command -v python', "bash", str(clone)],
        env={**kept, **variables}, cwd="/", capture_output=True, text=True,
    )  # fmt: skip


def calls(environment: Path) -> list[str]:
    file = environment / "calls"
    return file.read_text().splitlines() if file.exists() else []


def test_it_installs_from_the_root_and_only_after_a_change(clone: Path, environment: Path) -> None:
    for _ in range(2):
        done = prepare(clone, VIRTUAL_ENV=str(environment))
        assert done.stdout.splitlines()[-1] == str(environment / "bin/python"), done.stderr
    (call,) = calls(environment)
    assert call.startswith(f"{clone} install --log ") and call.endswith(" --requirement requirements.txt")

    (clone / "requirements.txt").write_text("numpy\n")
    prepare(clone, VIRTUAL_ENV=str(environment))
    assert len(calls(environment)) == 2

    second_clone = clone.rename(clone.with_name("another"))
    prepare(second_clone, VIRTUAL_ENV=str(environment))
    assert len(calls(environment)) == 3, "-e . still points to the first clone"


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        ("ERROR: No matching distribution found for torch", "is a package index reachable?"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: something else", "pip failed"),
    ],
)
def test_a_failed_install_is_named_and_tried_again(clone: Path, environment: Path, failure: str, expected: str) -> None:
    assert prepare(clone, VIRTUAL_ENV=str(environment)).returncode == 0
    (clone / "pyproject.toml").write_text("# changed\n")
    failed = prepare(clone, VIRTUAL_ENV=str(environment), PIP_FAILURE=failure)
    assert failed.returncode == 1 and expected in failed.stderr and not failed.stdout
    (clone / "pyproject.toml").write_text("")
    assert prepare(clone, VIRTUAL_ENV=str(environment)).returncode == 0
    assert len(calls(environment)) == 3, "a half-done install passed for the one before it"


def test_a_python_that_is_too_old_is_refused(clone: Path, tmp_path: Path) -> None:
    old = tmp_path / "python2"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    refused = prepare(clone, PYTHON=str(old))
    assert refused.returncode == 1
    assert f"no Python 3.11 or newer among: {old}" in refused.stderr
    assert not (clone / ".venv").exists()
    refused = prepare(clone, VIRTUAL_ENV=str(tmp_path))
    assert refused.returncode == 1 and f"{tmp_path} has no Python 3.11 or newer" in refused.stderr


def test_an_existing_venv_is_used_and_the_base_of_conda_is_not(clone: Path, environment: Path, tmp_path: Path) -> None:
    (clone / ".venv").symlink_to(environment)
    done = prepare(clone, CONDA_PREFIX=str(tmp_path / "conda"), CONDA_DEFAULT_ENV="base", PYTHON=sys.executable)
    assert done.stdout.splitlines()[-1] == str(clone / ".venv/bin/python"), done.stderr


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ["Glue_prune_oneshot.py qnli sst2 mnli cola 2e-5 3",
              "Mcq_prune_oneshot.py commonsense_qa winogrande 1e-5 5"]),
        ({"TASKS": ""}, ["Mcq_prune_oneshot.py commonsense_qa winogrande 1e-5 5"]),
        ({"MCQ_TASKS": "", "TASKS": "sst2"}, ["Glue_prune_oneshot.py sst2 2e-5 3"]),
        ({"TASKS": "", "MCQ_TASKS": "winogrande", "MCQ_TRAIN_SPLIT": "train_pairs", "MCQ_EPOCHS": "2"},
         ["Mcq_prune_oneshot.py winogrande --train_split train_pairs 1e-5 2"]),
    ],
)  # fmt: skip
def test_true_gem_runs_glue_and_multiple_choice(variables: dict[str, str], expected: list[str], tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/true_gem.sh"), "--list_cells"], capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path), **variables},
    )  # fmt: skip
    found = []
    for words in map(str.split, done.stdout.splitlines()):
        assert words[-1] == "--list_cells" and "{task_name}/{transfer}/{strength}" in " ".join(words)
        rate, epochs = (words[words.index(name) + 1] for name in ("--learning_rate", "--num_train_epochs"))
        tasks = words[words.index("--task_name") + 1 : -1]
        found.append(" ".join([Path(words[0]).name, *tasks, rate, epochs]))
    assert found == expected


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_bash_and_stop_at_the_first_error(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    # A file without a first line for the system is sourced, and obeys what the script that sources it has set.
    assert "\nset -euo pipefail\n" in text or not text.startswith("#!")


@pytest.mark.parametrize(
    ("variables", "installs"),
    [
        ({}, False), ({"CI": "true"}, True), ({"CI": "false"}, False), ({"INSTALL_PACKAGES": "1"}, True),
        ({"CI": "true", "INSTALL_PACKAGES": "0"}, False),
    ],
)  # fmt: skip
def test_ci_installs_system_packages_only_where_it_may(variables: dict[str, str], installs: bool) -> None:
    text = (ROOT / ".ci/run").read_text()
    (rule,) = [line for line in text.splitlines() if line.startswith("may_install()")]
    done = subprocess.run(["bash", "-c", f"{rule}; may_install"], env={"PATH": os.environ["PATH"], **variables})
    assert (done.returncode == 0) == installs
    assert "if may_install && is_root" in text and text.count("apt-get install") == 1
