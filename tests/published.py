"""Where the tests find the part of the published RoleBench, and how they skip without it."""

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data" / "rolebench"
ROLEBENCH = Path(os.environ.get("ROLEBENCH_DIR") or BESIDE)


def rolebench_dir():
    """The folder of the published RoleBench; skips the test, with the reason printed, when it is not here."""
    if not (ROLEBENCH / "rolebench-zh").is_dir():
        reason = "no published RoleBench here: set ROLEBENCH_DIR to a copy"
        print(reason)
        pytest.skip(reason)
    return ROLEBENCH
