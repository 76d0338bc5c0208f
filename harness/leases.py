"""Which process computes a run: a lease in the run's folder, on any file system that several hosts share.

A lease is a file that names its owner. It is created only if it does not exist, and its owner touches it every
HEARTBEAT seconds; filelock's SoftFileLease does both. It uses no lock of the operating system, since on many network
file systems those hold within one host only. A lease whose owner is dead passes to the next process that asks: at once
where this host can see that the owner is gone, else after LEASE_SECONDS without a touch. The process that asks counts
those seconds, so that the hosts' clocks may differ.

A process that was stopped until another took its run over learns that from check, before it writes.
"""

import functools
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from filelock import SoftFileLease, Timeout

OWNER_FILE = ".owner"
LEASE_SECONDS = 180.0  # the same for all processes that share a folder: filelock refuses different values
HEARTBEAT = 30.0
UNNAMED_SECONDS = 10.0  # an owner writes its name right after creating the file; one that takes longer is dead


class LostRunError(RuntimeError):
    """Another process took the run over, since this one was stopped or cut off from the file system for too long."""


class Owner(NamedTuple):
    """The process that holds, or held, a lease.

    Fields:
        host: the host's name as filelock writes it; containers have names of their own.
        pid: on that host.
        quiet_seconds: seconds since it last touched the lease.
        alive: whether it still runs, as far as this host can tell.
    """

    host: str
    pid: int
    quiet_seconds: float
    alive: bool


class RunLease:
    """The right to compute the run of a folder, for one process at a time; deleting the object releases it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / OWNER_FILE
        self._lease = _lease(folder)
        self._unnamed_since: float | None = None

    def acquire(self) -> bool:
        """Try to take the lease; returns whether this process holds it now.

        To take over the lease of an owner that fell silent, the same object must ask repeatedly: it counts the seconds.

        Raises:
            OSError: nothing can be written into the folder.
        """
        try:
            self._lease.acquire(timeout=0)
        except Timeout:
            if self._stays_unnamed():
                self._lease.force_break()
            return False
        # filelock does not sync what it writes; other hosts of a network file system must see it now.
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        return True

    def release(self) -> None:
        self._lease.release()

    def _stays_unnamed(self) -> bool:
        """Whether the owner died before it wrote its name; filelock would wait for it for ever."""
        try:
            named = bool(self._path.read_bytes())
        except FileNotFoundError:
            named = True
        if named:
            self._unnamed_since = None
        elif self._unnamed_since is None:
            self._unnamed_since = time.monotonic()
        return not named and time.monotonic() - self._unnamed_since > UNNAMED_SECONDS


def check(folder: Path) -> None:
    """Raises LostRunError where another process took the run over; to be called before writing into its folder."""
    lease = _lease(folder)
    owner = lease.owner
    if owner is not None and not lease.is_lock_held_by_us:
        raise LostRunError(f"{folder} was taken over by process {owner.pid} of {owner.hostname}")


def owner(folder: Path, now: float | None = None) -> Owner | None:
    """The process that holds the lease of a folder's run, or held it and died; None without a lease.

    Args:
        now: seconds since the epoch, by file_system_time; this host's clock by default.
    """
    try:
        touched = (folder / OWNER_FILE).stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    record = _lease(folder).owner
    if record is None:  # released since, or not yet written
        return None
    quiet = max(0.0, (time.time() if now is None else now) - touched)
    here = record.hostname == this_host()
    return Owner(record.hostname, record.pid, quiet, quiet < LEASE_SECONDS and not (here and not _exists(record.pid)))


def file_system_time(folder: Path) -> float:
    """Seconds since the epoch by the clock of the folder's file system; by this host's where it is read-only."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock.") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


@functools.cache
def this_host() -> str:
    """The name that leases give to this host, or to this container."""
    with tempfile.TemporaryDirectory() as folder, _lease(Path(folder)) as lease:
        return lease.owner.hostname


def _lease(folder: Path) -> SoftFileLease:
    return SoftFileLease(folder / OWNER_FILE, lease_duration=LEASE_SECONDS, heartbeat_interval=HEARTBEAT)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
