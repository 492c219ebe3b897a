"""Condensed sets by selector and size, each measured: the table of docs/results/condense.md.

    python scripts/condense.py digits digits
    python scripts/condense.py NAME DATA --held-out TEST --size 32

Each is `ucgm condense` and `ucgm condense evaluate` on DATA; what is done is not done again, and
the students of all and of random images are taught once for a size.
"""

import argparse
import json
from pathlib import Path

import torch
from tables import cell, write_part

from ucgm.condense import CondenseConfig
from ucgm.condense.command import condense
from ucgm.condense.evaluate import evaluate_set

SETS = {
    "realism (RDED's choice)": {"selector": "realism", "accept": False},
    "k-means": {"selector": "kmeans"},
    "interval": {"selector": "interval"},
    "herding": {},
    "mean matching of herded images": {"match": "mean"},
}


def main():
    """Condense, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("data")
    parser.add_argument("--held-out")
    parser.add_argument("--size", type=int)
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--labels", choices=["stored", "online"], default="stored")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out-dir", type=Path, default=Path("runs/condense"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for ipc in asked.ipc:
        found, known = {}, None
        for title, changes in SETS.items():
            folder = asked.out_dir / asked.name / f"{ipc}-{title.split()[0]}"
            if not folder.exists():
                config = CondenseConfig(ipc=ipc, labels=asked.labels, **changes)
                where = {"held_out": asked.held_out, "size": asked.size}
                condense(asked.data, str(folder), settings=config, **where)
            result = folder / "evaluation.json"
            if not result.exists():
                evaluate_set(str(folder), seeds=asked.seeds, known=known)
            known = known or str(result)
            found[title] = json.loads(result.read_text())["accuracy"]
        lines += [
            f"### {ipc} images per class",
            "",
            "| images | hard | soft | hard, perceptron | soft, perceptron |",
            "|---|---:|---:|---:|---:|",
        ]
        first = next(iter(found.values()))
        for title, table, kind in (
            ("all", first, "full"),
            ("random", first, "random"),
            *((title, table, "method") for title, table in found.items()),
        ):
            cells = [
                cell(table[student][f"{kind} {labels}"], 1)
                if f"{kind} {labels}" in table[student]
                else ""
                for student in ("convolutions", "perceptron")
                for labels in ("hard", "soft")
            ]
            lines.append(f"| {title} | {' | '.join(cells)} |")
        lines.append("")
    print("\n".join(lines))
    write_part("condense.md", asked.name, lines)


if __name__ == "__main__":
    main()
