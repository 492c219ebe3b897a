"""Checkpoints of the LDM layout, against a forward pass written from the LDM paper's modules."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ucgm.data.latents.autoencoder import open_autoencoder


class Block(nn.Module):
    def __init__(self, inner, outer):
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(32, c, 1e-6) for c in (inner, outer))
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        if inner != outer:
            self.nin_shortcut = nn.Conv2d(inner, outer, 1)

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, 1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (f(h).flatten(2) for f in (self.q, self.k, self.v))
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * q.shape[1] ** -0.5, dim=2)
        return x + self.proj_out(torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape))


class Level(nn.Module):
    def __init__(self, inner, outer, count, attention):
        super().__init__()
        self.block = nn.ModuleList(Block(inner if i == 0 else outer, outer) for i in range(count))
        self.attn = nn.ModuleList(Attention(outer) for _ in range(count if attention else 0))

    def forward(self, x):
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


class Conv(nn.Module):
    def __init__(self, width, stride):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, padding=0 if stride == 2 else 1)


def middle(width):
    mid = nn.Module()
    mid.block_1, mid.attn_1, mid.block_2 = (
        Block(width, width),
        Attention(width),
        Block(width, width),
    )
    return mid


class LDM(nn.Module):
    """Encoder and decoder of CompVis/latent-diffusion with attention on the last level."""

    def __init__(self, widths=(32, 64, 64), depth=1, channels=4, decoder_attention=True):
        super().__init__()
        self.widths = widths
        last = len(widths) - 1
        e, d = nn.Module(), nn.Module()
        e.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        e.down = nn.ModuleList()
        for n, width in enumerate(widths):
            level = Level(widths[max(n - 1, 0)], width, depth, n == last)
            if n < last:
                level.downsample = Conv(width, 2)
            e.down.append(level)
        e.mid = middle(widths[-1])
        e.norm_out = nn.GroupNorm(32, widths[-1], 1e-6)
        e.conv_out = nn.Conv2d(widths[-1], 2 * channels, 3, padding=1)
        d.conv_in = nn.Conv2d(channels, widths[-1], 3, padding=1)
        d.mid = middle(widths[-1])
        d.up = nn.ModuleList()
        for n, width in enumerate(widths):
            inner = widths[min(n + 1, last)]
            level = Level(inner, width, depth + 1, n == last and decoder_attention)
            if n > 0:
                level.upsample = Conv(width, 1)
            d.up.append(level)
        d.norm_out = nn.GroupNorm(32, widths[0], 1e-6)
        d.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)
        self.encoder, self.decoder = e, d
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    def encode(self, x):
        e = self.encoder
        h = e.conv_in(x)
        for level in e.down:
            h = level(h)
            if hasattr(level, "downsample"):
                h = level.downsample.conv(F.pad(h, (0, 1, 0, 1)))
        h = e.mid.block_2(e.mid.attn_1(e.mid.block_1(h)))
        return self.quant_conv(e.conv_out(F.silu(e.norm_out(h)))).chunk(2, dim=1)[0]

    def decode(self, z):
        d = self.decoder
        h = d.conv_in(self.post_quant_conv(z))
        h = d.mid.block_2(d.mid.attn_1(d.mid.block_1(h)))
        for level in reversed(d.up):
            h = level(h)
            if hasattr(level, "upsample"):
                h = level.upsample.conv(F.interpolate(h, scale_factor=2.0))
        return d.conv_out(F.silu(d.norm_out(h)))


@pytest.mark.parametrize("decoder_attention", [True, False])
def test_ldm_checkpoint_computes_the_same(tmp_path, decoder_attention):
    torch.manual_seed(0)
    model = LDM(decoder_attention=decoder_attention).eval()
    state = {
        **model.state_dict(),
        "loss.logvar": torch.zeros(()),
        "foundation_model.w": torch.ones(2),
    }
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "vavae.pt")
    ours = open_autoencoder(str(tmp_path / "vavae.pt"))
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        z = model.encode(x)
        torch.testing.assert_close(ours.posterior(x)[0], z, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.decode(z), model.decode(z), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in ours.module.parameters()) == sum(
        p.numel() for p in model.parameters()
    )
    assert ours.latent_shape(16) == (4, 4, 4)


def test_prefixes_and_foreign_files(tmp_path):
    torch.manual_seed(0)
    state = LDM().state_dict()
    torch.save({f"first_stage_model.{k}": v for k, v in state.items()}, tmp_path / "sd.ckpt")
    assert open_autoencoder(str(tmp_path / "sd.ckpt")).kind == "kl"
    torch.save({"decoder.x": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no autoencoder in the LDM layout"):
        open_autoencoder(str(tmp_path / "other.pt"))
    state["encoder.extra.weight"] = torch.ones(1)
    torch.save(state, tmp_path / "extra.pt")
    with pytest.raises(ValueError, match="(?s)does not fit AutoencoderKL.*encoder.extra.weight"):
        open_autoencoder(str(tmp_path / "extra.pt"))


class Touch:
    def __reduce__(self):
        return (open, ("/dev/null",))


def test_a_pickle_runs_no_code(tmp_path):
    torch.save({"state_dict": LDM().state_dict(), "callbacks": Touch()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="would run code"):
        open_autoencoder(str(tmp_path / "evil.pt"))
