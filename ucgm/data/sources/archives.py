"""Files in a folder or in a zip, by relative name: one interface for both.

Hidden files and what systems leave in folders are passed over.  A link stands for the file or the
folder it leads to, which then may not be listed a second time.
"""

import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST = 2**30  # bytes of one item; more is no image
_LEFT_BEHIND = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found")


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def read_file(path: str | Path) -> bytes:
    """Content of a file that somebody else named.

    Raises:
        OSError: it cannot be read, is a pipe or a device, or is too large for an item.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
            raise OSError(f"{path} is no regular file, or larger than {LARGEST:,} bytes")
        return file.read(found.st_size)


class FolderFiles:
    """Files under a folder, by relative name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> Iterator[str]:
        """Relative names of all files, and of empty folders with a slash behind.

        Raises:
            OSError: a folder cannot be read.
            ValueError: naming a pipe, a device, or a link that leads nowhere or to what is listed.
        """
        root, waiting = os.path.realpath(self.root), [""]
        folders: dict[str, str] = {}  # by where they really are
        links: dict[str, str] = {}
        while waiting:
            prefix = waiting.pop()
            real = os.path.realpath(self.root / prefix)
            first = folders.setdefault(real, prefix)
            if first != prefix or os.path.join(root, "").startswith(os.path.join(real, "")) != (
                prefix == ""
            ):
                raise ValueError(f"{prefix} in {self.root} leads to a folder that is listed.")
            with os.scandir(self.root / prefix) as entries:
                found = [entry for entry in entries if not _passed_over(entry.name)]
            if prefix and not found:
                yield prefix
            for entry in found:
                name = prefix + entry.name
                if entry.is_dir():
                    waiting.append(name + "/")
                    continue
                if not entry.is_file():
                    raise ValueError(
                        f"{name} in {self.root} is a pipe, a device, or a link that leads nowhere: "
                        "take it out, or bring back what it leads to."
                    )
                if entry.is_symlink():
                    target = os.path.realpath(entry.path)
                    if links.setdefault(target, name) != name:
                        raise ValueError(f"{name} in {self.root} is {links[target]} once more.")
                yield name
        for target, name in links.items():
            folder, file = os.path.split(target)
            if folder in folders and not _passed_over(file):
                raise ValueError(
                    f"{name} in {self.root} is {folders[folder]}{file} once more: remove the link."
                )

    def read(self, name: str) -> bytes:
        """Content of one file."""
        return read_file(self.root / name)

    def state(self, name: str) -> str:
        """What changes when the file is written again: size and time."""
        found = os.stat(self.root / name)
        return f"{found.st_size} {found.st_mtime_ns}"


class ZipFiles:
    """Members of a zip; every process opens its own handle."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the handle."""
        return {"path": self.path, "_open": None}

    def _archive(self) -> zipfile.ZipFile:
        if self._open is None or self._open[0] != os.getpid():
            try:
                self._open = os.getpid(), zipfile.ZipFile(self.path)
            except Exception as error:  # zipfile, struct and codecs have their own
                raise ValueError(f"{self.path} is no complete zip file: {error}") from error
        return self._open[1]

    def names(self) -> Iterator[str]:
        """Names of all members.

        Raises:
            ValueError: naming one that lies in no folder of the archive.
        """
        for name in self._archive().namelist():
            parts = name.split("/")
            if ".." in parts or parts[0] == "" or "\\" in name:
                raise ValueError(
                    f"{self.path} holds {name!r}: names must be relative, with slashes and "
                    "without '..'. Pack it again."
                )
            if not any(map(_passed_over, parts)):
                yield name

    def read(self, name: str) -> bytes:
        """Content of one member; damage of the archive itself is an OSError."""
        archive = self._archive()
        try:
            if archive.getinfo(name).file_size > LARGEST:
                raise OSError(f"it is larger than {LARGEST:,} bytes")
            return archive.read(name)
        except Exception as error:  # zipfile and its decompressors have their own
            raise OSError(f"{self.path} is damaged at {name}: {error}") from error

    def state(self, name: str) -> str:
        """What changes when the member is written again: size and CRC."""
        found = self._archive().getinfo(name)
        return f"{found.file_size} {found.CRC}"
