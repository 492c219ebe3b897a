import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ucgm.nn import DiT, DiTConfig

SHAPE, CLASSES = (3, 8, 8), 5
TINY = dict(hidden_size=32, depth=2, num_heads=2, patch_size=2)
SWITCHES = [
    dict(),
    dict(family="lightningdit"),
    dict(family="lightningdit", qk_norm=True, shift=False),
    dict(family="dit", qk_norm=True, norm_affine=True),
    dict(sincos=False, second_time=True, guidance_input=True, guidance_interval=True),
]


def batch(n=4, dtype=torch.float32):
    x = torch.randn(n, *SHAPE, dtype=dtype)
    return x, torch.rand(n, dtype=dtype), torch.randint(0, CLASSES + 1, (n,))


@pytest.mark.parametrize("switches", SWITCHES)
def test_shape_and_zero_output_at_start(switches, randomize):
    net = DiTConfig(**TINY, **switches).build(SHAPE, CLASSES)
    x, t, y = batch()
    assert torch.equal(net(x, t, y), torch.zeros_like(x))
    out = randomize(net)(x, t, y)
    assert out.shape == x.shape and out.std() > 0
    assert torch.equal(out, net(x, t, y)), "deterministic, in training mode too"


def test_blocks_are_the_identity_at_start():
    net = DiTConfig(**TINY).build(SHAPE, CLASSES)
    tokens, c = torch.randn(2, 16, 32), torch.randn(2, 1, 32)
    for block in net.blocks:
        assert torch.equal(block(tokens, c, net.rotary.table), tokens)


def test_rows_do_not_mix(randomize):
    net = randomize(DiTConfig(**TINY).build(SHAPE, CLASSES))
    x, t, y = batch()
    torch.testing.assert_close(net(x, t, y)[1:2], net(x[1:2], t[1:2], y[1:2]), rtol=1e-4, atol=1e-5)


def test_patches_are_laid_out_like_the_image(randomize):
    """Without attention and positions a token sees its own patch only, in place."""
    net = randomize(DiTConfig(**TINY, rope=False, sincos=False).build(SHAPE, CLASSES))
    for block in net.blocks:
        torch.nn.init.zeros_(block.attn.proj.weight)
    x, t, y = batch(1)
    moved = x.clone()
    moved[:, 1, 2, 5] += 1
    changed = (net(moved, t, y) - net(x, t, y)).abs().amax((0, 1)) > 1e-7
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:4, 4:6] = True
    assert torch.equal(changed, expected)


def test_patch_embedding_is_the_convolution(randomize):
    embedder = randomize(DiTConfig(**TINY).build(SHAPE, CLASSES)).x_embedder
    x = torch.randn(2, *SHAPE)
    torch.testing.assert_close(embedder(x), embedder.proj(x).flatten(2).transpose(1, 2))


def test_unconditional_ignores_labels(randomize):
    net = randomize(DiTConfig(**TINY).build(SHAPE, 0))
    x, t, y = batch()
    assert torch.equal(net(x, t), net(x, t, y))
    assert not [name for name in net.state_dict() if name.startswith("y_embedder")]


def test_second_time_warm_start_is_bit_equal(randomize):
    one = randomize(DiTConfig(**TINY).build(SHAPE, CLASSES))
    two = DiTConfig(**TINY, second_time=True, guidance_input=True).build(SHAPE, CLASSES)
    missing, unexpected = two.load_state_dict(one.state_dict(), strict=False)
    assert not unexpected and all(k.startswith(("h_embedder.", "g_embedder.")) for k in missing)
    x, t, y = batch()
    expected = one(x, t, y)
    for s in (None, torch.zeros_like(t), t / 2):
        assert torch.equal(two(x, t, y, s), expected)
    assert torch.equal(two(x, t, y, t / 2, guidance=torch.full_like(t, 3.0)), expected)


INTERVAL = dict(guidance_input=True, guidance_interval=True)


def test_guidance_interval_warm_start_is_bit_equal(randomize):
    one = randomize(DiTConfig(**TINY, guidance_input=True).build(SHAPE, CLASSES))
    net = DiTConfig(**TINY, **INTERVAL).build(SHAPE, CLASSES)
    missing, unexpected = net.load_state_dict(one.state_dict(), strict=False)
    prefixes = {name.partition(".")[0] for name in missing}
    assert prefixes == {"low_embedder", "high_embedder"} and not unexpected
    x, t, y = batch()
    told = torch.tensor([[2.0, 0.1, 0.9]] * 4)
    assert torch.equal(net(x, t, y, guidance=told), one(x, t, y, guidance=told[:, 0]))
    assert torch.equal(net(x, t, y), one(x, t, y))


def test_guidance_and_its_interval_are_embedded_and_have_gradients(randomize):
    net = randomize(DiTConfig(**TINY, **INTERVAL).build(SHAPE, CLASSES)).double()
    x, t, y = batch(dtype=torch.float64)
    scale, low = torch.tensor([1.0, 2, 4, 8]).double(), torch.tensor([0.0, 0.1, 0.2, 0.3]).double()
    high = 1 - low
    told = torch.stack([scale, low, high], 1)
    by_hand = net.t_embedder(t) + net.g_embedder(1 - 1 / scale)
    by_hand = by_hand + net.low_embedder(low) + net.high_embedder(high)
    torch.testing.assert_close(net.embed_scalars(t, None, told), by_hand, rtol=0, atol=0)
    whole = torch.stack([scale, 0 * low, 0 * low + 1], 1)
    assert torch.equal(net(x, t, y, guidance=scale), net(x, t, y, guidance=whole))
    ones = torch.ones_like(t)
    assert torch.equal(net(x, t, y), net(x, t, y, guidance=ones))
    for column in range(3):
        other = whole.index_add(1, torch.tensor([column]), torch.full_like(whole[:, :1], 0.2))
        change = (net(x, t, y, guidance=other) - net(x, t, y, guidance=whole)).abs()
        assert change.amax((1, 2, 3)).min() > 1e-5
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradcheck(
            lambda g: net(x[1:], t[1:], y[1:], guidance=g).mean((1, 2, 3)),
            told[1:].requires_grad_(),
        )


def test_second_time_matters_after_training(randomize):
    net = randomize(DiTConfig(**TINY, second_time=True, guidance_input=True).build(SHAPE, CLASSES))
    x, t, y = batch()
    assert torch.equal(net(x, t, y), net(x, t, y, t)), "s=None is s=t"
    assert not torch.allclose(net(x, t, y), net(x, t, y, t / 2))
    gap = net.h_embedder(t - t / 2) - net.h_embedder(torch.zeros_like(t))
    c, c_s = (net.embed_scalars(t, h, None) for h in (None, t - t / 2))
    torch.testing.assert_close(c_s - c, gap, msg="the second time enters as h = t - s")
    assert torch.equal(net(x, t, y, t / 2), net.native(x, t, y, t - t / 2))
    ones = torch.ones_like(t)
    assert torch.equal(net(x, t, y), net(x, t, y, guidance=ones))
    assert not torch.allclose(net(x, t, y), net(x, t, y, guidance=2 * ones))


@pytest.mark.parametrize("switches", SWITCHES)
def test_jvp_matches_finite_difference(switches, randomize):
    """Forward mode in (x, t, s) at float64; a float32 sinusoid would fail at this tolerance."""
    switches = dict(switches, second_time=True)
    net = randomize(DiTConfig(**TINY, **switches).build(SHAPE, CLASSES).double())
    x, t, y = batch(dtype=torch.float64)
    primal = (x, t, t / 3)
    tangent = (torch.randn_like(x), torch.ones_like(t), torch.full_like(t, -0.7))

    def at(d):
        return f(*(p + d * q for p, q in zip(primal, tangent, strict=True)))

    def f(x, t, s):
        return net(x, t, y, s)

    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        value, derivative = torch.func.jvp(f, primal, tangent)
        d = 1e-4
        numeric = (8 * (at(d) - at(-d)) - (at(2 * d) - at(-2 * d))) / (12 * d)
    torch.testing.assert_close(value, at(0.0))
    assert derivative.dtype == torch.float64
    torch.testing.assert_close(derivative, numeric, rtol=1e-8, atol=1e-9)


def test_tables_follow_moves_but_not_roundings():
    net = DiTConfig(**TINY).build(SHAPE, CLASSES)
    exact = net.rotary.compute()
    assert net.rotary.table.dtype == torch.float32
    assert net.bfloat16().rotary.table.dtype == torch.float32
    torch.testing.assert_close(net.rotary.table, exact.float())
    assert torch.equal(net.double().rotary.table, exact), "float64 tables are not rounded float32"
    assert not [name for name in net.state_dict() if "table" in name and "embedding" not in name]
    with torch.device("meta"):
        ghost = DiTConfig(**TINY).build(SHAPE, CLASSES)
    assert ghost.rotary.table.is_meta
    ghost.to_empty(device="cpu").initialize_weights()
    assert torch.equal(ghost.rotary.table, exact.float())
    assert torch.equal(ghost.pos_embed, DiTConfig(**TINY).build(SHAPE, CLASSES).pos_embed)


def test_bfloat16_autocast_keeps_time_in_float32(randomize):
    net = randomize(DiTConfig(**TINY).build(SHAPE, CLASSES))
    x, t, y = batch()
    exact = net.t_embedder(t)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.t_embedder(t), exact)
        low = net(x, t, y)
    torch.testing.assert_close(low.float(), net(x, t, y), rtol=0.1, atol=0.1)
    assert net.bfloat16()(x.bfloat16(), t, y).dtype == torch.bfloat16


def test_gradient_checkpointing_is_exact(randomize):
    plain = randomize(DiTConfig(**TINY).build(SHAPE, CLASSES))
    kept = DiTConfig(**TINY, gradient_checkpointing=True).build(SHAPE, CLASSES)
    kept.load_state_dict(plain.state_dict())
    assert kept.is_gradient_checkpointing
    x, t, y = batch()
    for net in (plain, kept):
        net(x, t, y).square().mean().backward()
    for a, b in zip(plain.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_save_and_load(tmp_path, randomize):
    net = randomize(DiTConfig(**TINY, second_time=True, **INTERVAL).build(SHAPE, CLASSES))
    net.save_pretrained(tmp_path)
    again = DiT.from_pretrained(tmp_path)
    x, t, y = batch()
    told = torch.tensor([[2.0, 0.1, 0.9]] * 4)
    assert again.config.second_time and again.guidance_interval
    assert torch.equal(again(x, t, y, t / 2, told), net(x, t, y, t / 2, told))
    assert torch.equal(copy.deepcopy(net)(x, t, y), net(x, t, y))


@pytest.mark.parametrize(
    ("change", "call", "remedy"),
    [
        (dict(patch_size=3), {}, "patch_size 3 does not divide input_size 8"),
        (dict(num_heads=3, rope=False), {}, "not a multiple of num_heads"),
        (dict(num_heads=16), {}, "rope=False"),
        (dict(size="Q/2"), {}, "size must be one of"),
        (dict(depth=None), {}, "give size, or also depth"),
        ({}, dict(s=torch.zeros(4)), "second_time=True"),
        ({}, dict(guidance=torch.ones(4)), "guidance_input=True"),
        (dict(guidance_input=True), dict(guidance=torch.ones(4, 3)), "guidance_interval=True"),
        (INTERVAL, dict(guidance=torch.ones(4, 2)), r"got \(4, 2\)"),
        (dict(guidance_interval=True), {}, "need guidance_input"),
        ({}, dict(y=None), "null class"),
        ({}, dict(x_t=torch.zeros(4, 3, 16, 16)), "input_size"),
    ],
)
def test_errors_say_what_to_do(change, call, remedy):
    with pytest.raises(ValueError, match=remedy):
        net = DiTConfig(**(TINY | change)).build(SHAPE, CLASSES)
        x, t, y = batch()
        net(**(dict(x_t=x, t=t, y=y) | call))


def test_non_square_data_are_refused():
    with pytest.raises(ValueError, match="square"):
        DiTConfig(size="N/2").build((3, 8, 16), 0)
