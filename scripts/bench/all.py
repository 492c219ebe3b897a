"""One table of ratios, our time over theirs: diffusers, torch-fidelity, torchvision, plain PyTorch.

    python scripts/bench/all.py [--only sampler loader ...] [--write docs/results/bench.md]

On the CPU, one thread, nothing downloaded; about ten minutes on two cores.  A row is the same work
done by both sides in turns, see timing.py; a ratio is the median over pairs of neighbours, with the
lowest and the highest.  A row is *slower* where three quarters of its pairs are above 1.00 by the
wall clock and three quarters by processor time.  What looks so is measured again in a new
process, where memory lies elsewhere; both lines are shown, and both must say so.  The exit code is
1 if there is such a row, else 0.  Ratios within a few hundredths of 1.00 are noise: there both
sides call the same kernels.
"""

import argparse
import contextlib
import importlib
import inspect
import multiprocessing
import os
import platform
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from timing import HEADER, compare, line

MODULES = ("backbone", "sampler", "loader", "averages", "metrics", "saving", "training")


def machine() -> str:
    """Processor, system and versions, in one line."""
    name = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [row.partition(":")[2].strip() for row in lines if row.startswith("model name")]
        name = names[0] if names else name
    versions = (
        f"{package} {importlib.import_module(package).__version__}"
        for package in ("torch", "diffusers", "torch_fidelity", "torchvision")
    )
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, " + ", ".join(
        versions
    )


def rows(module: str, seconds: float, again: tuple[int, ...] = ()) -> list[tuple[str, str]]:
    """Rows of a module of this folder, printed as they come, each with its name if it is slower.

    With ``again`` only the rows of these numbers.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    pairs, made = importlib.import_module(module).pairs, []
    with tempfile.TemporaryDirectory() as folder:
        place = {"folder": Path(folder)} if "folder" in inspect.signature(pairs).parameters else {}
        for number, pair in enumerate(pairs(**place)):
            if again and number not in again:
                continue
            if again:
                pair = pair._replace(name=f"{pair.name}, again")
            found = compare(pair, seconds)
            made.append((line(pair, found), pair.name if found.slower else ""))
            print(made[-1][0], flush=True)
    return made


def main() -> int:
    """Print the table; 1 if a row is slower."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=MODULES, default=MODULES)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a row, for at least 5 pairs")
    parser.add_argument("--write", type=Path, help="a file for the table, as Markdown")
    options = parser.parse_args()
    said = [
        "# Ours over theirs", "", "    python scripts/bench/all.py", "",
        f"{machine()}; float32, one thread. Load of the machine before: {os.getloadavg()[0]:.1f}.",
        "", *HEADER,
    ]  # fmt: skip
    print("\n".join(said), flush=True)
    made, slower, count = [], [], 0
    # A process each: a training changes how its process frees memory.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        for module in options.only:
            found = pool.submit(rows, module, options.seconds).result()
            made += [row for row, _ in found]
            count += len(found)
            if doubtful := tuple(n for n, (_, name) in enumerate(found) if name):
                found = pool.submit(rows, module, options.seconds, doubtful).result()
                made += [row for row, _ in found]
                slower += [name.removesuffix(", again") for _, name in found if name]
    end = ["", f"Of {count} rows {len(slower)} are slower{': ' * bool(slower)}{', '.join(slower)}."]
    end += ["", *(" ".join(part.split()) for part in __doc__.split("\n\n")[2:])]
    print("\n".join(end))
    said += made + end
    if options.write:
        options.write.write_text("\n".join(said) + "\n")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
