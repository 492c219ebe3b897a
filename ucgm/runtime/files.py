"""Files on the disk: atomic writes, digests, locks and protocols of folders, files of ucgm."""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError

from ucgm.runtime.earlier import current_names
from ucgm.runtime.reading import read_json


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or the renames in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | Callable[[Path], object]) -> None:
    """Write a file all or nothing: in a hidden temporary folder, synced, then renamed.

    ``content`` is the text, or a function that writes to the path it is given.  The file may be
    read by whom the umask lets, whatever the function does (safetensors makes private files).

    Raises:
        ValueError: the disk is full, or refuses; the name then holds what it held before.
    """
    _sweep(path)
    # In a folder, because safetensors makes temporary files of its own beside the one it writes.
    folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary = folder / path.name
    try:
        folder.mkdir()
        temporary.touch()
        mode = temporary.stat().st_mode
        temporary.write_text(content) if isinstance(content, str) else content(temporary)
        if temporary.stat().st_mode != mode:
            temporary.chmod(mode)
        sync(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} could not be written: {error}. What was finished is kept: make room, or "
            "choose a place that can be written, and run the same command again."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Delete what a killed writer of the file ``path`` left beside it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*.tmp"):
        remove(left)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


LOCK = ".lock"
# How a place is written: by one, and another is refused; by one after another; by several at once.
ALONE, IN_TURN, TOGETHER = (
    fcntl.LOCK_EX | fcntl.LOCK_NB,
    fcntl.LOCK_EX,
    fcntl.LOCK_SH | fcntl.LOCK_NB,
)


@contextlib.contextmanager
def sole_writer(path: Path, work: str, how: int = ALONE) -> Iterator[None]:
    """Be the one process that writes the file or folder ``path`` until the block ends.

    The lock is on a hidden file beside it, which goes at the end: ``.NAME.lock``, or ``.lock`` in a
    folder that lies where nothing may be made.  The system frees the lock of a process that ends in
    any way.  Some file systems of clusters have no locks; there a second process is not noticed.

    Args:
        path: may be missing; the folder above it is made.
        work: the command that writes, for the error of another.
        how: ``IN_TURN`` waits for another; those that write ``TOGETHER`` refuse only one that
            would be alone, and it them.

    Raises:
        ValueError: another process is writing it, named in the error; or nothing can be written.
    """
    place = path.resolve()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = not place.is_dir() or os.access(place.parent, os.W_OK)
        lock = place.with_name(f".{place.name}{LOCK}") if beside else place / LOCK
        file = _locked(lock, how)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error}. Choose another place.") from error
    if isinstance(file, str):
        raise ValueError(
            f"{file or 'another process'} is writing {path}: wait for it, stop it, or choose "
            "another place."
        )
    with file:
        file.truncate(0)
        file.write(f"{work} (process {os.getpid()} on {socket.gethostname()})\n")
        file.flush()
        _sweep(place)
        try:
            yield
        finally:
            if _lock(file, ALONE):  # nobody else is left
                lock.unlink(missing_ok=True)


def _lock(file: TextIO, how: int) -> bool:
    """Lock an open file; False when another process has it.  Where there are no locks, True."""
    try:
        fcntl.flock(file, how)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


def _locked(lock: Path, how: int) -> TextIO | str:
    """The lock file, open and locked; what is written in it when another process has it."""
    while True:
        file = lock.open("a+")
        if not _lock(file, how):
            with file:
                file.seek(0)
                return file.read().strip()
        # One that its last owner deleted between the two lines is locked by nobody.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
        file.close()


@contextlib.contextmanager
def new_folder(folder: Path, work: str) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` at the end of the block: whole or not at all.

    Args:
        folder: missing or empty.
        work: the command that writes, for the error of another.

    Raises:
        ValueError: it holds something, or another process is writing it.
    """
    with sole_writer(folder, work):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} holds something, nothing was written: choose another.")
        temporary = folder.resolve().with_name(f".{folder.resolve().name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def plain(value: Any) -> Any:
    """A tree of mappings and sequences as JSON values; other objects by their text."""
    return json.loads(json.dumps(value, default=repr))


def claim_folder(
    folder: Path,
    protocol: dict[str, Any],
    overwrite: bool | None = None,
    record: str = "protocol.json",
    option: str = "--out-dir",
    alone: bool = True,
) -> Path:
    """Make ``folder`` that of ``protocol``; refuse one that belongs to another or to nothing known.

    Args:
        folder: is made.
        protocol: JSON values that decide what will be in the folder.
        overwrite: empty a folder of another protocol; None: the command has no such option.
        record: file of the folder that keeps the protocol.
        option: what the user gave the folder with, for errors.
        alone: the caller holds the lock alone, and what killed ones left half written is deleted.

    Raises:
        ValueError: naming what differs; nothing was written.
    """
    path = folder / record
    if path.is_file():
        there = current_names(read_json(path))
        if overwrite and there != protocol:
            for old in folder.iterdir():
                if old.name != LOCK:
                    remove(old)
            there = protocol
        for key in {**protocol, **there}:
            if there.get(key) != protocol.get(key):
                instead = "" if overwrite is None else "--overwrite it, "
                raise ValueError(
                    f"{folder} was made with {key} {there.get(key)}, this is {protocol.get(key)}: "
                    f"nothing was overwritten. Choose another {option}, {instead}or delete it."
                )
    elif holds_files(folder):
        raise ValueError(
            f"{folder} holds other files, nothing was written: choose another {option}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(protocol, indent=2) + "\n")
    for left in list(folder.rglob(".*.tmp")) if alone else ():
        remove(left)
    return folder


def holds_files(folder: Path) -> bool:
    """Whether there is a folder with something in it, other than locks and what a kill left."""
    return folder.exists() and any(not p.name.startswith(".") for p in folder.iterdir())


def refuse_inside(out: str | Path, source: str | Path, option: str) -> None:
    """Refuse to write into a folder that is read, where the result would count as data next time.

    Raises:
        ValueError: naming both, and the ``option`` to change.
    """
    if Path(source).is_dir() and Path(out).resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(
            f"{out} lies in {source}, which is read: name another folder with {option}."
        )


def asset_path(name: str, folder: str = "assets") -> Path:
    """A file that ships with ucgm: inside the package in a wheel, beside it in a checkout."""
    package = Path(str(files("ucgm")))
    places = package / folder / name, package.resolve().parent / folder / name
    for place in places:
        if place.is_file():
            return place
    raise ValueError(
        f"{name} is missing: looked for {places[0]} and {places[1]}. Reinstall ucgm, or in a "
        f"checkout run `git checkout -- {folder}`."
    )
