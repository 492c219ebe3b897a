"""The second head (iMF, arXiv 2512.02012) and late blocks under s (decoupled MeanFlow)."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ucgm.nn import DDT, DiT, DiTConfig, from_state_dict
from ucgm.nn.cost import cost, count_parameters
from ucgm.nn.embeddings import unpatchify
from ucgm.runtime.sharding import blocks_of

SHAPE, CLASSES = (3, 8, 8), 5
TINY = dict(hidden_size=32, depth=3, num_heads=2, patch_size=2)
TWO = dict(velocity_blocks=2, second_time=True)


def build(**settings):
    return DiTConfig(**(TINY | settings)).build(SHAPE, CLASSES)


def batch(n=4, dtype=torch.float32):
    x = torch.randn(n, *SHAPE, dtype=dtype)
    return x, torch.rand(n, dtype=dtype), torch.randint(0, CLASSES + 1, (n,))


def tokens_of(net, x):
    return net.x_embedder(x) + net.pos_embed


def image_of(net, layer, tokens, c):
    return unpatchify(layer(tokens, c), net.patch_size, net.grid)


def test_velocity_blocks_leave_the_map_as_it_is(randomize):
    """Weights without load by name, the map keeps its bits, v starts at zero."""
    one, two = randomize(build()), build(velocity_blocks=2)
    missing, unexpected = two.load_state_dict(one.state_dict(), strict=False)
    assert {name.split(".")[0] for name in missing} == {"v_blocks", "velocity_layer"}
    assert not unexpected and not any(k.startswith("v") for k in one.state_dict())
    x, t, y = batch()
    f, v = two(x, t, y, heads="both")
    assert torch.equal(f, one(x, t, y)) and torch.equal(f, two(x, t, y))
    assert torch.equal(v, torch.zeros_like(x))


@pytest.mark.parametrize("convention", ["ucgm", "reversed", "jit"])
def test_heads_against_a_forward_by_hand(convention, randomize):
    net = randomize(build(**TWO, convention=convention, learn_sigma=True))
    x, t, y = batch()
    native = t if convention == "ucgm" else 1 - t
    c = net.t_embedder(native) + net.h_embedder(t - t / 3) + net.y_embedder(y)
    c, tokens = c[:, None], tokens_of(net, x)
    tokens = net.blocks[0](tokens, c, net.rotary.table)
    ends = []
    for blocks, layer in ((net.blocks[1:], net.final_layer), (net.v_blocks, net.velocity_layer)):
        end = tokens
        for block in blocks:
            end = block(end, c, net.rotary.table)
        end = image_of(net, layer, end, c)[:, :3]
        over = t.clamp(min=0.05).view(-1, 1, 1, 1)
        ends.append({"ucgm": end, "reversed": -end, "jit": (x - end) / over}[convention])
    f, v = net(x, t, y, t / 3, heads="both")
    torch.testing.assert_close(f, ends[0])
    torch.testing.assert_close(v, ends[1])
    assert v.shape == x.shape and (f - v).abs().max() > 1e-3
    assert torch.equal(net(x, t, y, t / 3), f)
    assert torch.equal(net(x, t, y, t / 3, heads="velocity"), v)


def test_a_head_runs_its_own_blocks_alone(randomize):
    net, ran = randomize(build(velocity_blocks=1)), []
    for name in ("blocks", "v_blocks"):
        for i, block in enumerate(getattr(net, name)):
            block.register_forward_hook(lambda *_, name=name, i=i: ran.append(f"{name}.{i}"))
    x, t, y = batch()
    expected = {
        "map": ["blocks.0", "blocks.1", "blocks.2"],
        "velocity": ["blocks.0", "blocks.1", "v_blocks.0"],
        "both": ["blocks.0", "blocks.1", "blocks.2", "v_blocks.0"],
    }
    for heads, names in expected.items():
        ran.clear()
        net(x, t, y, heads=heads)
        assert ran == names
    assert len(blocks_of(net)) == 4
    for p in net.parameters():
        p.grad = None
    net(x, t, y, heads="velocity").square().sum().backward()
    idle = {n.split(".")[0] for n, p in net.named_parameters() if p.grad is None}
    assert idle == {"blocks", "final_layer"}


def test_velocity_blocks_in_cost_and_config(tmp_path, randomize):
    net = randomize(build(velocity_blocks=2))
    net.save_pretrained(tmp_path)
    again = DiT.from_pretrained(tmp_path)
    x, t, y = batch()
    pairs = zip(again(x, t, y, heads="both"), net(x, t, y, heads="both"), strict=True)
    assert again.config.velocity_blocks == 2 and all(torch.equal(a, b) for a, b in pairs)
    plain, config = DiTConfig(**TINY), DiTConfig(**TINY, velocity_blocks=2)
    read = from_state_dict("tit", net.state_dict(), num_heads=2)
    assert torch.equal(read(x, t, y, heads="velocity"), net(x, t, y, heads="velocity"))
    more = count_parameters(net.v_blocks) + count_parameters(net.velocity_layer)
    costs = {h: cost(config, SHAPE, CLASSES, h) for h in ("map", "velocity", "both")}
    one = cost(plain, SHAPE, CLASSES)
    assert costs["map"].parameters == one.parameters + more
    assert costs["map"].gmacs == costs["velocity"].gmacs == one.gmacs
    twice = cost(DiTConfig(**(TINY | dict(depth=5))), SHAPE, CLASSES).gmacs
    head = 2 * 32 * 32 + 16 * 32 * 12
    assert costs["both"].gmacs == pytest.approx(twice + head / 1e9)


def test_gradient_checkpointing_of_both_heads_is_exact(randomize):
    plain = randomize(build(**TWO, decoupled_depth=1))
    kept = build(**TWO, decoupled_depth=1, gradient_checkpointing=True)
    kept.load_state_dict(plain.state_dict())
    x, t, y = batch()
    for net in (plain, kept):
        f, v = net(x, t, y, t / 2, heads="both")
        (f * v).sum().backward()
    for a, b in zip(plain.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("convention", ["ucgm", "reversed"])
def test_decoupled_blocks_against_a_forward_by_hand(convention, randomize):
    """Blocks before decoupled_depth see E(t), the others and the head E(s), by one embedder."""
    settings = dict(second_time=True, guidance_input=True, decoupled_depth=2)
    net = randomize(build(**settings, convention=convention))
    assert net.h_embedder is None
    x, t, y = batch()
    s, scale = t / 3, 1 + t
    rest = net.y_embedder(y) + net.g_embedder(1 - 1 / scale)
    early, late = (
        (net.t_embedder(a if convention == "ucgm" else 1 - a) + rest)[:, None] for a in (t, s)
    )
    tokens = tokens_of(net, x)
    for block, c in zip(net.blocks, (early, early, late), strict=True):
        tokens = block(tokens, c, net.rotary.table)
    out = image_of(net, net.final_layer, tokens, late)
    out = out if convention == "ucgm" else -out
    torch.testing.assert_close(net(x, t, y, s, scale), out)
    assert (net(x, t, y, t, scale) - out).abs().max() > 1e-3


@pytest.mark.parametrize("convention", ["ucgm", "reversed", "jit"])
def test_decoupled_at_s_t_is_the_one_time_network(convention, randomize):
    one = randomize(build(convention=convention))
    two = build(second_time=True, decoupled_depth=1, convention=convention)
    two.load_state_dict(one.state_dict())
    x, t, y = batch()
    assert torch.equal(two(x, t, y, t), one(x, t, y)) and torch.equal(two(x, t, y), one(x, t, y))
    assert not torch.allclose(two(x, t, y, t / 2), one(x, t, y))


@pytest.mark.parametrize("decoupled", [None, 1])
@pytest.mark.parametrize("heads", ["map", "velocity", "both"])
def test_jvp_and_gradients_in_float64(heads, decoupled, randomize):
    net = randomize(build(**TWO, decoupled_depth=decoupled)).double()
    x, t, y = batch(2, torch.float64)
    primal = (x, t, t / 3)
    tangent = (torch.randn_like(x), torch.ones_like(t), torch.full_like(t, -0.7))

    def f(x, t, s):
        out = net(x, t, y, s, heads=heads)
        return torch.cat(out) if heads == "both" else out

    def at(d):
        return f(*(p + d * q for p, q in zip(primal, tangent, strict=True)))

    with sdpa_kernel(SDPBackend.MATH):
        with torch.no_grad():
            _, rate = torch.func.jvp(f, primal, tangent)
            d = 1e-4
            numeric = (8 * (at(d) - at(-d)) - (at(2 * d) - at(-2 * d))) / (12 * d)
        torch.testing.assert_close(rate, numeric, rtol=1e-8, atol=1e-9)
        times = [v.clone().requires_grad_() for v in primal[1:]]
        assert torch.autograd.gradcheck(lambda t, s: f(x, t, s).mean((1, 2, 3)), times)


@pytest.mark.parametrize(
    ("settings", "call", "message"),
    [
        ({}, dict(heads="both"), "with an exit_layer, got 'both'"),
        (dict(velocity_blocks=1), dict(heads="all"), "got 'all'"),
        (dict(velocity_blocks=4), {}, "velocity_blocks 4 must lie in 0 to depth 3"),
        (dict(decoupled_depth=1), {}, "decoupled_depth needs second_time=True"),
        (dict(decoupled_depth=4, second_time=True), {}, "decoupled_depth 4 must lie in 1 to 3"),
        (dict(decoupled_depth=2, **TWO), {}, "decoupled_depth 2 must lie in 1 to 1"),
    ],
)
def test_errors_say_what_to_do(settings, call, message):
    x, t, y = batch()
    with pytest.raises(ValueError, match=message):
        build(**settings)(x, t, y, **call)


def test_other_networks_have_no_velocity_head():
    net = DDT(8, 2, 3, 32, 2, 1, 2, num_classes=5)
    x, t, y = batch()
    with pytest.raises(ValueError, match="velocity_blocks"):
        net(x, t, y, heads="velocity")


def test_guidance_output_multiplies_the_prediction(randomize):
    """F times the scale, as TVM's code has it; without a scale F is that of the network."""
    settings = dict(guidance_input=True, **TWO)
    plain, scaled = build(**settings), build(guidance_output=True, **settings)
    randomize(plain)
    scaled.load_state_dict(plain.state_dict())
    x, t, y = batch()
    scale = torch.tensor([1.0, 1.5, 2.0, 4.0])
    inputs = (x, t, y, t / 2, scale)
    pairs = zip(scaled(*inputs, heads="both"), plain(*inputs, heads="both"), strict=True)
    for ours, theirs in pairs:
        assert torch.equal(ours, theirs * scale.view(-1, 1, 1, 1)) and ours.abs().max() > 0
    assert torch.equal(scaled(x, t, y), plain(x, t, y))
    with pytest.raises(ValueError, match="guidance_output need guidance_input=True"):
        build(guidance_output=True)


@pytest.mark.parametrize("convention", ["ucgm", "jit"])
def test_an_exit_head_against_a_forward_by_hand(convention, randomize):
    net = randomize(build(exit_layer=1, second_time=True, decoupled_depth=2, convention=convention))
    plain = build(second_time=True, decoupled_depth=2, convention=convention)
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert {name.split(".")[0] for name in missing} == {"exit_head"} and not unexpected
    randomize(net)
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if "exit_head" not in k})
    x, t, y = batch()
    native = t if convention == "ucgm" else 1 - t
    c = (net.t_embedder(native) + net.y_embedder(y))[:, None]
    early = net.blocks[0](tokens_of(net, x), c, net.rotary.table)
    early = image_of(net, net.exit_head, early, c)
    if convention == "jit":
        early = (x - early) / t.clamp(min=0.05).view(-1, 1, 1, 1)
    f, found = net(x, t, y, t / 2, heads="both")
    torch.testing.assert_close(found, early)
    assert torch.equal(f, plain(x, t, y, t / 2)) and torch.equal(net(x, t, y, t / 2), f)
    assert torch.equal(net(x, t, y, t / 2, heads="exit"), found)


def test_an_exit_ends_the_pass(randomize):
    net, ran = randomize(build(exit_layer=2)), []
    for i, block in enumerate(net.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    for heads, blocks in {"map": [0, 1, 2], "exit": [0, 1], "both": [0, 1, 2]}.items():
        ran.clear()
        net(*batch(), heads=heads)
        assert ran == blocks
    with pytest.raises(ValueError, match="velocity or both of a DiT with velocity_blocks"):
        net(*batch(), heads="velocity")
    with pytest.raises(ValueError, match="exit_layer 3 must lie in 1 to 2"):
        build(exit_layer=3)
    with pytest.raises(ValueError, match="velocity_blocks or an exit_layer"):
        build(exit_layer=1, velocity_blocks=1)
