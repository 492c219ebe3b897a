"""A run folder at a URL, and the copy of it on this machine.

Any URL of fsspec (``s3://bucket/run``, ``gs://``, ``sftp://``, ``file://``), or ``hf://USER/NAME``
on the Hub.  A checkpoint is there when its manifest is, which is sent last; one that does not agree
with its manifest is passed over.  What is fetched is a stranger's run folder, read like any other;
files whose names are none of a run are left where they are.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fsspec.core import url_to_fs
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from ucgm.runs.config import Config, read_config
from ucgm.runs.saving import (
    CHECKPOINTS,
    MANIFEST,
    checkpoints_of,
    put_in_place,
    step_folder,
    step_of,
    verify,
)
from ucgm.runtime.files import IN_TURN, remove, sole_writer

HUB = "hf://"
CONFIG = "config.yaml"
_OF_A_RUN = re.compile(
    r"\w[\w.-]*\.(yaml|json|jsonl|safetensors)|wandb_id|ema/\w[\w.-]*\.safetensors"
    r"|samples/\w[\w.-]*\.png|tensorboard/\w[\w.-]*"
    rf"|{CHECKPOINTS}/step_\d{{7,}}/\w[\w.-]*\.(json|safetensors)"
)


def is_of_run(name: str) -> bool:
    """Whether ``name``, relative to a run folder, is a file that a training writes into it."""
    return _OF_A_RUN.fullmatch(name) is not None


def steps_of(names: Iterable[str], whole: bool = False) -> list[int]:
    """Steps of the checkpoints in ``names``, oldest first; ``whole``: those sent to the end."""
    parts = [name.split("/") for name in names if name.startswith(CHECKPOINTS)]
    return sorted({int(step[5:]) for _, step, file in parts if not whole or file == MANIFEST})


class Remote:
    """The run at ``url``, whose copy is the folder ``run_dir``.

    Raises:
        ValueError: no such protocol, or the library that speaks it is not installed.
    """

    def __init__(self, url: str, run_dir: Path) -> None:
        self.url, self.run_dir = url, run_dir
        with self.failing("cannot be opened"):
            self.fs, root = url_to_fs(url)
            self.root = root.rstrip("/")

    @contextlib.contextmanager
    def failing(self, what: str) -> Iterator[None]:
        """Around whatever talks to the store: its error, of whatever kind, is one line."""
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{self.url} {what} ({type(error).__name__}: {reason})") from error

    def names(self) -> dict[str, int]:
        """Bytes of every file of a run that is there, by its name relative to the run folder."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(self.root, detail=True)
        except FileNotFoundError:
            return {}
        start = f"{self.root}/"
        files = {k: v["size"] for k, v in found.items() if v.get("type") == "file"}
        names = {path[len(start) :]: n for path, n in files.items() if path.startswith(start)}
        return {name: size for name, size in names.items() if is_of_run(name)}

    def config_there(self) -> Config | None:
        """The configuration of the run that is there, if there is one.

        Raises:
            ValueError: it cannot be read, or something else is there.
        """
        with tempfile.TemporaryDirectory() as folder:
            with self.failing("cannot be read"):
                names = self.names()
                self.get([CONFIG] if CONFIG in names else [], Path(folder))
            if CONFIG in names:
                return read_config(Path(folder) / CONFIG)
        if names:
            raise ValueError(f"{self.url} holds files and no run: choose another")
        return None

    def get(self, names: Iterable[str], folder: Path) -> None:
        """Fetch files into ``folder``."""
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            self.fs.get_file(f"{self.root}/{name}", str(folder / name))

    def fetch(self, names: Sequence[str], steps: Sequence[int]) -> int | None:
        """Fetch all but checkpoints, and of ``steps`` the first that arrives whole; returns it."""
        temporary = self.run_dir / ".mirror.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            small = [name for name in names if not name.startswith(CHECKPOINTS)]
            self.get(small, temporary)
            for name in small:
                (self.run_dir / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary / name, self.run_dir / name)
            for step in steps:
                if self._arrives(step, [n for n in names if n.startswith(f"{step_folder(step)}/")]):
                    return step
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return None

    def _arrives(self, step: int, names: Sequence[str]) -> bool:
        """Whether the checkpoint of ``step`` is now whole in the run folder."""
        place, temporary = step_folder(step), self.run_dir / ".mirror.tmp"
        mine = self.run_dir / place
        with contextlib.suppress(ValueError):
            theirs = self.fs.cat_file(f"{self.root}/{place}/{MANIFEST}")
            if mine.is_dir() and verify(mine) and (mine / MANIFEST).read_bytes() == theirs:
                return True
        self.get(names, temporary)
        try:
            verify(temporary / place)
        except ValueError as error:
            warnings.warn(f"{self.url}: {error}; taking the one before", stacklevel=2)
            return False
        put_in_place(temporary / place, mine)
        return True

    def copy(self, step: int | None = None) -> None:
        """Make the run folder that of the URL, with its newest checkpoint or that of ``step``.

        Raises:
            ValueError: nothing is there, or it cannot be read.
        """
        with sole_writer(self.run_dir, "reading a run", IN_TURN), self.failing("cannot be read"):
            names = self.names()
            if CONFIG not in names:
                raise FileNotFoundError(f"there is no run: it has no {CONFIG}")
            there = steps_of(names, whole=True)
            wanted = [s for s in reversed(there) if step in (None, s)]
            self.fetch(list(names), wanted)
            for folder in checkpoints_of(self.run_dir):
                if step_of(folder) not in there:  # of a run that was there before
                    remove(folder)


def local_run(run_dir: str | Path, step: int | None = None) -> Path:
    """The folder of a run: itself, or the copy in the cache of what is now at a URL.

    Raises:
        ValueError: a URL that cannot be read.
    """
    url = str(run_dir)
    if "://" not in url:
        return Path(run_dir)
    if url.startswith(HUB):
        return _from_hub(url.removeprefix(HUB))
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    folder = cache / "ucgm" / "runs" / hashlib.sha256(url.encode()).hexdigest()[:16]
    Remote(url, folder).copy(step)
    return folder


def _from_hub(name: str) -> Path:
    """The folder in the cache that holds what is needed of a run on the Hub."""
    try:
        return Path(snapshot_download(name, allow_patterns=["*.yaml", "*.json", "checkpoints/*"]))
    except (HFValidationError, OSError) as error:
        raise ValueError(
            f"{HUB}{name} could not be downloaded ({str(error).splitlines()[0]}): name a run "
            "folder USER/NAME that is on the Hub, or download it and name the folder"
        ) from error
