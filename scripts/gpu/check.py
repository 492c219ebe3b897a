"""One prepared check of ucgm on one H100/H200: correctness, training steps, host syncs, sampler.

    PYTHONPATH=CHECKOUT python gpu_check.py [--dry] [--seconds 390] [--out DIR] [--sections a,b,...]

Sections run in order until the seconds are used up; each is on its own, a failure is recorded and
the next goes on.  Results are written to OUT/check.json after every section; the table is last.
"""

import argparse
import collections
import contextlib
import copy
import dataclasses
import gc
import json
import math
import os
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F

ARGS = argparse.ArgumentParser(description=__doc__.splitlines()[0])
ARGS.add_argument("--dry", action="store_true", help="tiny, on the CPU")
ARGS.add_argument("--seconds", type=float, default=390.0)
ARGS.add_argument("--out", default=os.environ.get("OUT", "."))
ARGS.add_argument("--family", default="dit")
ARGS.add_argument("--batch", type=int, default=64)
ARGS.add_argument("--sections", default="ceilings,correct,smoke,eager,compiled,micro,sampler")
A = ARGS.parse_args()
DRY = A.dry
if not DRY and not torch.cuda.is_available():
    sys.exit("no CUDA device: use --dry")
START = time.perf_counter()
DEVICE = torch.device("cpu" if DRY else "cuda")
RESULT = {"rows": [], "errors": {}, "seconds": {}}
if DRY:
    torch.set_num_threads(1)
    torch.compile = __import__("functools").partial(torch.compile, backend="aot_eager")

from ucgm.data import Digits, Latents
from ucgm.data.latents.codec import Codec
from ucgm.data.latents.shard_format import write_shard
from ucgm.data.loader import BatchPlan, batches
from ucgm.evaluation.benchmark import benchmark
from ucgm.generation.command import sample_run
from ucgm.generation.samples import SampleSet, SamplingConfig
from ucgm.nn import DDTConfig, DiTConfig
from ucgm.nn.cost import cost
from ucgm.objective import LogVariance, preset
from ucgm.objective.passes import forward_mode
from ucgm.objective.presets import count_passes
from ucgm.objective.residual import difference_tangent, jvp_tangent
from ucgm.objective.times import LogitNormal
from ucgm.runs.config import Config
from ucgm.runs.saving import host_copies
from ucgm.runs.settings import EMAConfig, OptimizerConfig, TrainConfig
from ucgm.runtime.processes import make_accelerator
from ucgm.runtime.randomness import RowRandom
from ucgm.runtime.sharding import Sharding
from ucgm.sampler import Sampler
from ucgm.training.build import TrainState
from ucgm.training.ema import EMA, frozen_copy
from ucgm.training.log import MetricsLogger
from ucgm.training.loop import _step, train
from ucgm.training.networks import Networks, compile_blocks
from ucgm.training.nonfinite import NonFiniteSkipper, clip_gradients
from ucgm.training.optim import build_optimizer
from ucgm.training.throughput import count_work

SHAPE, CLASSES = ((4, 8, 8), 10) if DRY else ((4, 32, 32), 1000)
TMP = Path(tempfile.mkdtemp(prefix="ucgm_check_"))
WARM, STEPS = (1, 2) if DRY else (2, 4)


def left():
    return A.seconds - (time.perf_counter() - START)


def sync():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def clean():
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib():
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0.0


def save():
    Path(A.out).mkdir(parents=True, exist_ok=True)
    (Path(A.out) / "check.json").write_text(json.dumps(RESULT, indent=1, default=str))


def timed(function, warm=WARM, repeats=STEPS):
    """Median seconds of a call, the queue filled: events on a GPU; and the host's seconds."""
    for _ in range(warm):
        function()
    sync()
    if DEVICE.type != "cuda":
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds), statistics.median(seconds)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    host = []
    marks[0].record()
    for mark in marks[1:]:
        start = time.perf_counter()
        function()
        host.append(time.perf_counter() - start)
        mark.record()
    sync()
    gpu = [a.elapsed_time(b) / 1e3 for a, b in zip(marks, marks[1:])]
    return statistics.median(gpu), statistics.median(host)


def say(text):
    print(f"[{time.perf_counter() - START:6.1f} s] {text}", flush=True)


# ------------------------------------------------------------------------------------ ceilings


def matmul(dtype, tf32=False, size=None):
    size = size or (256 if DRY else 8192 if dtype != torch.float32 or tf32 else 4096)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    a, b = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
    seconds = timed(lambda: a @ b, 3, 10)[0]
    torch.backends.cuda.matmul.allow_tf32 = False
    return 2 * size**3 / seconds / 1e12


def ceilings():
    if DEVICE.type == "cuda":
        p = torch.cuda.get_device_properties(0)
        RESULT["device"] = f"{p.name} {p.total_memory / 2**30:.0f} GiB"
    import accelerate
    import diffusers

    RESULT["versions"] = {"python": sys.version.split()[0], "torch": torch.__version__}
    RESULT["versions"] |= {m.__name__: m.__version__ for m in (accelerate, diffusers)}
    RESULT["defaults"] = {
        "matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
    }
    c = {"bf16": matmul(torch.bfloat16), "tf32": matmul(torch.float32, True)}
    c["fp32"] = matmul(torch.float32)
    big = torch.empty(2**20 if DRY else 2**30, dtype=torch.float32, device=DEVICE)
    other = torch.empty_like(big)
    c["copy_TBps"] = 2 * big.nbytes / timed(lambda: other.copy_(big), 2, 8)[0] / 1e12
    # The matrices of the block at this batch: what a perfect step could reach
    tokens, w = (64, 48) if DRY else (A.batch * 256, 1152)
    shapes, total, flops = ((w, 3 * w), (w, w), (w, 4 * w), (4 * w, w)), 0.0, 0.0
    for k, n in shapes:
        x, m = (
            torch.randn(tokens, k, device=DEVICE).bfloat16(),
            torch.randn(k, n, device=DEVICE).bfloat16(),
        )
        total += timed(lambda: x @ m, 3, 10)[0]
        flops += 2 * tokens * k * n
    c["bf16_block_shapes"] = flops / total / 1e12
    RESULT["ceilings"] = c
    say(f"ceilings { ({k: round(v, 2) for k, v in c.items()}) }")


# ------------------------------------------------------------------------------------ correctness


def relative(a, b):
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def tiny(**more):
    torch.manual_seed(0)
    net = DiTConfig(size="N/2", **{"second_time": True, **more}).build((4, 8, 8), 10)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.1)
    return net.eval()


def correct():
    found = RESULT["correct"] = {}
    rows = torch.arange(32)
    keys = RowRandom.for_rows(0, 3, rows).keys
    here, there = RowRandom(keys), RowRandom(keys.to(DEVICE))
    found["noise cuda vs cpu"] = relative(there.normal(4, 32, 32), here.normal(4, 32, 32))
    found["uniform equal"] = bool(torch.equal(there.uniform(8).cpu(), here.uniform(8)))
    t = preset("meanflow").transport
    x, time_, s = torch.randn(8, 4, 8, 8), torch.rand(8) * 0.9 + 0.05, torch.zeros(8)
    y, field = torch.randint(0, 10, (8,)), torch.randn(8, 4, 8, 8)
    nets = {f: tiny(family=f) for f in ("tit", "dit", "lightningdit")}
    nets["tit affine"] = tiny(norm_affine=True)
    torch.manual_seed(0)
    nets["ddt"] = (
        DDTConfig(size="N/2", encoder_depth=1, second_time=True).build((4, 8, 8), 10).eval()
    )
    for p in nets["ddt"].parameters():
        p.data.normal_(std=0.1)
    for name, net in nets.items():
        with torch.no_grad():
            wide = copy.deepcopy(net).double()
            v = [w.double() for w in (x, time_, s, field)]
            with forward_mode():
                ref = jvp_tangent(t, lambda a, b: wide(a, b, y, v[2]), v[0], v[1], v[2], v[3])
            net.to(DEVICE)
            g = [w.to(DEVICE) for w in (x, time_, s, field, y)]
            for label, tf32, amp in (
                ("fp32", False, False),
                ("tf32", True, False),
                ("bf16", False, True),
            ):
                torch.backends.cuda.matmul.allow_tf32 = tf32

                def call(a, b):
                    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=amp):
                        return net(a, b, g[4], g[2]).float()

                for kind in ("jvp", "central"):
                    key = f"{name} {kind} {label} vs cpu fp64"
                    try:
                        if kind == "jvp":
                            with forward_mode():
                                out = jvp_tangent(t, call, g[0], g[1], g[2], g[3])
                        else:
                            out = difference_tangent(t, call, g[0], g[1], g[2], g[3], 0.005)
                        found[key] = relative(out, ref)
                    except Exception as error:  # noqa: BLE001
                        found[key] = f"{type(error).__name__}: {str(error)[:160]}"
            torch.backends.cuda.matmul.allow_tf32 = False
    # the same step on both devices, and a step that is not taken
    for name in ("flow_matching", "ucgm_multi", "ucgm_few", "meanflow", "terminal_velocity", "scm"):
        try:
            found[f"loss and gradient {name}"] = both_devices(name)
        except Exception as error:  # noqa: BLE001
            found[f"loss and gradient {name}"] = f"{type(error).__name__}: {str(error)[:200]}"
    net = tiny(second_time=False).to(DEVICE).train()
    ema = EMA(net, 0.9)
    optimizer = build_optimizer(OptimizerConfig(), {p: n for n, p in net.named_parameters()})
    skipper, before = (
        NonFiniteSkipper(DEVICE),
        [p.detach().clone() for p in (*net.parameters(), *ema.network.parameters())],
    )
    for p in net.parameters():
        p.grad = torch.full_like(p, torch.nan)
    skipper.step(optimizer, [ema], clip_gradients(list(net.parameters()), 1.0), 0)
    after = [*net.parameters(), *ema.network.parameters()]
    found["skipped step leaves all bits"] = all(torch.equal(a, b) for a, b in zip(before, after))
    found["skipped counted"] = skipper.read()[0] == 1
    if DEVICE.type == "cuda":
        RESULT["sdpa kernel, bf16, head 72"] = sdpa_kernel_name()
    for k, v in found.items():
        print(f"    {k:48} {v:.2e}" if isinstance(v, float) else f"    {k:48} {v}")


def both_devices(name):
    objective = preset(name)
    worst = {}
    grads = []
    for device in ("cpu", DEVICE):
        net = tiny(**{"second_time": False, **objective.network_inputs}).to(device).train()
        average = frozen_copy(tiny(**{"second_time": False, **objective.network_inputs})).to(device)
        g = torch.Generator().manual_seed(1)
        x, y = torch.randn(16, 4, 8, 8, generator=g), torch.randint(0, 10, (16,), generator=g)
        keys = RowRandom.for_rows(0, 1, torch.arange(16))
        draw = objective.draw(x.to(device), y.to(device), 10, keys, 0.5)
        head = (
            LogVariance(two_time=objective.two_time).to(device) if objective.log_variance else None
        )
        terms = objective.terms(
            net, draw, target=average, teacher=average, log_variance=head, progress=0.5
        )
        terms.loss.backward()
        grads.append(
            torch.cat([p.grad.flatten().cpu() for p in net.parameters() if p.grad is not None])
        )
        worst[str(device)] = float(terms.loss)
    a, b = worst.values() if len(worst) == 2 else (1.0, 1.0)
    return f"loss {abs(a - b) / abs(a):.1e}, gradient {relative(grads[1], grads[0]):.1e}"


def sdpa_kernel_name():
    q, k, v = (torch.randn(8, 16, 256, 72, device=DEVICE, dtype=torch.bfloat16) for _ in range(3))
    from torch.profiler import ProfilerActivity, profile

    F.scaled_dot_product_attention(q, k, v)
    with profile(activities=[ProfilerActivity.CUDA]) as p:
        F.scaled_dot_product_attention(q, k, v)
        sync()
    return "; ".join(e.key[:70] for e in p.key_averages())[:200]


# ----------------------------------------------------------------------------------- training steps


def make_latents(folder, shards=2, rows=512):
    zeros, ones = (0.0,) * SHAPE[0], (1.0,) * SHAPE[0]
    folder.mkdir()
    Codec("none", "kl", "", SHAPE[1] * 8, SHAPE, "sample", "none", zeros, ones).save(folder)
    g, records = torch.Generator().manual_seed(0), []
    for number in range(shards):
        arrays = {
            "latents": torch.randn(rows, *SHAPE, generator=g).half(),
            "labels": torch.randint(0, CLASSES, (rows,), generator=g),
        }
        records.append(write_shard(folder / f"shard_{number:05d}.safetensors", arrays))
    facts = {"num_classes": CLASSES, "classes": [], "rows": shards * rows}
    (folder / "manifest.json").write_text(json.dumps(facts | {"shards": records, "skipped": []}))


def model_config(family=None, **more):
    family = family or A.family
    if DRY:
        return DiTConfig(
            hidden_size=48,
            depth=2,
            num_heads=4,
            patch_size=2,
            family=family,
            **more,
        )
    return DiTConfig(size="XL/2", family=family, **more)


def network_of(config):
    torch.manual_seed(0)
    with torch.device(DEVICE):
        net = config.build(SHAPE, CLASSES)
    with torch.no_grad():  # zero weights would multiply zeros, which runs faster
        for p in net.parameters():
            if not p.any():
                p.normal_(std=0.02)
    return net


_FORWARD, _ACC = {}, []


def forward_flops(config):
    key = str(config)
    if key not in _FORWARD:
        _FORWARD[key] = (
            2e9 * cost(dataclasses.replace(config, second_time=False), SHAPE, CLASSES).gmacs
        )
    return _FORWARD[key]


def row_flops(config, objective):
    weight = {"gradient": 3.0, "forward": 1.0, "tangent": 2.0}
    return forward_flops(config) * sum(
        weight[k] * n for k, n in count_passes(objective, 512).items()
    )


def state_of(name, batch, compiled, optimizer=None, family=None, checkpointing=False, **settings):
    objective = preset(name, **settings)
    model = model_config(family, **objective.network_inputs)
    net = network_of(model)
    if checkpointing:
        net.enable_gradient_checkpointing()
    if not _ACC:
        _ACC.append(make_accelerator())
    ema_config = EMAConfig(
        target_decay=0.999 if objective.needs_target and name == "ucgm_multi" else None
    )
    config = Config(
        model=model,
        objective=objective,
        data=Latents(str(TMP / "latents")),
        optimizer=optimizer or OptimizerConfig(lr=1e-5),
        ema=ema_config,
        train=TrainConfig(steps=10**6, global_batch=batch, num_workers=2, compile=compiled),
    )
    dataset = config.data.open()
    ema = EMA(net, 0.9999)
    target = EMA(net, 0.999) if ema_config.target_decay else None
    teachers = [frozen_copy(net)] if objective.needs_teacher else []
    networks = Networks(net, ema, target, {}, teachers, None)
    if compiled:
        for module in (net, *teachers, *(a.network for a in networks.averages())):
            compile_blocks(module)
    work = count_work(model, SHAPE, CLASSES, objective)
    log = MetricsLogger(TMP / "metrics.jsonl", _ACC[0], config.train, work, 1.0)
    trained = networks.trained()
    state = TrainState(
        accelerator=_ACC[0],
        config=config,
        run_dir=TMP,
        dataset=dataset,
        plan=BatchPlan(batch, 1, 0, 1),
        sharding=Sharding(1, DEVICE, False),
        networks=networks,
        wrapped=net,
        trained=trained,
        optimizer=build_optimizer(config.optimizer, trained),
        skipper=NonFiniteSkipper(DEVICE),
        log=log,
        memory="",
        seconds=0.0,
    )
    stream = log.waiting(batches(dataset, state.plan, 0, 0, 2, DEVICE))
    return state, stream, row_flops(model, objective)


def count_syncs(step):
    """Places where a step waits for the device, by torch's own debug mode."""
    if DEVICE.type != "cuda":
        return {}
    sync()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = collections.Counter()
    for w in caught:
        if "called a synchronizing" in str(w.message):
            places["/".join(w.filename.split("/")[-2:]) + f":{w.lineno}"] += 1
    return dict(places)


def bench(label, step, flops, batch, syncs=True, tf32=True, warm=WARM, repeats=STEPS):
    torch.backends.cuda.matmul.allow_tf32 = tf32
    row = {"label": label, "batch": batch}
    try:
        start = time.perf_counter()
        step()
        sync()
        row["first_s"] = time.perf_counter() - start
        gpu, host = timed(step, warm, repeats)
        rate = flops * batch / gpu / 1e12
        row |= {"ms": 1e3 * gpu, "host_ms": 1e3 * host, "images_s": batch / gpu, "tflops": rate}
        row["mfu"] = rate / RESULT.get("ceilings", {}).get("bf16", float("nan"))
        row["peak_gib"] = peak_gib()
        if syncs:
            row["syncs"] = count_syncs(step)
    except torch.OutOfMemoryError:
        row["error"] = "out of memory"
    except Exception as error:  # noqa: BLE001
        row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
        traceback.print_exc()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    RESULT["rows"].append(row)
    say(line(row))
    save()


def line(r):
    if "error" in r:
        return f"{r['label']:<46}{r['batch']:>5}  {r['error'][:80]}"
    syncs = sum(r["syncs"].values()) if "syncs" in r else "-"
    return (
        f"{r['label']:<46}{r['batch']:>5}{r['ms']:>9.1f} ms{r['host_ms']:>8.1f} host"
        f"{r['images_s']:>8.0f} img/s"
        f"{r['tflops']:>8.1f} TF{100 * r['mfu']:>6.1f} %{r['peak_gib']:>7.1f} GiB  syncs {syncs}"
    )


def ours(label, name, batch, compiled, tf32=True, repeats=STEPS, room=20, **settings):
    if left() < room:
        return
    clean()
    state = stream = None
    try:
        state, stream, flops = state_of(name, batch, compiled, **settings)
        bench(label, lambda: _step(state, stream), flops, batch, tf32=tf32, repeats=repeats)
    except torch.OutOfMemoryError:
        RESULT["rows"].append({"label": label, "batch": batch, "error": "out of memory"})
    finally:
        del state, stream
        clean()


class Plain:
    """The loop that one writes by hand: everything in bf16 autocast, nothing read back."""

    def __init__(self, name, batch, compiled, family=None):
        self.name, self.batch = name, batch
        model = model_config(family)
        self.net = network_of(model)
        self.ema = copy.deepcopy(self.net).requires_grad_(False)
        self.other = (
            copy.deepcopy(self.net).requires_grad_(False) if name != "flow_matching" else None
        )
        if compiled:
            for m in (self.net, self.other):
                if m is not None:
                    compile_blocks(m)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        n = {"flow_matching": 3.0, "ucgm_multi": 4.0, "ucgm_few": 6.0}[name]
        self.flops = n * forward_flops(model)
        self.x = torch.randn(batch, *SHAPE, device=DEVICE)
        self.y = torch.randint(0, CLASSES, (batch,), device=DEVICE)

    def step(self):
        x, b = self.x, self.batch
        z, t = torch.randn_like(x), torch.rand(b, device=DEVICE)
        y = torch.where(torch.rand(b, device=DEVICE) < 0.1, CLASSES, self.y)
        u = t[:, None, None, None]
        x_t, target = (1 - u) * x + u * z, z - x
        with torch.autocast(DEVICE.type, torch.bfloat16):
            said = self.net(x_t, t, y).float()
            with torch.no_grad():
                wanted = target
                if self.name == "ucgm_multi":
                    null = self.other(x_t, t, torch.full_like(y, CLASSES)).float()
                    wanted = torch.where(
                        u < 0.75, target + 0.47 * (said - null), 0.5 * (target + said)
                    )
                if self.name == "ucgm_few":
                    field = target + 2.0 * (self.other(x_t, t, y).float() - target)

                    def jump(r):
                        at = x_t + (r - t)[:, None, None, None] * field
                        return at - r[:, None, None, None] * self.net(at, r, y).float()

                    slope = (
                        (jump((t + 0.005).clamp(max=1)) - jump((t - 0.005).clamp(min=0))) / 0.01
                    ).clamp(-1, 1)
                    wanted = (
                        said.detach() + 4 * u / torch.sin(u * math.pi / 2).clamp(min=1e-6) * slope
                    )
        (said - wanted).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.net.parameters()), 1e-4)


def plain(label, name, batch, compiled, family=None, room=20):
    if left() < room:
        return
    clean()
    loop = None
    try:
        loop = Plain(name, batch, compiled, family)
        bench(label, loop.step, loop.flops, batch)
    except torch.OutOfMemoryError:
        RESULT["rows"].append({"label": label, "batch": batch, "error": "out of memory"})
    finally:
        del loop
        clean()


def eager():
    b = A.batch if not DRY else 8
    ours("eager flow_matching", "flow_matching", b, False)
    plain("eager plain flow_matching", "flow_matching", b, False)
    ours("eager ucgm_few central", "ucgm_few", b, False)
    plain("eager plain ucgm_few, all bf16", "ucgm_few", b, False)
    ours("eager ucgm_few jvp", "ucgm_few", b, False, tangent="jvp")
    radam = OptimizerConfig(name="radam", lr=1e-5, betas=(0.9, 0.999))
    ours("eager flow_matching, RAdam", "flow_matching", b, False, optimizer=radam)
    ours("eager flow_matching", "flow_matching", 16 if DRY else 128, False)


def compiled():
    """Every new kind of pass is a compilation of about 20 s: as many as leave time for the rest."""
    torch._dynamo.reset()
    b, room = A.batch if not DRY else 8, 15 if DRY else 30
    ours("compiled flow_matching", "flow_matching", b, True, room=room)
    plain("compiled plain flow_matching", "flow_matching", b, True, room=room)
    ours("compiled ucgm_few central", "ucgm_few", b, True, room=room)
    plain("compiled plain ucgm_few, all bf16", "ucgm_few", b, True, room=room)
    ours("compiled flow_matching", "flow_matching", 16 if DRY else 128, True, room=room)
    ours(
        "compiled flow_matching, lightningdit",
        "flow_matching",
        b,
        True,
        family="lightningdit",
        room=room,
    )
    ours("compiled meanflow jvp", "meanflow", b, True, room=room)
    other = "tit" if A.family == "dit" else "dit"
    ours(f"compiled flow_matching, {other}", "flow_matching", b, True, family=other, room=room)
    ours("compiled ucgm_multi", "ucgm_multi", b, True, room=room)


# -------------------------------------------------------------------------------- parts of a step


def micro():
    found = RESULT["micro_ms"] = {}

    def put(name, function, warm=2, repeats=5):
        if left() < 10:
            return
        try:
            gpu, host = timed(function, warm, repeats)
            found[name] = [round(1e3 * gpu, 3), round(1e3 * host, 3)]
        except Exception as error:  # noqa: BLE001
            found[name] = f"{type(error).__name__}: {str(error)[:200]}"
        print(f"    {name:52} {found[name]}", flush=True)

    clean()
    net = network_of(model_config())
    names = {p: n for n, p in net.named_parameters()}
    for p in names:
        p.grad = torch.randn_like(p) * 1e-3
    ema = EMA(net, 0.9999)
    put("EMA.update (a list of 0-dim weights)", ema.update)
    put(
        "foreach lerp with one number",
        lambda: torch._foreach_lerp_(
            list(ema.network.parameters()), [p.detach() for p in net.parameters()], 1e-4
        ),
    )
    put("clip_gradients", lambda: clip_gradients(list(names), 1.0))
    for name in ("adamw", "radam", "lion"):
        optimizer = build_optimizer(OptimizerConfig(name=name, lr=1e-6), names)
        put(f"optimizer {name}", optimizer.step)
        del optimizer
        clean()
    rows = torch.arange(16 if DRY else 1024)
    put(
        "RowRandom.normal 1024 x 32x16x16",
        lambda: RowRandom(RowRandom.for_rows(0, 0, rows).keys.to(DEVICE)).normal(32, 16, 16),
    )
    objective, x = preset("ucgm_multi"), torch.randn(len(rows) // 4, *SHAPE, device=DEVICE)
    y = torch.zeros(len(x), dtype=torch.int64, device=DEVICE)
    put(
        "draw of 256 rows",
        lambda: objective.draw(x, y, CLASSES, RowRandom.for_rows(0, 0, torch.arange(len(x)))),
    )
    state = net.state_dict()
    for turn in ("first", "second"):
        start = time.perf_counter()
        copies = host_copies(state)
        blocked = time.perf_counter() - start
        sync()
        found[
            f"checkpoint copy of {sum(v.nbytes for v in state.values()) / 2**30:.1f} GiB, "
            f"{turn}: host, all"
        ] = [round(1e3 * blocked, 1), round(1e3 * (time.perf_counter() - start), 1)]
        del copies
    if DEVICE.type == "cuda":
        small = torch.zeros(256)
        for label, source in (
            ("pageable 1 kB", small),
            ("pageable 256 kB", torch.zeros(2**16)),
            ("pinned 1 kB", small.pin_memory()),
        ):
            sync()
            torch.cuda._sleep(200_000_000)  # about a tenth of a second
            start = time.perf_counter()
            source.to(DEVICE, non_blocking=True)
            found[f"host waits in .to(non_blocking) of {label} behind 100 ms of work"] = [
                round(1e3 * (time.perf_counter() - start), 3)
            ]
            sync()
        from torch.nn.attention import SDPBackend, sdpa_kernel

        q, k, v = (
            torch.randn(
                64, 256, 3 * 16 * 72, device=DEVICE, dtype=torch.bfloat16, requires_grad=True
            )
            .unflatten(-1, (3, 16, 72))
            .permute(2, 0, 3, 1, 4)
        )
        for backend in (
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
        ):

            def both(backend=backend):
                with sdpa_kernel(backend):
                    out = F.scaled_dot_product_attention(q, k, v)
                    torch.autograd.grad(out.sum(), (q, k, v), retain_graph=True)

            put(f"SDPA fwd+bwd 64x16x256x72 {backend.name}", both)
    for k2, v2 in found.items():
        if "host" in k2:
            print(f"    {k2:52} {v2}")
    del net, ema, names, state
    clean()


# ------------------------------------------------------------------------------------ sampler


def sampler():
    found = RESULT["sampler"] = {}
    clean()
    net = network_of(model_config()).eval().requires_grad_(False)
    data = Latents(str(TMP / "latents")).open()
    steps = 2 if DRY else 4
    settings = Sampler(steps=steps)
    still = torch.zeros(64, *SHAPE, device=DEVICE)
    z = torch.randn(64, *SHAPE, device=DEVICE)
    zero = torch.zeros(64, dtype=torch.int64, device=DEVICE)
    many = dataclasses.replace(settings, steps=8 if DRY else 50)
    gpu, host = timed(lambda: many(lambda x, t, y: still, z, zero), 2, 3)
    found["sampler outside the network, us per step"] = round(1e6 * max(gpu, host) / many.steps, 1)

    def simple(batch):
        x = torch.randn(batch, *SHAPE, device=DEVICE)
        y = torch.randint(0, CLASSES, (batch,), device=DEVICE)
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
            for i in range(steps, 0, -1):
                t = torch.full((batch,), i / steps, device=DEVICE)
                x = x - net(x, t, y).float() / steps
        return x

    def measure(label, n, function):
        if left() < 15:
            return
        try:
            seconds = timed(function, 1, 2)[0]
            found[label] = {
                "images_s": round(n / seconds, 1),
                "ms_per_image_pass": round(1e3 * seconds / n / steps, 3),
            }
        except Exception as error:  # noqa: BLE001
            found[label] = f"{type(error).__name__}: {str(error)[:160]}"
        say(f"{label}: {found[label]}")

    n = 64
    for precision in ("bf16", "tf32", "fp32"):
        for tile in (8, 16) if DRY else (32, 64) if precision != "bf16" else (32, 64, 256):
            count = max(n, tile)
            samples = SampleSet(
                net, settings, data, SamplingConfig(precision=precision, tile=tile), str(DEVICE)
            )
            measure(
                f"ours {precision} tile {tile}", count, lambda: samples.latents(torch.arange(count))
            )
    measure("simple loop bf16 batch 64", 64, lambda: simple(64))
    measure("simple loop bf16 batch 256", 256, lambda: simple(256))
    if left() > 45:
        compile_blocks(net)
        samples = SampleSet(
            net, settings, data, SamplingConfig(precision="bf16", tile=64), str(DEVICE)
        )
        measure("ours bf16 tile 64 compiled", n, lambda: samples.latents(torch.arange(n)))
        measure("simple loop bf16 batch 64 compiled", n, lambda: simple(64))
    if left() > 15 and not DRY:
        decoder(found)
    del net
    clean()


def decoder(found):
    """An SD-VAE of random weights: seconds per image as the package decodes, and faster."""
    from diffusers import AutoencoderKL

    clean()
    with torch.device(DEVICE):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=256,
        ).eval()
    z = torch.randn(16, 4, 32, 32, device=DEVICE)
    for label, tf32, half, last in (
        ("fp32", 0, 0, 0),
        ("tf32", 1, 0, 0),
        ("tf32 channels_last", 1, 0, 1),
        ("bf16 channels_last", 0, 1, 1),
    ):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = bool(tf32)
        vae.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=bool(half)):
            found[f"SD-VAE decode {label}, ms per image"] = round(
                1e3 * timed(lambda: vae.decode(z).sample, 1, 2)[0] / 16, 2
            )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    say({k: v for k, v in found.items() if "VAE" in k})


# ------------------------------------------------------------------------------------ smoke


def smoke():
    """A training of the digits in both precisions, continued, tuned, sampled and benchmarked."""
    found = RESULT["smoke"] = {}
    try:
        import sklearn  # noqa: F401

        data = Digits()
    except ImportError:
        found["note"] = "scikit-learn is missing: random latents instead of digits, no benchmark"
        data = Latents(str(TMP / "latents"))
    steps = 20 if DRY else 200
    base = Config(
        model=DiTConfig(size="N/2" if DRY else "T/2"),
        objective=preset("flow_matching", time_law=LogitNormal()),
        data=data,
        optimizer=OptimizerConfig(lr=2e-3, warmup_steps=50),
        ema=EMAConfig(decay=0.99),
        train=TrainConfig(
            steps=steps,
            global_batch=128,
            grad_clip=1.0,
            log_every=steps // 2,
            preview_every=steps,
            checkpoint_every=steps // 2,
            num_workers=2,
        ),
    )
    if isinstance(data, Latents):
        base = dataclasses.replace(base, train=dataclasses.replace(base.train, preview_every=10**9))

    def done(name, function):
        start = time.perf_counter()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                value = function()
            found[name] = {"s": round(time.perf_counter() - start, 1), "result": value}
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            found[name] = f"FAILED {type(error).__name__}: {str(error)[:250]}"
        say(f"smoke {name}: {found[name]}")

    def run(config, folder):
        train(config, folder)
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        return {
            k: last.get(k)
            for k in ("step", "loss", "grad_norm", "images_per_second", "data_wait", "skipped")
        }

    longer = dataclasses.replace(
        base, train=dataclasses.replace(base.train, steps=steps + steps // 2)
    )
    for precision in ("bf16", "no"):
        os.environ["ACCELERATE_MIXED_PRECISION"] = precision
        folder = TMP / f"digits_{precision}"
        done(f"train {precision}", lambda: run(base, folder))
        done(f"continue {precision}", lambda: run(longer, folder))
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    few = dataclasses.replace(
        base,
        objective=preset("ucgm_few", enhancement_ratio=1.0, enhancement_interval=(0.0, 1.0)),
        optimizer=OptimizerConfig(name="radam", lr=3e-4, betas=(0.9, 0.999)),
        train=dataclasses.replace(base.train, init=str(TMP / "digits_bf16"), grad_clip=0.1),
    )
    done("few-step, radam", lambda: run(few, TMP / "digits_few"))
    done(
        "few-step, jvp",
        lambda: run(
            dataclasses.replace(few, objective=dataclasses.replace(few.objective, tangent="jvp")),
            TMP / "digits_few_jvp",
        ),
    )
    device = None if not DRY else "cpu"
    if not isinstance(data, Latents):
        done(
            "sample png",
            lambda: str(
                sample_run(
                    str(TMP / "digits_few"), 20, 2, out_dir=str(TMP / "images"), device=device
                )
            )[-20:],
        )

        def scored():
            result = benchmark(
                str(TMP / "digits_bf16"), [2, 8], 100 if DRY else 1000, device=device
            )
            return [
                {
                    "steps": r["steps"],
                    "fid": round(r["scores"]["fid"], 3),
                    "accuracy": round(r["scores"].get("accuracy", 0), 3),
                }
                for r in result["rows"]
            ]

        done("benchmark", scored)
    for leftover in ("jsonargparse", "torch_fidelity"):
        try:
            __import__(leftover)
        except ImportError:
            found[leftover] = "missing: not needed here, but by the command line / Inception"


# ------------------------------------------------------------------------------------ all


def main():
    make_latents(TMP / "latents")
    sections = dict(
        ceilings=ceilings,
        correct=correct,
        eager=eager,
        smoke=smoke,
        compiled=compiled,
        micro=micro,
        sampler=sampler,
    )
    for name in A.sections.split(","):
        if left() < 15:
            RESULT["errors"][name] = "no time left"
            continue
        say(f"== {name}")
        start = time.perf_counter()
        try:
            sections[name]()
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            RESULT["errors"][name] = f"{type(error).__name__}: {str(error)[:300]}"
        RESULT["seconds"][name] = round(time.perf_counter() - start, 1)
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
        save()
    report()


def report():
    print("\n==== table ====")
    print(RESULT.get("device", "cpu, dry"), RESULT.get("versions"))
    print({k: round(v, 2) for k, v in RESULT.get("ceilings", {}).items()})
    bad = {
        k: v
        for k, v in RESULT.get("correct", {}).items()
        if isinstance(v, str) and "Error" in v or v is False or isinstance(v, float) and not v < 0.6
    }
    print("correct: all well" if not bad else f"WRONG: {bad}")
    for name in ("smoke",):
        failed = {
            k: v
            for k, v in RESULT.get(name, {}).items()
            if isinstance(v, str) and v.startswith("FAILED")
        }
        print(f"{name}: {'all well' if not failed else failed}")
    for r in RESULT["rows"]:
        print(line(r))
    best = {r["label"]: r for r in RESULT["rows"] if "ms" in r}
    for a, b in (
        ("eager flow_matching", "eager plain flow_matching"),
        ("compiled flow_matching", "compiled plain flow_matching"),
        ("eager ucgm_few central", "eager plain ucgm_few, all bf16"),
        ("compiled ucgm_few central", "compiled plain ucgm_few, all bf16"),
    ):
        pair = [
            next((r for r in RESULT["rows"] if r["label"] == n and "ms" in r), None) for n in (a, b)
        ]
        if all(pair):
            print(f"ours / plain, {a}: {pair[0]['ms'] / pair[1]['ms']:.3f}")
    places = collections.Counter()
    for r in best.values():
        places.update(r.get("syncs") or {})
    print("places that wait for the device:", dict(places) or "none")
    for key in ("micro_ms", "sampler"):
        for k, v in RESULT.get(key, {}).items():
            print(f"  {k:66} {v}")
    print("seconds", RESULT["seconds"], "errors", RESULT["errors"])
    save()


if __name__ == "__main__":
    main()
