"""What every fuzzer asks for: an end in time, an error in one line, inputs as they were."""

import contextlib
import os
import signal
import stat

LIMIT = 10


@contextlib.contextmanager
def right_or_one_line():
    """Let pass what users see as one line; anything else, and whatever takes long, is a failure."""

    def late(*_):
        raise AssertionError(f"took more than {LIMIT} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        yield
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        assert text and len(text) < 1000, text
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def state_of(folder):
    """Names, kinds and bytes of everything in a folder; a pipe is not opened."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            mode = os.lstat(path).st_mode
            content = b""
            if stat.S_ISREG(mode):
                with open(path, "rb") as file:
                    content = file.read()
            found[os.path.relpath(path, folder)] = stat.S_IFMT(mode), content
    return found
