"""Which process works on a run: a lease in its folder, on any file system that several hosts share.

A lease is a file that names its owner, made as one that must not exist yet and touched by its owner every HEARTBEAT
seconds; filelock's SoftFileLease does that. No lock of the operating system is asked, so it holds where those are local
to a host, as on many network file systems. A lease whose owner is dead passes to the next who wants it: at once where
this host can see that the process is gone, after LEASE_SECONDS without a touch where it cannot. Those seconds are
counted by the one who waits, so that the hosts' clocks may differ.

A process that was stopped for so long that its run passed to another learns it from check, before it writes.
"""

import functools
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from filelock import SoftFileLease, Timeout

OWNER_FILE = ".owner"
LEASE_SECONDS = 180.0  # the same for all who share a folder: filelock refuses two that differ
HEARTBEAT = 30.0
UNNAMED_SECONDS = 10.0  # that a lease may lack its owner's name, which is written right after it is made


class LostRunError(RuntimeError):
    """Another process took the run over: this one was stopped, or cut off from the file system, for too long."""


class Owner(NamedTuple):
    """Who holds, or held, a run.

    Fields:
        host: its name, as filelock writes it: a process in a container is told from those outside.
        pid: on that host.
        quiet_seconds: since its last sign of life.
        alive: whether it still works, as far as this host can tell.
    """

    host: str
    pid: int
    quiet_seconds: float
    alive: bool


class RunLease:
    """The right to compute the run of a folder, for one process at a time; whoever drops the object gives it up."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / OWNER_FILE
        self._lease = _lease(folder)
        self._unnamed_since: float | None = None

    def acquire(self) -> bool:
        """Take the run if nobody has it; asked again by the same lock, a run is taken from an owner who stays quiet.

        Raises:
            OSError: nothing can be written into the folder.
        """
        try:
            self._lease.acquire(timeout=0)
        except Timeout:
            if self._stays_unnamed():
                self._lease.force_break()
            return False
        # filelock leaves its record to the system; other hosts of a network file system are to see it now.
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        return True

    def release(self) -> None:
        self._lease.release()

    def _stays_unnamed(self) -> bool:
        """Whether the lease's owner died before it wrote its name; filelock waits for such an owner for ever."""
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
    """Refuse to write into a run that another process took over.

    Raises:
        LostRunError: names it.
    """
    lease = _lease(folder)
    owner = lease.owner
    if owner is not None and not lease.is_lock_held_by_us:
        raise LostRunError(f"{folder} was taken over by process {owner.pid} of {owner.hostname}")


def owner(folder: Path, now: float | None = None) -> Owner | None:
    """Who holds the run of a folder, or held it and died; None where nobody does.

    Args:
        now: the file system's time (file_system_time); this host's clock by default.
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
    """What the clock of the folder's file system says; this host's where nothing can be written there."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock.") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


@functools.cache
def this_host() -> str:
    """The name by which leases know this host, or this container on it."""
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
