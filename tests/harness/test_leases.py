"""Who may work on a run: dead, stopped, skewed and unnamed owners, on this host and on others."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import leases
from harness.leases import LostRunError, RunLease

LEASE = 0.5


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", LEASE)
    monkeypatch.setattr(leases, "HEARTBEAT", LEASE / 5)


def record(folder: Path, host: str, pid: int = 1, seconds: float = LEASE) -> Path:
    """What a process of another host leaves in a folder."""
    path = folder / leases.OWNER_FILE
    path.write_text(f"filelock/2\npid={pid}\nhost={host}\nmode=lease\ntoken={'0' * 32}\nduration={seconds}\n")
    return path


def other_process(folder: Path) -> subprocess.Popen:
    """A process that holds a folder until it is killed."""
    code = f"""
import time
from pathlib import Path
from harness import leases
leases.LEASE_SECONDS, leases.HEARTBEAT = {leases.LEASE_SECONDS}, {leases.HEARTBEAT}
lock = leases.RunLease(Path({str(folder)!r}))
assert lock.acquire()
print("held", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_one_at_a_time_and_nothing_is_left(tmp_path: Path):
    one, other = RunLease(tmp_path), RunLease(tmp_path)
    assert one.acquire() and not other.acquire()
    owner = leases.owner(tmp_path)
    assert (owner.host, owner.pid, owner.alive) == (leases.this_host(), os.getpid(), True)
    assert 0 <= owner.quiet_seconds < leases.LEASE_SECONDS
    leases.check(tmp_path)
    one.release()
    assert leases.owner(tmp_path) is None and list(tmp_path.iterdir()) == []
    assert other.acquire()
    other.release()


def test_a_killed_owner_is_followed_at_once(tmp_path: Path):
    process = other_process(tmp_path)
    lock = RunLease(tmp_path)
    assert not lock.acquire() and leases.owner(tmp_path).alive
    with pytest.raises(LostRunError, match=rf"{tmp_path} was taken over by process {process.pid} of "):
        leases.check(tmp_path)
    process.kill()
    process.wait()
    assert not leases.owner(tmp_path).alive
    assert lock.acquire()
    lock.release()


def test_a_stopped_owner_is_followed_after_the_lease_and_learns_it(tmp_path: Path, short_lease: None):
    process = other_process(tmp_path)
    lock = RunLease(tmp_path)
    os.kill(process.pid, signal.SIGSTOP)
    started = time.monotonic()
    while not lock.acquire():
        assert time.monotonic() - started < 30
        time.sleep(0.05)
    assert time.monotonic() - started >= LEASE
    process.kill()
    process.wait()
    leases.check(tmp_path)
    lock.release()


@pytest.mark.parametrize("skew", [-1e6, 0, 1e6], ids=["behind", "equal", "ahead"])
def test_an_owner_elsewhere_is_followed_when_it_stays_quiet_whatever_its_clock_says(
    tmp_path: Path, short_lease: None, skew: float
):
    """Each touch moves the time that the waiting process counts for itself."""
    path, lock = record(tmp_path, "elsewhere"), RunLease(tmp_path)
    started = touched = time.monotonic()
    while time.monotonic() - started < 2 * LEASE:
        now = time.time() + skew
        os.utime(path, (now, now))
        touched = time.monotonic()
        assert not lock.acquire()
        time.sleep(LEASE / 10)
    while not lock.acquire():
        assert time.monotonic() - touched < 30
        time.sleep(0.02)
    assert time.monotonic() - touched >= LEASE
    lock.release()


def test_owners_who_disagree_on_the_lease_are_refused(tmp_path: Path, short_lease: None):
    record(tmp_path, "elsewhere", seconds=9.0)
    with pytest.raises(ValueError, match="must agree on lease_duration"):
        RunLease(tmp_path).acquire()


def test_an_owner_who_died_before_it_wrote_its_name_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(leases, "UNNAMED_SECONDS", 0.2)
    (tmp_path / leases.OWNER_FILE).touch()
    lock = RunLease(tmp_path)
    assert not lock.acquire() and leases.owner(tmp_path) is None
    time.sleep(0.3)
    assert not lock.acquire()  # breaks it
    assert lock.acquire()
    lock.release()


def test_who_is_alive_elsewhere_is_told_by_the_file_systems_clock(tmp_path: Path):
    path = record(tmp_path, "elsewhere", seconds=leases.LEASE_SECONDS)
    clock = 10**6  # of the file system, years behind ours
    os.utime(path, (clock, clock))
    assert leases.owner(tmp_path, now=clock + 100) == ("elsewhere", 1, 100, True)
    assert leases.owner(tmp_path, now=clock + 181) == ("elsewhere", 1, 181, False)
    assert not leases.owner(tmp_path).alive


def test_the_file_systems_time_leaves_nothing_and_needs_no_writing(tmp_path: Path):
    assert leases.file_system_time(tmp_path) == pytest.approx(time.time(), abs=60)
    assert list(tmp_path.iterdir()) == []
    assert leases.file_system_time(tmp_path / "missing") == pytest.approx(time.time(), abs=60)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        RunLease(tmp_path / "file" / "run").acquire()
