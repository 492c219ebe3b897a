"""Cost of the statistics: Frechet distance and accumulation of features.

    python scripts/bench/metrics.py                 # everything, about five minutes on one core
    python scripts/bench/metrics.py --dimension 512 --samples 10000
    python scripts/bench/metrics.py --digits 2000 50000    # memory of whole benchmarks

Prints CPU seconds (process time; the fair figure on a shared machine), the median of the repeats,
and for the accumulation the peak memory above what the features of one batch need, each in a
process of its own.  Ratios are to torch-fidelity 0.4 (``np.linalg.eigvals`` of the product; all
features kept, then ``np.cov``) and to ``scipy.linalg.sqrtm``, when it is installed.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

from ucgm.evaluation.metrics import RunningMoments, frechet_distance

BATCH = 64


def cpu_seconds(function, repeats):
    times, value = [], None
    for _ in range(repeats):
        start = time.process_time()
        value = function()
        times.append(time.process_time() - start)
    return statistics.median(times), value


def feature_batches(samples, dimension, seed=0):
    """Features like pool3's: positive, a falling spectrum, in batches of 64."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = 0.5 * torch.arange(1, dimension + 1) ** -0.45
    for start in range(0, samples, BATCH):
        size = min(BATCH, samples - start)
        yield 0.4 + spectrum * torch.randn(size, dimension, generator=generator)


def gaussian_pair(dimension, samples):
    pair = []
    for seed in (0, 1):
        running = RunningMoments(dimension)
        for batch in feature_batches(samples, dimension, seed):
            running.update(batch + 0.01 * seed)
        pair.append(running.gaussian())
    return pair


def distance(dimension, samples, repeats):
    one, two = gaussian_pair(dimension, samples)
    rows = {}

    def ours():
        two.__dict__.pop("factor", None)
        return frechet_distance(one, two)

    rows["ours, first use of a reference"] = cpu_seconds(ours, repeats)
    rows["ours, factor of the reference kept"] = cpu_seconds(
        lambda: frechet_distance(one, two), repeats
    )
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    stats = [{"mu": g.mean.numpy(), "sigma": g.covariance.numpy()} for g in (one, two)]
    rows["torch-fidelity"] = cpu_seconds(
        lambda: fid_statistics_to_metric(*stats, False)["frechet_inception_distance"], repeats
    )
    try:
        import scipy.linalg
    except ImportError:
        print("scipy is not installed: its sqrtm is left out")
    else:

        def by_sqrtm():
            root = scipy.linalg.sqrtm(stats[0]["sigma"] @ stats[1]["sigma"])
            traces = np.trace(stats[0]["sigma"] + stats[1]["sigma"] - 2 * np.real(root))
            return float(((stats[0]["mu"] - stats[1]["mu"]) ** 2).sum() + traces)

        rows[f"scipy {scipy.__version__} sqrtm"] = cpu_seconds(by_sqrtm, repeats)
    print(f"\nFrechet distance, {dimension} features, {samples:,} samples")
    base = rows["ours, first use of a reference"][0]
    for name, (seconds, value) in rows.items():
        print(f"  {name:<36}{seconds:8.2f} s   {value:.12f}   ours / it = {base / seconds:.2f}")


def accumulate(kind, samples, dimension):
    """One process: cost of the statistics without that of making the features."""
    batches = feature_batches(samples, dimension)
    first = next(batches)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spent = 0.0
    running, kept = RunningMoments(dimension), []
    batch = first
    while batch is not None:
        start = time.process_time()
        if kind == "streamed":
            running.update(batch)
        else:
            kept.append(batch)
        spent += time.process_time() - start
        batch = next(batches, None)
    start = time.process_time()
    if kind == "streamed":
        result = running.gaussian().covariance.trace().item()
    else:
        from torch_fidelity.metric_fid import fid_features_to_statistics

        result = float(np.trace(fid_features_to_statistics(torch.cat(kept))["sigma"]))
    spent += time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"seconds": spent, "mib": peak / 1024, "trace": result}))


def accumulation(samples, dimension):
    print(f"\nAccumulation of {samples:,} x {dimension} features in batches of {BATCH}")
    found = {}
    for kind in ("streamed", "kept"):
        command = [sys.executable, __file__, "--worker", kind]
        command += ["--samples", str(samples), "--dimension", str(dimension)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[kind] = json.loads(output.splitlines()[-1])
        row = found[kind]
        print(
            f"  {kind:<12}{row['seconds']:8.2f} s {row['mib']:8.0f} MiB   trace {row['trace']:.9f}"
        )
    time_ratio = found["streamed"]["seconds"] / found["kept"]["seconds"]
    print(f"  streamed / kept: time {time_ratio:.2f}, memory ", end="")
    print(f"{found['streamed']['mib'] / found['kept']['mib']:.2f}")


def digits(samples):
    """One process: peak memory of a one-step benchmark above that of the loaded model."""
    import contextlib
    import io
    import tempfile
    from pathlib import Path

    import matplotlib.pyplot  # noqa: F401

    from ucgm.evaluation.benchmark import benchmark
    from ucgm.nn import DiTConfig
    from ucgm.runs.checkpoint import Run
    from ucgm.runs.config import Config

    network = DiTConfig(size="T/2").build((1, 8, 8), 10).eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        run = Run(Path(folder), Config(), network, 0, "ema", "0" * 64, (1, 8, 8), 10)
        network(torch.zeros(250, 1, 8, 8), torch.ones(250), torch.zeros(250, dtype=torch.int64))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with contextlib.redirect_stdout(io.StringIO()):
            benchmark(run, (1,), samples)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        f"benchmark of {samples:,} digits: peak {peak / 1024:,.0f} MiB above the model", flush=True
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", choices=("streamed", "kept"))
    parser.add_argument("--digits", type=int, nargs="+")
    parser.add_argument("--one-digits", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        accumulate(options.worker, options.samples, options.dimension)
        return
    if options.one_digits:
        digits(options.one_digits)
        return
    for samples in options.digits or ():
        subprocess.run([sys.executable, __file__, "--one-digits", str(samples)], check=True)
    if options.digits:
        return
    accumulation(options.samples, options.dimension)
    distance(options.dimension, min(options.samples, 4 * options.dimension), options.repeats)


if __name__ == "__main__":
    main()
