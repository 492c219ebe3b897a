import builtins

import pytest
import torch

from ucgm.data import Digits
from ucgm.data.sets.digits import _scans


def test_split_is_fixed_stratified_and_disjoint():
    train, test, everything = (Digits(name).open() for name in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (1343, 454, 1797)
    rows = {tuple(x.flatten().tolist()) for x in train.x}
    assert not any(tuple(x.flatten().tolist()) in rows for x in test.x)
    share = test.y.bincount() / everything.y.bincount()
    assert (share - 0.25).abs().max() < 0.01  # every class gives a quarter
    # the split of one machine is that of all: a fingerprint of the held-out labels and pixels
    assert test.y[:12].tolist() == [6, 7, 9, 0, 1, 2, 3, 5, 0, 2, 8, 2]
    assert test.x.double().sum().item() == -11381.0
    assert train.x.min() == -1 and train.x.max() == 1


def test_one_gather_gives_a_batch():
    data = Digits().open()
    x, y = data.__getitems__([5, 0, 5])
    assert x.shape == (3, 1, 8, 8) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert torch.equal(x[0], x[2]) and torch.equal(x[1], data[0][0])
    assert torch.equal(data[-1][0], data[len(data) - 1][0])
    with pytest.raises(IndexError, match="1343 samples of digits-train"):
        data[1343]


def test_decode_keeps_the_grey_levels():
    data = Digits("all").open()
    levels = torch.arange(17) / 8 - 1
    expected = torch.round(255 * torch.arange(17) / 16 + 1e-6).to(torch.uint8)
    assert torch.equal(data.decode(levels.view(-1, 1, 1, 1)).flatten(), expected)


def test_held_out_and_errors(monkeypatch):
    assert Digits().held_out() == Digits("test")
    assert Digits("test").held_out() is None
    with pytest.raises(ValueError, match="data.split must be one of train, test, all"):
        Digits("validation").open()
    real = builtins.__import__

    def without_sklearn(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    _scans.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(ValueError, match=r"pip install 'ucgm\[data\]'"):
        Digits().open()
