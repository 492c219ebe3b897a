"""Files on the disk: their modes."""

import os

import pytest
import torch
from safetensors.torch import save_file

from ucgm.runtime.files import write_atomic


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_mode_of_the_umask(tmp_path, mask, mode):
    old = os.umask(mask)
    try:
        write_atomic(tmp_path / "a.txt", "text")
        write_atomic(tmp_path / "b", lambda path: save_file({"x": torch.ones(2)}, path))
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}
