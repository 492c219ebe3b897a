"""A second, independent forward pass of SiT and REPA, straight from a state dictionary.

Written from the papers (arXiv:2212.09748, 2401.08740, 2410.06940), one line per operation.
"""

import torch
import torch.nn.functional as F


def random_sit_state(depth=3, width=48, heads=4, channels=4, grid=4, classes=5, qk_norm=False):
    g = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=g) * 0.1

    state = {
        "pos_embed": draw(1, grid**2, width),
        "x_embedder.proj.weight": draw(width, channels, 2, 2),
    }
    linears = {"t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width)}
    for i in range(depth):
        linears |= {
            f"blocks.{i}.attn.qkv": (3 * width, width),
            f"blocks.{i}.attn.proj": (width, width),
            f"blocks.{i}.mlp.fc1": (4 * width, width),
            f"blocks.{i}.mlp.fc2": (width, 4 * width),
            f"blocks.{i}.adaLN_modulation.1": (6 * width, width),
        }
        if qk_norm:
            for name in ("q_norm", "k_norm"):
                state[f"blocks.{i}.attn.{name}.weight"] = 1 + draw(width // heads)
                state[f"blocks.{i}.attn.{name}.bias"] = draw(width // heads)
    linears |= {
        "final_layer.linear": (4 * channels, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for name, shape in linears.items():
        state[f"{name}.weight"], state[f"{name}.bias"] = draw(*shape), draw(shape[0])
    state["x_embedder.proj.bias"] = draw(width)
    state["y_embedder.embedding_table.weight"] = draw(classes + 1, width)
    return state


def sit_forward(state, x, t, y, heads=4):
    def linear(v, name):
        return F.linear(v, state[f"{name}.weight"], state[f"{name}.bias"])

    width = state["pos_embed"].shape[-1]
    half = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128)
    wave = torch.cat([torch.cos(t[:, None] * half), torch.sin(t[:, None] * half)], -1)
    c = linear(F.silu(linear(wave, "t_embedder.mlp.0")), "t_embedder.mlp.2")
    c = F.silu(c + state["y_embedder.embedding_table.weight"][y])
    h = F.conv2d(x, state["x_embedder.proj.weight"], state["x_embedder.proj.bias"], stride=2)
    h = h.flatten(2).transpose(1, 2) + state["pos_embed"]
    depth = sum(name.endswith("attn.qkv.weight") for name in state)
    for i in range(depth):
        parts = linear(c, f"blocks.{i}.adaLN_modulation.1")[:, None].chunk(6, -1)
        u = F.layer_norm(h, (width,), eps=1e-6) * (1 + parts[1]) + parts[0]
        q, k, v = linear(u, f"blocks.{i}.attn.qkv").chunk(3, -1)
        q, k, v = (a.reshape(*a.shape[:2], heads, -1).transpose(1, 2) for a in (q, k, v))
        if f"blocks.{i}.attn.q_norm.weight" in state:
            norms = [
                [state[f"blocks.{i}.attn.{n}.{p}"] for p in ("weight", "bias")]
                for n in ("q_norm", "k_norm")
            ]
            q = F.layer_norm(q, q.shape[-1:], *norms[0], eps=1e-5)
            k = F.layer_norm(k, k.shape[-1:], *norms[1], eps=1e-5)
        a = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1) @ v
        h = h + parts[2] * linear(a.transpose(1, 2).flatten(2), f"blocks.{i}.attn.proj")
        u = F.layer_norm(h, (width,), eps=1e-6) * (1 + parts[4]) + parts[3]
        u = F.gelu(linear(u, f"blocks.{i}.mlp.fc1"), approximate="tanh")
        h = h + parts[5] * linear(u, f"blocks.{i}.mlp.fc2")
    shift, scale = linear(c, "final_layer.adaLN_modulation.1")[:, None].chunk(2, -1)
    out = linear(F.layer_norm(h, (width,), eps=1e-6) * (1 + scale) + shift, "final_layer.linear")
    rows = [
        torch.cat([out[:, 4 * r + j].reshape(len(x), 2, 2, -1) for j in range(4)], 2)
        for r in range(4)
    ]
    return torch.cat(rows, 1).permute(0, 3, 1, 2)
