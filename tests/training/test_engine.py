"""What is decided once for a process."""

import subprocess
import sys

import pytest

_PROGRAM = """
import resource
import torch
from varflow.training.engine import keep_freed_memory

def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(1 << 25)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
torch.ones(2)
before = faults(5)
assert keep_freed_memory()
faults(3)
print(before, sorted(5 * faults(1) for _ in range(9))[4])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tells glibc")
def test_large_tensors_reuse_memory():
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no mallopt here: {done.stderr.strip().splitlines()[-1]}")
    before, after = map(int, done.stdout.split())
    assert after < 100
    assert after < before / 10
