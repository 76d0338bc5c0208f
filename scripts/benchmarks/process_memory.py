"""Memory of processes, on Linux. No package is imported: the peers' sides run in other environments."""

import os
from pathlib import Path


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """The most bytes that were resident since reset_peak. (ru_maxrss may include the process that started this one.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def anonymous_bytes(process: int) -> int:
    """Resident bytes of a process that no file holds, which cannot be given back; 0 where it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024 if "RssAnon:" in status else 0


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
