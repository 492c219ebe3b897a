"""Pictures of the pages in docs/pictures/: the report of a benchmark, and ``ucgm ui``.

    python scripts/screenshots.py RUN     # a run of the digits that was benchmarked

Needs gradio and a Chromium (UCGM_CHROMIUM, or chromium on the PATH).
"""

import sys
from pathlib import Path

from PIL import Image

REPO = Path(__file__).parents[1]
sys.path.insert(0, str(REPO))

from scripts.browser import Browser, find_chromium  # noqa: E402
from ucgm.cli import ui  # noqa: E402
from ucgm.generation.command import open_run  # noqa: E402
from ucgm.generation.samples import SamplingConfig  # noqa: E402
from ucgm.generation.trial import Trial  # noqa: E402

WIDTHS = {"desktop": 1280, "phone": 390}
PICTURES = REPO / "docs/pictures"
# Steps of the second setting, as a user would type them.
FEWER = """
(box => {
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(box, "2");
  const kinds = ["input", "change", "blur"];
  kinds.forEach(kind => box.dispatchEvent(new Event(kind, {bubbles: true})));
})([...document.querySelectorAll("input[type=number][aria-label*=Steps]")].at(-1))
"""
# What was drawn is pale until it is new.
FRESH = """
[...document.querySelectorAll(".drawn")].every(node => {
  for (; node; node = node.parentElement) if (getComputedStyle(node).opacity < 1) return false;
  return true;
})
"""

# No longer fading in.
SHOWN = """
[...document.querySelectorAll(".drawn")].every(part => {
  for (; part; part = part.parentElement) if (getComputedStyle(part).opacity != 1) return false;
  return true;
})
"""


def save(browser: Browser, name: str) -> None:
    """A picture of 256 colours."""
    path = PICTURES / f"{name}.png"
    browser.shoot(path)
    image = Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    print(f"{path}: {image.width} x {image.height}, {path.stat().st_size:,} bytes")


def main(run_dir: str) -> None:
    """Report and page at both widths."""
    program = find_chromium()
    if program is None:
        raise SystemExit("no Chromium: name one in UCGM_CHROMIUM, or put chromium on the PATH")
    PICTURES.mkdir(exist_ok=True)
    report = max(Path(run_dir).glob("benchmark/*/benchmark.html"), key=lambda p: p.stat().st_mtime)
    run = open_run(run_dir, None, "ema", "cpu")
    address = ui.launch(ui.page(Trial(run, SamplingConfig(), "cpu")))
    with Browser(program) as browser:
        for name, width in WIDTHS.items():
            browser.open(report.resolve().as_uri(), width)
            browser.until("document.readyState == 'complete'")
            save(browser, f"report_{name}")
            browser.open(address, width)
            browser.click("Compare with a second setting, from the same noise")
            browser.until("document.body.textContent.includes('Setting B')")
            browser.run(FEWER)
            browser.click("Sample")
            browser.until("document.querySelectorAll('.drawn').length == 2")
            browser.until(FRESH)
            save(browser, f"ui_{name}")


if __name__ == "__main__":
    main(sys.argv[1])
