"""Published sizes on the meta device: exact parameter counts, sin-cos positions included."""

import pytest
import torch

from ucgm.nn import DiTConfig

SD, VA = (4, 32, 32), (32, 16, 16)
COUNTS = {
    # 675,129,632 published for DiT-XL/2 is this + 18,448 for the learned variance.
    ("dit", "XL/2", SD): 675_111_184,
    ("dit", "L/2", SD): 458_086_416,
    ("dit", "B/2", SD): 130_500_112,
    ("dit", "S/2", SD): 32_957_200,
    ("lightningdit", "XL/1", VA): 675_256_736,
    ("lightningdit", "XL/2", SD): 675_219_856,
    ("lightningdit", "L/2", SD): 458_120_176,
    ("lightningdit", "B/2", SD): 130_531_600,
    ("lightningdit", "S/2", SD): 32_972_944,
    ("tit", "XL/1", VA): 675_191_072,
    ("tit", "XL/2", SD): 675_154_192,
    ("tit", "L/2", SD): 458_070_000,
    ("tit", "B/2", SD): 130_512_400,
    ("tit", "S/2", SD): 32_963_344,
}


@pytest.mark.parametrize(("family", "size", "shape"), COUNTS)
def test_parameter_counts(family, size, shape):
    with torch.device("meta"):
        net = DiTConfig(size=size, family=family).build(shape, 1000)
    count = sum(p.numel() for p in net.parameters()) + net.pos_embed.numel()
    assert count == COUNTS[family, size, shape]
