"""Our networks as models of diffusers: stored in fewer bits, in shards, as variants, in half."""

import copy
import json

import pytest
import torch

from ucgm.nn import DDTConfig, DiTConfig, DiTDHConfig, EDM2Config, UNetConfig

SHAPE = (4, 8, 8)
CONFIGS = {
    "DiT": DiTConfig(size="T/2"),
    "DDT": DDTConfig(size="T/2"),
    "DiTDH": DiTDHConfig(size="T/2", depth=2, head_width=128, qk_norm=True),
    "EDM2": EDM2Config(model_channels=64, channel_mult=(1, 2), num_blocks=1, attention=(4,)),
    "UNet": UNetConfig(),
}
each = pytest.mark.parametrize("name", CONFIGS)


def network(name):
    """Random weights everywhere: zeros would hide every mistake."""
    net = CONFIGS[name].build(SHAPE, 5).eval()
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape) if parameter.ndim else 0.7)
    return net


def batch():
    return torch.randn(2, *SHAPE), torch.tensor([0.3, 0.8]), torch.tensor([1, 5])


def bytes_of(net):
    return sum(p.numel() * p.element_size() for p in net.parameters())


@each
@torch.no_grad()
def test_layers_are_stored_in_fewer_bits(name):
    net, inputs = network(name), batch()
    exact, whole = net(*inputs), bytes_of(net)
    net.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    before = bytes_of(net)
    out = net(*inputs)
    assert bytes_of(net) == before < 0.5 * whole and net.dtype == torch.float32
    wide = sum(p.dtype == torch.float32 and p.ndim > 1 for p in net.parameters())
    assert wide < 0.2 * sum(p.ndim > 1 for p in net.parameters())
    assert 0 < (out - exact).square().mean().sqrt() < 0.2 * exact.std()


@each
@torch.no_grad()
@pytest.mark.parametrize("variant", [None, "raw"])
def test_shards_and_variants_come_back_whole(name, variant, tmp_path):
    net, inputs = network(name), batch()
    net.save_pretrained(tmp_path, max_shard_size=bytes_of(net) // 3, variant=variant)
    suffix = f".index.{variant}.json" if variant else ".index.json"
    index = next(tmp_path.glob("*.index*json"))
    assert index.name.endswith(suffix)
    assert len(set(json.loads(index.read_text())["weight_map"].values())) >= 3
    again = type(net).from_pretrained(tmp_path, variant=variant)
    for ours, theirs in zip(net.state_dict().items(), again.state_dict().items(), strict=True):
        assert ours[0] == theirs[0] and torch.equal(ours[1], theirs[1])
    # Read weights lie in the mapped file at any address, and on some processors the last bits of a
    # convolution depend on it.
    assert torch.equal(copy.deepcopy(again)(*inputs), net(*inputs))
    half = type(net).from_pretrained(tmp_path, variant=variant, torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    rough = half(inputs[0].bfloat16(), *inputs[1:])
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - net(*inputs)).square().mean().sqrt() < 0.1 * net(*inputs).std()


def test_edm2_is_not_quantised(tmp_path):
    network("EDM2").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="EDM2 normalises its weights .*enable_layerwise_casting"):
        type(network("EDM2")).from_pretrained(tmp_path, quantization_config={"load_in_8bit": True})
