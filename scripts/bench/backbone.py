"""Our DiT against the same network in diffusers, with the same weights.

Both hold equal weights, which is checked at step 0, where both have the same frequencies.
"""

from collections.abc import Iterator

import torch
from diffusers import DiTTransformer2DModel
from timing import Pair

from ucgm.nn import from_state_dict
from ucgm.nn.configs import parse_size


def build(size: str, side: int):
    """The two networks, with equal random weights."""
    numbers = parse_size(size)
    heads = numbers["num_heads"]
    theirs = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=numbers["hidden_size"] // heads,
        in_channels=4,
        num_layers=numbers["depth"],
        sample_size=side,
        patch_size=numbers["patch_size"],
        num_embeds_ada_norm=1000,
        norm_eps=1e-6,
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.02)
        first = theirs.transformer_blocks[0].norm1.emb.state_dict()
        for block in theirs.transformer_blocks:
            block.norm1.emb.load_state_dict(first)
    theirs = theirs.eval()
    ours = from_state_dict("dit", theirs.state_dict(), input_size=side, num_heads=heads)
    x, y = torch.randn(1, 4, side, side), torch.tensor([7])
    with torch.no_grad():
        a = ours.native(x, torch.zeros(1), y)
        b = theirs(x, torch.zeros(1, dtype=torch.long), y, return_dict=False)[0]
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    return ours, theirs


def pairs(size: str = "S/2", side: int = 32, batch: int = 4) -> Iterator[Pair]:
    """A forward pass and one with backward, for latents (batch, 4, side, side)."""
    ours, theirs = build(size, side)
    x, y = torch.randn(batch, 4, side, side), torch.randint(0, 1000, (batch,))
    t, step = torch.rand(batch), torch.randint(0, 1000, (batch,))

    def forward():
        return ours(x, t, y)

    def plain_forward():
        return theirs(x, step, y, return_dict=False)[0]

    def with_backward(call):
        return lambda: call().square().mean().backward()

    name, calls = f"DiT-{size}, {batch} x 4 x {side} x {side}, ", (forward, plain_forward)
    yield Pair(name + "forward", "DiTTransformer2DModel", *map(torch.no_grad(), calls))
    yield Pair(name + "and backward", "DiTTransformer2DModel", *map(with_backward, calls))
