"""Time per step outside the network, and peak memory: ours against diffusers' schedulers.

    python scripts/bench/sampler.py [--out FILE] [--device cuda]

Both sides run in one process, in turn, on the same shapes, with a network that costs nothing (it
returns a tensor that is there already), so what is left is the solver.  Diffusers at its fastest:
no dictionary, begin index set (no search for the timestep), timesteps made beforehand.  Reported
is the median over rounds of the ratio of neighbouring runs.  Peak memory counts the bytes of all
live tensors, in units of one state.
"""

import argparse
import json
import statistics
import time
import weakref
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from ucgm import Linear, Sampler, UCGMScheduler
from ucgm.sampler import NAMED

SHAPES = [(1, 4, 32, 32), (16, 4, 32, 32), (8, 32, 16, 16), (64, 4, 64, 64)]


class PeakMemory(TorchDispatchMode):
    """Bytes of all tensors made inside, at their largest."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage):
        pointer, size = storage.data_ptr(), storage.nbytes()
        if pointer in self.known or not size:
            return
        self.known.add(pointer)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone():
            self.known.discard(pointer)
            self.now -= size

        weakref.finalize(storage, gone)


def native(name, steps):
    """Our loop."""
    sampler = Sampler(Linear(), steps, **NAMED[name])

    def run(network, z):
        return sampler(network, z)

    return run


def in_pipeline(scheduler, steps):
    """The loop of a pipeline around a scheduler."""
    scheduler.set_timesteps(steps)

    def run(network, z):
        scheduler.set_timesteps(steps, device=z.device)
        scheduler.set_begin_index(0)
        x = z
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t.expand(len(x))), t, x, return_dict=False)[0]
        return x

    return run


def schedule_seconds(scheduler, steps, device):
    """Time of set_timesteps alone, which is taken off."""
    begin = time.perf_counter()
    scheduler.set_timesteps(steps, device=device)
    scheduler.set_begin_index(0)
    return time.perf_counter() - begin


def measured(run, network, z, steps, scheduler=None):
    """Seconds per step outside the network."""
    sync(z)
    begin = time.perf_counter()
    run(network, z)
    sync(z)
    seconds = time.perf_counter() - begin
    if scheduler is not None:
        seconds -= schedule_seconds(scheduler, steps, z.device)
    return seconds / steps


def sync(z):
    """Wait for the device."""
    if z.is_cuda:
        torch.cuda.synchronize()


def compare(shape, steps, rounds, device):
    """Rows of (ours, theirs, microseconds, ratio) at one shape."""
    z, prediction = torch.randn(shape, device=device), torch.randn(shape, device=device)

    def network(x, t, y=None):
        return prediction

    euler = FlowMatchEulerDiscreteScheduler()
    dpm = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", solver_order=2
    )
    ours_euler = UCGMScheduler()
    ours_dpm = UCGMScheduler(**NAMED["dpmpp_2m"])
    pairs = [
        ("loop, order 1", native("ddim", steps), None, "FlowMatchEuler", euler),
        ("loop, DPM++ 2M", native("dpmpp_2m", steps), None, "DPMSolverMultistep", dpm),
        ("scheduler, order 1", in_pipeline(ours_euler, steps), ours_euler, "FlowMatchEuler", euler),
        ("scheduler, DPM++ 2M", in_pipeline(ours_dpm, steps), ours_dpm, "DPMSolverMultistep", dpm),
    ]
    rows = []
    for name, run, own, other, scheduler in pairs:
        theirs = in_pipeline(scheduler, steps)
        times = []
        for i in range(rounds + 2):
            sides = [
                lambda run=run, own=own: measured(run, network, z, steps, own),
                lambda theirs=theirs, s=scheduler: measured(theirs, network, z, steps, s),
            ]
            pair = [side() for side in (sides if i % 2 else sides[::-1])]
            if i >= 2:
                times.append(pair if i % 2 else pair[::-1])
        ratio = statistics.median(a / b for a, b in times)
        micro = [1e6 * statistics.median(column) for column in zip(*times, strict=True)]
        rows.append({"shape": shape, "ours": name, "theirs": other, "ours_us": round(micro[0], 1),
                     "theirs_us": round(micro[1], 1), "ratio": round(ratio, 3)})  # fmt: skip
    return rows


def peak_states(name, steps, shape=(4, 4, 64, 64)):
    """Peak of live tensors during a run, in states; the network makes one."""
    z = torch.randn(shape)
    sampler = Sampler(Linear(), steps, **NAMED[name])
    sampler.plan()
    with PeakMemory() as memory:
        sampler(lambda x, t, y=None: torch.tanh(x), z)
    return memory.peak / (z.numel() * z.element_size())


def main():
    """Print the tables; write them as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=60)
    settings = parser.parse_args()
    torch.set_grad_enabled(False)
    rows = []
    for shape in SHAPES:
        rows += compare(shape, settings.steps, settings.rounds, settings.device)
        for row in rows[-4:]:
            ours, theirs = (f"{row[k]:20}{row[k + '_us']:8.1f} us" for k in ("ours", "theirs"))
            print(f"{row['shape']!s:18} {ours}   {theirs}   ratio {row['ratio']:.2f}")
    memory = {
        name: {steps: round(peak_states(name, steps), 2) for steps in (10, 50, 250)}
        for name in ("ddim", "ucgm", "ucgm_state", "dpmpp_2m", "dpmpp_3m", "heun")
    }
    for name, peaks in memory.items():
        print(f"{name:12} peak memory in states at 10, 50, 250 steps: {list(peaks.values())}")
    worst = max(row["ratio"] for row in rows)
    print(f"largest ratio {worst:.2f}")
    if settings.out:
        facts = {key: getattr(settings, key) for key in ("device", "steps", "rounds")}
        facts |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
        text = json.dumps({**facts, "rows": rows, "memory": memory}, indent=1)
        settings.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
