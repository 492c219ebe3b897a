"""Files on the disk: atomic writes, digests, locks and protocols of folders, files of ucgm."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

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
    """Write a file all or nothing: under a hidden temporary name, synced, then renamed.

    ``content`` is the text, or a function that writes to the path it is given.  The file may be
    read by whom the umask lets, whatever the function does (safetensors makes private files).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        temporary.write_text(content) if isinstance(content, str) else content(temporary)
        if temporary.stat().st_mode != mode:
            temporary.chmod(mode)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


LOCK = ".lock"


@contextlib.contextmanager
def lock_folder(folder: Path, work: str = "command") -> Iterator[None]:
    """Keep other processes from writing to ``folder``, which is made; ``FOLDER/.lock`` stays.

    The system frees the lock of a process that ends in any way.  Some file systems of clusters have
    no locks; there a second process is not noticed.

    Args:
        folder: is made.
        work: what is running in it, for the error.

    Raises:
        ValueError: another process is writing to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with contextlib.ExitStack() as held:
        while True:
            file = held.enter_context(path.open("a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    break
                file.seek(0)
                raise ValueError(
                    f"another {work} is running in {folder} ({file.read().strip()}): wait for it, "
                    f"stop it, or name another folder; if there is none, delete {path}"
                ) from None
            # A folder that its last owner deleted between the two lines is locked by nobody.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
                break
            folder.mkdir(parents=True, exist_ok=True)
        yield


def plain(value: Any) -> Any:
    """A tree of mappings and sequences as JSON values; other objects by their text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def claim_folder(
    folder: Path,
    protocol: dict[str, Any],
    overwrite: bool = False,
    record: str = "protocol.json",
    option: str = "out_dir",
) -> Path:
    """Make ``folder`` that of ``protocol``; refuse one that belongs to another or to nothing known.

    Args:
        folder: is made.
        protocol: JSON values that decide what will be in the folder.
        overwrite: empty a folder of another protocol.
        record: file of the folder that keeps the protocol.
        option: what the user gave the folder with, for errors.

    Raises:
        ValueError: naming what differs; nothing was written.
    """
    path = folder / record
    if path.is_file():
        there = current_names(read_json(path))
        if overwrite and there != protocol:
            for old in folder.iterdir():
                if old.name != LOCK:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            there = protocol
        for key in {**protocol, **there}:
            if there.get(key) != protocol.get(key):
                raise ValueError(
                    f"{folder} was made with {key} {there.get(key)}, this is {protocol.get(key)}: "
                    f"nothing was overwritten. Choose another {option}, or delete it."
                )
    elif folder.exists() and not all(
        p.name == LOCK or p.name.startswith(f".{record}") for p in folder.iterdir()
    ):
        raise ValueError(
            f"{folder} holds other files, nothing was written: choose another {option}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(protocol, indent=2) + "\n")
    return folder


def refuse_inside(out: str | Path, source: str | Path, option: str) -> None:
    """Refuse to write into a folder that is read, where the result would count as data next time.

    Raises:
        ValueError: naming both, and the ``option`` to change.
    """
    if Path(source).is_dir() and Path(out).resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(
            f"{out} lies in {source}, which is read: name another folder with {option}."
        )


def asset_path(name: str) -> Path:
    """A file that ships with ucgm: inside the package in a wheel, beside it in a checkout."""
    places = (
        Path(str(files("ucgm"))) / "assets" / name,
        Path(__file__).resolve().parents[2] / "assets" / name,
    )
    for place in places:
        if place.is_file():
            return place
    raise ValueError(
        f"{name} is missing: looked for {places[0]} and {places[1]}. Reinstall ucgm, or in a "
        "checkout run `git checkout -- assets`."
    )
