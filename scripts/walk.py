"""Which files of the package the code enters, in order, and how often it turns back.

Traces one training step (batch, draw, terms, backward, optimizer) of a tiny transformer on the
digits, then the drawing of two samples, and prints the files in the order of their first visit.

    python scripts/walk.py --preset ucgm_few

A visit is a stretch of time in which code of one file runs.  A visit to a file that was visited
and left before is a return, by the end of a called function or by a new call.  The step is counted

    raw      every function, the network's own files included
    network  every function, with nn/ as one file
    stages   as `network`, but only functions that `draw` and `terms` reach over at most --hops
             files, and of those only the ones that call the package in their turn
    through  as `stages`, but only functions that lead to another file in their turn
"""

import argparse
import copy
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import ucgm
from ucgm.data import DigitsDataset, to_uint8
from ucgm.nn import DiTConfig
from ucgm.objective import LogVariance

PACKAGE = f"{Path(ucgm.__file__).parent}/"


@dataclass
class Call:
    """A call of a function of the package, and the calls of such functions that it made."""

    file: str
    calls: list["Call"] = field(default_factory=list)


def traced(work: Callable[[], Any]) -> Call:
    """The calls that ``work`` makes, as a tree below a root without a file."""
    root = Call("")
    stack: list[tuple[FrameType | None, Call]] = [(None, root)]

    def profile(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        # Comprehensions and lambdas count as the function that they stand in.
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name[0] != "<":
            call = Call(code.co_filename.removeprefix(PACKAGE))
            stack[-1][1].calls.append(call)
            stack.append((frame, call))
        elif event == "return" and stack[-1][0] is frame:
            stack.pop()

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return root


def network_as_one(call: Call) -> Call:
    """The same calls, with nn/ as one file that calls nothing of itself."""
    if call.file.startswith("nn/"):
        return Call("nn/")
    return Call(call.file, [network_as_one(inner) for inner in call.calls])


def stages(call: Call, hops: int, through: bool = False) -> Call:
    """The calls over at most ``hops`` files, without those that call nothing of the package.

    With ``through``, without those that call nothing of another file.
    """
    kept = []
    for inner in call.calls:
        left = hops - (inner.file != call.file)
        leads_on = any(entries(inner)) if through else inner.calls
        if left >= 0 and (leads_on or inner.file == "nn/"):
            kept.append(stages(inner, left, through))
    return Call(call.file, kept)


def visits(call: Call) -> Iterator[str]:
    """The file whose code runs, one entry for each visit."""

    def every(call: Call) -> Iterator[str]:
        yield call.file
        for inner in call.calls:
            yield from every(inner)
            yield call.file

    return (file for file, _ in itertools.groupby(filter(None, every(call))))


def entries(call: Call) -> Iterator[str]:
    """The file of every call that comes from another file."""
    for inner in call.calls:
        if inner.file != call.file:
            yield inner.file
        yield from entries(inner)


def summary(call: Call) -> str:
    """Counts of files, visits and returns in words."""
    seen, entered = list(visits(call)), list(entries(call))
    files = len(set(seen))
    return (
        f"{files:3} files, {len(seen):5} visits, {len(seen) - files:5} returns "
        f"({len(entered) - len(set(entered))} of them by a call)"
    )


def show(title: str, call: Call) -> None:
    """Print the files in the order of their first visit, with the number of entries."""
    print(f"\n{title}: {summary(call)}")
    counts = Counter(entries(call))
    for file in dict.fromkeys(visits(call)):
        print(f"  {counts[file]:5}  {file}")


def main() -> None:
    """Trace and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="ucgm_multi")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--hops", type=int, default=2)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    objective = ucgm.preset(arguments.preset)
    config = DiTConfig(
        hidden_size=32,
        depth=1,
        num_heads=2,
        patch_size=2,
        second_time=objective.two_time,
        guidance_input=objective.guidance_range is not None,
    )
    data = DigitsDataset()
    network = config.build(data.shape, data.num_classes)
    frozen = copy.deepcopy(network).requires_grad_(False)
    head = LogVariance() if objective.log_variance else None
    optimizer = torch.optim.AdamW(network.parameters())

    def step() -> None:
        x, y = data.x[: arguments.batch], data.y[: arguments.batch]
        numbers = torch.Generator().manual_seed(0)
        draw = objective.draw(x, y, data.num_classes, numbers)
        terms = objective.terms(network, draw, target=frozen, teacher=frozen, log_variance=head)
        terms.loss.backward()
        optimizer.step()

    def sample(steps: int) -> None:
        sampler = ucgm.Sampler(objective.transport, steps=steps)
        z, y = torch.randn(2, *data.shape), torch.tensor([3, 7])
        to_uint8(sampler(network, z, y))

    step()  # imports what is imported late
    sample(3)
    calls = traced(step)
    outside = network_as_one(calls)
    reached = [stages(outside, arguments.hops + 1, through) for through in (False, True)]
    show(f"One training step of {arguments.preset}", calls)
    print(f"\n  raw      {summary(calls)}")
    print(f"  network  {summary(outside)}")
    for name, tree in zip(("stages ", "through"), reached, strict=True):
        print(f"  {name}  {summary(tree)}:")
        print("    " + " > ".join(Path(file).stem for file in visits(tree)))
    show("Two samples", network_as_one(traced(lambda: sample(4))))


if __name__ == "__main__":
    main()
