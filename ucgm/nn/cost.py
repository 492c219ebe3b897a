"""What a network costs: parameters, and multiply-adds of one forward pass of one sample."""

from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ucgm.nn.configs import DDTConfig, DiTConfig, DiTDHConfig, EDM2Config, NetworkConfig
from ucgm.nn.token_configs import MiTConfig, RAEv2Config


@dataclass(frozen=True)
class Cost:
    """Size of a network."""

    parameters: int
    """Weights, fixed position embeddings included, as the publications count."""
    gmacs: float
    """10^9 multiply-adds of matrix products in one forward pass of one sample ("Gflops" of DiT)."""


def cost(
    config: NetworkConfig, shape: tuple[int, int, int], num_classes: int, heads: str = "map"
) -> Cost:
    """Count with fake tensors: no memory, no arithmetic. `shape` is (C, H, W).

    `heads` are those of the pass, see `Network.forward`; the weights of all are counted.
    """
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(), torch.no_grad():
        network = config.build(shape, num_classes).eval()
        x, t = torch.empty(1, *shape), torch.empty(1)
        y = torch.empty(1, dtype=torch.int64)
        # The math kernel is counted as the two matrix products that attention is.
        with counter, sdpa_kernel(SDPBackend.MATH):
            network(x, t, y, **({} if heads == "map" else {"heads": heads}))
    return Cost(count_parameters(network), counter.get_total_flops() / 2e9)


def count_parameters(network: nn.Module) -> int:
    """Elements of the weights that a state dictionary holds."""
    return sum(value.numel() for value in network.state_dict().values())


def published_models() -> dict[str, tuple[NetworkConfig, tuple[int, int, int]]]:
    """Name -> (config, shape of latents, or of JiT, pMF pixels, at 256; EDM2, JiT-*/32: at 512)."""
    sd, va, rae = (4, 32, 32), (32, 16, 16), (768, 16, 16)
    out: dict[str, tuple[NetworkConfig, tuple[int, int, int]]] = {}
    for size in ("S/2", "B/2", "L/2", "XL/2", "XL/1"):
        shape = va if size.endswith("/1") else sd
        out[f"DiT-{size}"] = (DiTConfig(size=size, family="dit"), shape)
        out[f"LightningDiT-{size}"] = (DiTConfig(size=size, family="lightningdit"), shape)
        out[f"TiT-{size}"] = (DiTConfig(size=size, family="tit"), shape)
    for size in ("B/2", "L/2", "XL/2"):
        out[f"DDT-{size}"] = (DDTConfig(size=size), sd)
    for size in ("B/4", "B/2", "XL/2"):
        out[f"MeanFlow-{size}"] = (DiTConfig(size=size, family="dit", second_time=True), sd)
    late = DiTConfig(size="XL/2", family="dit", second_time=True, decoupled_depth=20)
    out["DMF-XL/2"] = (late, sd)
    plain = DiTConfig(size="XL/1", family="lightningdit", fourier_time=True)
    out["RAE-DiT-XL/1"] = (plain, rae)
    out["DiTDH-S/1"] = (DiTDHConfig(size="S/1"), rae)
    out["DiTDH-XL/1"] = (DiTDHConfig(size="XL/1"), rae)
    out["MF-DiTDH-XL/1"] = (DiTDHConfig(size="XL/1", second_time=True, fourier_gap=True), rae)
    out["RAEv2-k7/1"] = (RAEv2Config(size="k7/1", head_width=2048, exit_layer=8), (1024, 16, 16))
    out["RiT-XL/1"] = (DiTConfig(size="XL/1", family="rit", convention="jit"), (384, 16, 16))
    for size in ("B/2", "M/2", "L/2", "XL/2"):
        out[f"iMF-{size}"] = (MiTConfig(size=size), sd)
    for size in ("B/16", "L/16", "H/16"):
        # The hidden width of the largest is rounded up to a multiple of 8.
        ratio, noise = (4.003125, 2.0) if size == "H/16" else (4.0, 1.0)
        pmf = MiTConfig(size=size, family="pmf", mlp_ratio=ratio, noise_scale=noise)
        out[f"pMF-{size}"] = (pmf, (3, 256, 256))
    for size in ("B", "L", "H"):
        for patch, side in ((16, 256), (32, 512)):
            name, noise = f"{size}/{patch}", side / 256
            jit = DiTConfig(size=name, family="jit", convention="jit", noise_scale=noise)
            out[f"JiT-{name}"] = (jit, (3, side, side))
    for size in ("XS", "S", "M", "L", "XL", "XXL"):
        out[f"EDM2-{size}"] = (EDM2Config(size=size), (4, 64, 64))
    return out


def print_models(name: str = "") -> None:
    """Print the published networks: latents or pixels, parameters, multiply-adds of one sample.

    Args:
        name: only those whose name contains this, such as XL.
    """
    chosen = {k: v for k, v in published_models().items() if name.lower() in k.lower()}
    if not chosen:
        raise ValueError(f"no model has {name!r} in its name: {', '.join(published_models())}")
    print(f"{'model':<20}{'latents':>12}{'parameters':>14}{'multiply-adds':>16}")
    for title, (config, shape) in chosen.items():
        size = cost(config, shape, 1000)
        latents = "x".join(map(str, shape))
        print(
            f"{title:<20}{latents:>12}{size.parameters / 1e6:>12.1f} M{size.gmacs:>14.1f} G",
            flush=True,
        )
