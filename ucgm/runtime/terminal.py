"""What is printed cannot give orders to the terminal, whatever a name from a file holds."""

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

_COLOUR = re.compile(r"\x1b\[[\d;]*m")  # of libraries, which mean no harm


def printable(text: str) -> str:
    """``text`` with control and invisible characters, and halves of pairs, escaped."""
    if text.isprintable():
        return text
    text = _COLOUR.sub("", text)
    # A carriage return in the middle hides what stands before it; a progress line begins with one.
    start = len(text) - len(text.lstrip("\r"))
    kept = (c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text[start:])
    return text[:start] + "".join(kept)


class _Printable:
    """A stream that writes nothing but printable text."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(printable(text))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def printable_output() -> Iterator[None]:
    """Around a command: all that it prints, warns of and fails with passes :func:`printable`;
    a warning is one line, without the line of code that gave it.

    Of the processes of one job the first alone prints and warns; all of them fail aloud.
    """
    first = os.environ.get("RANK", "0") == "0"
    err: Any = _Printable(sys.stderr)
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n" if first else ""
    try:
        with contextlib.ExitStack() as stack:
            to = sys.stdout if first else stack.enter_context(Path(os.devnull).open("w"))
            out: Any = _Printable(to)
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            yield
    finally:
        warnings.formatwarning = before
