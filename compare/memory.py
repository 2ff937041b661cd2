"""Memory of this process."""

import sys
from pathlib import Path


def peak_rss_bytes() -> int:
    """The most physical memory this process has held, in bytes.

    On Linux VmHWM, which begins anew at exec; getrusage would pass on the peak of the parent that forked.
    """
    found = _status("VmHWM")
    if found is not None:
        return max(found, rss_bytes() or 0)  # the kernel counts in batches: the peak may lag behind what is held
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rss_bytes() -> int | None:
    """Physical memory held now, in bytes; None where the system does not tell."""
    return _status("VmRSS")


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)
