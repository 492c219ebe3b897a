"""Time our DiT against the same network in diffusers, `DiTTransformer2DModel`, on one machine.

    python scripts/bench/backbone.py --batches 1 8 --modes eager compiled --out backbone.json

Both networks hold the same weights (checked at step 0, where both have the same frequencies). The
two are timed in turns, ours, theirs, theirs, ours, ..., in seconds of processor time (which a busy
machine disturbs less than wall time; with one thread they are the same on an idle one). A row gives
the median of each and the median of the ratios of neighbouring runs, with its quartiles, and the
ratio of the fastest runs. A ratio below 1 means ours is faster.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel

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


def compiled(ours, theirs):
    """Both networks through torch.compile, in place."""
    ours.compile()
    theirs.compile()
    return ours, theirs


def runs(ours, theirs, batch: int, side: int, backward: bool):
    """Two functions without arguments: one pass of each network."""
    x, y = torch.randn(batch, 4, side, side), torch.randint(0, 1000, (batch,))
    t, step = torch.rand(batch), torch.randint(0, 1000, (batch,))

    def ours_once():
        return ours(x, t, y)

    def theirs_once():
        return theirs(x, step, y, return_dict=False)[0]

    def with_backward(network, once):
        network.zero_grad(set_to_none=True)
        once().square().mean().backward()

    if backward:
        return lambda: with_backward(ours, ours_once), lambda: with_backward(theirs, theirs_once)
    return torch.no_grad()(ours_once), torch.no_grad()(theirs_once)


def seconds(function) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def compare(ours, theirs, repeats: int) -> dict[str, float]:
    """Time the two functions in turns, after one run of each."""
    ours(), theirs()
    pairs = []
    for index in range(repeats):
        first, second = (ours, theirs) if index % 2 == 0 else (theirs, ours)
        a, b = seconds(first), seconds(second)
        pairs.append((a, b) if index % 2 == 0 else (b, a))
    ratios = sorted(a / b for a, b in pairs)
    low, middle, high = statistics.quantiles(ratios, n=4) if repeats > 1 else ratios * 3
    return {
        "ours_s": statistics.median(a for a, _ in pairs),
        "diffusers_s": statistics.median(b for _, b in pairs),
        "ratio": middle,
        "ratio_quartiles": [low, high],
        "ratio_of_fastest": min(a for a, _ in pairs) / min(b for _, b in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="B/2")
    parser.add_argument("--side", type=int, default=32, help="side of the latents")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"])
    parser.add_argument("--passes", nargs="+", default=["forward", "backward"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file of all rows")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []
    print(f"torch {torch.__version__}, {args.threads} threads, {platform.processor()}, {args.size}")
    for mode in args.modes:
        networks = build(args.size, args.side)
        if mode == "compiled":
            networks = compiled(*networks)
        for batch in args.batches:
            for name in args.passes:
                functions = runs(*networks, batch, args.side, name == "backward")
                row = {"mode": mode, "batch": batch, "pass": name}
                row |= compare(*functions, args.repeats)
                rows.append(row)
                low, high = row["ratio_quartiles"]
                print(
                    f"{mode:9} batch {batch:2} {name:9} ours {row['ours_s']:.3f} s, diffusers "
                    f"{row['diffusers_s']:.3f} s, ratio {row['ratio']:.3f} ({low:.3f} to "
                    f"{high:.3f}), fastest {row['ratio_of_fastest']:.3f}",
                    flush=True,
                )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
