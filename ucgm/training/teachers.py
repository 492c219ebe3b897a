"""The frozen teachers of a training that are other runs: of any network, on any path."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ucgm.data import Dataset
from ucgm.objective import Objective
from ucgm.runs import checkpoint
from ucgm.runs.config import Config
from ucgm.runs.folder import check_data
from ucgm.runtime.files import write_atomic
from ucgm.runtime.reading import read_json
from ucgm.sampler.guidance import call
from ucgm.transport import Transport, expand

TEACHERS = "teachers.json"
"""Which weights the teachers of a run are; they stay in their own runs."""
FACTS = {"run": str, "step": int, "sha256": str}


class Teacher(nn.Module):
    """A network on a path of its own, as one on the path of the student.

    Noisy samples of two paths are the same up to a factor where their signal-to-noise ratios are
    equal: x_t of the student is r^-1 times x' of the teacher at t', with

        alpha'(t') / sigma'(t') = alpha(t) / sigma(t)      r = |(alpha', sigma')| / |(alpha, sigma)|

    and the data and noise that the teacher says there are those of F of the student.

    Args:
        network: the teacher.
        own: its path.
        path: the student's.
    """

    def __init__(self, network: nn.Module, own: Transport, path: Transport) -> None:
        super().__init__()
        self.network, self.own, self.path = network, own, path
        config: Any = getattr(network, "config", {})
        self.two_time = bool(config.get("second_time"))
        self.guidance_input = bool(config.get("guidance_input"))
        self._no_split_modules = getattr(network, "_no_split_modules", None)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        s: Tensor | None = None,
        guidance: Tensor | None = None,
        heads: str = "map",
    ) -> Tensor:
        """F (B, ...) of the student's path, of states x_t (B, ...), t, y, s (B,).

        A network of one time has no use for s, and one that is told no guidance none for it.
        """
        x, time, later = x_t, t, s
        more: dict[str, Any] = {} if heads == "map" else {"heads": heads}
        if self.own != self.path:
            time, r = self._matched(t)
            x = expand(r, x_t) * x_t
            later = None if s is None else self._matched(s)[0]
        if guidance is not None and self.guidance_input:
            more["guidance"] = guidance
        f = call(self.network, x, time, y, later if self.two_time else None, **more)
        if self.own == self.path:
            return f
        return self.path.target(*self.own.split(x, f, time), t)

    def _matched(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(t', r), each (B,), at t (B,)."""
        time = self.own.time_at_log_snr(self.path.log_snr(t))
        there, here = self.own.coefficients(time), self.path.coefficients(t)
        return time, torch.hypot(there.alpha, there.sigma) / torch.hypot(here.alpha, here.sigma)


def names_of_teachers(config: Config) -> tuple[str, ...]:
    """Runs that teach; empty where the weights at the start do, or nothing does."""
    train, needed = config.train, config.objective.teachers
    if not needed and train.teacher:
        raise ValueError(
            f"train.teacher is set, and the preset {config.objective.preset} learns from no "
            "teacher: set objective.field to sources (docs/distil.md), or leave it out"
        )
    if not needed:
        return ()
    whole = (train.init,) if train.init is not None and train.keep_blocks else ()
    names = train.teacher or whole
    if names and len(names) < needed or needed > 1 and not names:
        raise ValueError(
            f"objective.sources names {needed} teachers and train.teacher has {len(names)}: name a "
            "run folder for each"
        )
    return names


def open_teachers(
    config: Config, run_dir: Path, dataset: Dataset
) -> tuple[list[nn.Module], list[dict[str, Any]]]:
    """The teachers of a training, frozen and on the host, and which weights they are.

    A run that has begun goes on with the weights it began with.

    Raises:
        ValueError: a run of other classes, size or latents, or whose weights have changed.
    """
    known: list[dict[str, Any]] | None = None
    if (path := run_dir / TEACHERS).exists():
        known = read_json(path, {"teachers": [FACTS]})["teachers"]
    teachers, facts = [], []
    for k, name in enumerate(names_of_teachers(config)):
        before = known[k] if known is not None and k < len(known) else None
        run = checkpoint.load_run(name, step=None if before is None else before["step"])
        if before is not None and run.digest != before["sha256"]:
            raise ValueError(
                f"the weights of the teacher {name} at step {run.step} are not those that "
                f"{run_dir} began with: restore them, or choose another run_dir"
            )
        check_data(config, run, dataset)
        _check_heads(config.objective, k, run)
        own, path = run.config.objective.transport, config.objective.transport
        teachers.append(Teacher(run.network, own, path))
        facts.append({"run": name, "step": run.step, "sha256": run.digest})
    return teachers, facts


def _check_heads(objective: Objective, k: int, run: checkpoint.Run) -> None:
    """Refuse a teacher without the exit head that the field asks for."""
    sources = [source for source in objective.sources if source.network == "teacher"]
    asked = any(source.view == "exit" and source.teacher in (None, k) for source in sources)
    if asked and not getattr(run.network, "exits", False):
        raise ValueError(
            f"objective.sources asks for the exit head of {run.run_dir}, which has none: train it "
            "with objective.exit_head 0.5"
        )


def keep_facts(run_dir: Path, facts: Sequence[dict[str, Any]]) -> None:
    """Write which weights teach, unless it is written."""
    if facts and not (run_dir / TEACHERS).exists():
        write_atomic(run_dir / TEACHERS, json.dumps({"teachers": list(facts)}, indent=2) + "\n")
