"""A training on a CPU keeps the memory it frees."""

import os
import subprocess
import sys

import pytest
import torch

from ucgm.training.build import keep_freed_memory

FAULTS = """
import resource, sys, torch
from ucgm.training.build import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory(torch.device("cpu"))
def fill():
    pieces = [torch.ones(1 << 24) for _ in range(2)]  # 64 MiB each: glibc maps such afresh
for _ in range(5):
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_memory_is_not_fetched_again():
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how],
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for how in ("keep", "plain")
    }
    assert faults["keep"] < 0.2 * faults["plain"], faults


def test_nothing_is_changed_for_a_gpu():
    assert not keep_freed_memory(torch.device("cuda"))
