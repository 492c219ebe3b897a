"""Files in a folder or in a zip, by relative name: one interface for both."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class FolderFiles:
    """Files under a folder, by relative name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> Iterator[str]:
        """Relative names of all files, and of empty folders with a slash behind."""
        for folder, folders, files in os.walk(self.root, followlinks=True):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            relative = Path(folder).relative_to(self.root).as_posix()
            prefix = "" if relative == "." else relative + "/"
            yield from (prefix + file for file in files if not file.startswith("."))
            if prefix and not folders and not files:
                yield prefix

    def read(self, name: str) -> bytes:
        """Content of one file."""
        return (self.root / name).read_bytes()

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
            self._open = os.getpid(), zipfile.ZipFile(self.path)
        return self._open[1]

    def names(self) -> Iterator[str]:
        """Names of all members."""
        yield from (n for n in self._archive().namelist() if "/." not in f"/{n}")

    def read(self, name: str) -> bytes:
        """Content of one member; damage of the archive itself is an OSError."""
        try:
            return self._archive().read(name)
        except (zipfile.BadZipFile, EOFError, KeyError) as error:
            raise OSError(f"{self.path} is damaged at {name}: {error}") from error

    def state(self, name: str) -> str:
        """What changes when the member is written again: size and CRC."""
        found = self._archive().getinfo(name)
        return f"{found.file_size} {found.CRC}"
