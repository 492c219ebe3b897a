"""``train.mirror``: a copy of the run folder at a URL, from which a training goes on elsewhere.

    pull   before a training: what is newer at the URL, on the first process of every machine
    push   at the start and with every checkpoint, by the first process, in the thread that writes:
           changed files, then whole checkpoints, each with its manifest last, then old ones go

A bucket that fails in between is a warning, and the next checkpoint sends what is missing.
"""

import json
import warnings
from pathlib import Path

from accelerate import Accelerator

from ucgm.runs.checkpoint import newest_checkpoint
from ucgm.runs.config import Config
from ucgm.runs.folder import START, refuse_another
from ucgm.runs.remote import CONFIG, Remote, is_of_run, steps_of
from ucgm.runs.saving import (
    CHECKPOINTS,
    MANIFEST,
    checkpoints_of,
    spare_steps,
    step_folder,
    step_of,
    thin,
    verify,
)
from ucgm.runtime.files import IN_TURN, sole_writer


class Mirror(Remote):
    """The copy of ``run_dir`` at ``url``, kept as a training keeps its own checkpoints."""

    def __init__(self, url: str, run_dir: Path, config: Config) -> None:
        super().__init__(url, run_dir)
        self.config = config
        self.kept = config.train.keep_checkpoints, config.train.milestone_every
        self.error = ""
        # What this process knows to be there: size and time of a file, manifest of a checkpoint.
        self._sent: dict[str, object] = {}

    def pull(self) -> None:
        """Fetch what is newer at the URL than in the run folder.

        Raises:
            ValueError: it is of another configuration, cannot be read, or has no whole checkpoint
                where it should, and neither has the run folder.
        """
        stored = self.config_there()
        if stored is None:
            return
        refuse_another(self.config, self.url, stored)
        with sole_writer(self.run_dir / CHECKPOINTS, "ucgm train", IN_TURN):
            try:
                found = newest_checkpoint(self.run_dir)
            except ValueError:  # all are damaged
                found = None
            begun = (self.run_dir / CONFIG).exists()
            with self.failing("cannot be read"):
                names, mine = self.names(), -1 if found is None else found[1]["step"]
                steps = [s for s in steps_of(names, whole=True) if s > mine]
                if steps or not begun:
                    taken = self.fetch(list(names), steps[::-1])
                    if taken is not None:
                        thin(self.run_dir, taken, *self.kept)
                    elif steps and found is None:
                        raise OSError(f"all {len(steps)} checkpoints are damaged")

    def push(self) -> None:
        """Send what is not there yet; returns when it is.

        Raises:
            ValueError: it cannot be written.
        """
        with self.failing("cannot be written"):
            there = self.names()
            for name in self._small():
                stat = (self.run_dir / name).stat()
                facts = (stat.st_size, stat.st_mtime_ns)
                # Snapshots and the start are written once: those of an earlier process are sent.
                once = Path(name).name.startswith("step_") or name == START
                if self._sent.get(name) != facts and not (once and there.get(name) == facts[0]):
                    self._put(name)
                self._sent[name] = facts
            mine = [step_of(folder) for folder in checkpoints_of(self.run_dir)]
            sent = [step for step in mine if self._sends(step, there)]
            if sent:
                done = [s for s in sorted({*steps_of(there, whole=True), *sent}) if s <= sent[-1]]
                kept = {*done}.difference(spare_steps(done, *self.kept))
                for step in {*steps_of(there)}.difference(kept):
                    if step < sent[-1]:
                        self._delete(step, there)

    def _small(self) -> list[str]:
        """Names of the files of the run that are none of a checkpoint, the configuration first."""
        files = [p for p in (*self.run_dir.glob("*"), *self.run_dir.glob("*/*")) if p.is_file()]
        names = [path.relative_to(self.run_dir).as_posix() for path in files]
        return sorted(filter(is_of_run, names), key=lambda name: (name != CONFIG, name))

    def _put(self, name: str) -> None:
        path = f"{self.root}/{name}"
        self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self.fs.put_file(str(self.run_dir / name), path)

    def _sends(self, step: int, there: dict[str, int]) -> bool:
        """Send the checkpoint of ``step`` unless it is there; False: it is damaged here."""
        place = step_folder(step)
        try:
            manifest = (self.run_dir / place / MANIFEST).read_bytes()
            if self._sent.get(place) == manifest:
                return True
            verify(self.run_dir / place)
        except (FileNotFoundError, ValueError):
            return False
        files: dict[str, dict[str, int]] = json.loads(manifest)["files"]
        whole = all(there.get(f"{place}/{name}") == facts["bytes"] for name, facts in files.items())
        marker = f"{place}/{MANIFEST}"
        if not (whole and marker in there) or self.fs.cat_file(f"{self.root}/{marker}") != manifest:
            if marker in there:
                self.fs.rm_file(f"{self.root}/{marker}")
            for name in (*files, MANIFEST):
                self._put(f"{place}/{name}")
        self._sent[place] = manifest
        return True

    def _delete(self, step: int, there: dict[str, int]) -> None:
        place = step_folder(step)
        if f"{place}/{MANIFEST}" in there:  # first: what is half deleted is no checkpoint
            self.fs.rm_file(f"{self.root}/{place}/{MANIFEST}")
        self.fs.rm(f"{self.root}/{place}", recursive=True)

    def try_push(self) -> None:
        """:meth:`push`, in a training: what goes wrong is said and kept in ``error``."""
        try:
            self.push()
            self.error = ""
        except ValueError as error:
            self.error = str(error)
            newest = [folder.name for folder in checkpoints_of(self.run_dir)][-1:]
            warnings.warn(
                f"train.mirror: {error}. {', '.join(newest)} is whole in {self.run_dir} and not "
                "there; the next checkpoint tries again",
                stacklevel=2,
            )

    def finish(self) -> None:
        """At the end of a training: send the rest.

        Raises:
            RuntimeError: it could not be sent.
        """
        self.try_push()
        if self.error:
            raise RuntimeError(
                f"the training is whole in {self.run_dir}, but its mirror is not: {self.error}. "
                "Run the same command again, which sends what is missing"
            )


def meet_mirror(config: Config, run_dir: Path, accelerator: Accelerator) -> Mirror | None:
    """The mirror of a training, if it has one, and its newest checkpoint on every machine.

    Raises:
        ValueError: run folder or mirror are of another configuration, or cannot be reached.
    """
    refuse_another(config, run_dir)
    if config.train.mirror is None:
        return None
    mirror = Mirror(config.train.mirror, run_dir, config)
    if accelerator.is_main_process:
        mirror.pull()
        if (run_dir / CONFIG).exists():
            mirror.push()
    accelerator.wait_for_everyone()
    if accelerator.is_local_main_process and not accelerator.is_main_process:
        mirror.pull()
    accelerator.wait_for_everyone()
    return mirror
