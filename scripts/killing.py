"""Processes that are forked to be killed.

The parent has imported everything and started no thread, so that a life costs a second and not ten.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch


def refuse_threads() -> None:
    """End the program where there are threads, which a fork does not take along.

    That of pyarrow's allocator, which knows of forks, does not count.
    """
    found = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    names = [name for name in found if name != "jemalloc_bg_thd"]
    if len(names) > 1:
        sys.exit(f"threads {names} before the first fork: set OMP_NUM_THREADS=1")


def fork(work: Callable[[], object], log: Path) -> int:
    """Start a process that does ``work``, and appends what it prints to ``log``; returns its id."""
    child = os.fork()
    if child:
        return child
    code: int | str | None = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        # torch replaces its pool of threads at the first use after a fork, and two threads that are
        # the first at once would end the process.
        torch.set_num_threads(1)
        work()
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 0)


def end(child: int, delay: float | None = None) -> int:
    """Exit code of ``child``, which is killed after ``delay`` seconds unless it ends before."""
    deadline = None if delay is None else time.monotonic() + delay
    while True:
        done, status = os.waitpid(child, 0 if deadline is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.001)
