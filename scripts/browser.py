"""A headless Chromium over the DevTools protocol and a pipe, without more packages."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--no-zygote",
    "--in-process-gpu",
    "--enable-unsafe-swiftshader",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)
# The browser reads commands at descriptor 3 and answers at 4.
_START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def find_chromium():
    """The program that UCGM_CHROMIUM names, or one on the PATH; None without."""
    named = os.environ.get("UCGM_CHROMIUM")
    names = ("chromium", "chromium-browser", "google-chrome")
    return named or next((p for p in map(shutil.which, names) if p), None)


class Browser:
    """One page of a browser; ``requests`` are the addresses it asked for, ``refused`` the errors
    that pages wrote to the console.
    """

    def __init__(self, program, seconds=60):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        its_in, self.out = os.pipe()
        self.inp, its_out = os.pipe()
        flags = [*FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, str(its_in), str(its_out), program, *flags],
            pass_fds=(its_in, its_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_in), os.close(its_out)
        self.seconds, self.number, self.waiting, self.session = seconds, 0, b"", None
        self.requests, self.console = [], []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.inp), os.close(self.out)
        self.profile.cleanup()

    def ask(self, method, **parameters):
        """The result of a command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + self.seconds
        while (answer := self._next(end)).get("id") != self.number:
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            elif answer.get("method") == "Log.entryAdded":
                self.console.append(answer["params"]["entry"]["text"])
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _next(self, end):
        while b"\0" not in self.waiting:
            if not select.select([self.inp], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"no answer of the browser in {self.seconds} s")
            part = os.read(self.inp, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self.waiting += part
        message, _, self.waiting = self.waiting.partition(b"\0")
        return json.loads(message)

    def open(self, address, width, height=900):
        """Go to ``address`` in a window of ``width`` pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Page.navigate", url=address)

    def click(self, text):
        """Press the button, or tick the box, whose label is ``text``."""
        same = f"b => b.textContent.trim() == {text!r}"
        found = f"[...document.querySelectorAll('button, label')].find({same})"
        self.until(found)
        self.run(f"(b => (b.querySelector('input') || b).click())({found})")

    def run(self, script):
        """The value of a JavaScript expression."""
        done = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in done:
            raise RuntimeError(done["exceptionDetails"])
        return done["result"].get("value")

    def until(self, script):
        """Wait for an expression to be true."""
        end = time.monotonic() + self.seconds
        while not self.run(f"!!({script})"):
            if time.monotonic() > end:
                raise TimeoutError(f"not so in {self.seconds} s: {script}")
            time.sleep(0.1)

    def shoot(self, path):
        """A picture of the whole page as PNG."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(shot["data"]))
