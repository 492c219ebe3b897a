"""``ucgm ui``: the images of ``ucgm sample``, a page that asks no other machine for anything."""

import contextlib
import dataclasses
import html
import json
import re
import shlex
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.browser import Browser, find_chromium
from ucgm.cli import ui
from ucgm.cli.commands import main
from ucgm.generation.command import open_run, samples_of_run
from ucgm.generation.samples import SamplingConfig
from ucgm.generation.trial import Trial
from ucgm.runtime.randomness import RowRandom


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run whose network answers to everything, though it has learned little."""
    folder = tmp_path_factory.mktemp("ui") / "run"
    words = "--data Digits --train.steps 30 --train.global_batch 16 --optimizer.lr 0.01"
    size = "--model.hidden_size 32 --model.depth 1 --model.num_heads 2 --model.patch_size 4"
    words = f"{words} {size} --sampler.noise ddim --sampler.steps 4 --sampler.solver ucgm"
    main(["train", *words.split(), "--sampler.extrapolation", "0", "--run-dir", str(folder)])
    return folder


def trial_of(run_dir, words=(), **settings):
    run = open_run(str(run_dir), None, "ema", "cpu", list(words))
    return Trial(run, SamplingConfig(**settings), "cpu", words)


CASES = {
    "own": ({}, (0, (), 5, 0), {}, ()),
    "order": ({"solver": "adams", "order": 2, "steps": 6}, (3, (), 5, 4), {}, ()),
    "guidance": ({"guidance": 2.5, "extrapolation": -0.5}, (0, (3, 7), 5, 1), {}, ()),
    "noise": ({"stochasticity": 0.7}, (0, (), 5, 1), {}, ()),
    "two tiles": ({"solver": "heun", "guidance": 1.5}, (1, (), 9, 6), {"tile": 4}, ()),
    "words": ({"steps": 3}, (1, (), 5, 0), {"labels": "random"}, ("--guidance.scale", "2")),
    "bf16": (
        {"solver": "euler_maruyama", "stochasticity": 1.0},
        (0, (), 5, 0),
        {"precision": "bf16"},
        (),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_command_under_the_images_writes_the_same(case, run_dir, tmp_path):
    chosen, what, settings, words = CASES[case]
    trial = trial_of(run_dir, words, **settings)
    drawn = trial.draw(trial.start()._replace(**chosen), *what)
    main([*shlex.split(drawn.command)[1:], "--out-dir", str(tmp_path / "out")])
    files = sorted((tmp_path / "out/images").glob("*.png"))
    assert len(files) == what[2]
    for file, image in zip(files, drawn.images, strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), image[0].numpy()), file
    if case != "own":
        own = trial_of(run_dir).draw(trial_of(run_dir).start(), 0, (), what[2], 0)
        assert not torch.equal(own.images, drawn.images)


def test_the_filmstrip_is_x_hat_of_every_call(run_dir):
    """Against the trajectory of the sampler, of a sample in the second tile, under guidance."""
    trial = trial_of(run_dir, tile=4)
    choice = trial.start()._replace(guidance=2.0, stochasticity=0.5)
    drawn = trial.draw(choice, 5, (), 8, 6)
    settings = SamplingConfig(seed=5, tile=4, guidance_scale=2.0)
    samples = samples_of_run(trial.run, settings)
    sampler = dataclasses.replace(samples.sampler, stochasticity=0.5)
    indices = torch.arange(4, 8)
    random = RowRandom.for_samples(5, indices)
    noise, labels = random.normal(1, 8, 8), samples.labels_at(indices)
    states = list(sampler.trajectory(samples.network, noise, labels, random))
    assert drawn.times == [state.t for state in states] and len(states) == 4
    expected = trial.data.decode(torch.cat([state.x_hat[2:3] for state in states]))
    assert int((drawn.frames.int() - expected.int()).abs().max()) <= 1  # rounding of another order
    assert torch.equal(drawn.frames[-1], drawn.images[6])
    assert drawn.passes == 8.0 and drawn.labels == [0, 1, 2, 3, 4, 5, 6, 7]


def test_what_is_wrong_is_said_in_place_of_images(run_dir):
    trial = trial_of(run_dir)
    good = list(trial.start())
    for shared, values, said in (
        ((0, [], 4, 9), good, "choose from 0 to 3"),
        ((0, [10], 4, 0), good, "class 10 is out of range: choose from 0 to 9"),
        ((None, [], 4, 0), good, "seed"),
        ((0, [], 4, 0), [0, *good[1:]], "steps"),
        ((0, [], 4, 0), [*good[:3], 2, 0.5, 0.0], "has no stochastic form"),
        ((0, ["<i>"], 4, 0), good, "&lt;i&gt;"),
    ):
        shown = ui.show(trial, *shared, values)
        assert shown.startswith('<p role="alert">') and said in shown, shown


def test_names_of_a_stranger_are_text(run_dir):
    trial = trial_of(run_dir)
    trial.data.class_names = ("<script>alert(1)</script>",) * 10
    shown = ui.show(trial, 0, [], 2, 0, list(trial.start()))
    assert "<script>" not in shown and html.escape(trial.data.class_names[0]) in shown


def test_without_gradio_one_line(monkeypatch, capsys, run_dir):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as stop:
        main(["ui", str(run_dir)])
    line = 'ucgm ui: error: this page needs gradio: pip install "ucgm[ui]"\n'
    assert stop.value.code == 2 and capsys.readouterr().err == line


@pytest.fixture(scope="module")
def gradio():
    return pytest.importorskip("gradio", reason="gradio is not installed: pip install 'ucgm[ui]'")


@pytest.fixture
def strangers(monkeypatch):
    """Addresses beyond this machine that anything in this process asks for, all refused."""
    asked, look_up = [], socket.getaddrinfo

    def getaddrinfo(host, *rest, **more):
        name = host.decode() if isinstance(host, bytes) else host
        if name not in (None, "localhost", "127.0.0.1", "::1", "0.0.0.0"):
            asked.append(name)
            raise socket.gaierror(f"no network in this test: {name}")
        return look_up(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@contextlib.contextmanager
def served(run_dir):
    blocks = ui.page(trial_of(run_dir))
    address = ui.launch(blocks)
    try:
        yield address
    finally:
        blocks.close(verbose=False)


def test_the_page_answers_this_machine_and_asks_nobody(gradio, strangers, run_dir):
    import httpx

    def draw(address, *inputs):
        """The two outputs of the button; the library's own client reports to its makers."""
        calls = f"{address}gradio_api/call/draw"
        event = httpx.post(calls, json={"data": inputs}).json()["event_id"]
        answer = httpx.get(f"{calls}/{event}", timeout=60).text
        html = json.loads(re.search(r"event: complete\ndata: (.*)", answer)[1])
        return [re.sub(r"[\d.]+ seconds", "", part) for part in html]

    with served(run_dir) as address:
        assert address.startswith("http://127.0.0.1:")
        answer = httpx.get(address)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        own = list(trial_of(run_dir).start())
        one, none = draw(address, False, 0, [3], 4, 1, *own, 2, *own[1:])
        again, two = draw(address, True, 0, [3], 4, 1, *own, 2, *own[1:])
    assert none == "" and one == again != two
    assert one.count("<figure>") == 4 + 4 and two.count("<figure>") == 4 + 2
    assert "4 calls of the network, 4 passes per image" in one and "class 3" in one
    assert strangers == []


def test_another_address_must_be_asked_for(gradio, strangers, run_dir, monkeypatch, capsys):
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda self: self.close(verbose=False))
    main(["ui", str(run_dir), "--steps", "2"])
    said = capsys.readouterr().out
    assert re.search(r"^page: http://127\.0\.0\.1:\d+/  \(Ctrl-C", said, re.M)
    assert "warning" not in said
    main(["ui", str(run_dir), "--host", "0.0.0.0"])
    assert "warning: whoever reaches 0.0.0.0 can use this page" in capsys.readouterr().out
    with socket.socket() as taken, pytest.raises(SystemExit):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        main(["ui", str(run_dir), "--port", str(taken.getsockname()[1])])
    assert " of 127.0.0.1 cannot be had: choose another --port\n" in capsys.readouterr().err
    assert strangers == []


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(gradio, run_dir, tmp_path, width):
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium: name one in UCGM_CHROMIUM, or put chromium on the PATH")
    with served(run_dir) as address, Browser(program) as browser:
        browser.open(address, width)
        browser.click("Sample")
        browser.until("document.querySelectorAll('.sheet img').length == 8")
        browser.click("Compare with a second setting, from the same noise")
        browser.until("document.body.textContent.includes('Setting B')")
        browser.click("Sample")
        browser.until("document.querySelectorAll('.sheet img').length == 16")
        browser.until("[...document.images].every(i => i.complete && i.naturalWidth)")
        assert browser.run("document.documentElement.scrollWidth") <= width  # nothing is cut off
        browser.shoot(tmp_path / "page.png")
        beyond = [r for r in browser.requests if not r.startswith((address, "data:", "blob:"))]
        assert beyond in ([], ["about:blank"]) and browser.console == []
    assert Image.open(Path(tmp_path, "page.png")).width == width
