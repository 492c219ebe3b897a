"""One table of ratios, our time over theirs: diffusers, torch-fidelity, torchvision, plain PyTorch.

    python scripts/bench/all.py [--only sampler loader ...] [--write docs/results/bench.md]

On the CPU, one thread, nothing downloaded; about ten minutes on two cores.  A row is the same work
done by both sides in turns, see timing.py; a ratio is the median over pairs of neighbours, with the
lowest and the highest.  A row is *slower* where three quarters of its pairs are above 1.00 by the
wall clock and three quarters by processor time; the exit code is 1 if there is such a row, else 0.
Ratios within a few hundredths of 1.00 are noise: there both sides call the same kernels.
"""

import argparse
import contextlib
import importlib
import inspect
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from timing import HEADER, Pair, compare, line

# A training changes how its process frees memory, so it is the last.
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


def rows_of(module: str, folder: Path) -> Iterator[Pair]:
    """The pairs of a module of this folder, with a place for its files where it needs one."""
    pairs = importlib.import_module(module).pairs
    if "folder" not in inspect.signature(pairs).parameters:
        return pairs()
    (folder / module).mkdir()
    return pairs(folder / module)


def main() -> int:
    """Print the table; 1 if a row is slower."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=MODULES, default=MODULES)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a row, for at least 5 pairs")
    parser.add_argument("--write", type=Path, help="a file for the table, as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    load = os.getloadavg()[0]
    said = [
        "# Ours over theirs", "", "    python scripts/bench/all.py", "",
        f"{machine()}; float32, one thread. {load:.1f} other processes were running.", "",
        *HEADER,
    ]  # fmt: skip
    print("\n".join(said), flush=True)
    slower = []
    with tempfile.TemporaryDirectory() as folder:
        for module in options.only:
            for pair in rows_of(module, Path(folder)):
                found = compare(pair, options.seconds)
                said.append(line(pair, found))
                print(said[-1], flush=True)
                if found.slower:
                    slower.append(pair.name)
    count = len(said) - said.index(HEADER[-1]) - 1
    said += [
        "",
        f"Of {count} rows {len(slower)} are slower" + "".join(f"; {n}" for n in slower) + ".",
        "",
    ]
    said += [" ".join(paragraph.split()) for paragraph in __doc__.split("\n\n")[2:]]
    print("\n".join(said[-3:]))
    if options.write:
        options.write.write_text("\n".join(said) + "\n")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
