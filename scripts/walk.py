"""Files of the package that one draw and its terms call into, in order, and how often they return.

    python scripts/walk.py [PRESET ...] [--verbose]

A visit is a stretch of calls into one file; a visit to a file that was visited and left before is a
return.  Networks, lambdas and comprehensions are left out.  `all` counts every other call; `stages`
leaves out the algebra of paths, the random numbers, and helpers of one line that call nothing.
"""

import argparse
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import ucgm
from ucgm.nn import DiTConfig
from ucgm.objective import LogVariance

PACKAGE = f"{Path(ucgm.__file__).parent}/"
ALGEBRA = ("transport.py", "randomness.py")
HELPERS = {"take", "put", "place", "stand_in", "mean_flat", "expand"}


def calls_of(preset: str) -> list[tuple[str, str]]:
    """File and function of every call that a draw and its terms make."""
    objective = ucgm.preset(preset)
    inputs = objective.network_inputs
    config = DiTConfig(hidden_size=32, depth=2, num_heads=2, patch_size=4, **inputs)
    torch.manual_seed(0)
    network = config.build((1, 8, 8), 5)
    variance = LogVariance(two_time=objective.two_time) if objective.log_variance else None
    x, y = torch.randn(24, 1, 8, 8), torch.arange(24) % 5
    found: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        file = code.co_filename.removeprefix(PACKAGE)
        if event == "call" and file != code.co_filename and code.co_name[0] != "<":
            if not file.startswith("nn/"):
                found.append((file, code.co_name))

    def step() -> None:
        keys = ucgm.RowRandom.for_rows(0, 1, torch.arange(24))
        draw = objective.draw(x, y, 5, keys)
        objective.terms(network, draw, target=network, teacher=network, log_variance=variance)

    step()  # tables are made once
    sys.setprofile(note)
    step()
    sys.setprofile(None)
    return found


def main() -> None:
    """Print both counts for every preset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["ucgm_multi", "ucgm_few", "meanflow", "twinflow"]
    parser.add_argument("presets", nargs="*", default=names)
    parser.add_argument("--verbose", action="store_true", help="the functions of every visit")
    arguments = parser.parse_args()
    for preset in arguments.presets:
        calls = calls_of(preset)
        stages = [c for c in calls if not c[0].endswith(ALGEBRA) and c[1] not in HELPERS]
        for title, chosen in (("all", calls), ("stages", stages)):
            visits = [(file, list(part)) for file, part in groupby(chosen, key=lambda c: c[0])]
            entries = Counter(file for file, _ in visits)
            returns = len(visits) - len(entries)
            shown = ", ".join(f"{file} {n}" for file, n in entries.items())
            print(f"{preset:<12} {title:<7} {returns:3d} returns: {shown}")
            if arguments.verbose and title == "stages":
                for file, part in visits:
                    print(f"    {file}: {', '.join(name for _, name in part)}")


if __name__ == "__main__":
    main()
