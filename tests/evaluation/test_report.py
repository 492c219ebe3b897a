"""The report: its first sentence, best values, labels, and what strangers put into it."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from scripts.browser import Browser, find_chromium
from tests.digits_oracle import Affine, Memoriser, make_run
from ucgm.evaluation.benchmark import benchmark
from ucgm.evaluation.compare import compare_run, distinct
from ucgm.evaluation.report.figures import save_curves
from ucgm.evaluation.report.saved import read_report
from ucgm.evaluation.report.tables import headline, table
from ucgm.evaluation.scoring import MetricConfig
from ucgm.generation.samples import SamplingConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*samples for 32 features")


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.S)[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run at 1, 2 and 10 steps, two repeats."""
    run = make_run(tmp_path_factory.mktemp("runs") / "run", Memoriser())
    chosen = MetricConfig(metrics=("fid", "accuracy"))
    settings = SamplingConfig(classes=(3, 7))
    found = benchmark(run, [1, 2, 10], 60, 2, settings=settings, metrics_config=chosen)
    return Path(found["folder"])


def report_of(scores, name="a", metrics=("fid",), repeats=1):
    """A report of such scores, {steps: value}."""
    row = {"repeat": 0, "nfe": 1.0, "images_hash": "0", "images_per_second": None}
    return {
        "name": name,
        "nfe_convention": "",
        "metrics": list(metrics),
        "machine": {},
        "protocol": {
            "num_samples": 60,
            "repeats": repeats,
            "labels": "balanced",
            "extractor": {"name": "digits", "sha256": "0"},
        },
        "references": [{"extractor": "digits", "name": "r", "sha256": "0"}],
        "rows": [
            {"steps": steps, **row, "scores": dict.fromkeys(metrics, value)}
            for steps, value in scores.items()
        ],
        "real": None,
    }


def test_the_page_says_the_result_first_and_opens_on_it(folder):
    data = data_of(folder / "benchmark.html")
    rows = json.loads((folder / "benchmark.json").read_text())["summary"]
    best = min(rows, key=lambda row: row["scores"]["fid"]["mean"])
    score = best["scores"]["fid"]
    value = f"{score['mean']:.3f} ± {score['std']:.3f} (min {score['min']:.3f})"
    assert data["headline"] == f"The best FID is {value}, at {best['steps']} steps of run."
    assert data["best"] == best["steps"] == 10
    fid = data["head"].index("FID")
    assert [row for row, column in data["bold"] if column == fid] == [2]
    assert f"**{value}**" in (folder / "benchmark.md").read_text()
    (run,) = data["runs"]
    assert run["rows"] == ["1 step", "2 steps", "10 steps"]
    assert run["columns"] == ["class 3", "class 7"]
    assert Image.open(folder / "strip.png").size == (2 * 49 + 1, 3 * 49 + 1)
    assert set(run["grids"]) == {"1", "2", "10"}


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_nothing_is_cut_off_or_fetched(folder, tmp_path, width):
    """With a strip of ten classes, which a telephone scrolls."""
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium: name one in UCGM_CHROMIUM, or put chromium on the PATH")
    text = (folder / "benchmark.html").read_text()
    ten = json.dumps([f"class {k}" for k in range(10)])
    text, found = re.subn(r'("columns": )\[.*?\]', rf"\1{ten}", text)
    (tmp_path / "page.html").write_text(text)
    with Browser(program) as browser:
        assert found == 1
        browser.open((tmp_path / "page.html").as_uri(), width)
        browser.until("[...document.images].filter(i => i.src && i.complete).length == 3")
        assert browser.run("document.getElementById('headline').textContent").startswith("The best")
        assert browser.run("document.documentElement.scrollWidth") <= width
        browser.click("10")
        browser.until("document.querySelector('#grids figcaption').textContent == 'run, 10 steps'")
        fetched = [r for r in browser.requests if not r.startswith(("file:", "data:", "about:"))]
        assert fetched == [] and browser.console == []


def test_best_is_small_for_distances_and_large_for_shares():
    runs = {
        "a": report_of({1: 0.9, 4: 0.3}, metrics=("fid", "recall")),
        "b": report_of({1: 0.5, 2: 0.4}, metrics=("fid", "recall")),
    }
    head, cells, bold = table(runs)
    assert head == ["run", "steps", "NFE", "FID", "recall", "images/s"]
    assert sorted(bold) == [(0, 4), (1, 3)] and cells[1][3] == "0.300" and cells[0][4] == "0.900"
    assert headline(runs, "fid") == ("The best FID is 0.300, at 4 steps of a.", 4)
    assert headline(runs, "recall") == ("The best recall is 0.900, at 1 step of a.", 1)


def test_ticks_are_plain_numbers(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    texts, whole = [], Figure.savefig

    def note(figure, *args, **kwargs):
        whole(figure, *args, **kwargs)
        texts.append([label.get_text() for label in figure.axes[0].get_yticklabels(which="both")])

    monkeypatch.setattr(Figure, "savefig", note)
    for values in ({1: 30.0, 2: 3.0, 4: 0.3}, {1: 0.34, 2: 0.31}):
        save_curves({"a": report_of(values)}, ["fid"], tmp_path / "c.png")
    wide, narrow = ([text for text in found if text] for found in texts)
    assert {"0.2", "0.5", "1", "20"} <= set(wide) and len(narrow) >= 3
    assert all(re.fullmatch(r"[\d.]+", text) for text in (*wide, *narrow))


def written(folder, report):
    folder.mkdir()
    (folder / "benchmark.json").write_text(json.dumps(report))
    return str(folder)


HOSTILE = (
    "__DATA__",
    "</script><img src=x onerror=alert(1)>",
    "__TITLE__",
    "$x^$",
    "a\x1b[2J\ud800",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_and_protocols_stay_text(tmp_path, name):
    hostile = report_of({1: 2.0, 2: 1.0}, name)
    hostile["protocol"]["sampler"] = {"order": "<img src=x onerror=alert(1)>", "__DATA__": name}
    hostile["references"][0]["name"] = name
    folders = [written(tmp_path / "a", hostile), written(tmp_path / "b", report_of({2: 3.0}))]
    page = compare_run(folders, str(tmp_path / "out"))
    text = page.read_text()
    assert "<img src=x" not in text and text.count("</script>") == 2
    data = data_of(page)
    assert data["runs"][0]["name"] == name and data["runs"][0]["strip"] is None
    assert data["headline"] == f"The best FID is 1.000, at 2 steps of {name}."
    assert ["sampler.order", "<img src=x onerror=alert(1)>", "-"] in data["protocol"]
    assert data["differences"]["rows"] == [["a", "+2.0000"]]


def test_the_terminal_shows_a_matrix(tmp_path, capsys):
    first, second = report_of({1: 2.0, 2: 1.0, 8: 0.5}, "x"), report_of({1: 3.0, 8: 0.25}, "y")
    folders = [written(tmp_path / r["name"], r) for r in (first, second)]
    compare_run(folders, str(tmp_path / "out"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if line[0] == "|"]
    assert cells[0] == ["FID at steps", "1", "2", "8"]
    assert cells[2:4] == [["x", "2.000", "1.000", "0.500"], ["y", "3.000", "-", "0.250"]]
    assert cells[4][1:] == ["1", "8"] and cells[6] == ["y", "+1.0000", "-0.2500"]
    assert "The best FID is 0.250, at 8 steps of y." in lines


def test_the_terminal_of_a_benchmark_is_short(tmp_path, capsys):
    run = make_run(tmp_path / "run", Affine())
    benchmark(run, [1, 2], 60, metrics_config=MetricConfig(metrics=("fid",)), device="cpu")
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert sum(str(tmp_path) in line for line in lines) == 1 and "benchmark.html" in lines[-1]
    assert not any("Sampler" in line or "sha256" in line for line in lines)
    assert any(line.startswith("The best FID is ") for line in lines) and len(lines) < 12


WRONG = (
    ("name", 5),
    ("name", None),
    ("name", ["a"]),
    ("metrics", "fid"),
    ("metrics", []),
    ("metrics", ["fdd"]),
    ("rows", {}),
    ("rows", []),
    ("rows.0.steps", "1"),
    ("rows.0.steps", True),
    ("rows.0.nfe", float("nan")),
    ("rows.0.scores", None),
    ("rows.0.scores.fid", float("nan")),
    ("rows.0.scores.fid", "1"),
    ("protocol", []),
    ("protocol.num_samples", -1),
    ("protocol.extractor.name", None),
    ("protocol.more_extractors", [5]),
    ("references", [{}]),
    ("machine", None),
    ("real", {"scores": {"fid": None}}),
    ("strip", "class 1"),
)


@pytest.mark.parametrize("field, value", WRONG)
def test_a_wrong_field_is_named_with_its_file(tmp_path, field, value):
    report = place = report_of({1: 2.0})
    *path, last = field.split(".")
    for key in path:
        place = place[int(key) if isinstance(place, list) else key]
    place[last] = value
    where = written(tmp_path / "x", report)
    with pytest.raises(ValueError) as caught:
        read_report(where)
    text = str(caught.value)
    assert f"{where}/benchmark.json" in text and "\n" not in text
    named = re.sub(r"\.(\d+)", r"[\1]", field)
    assert named in text
    if field != "strip" and field != "protocol.more_extractors":
        del place[last]
        (tmp_path / "x" / "benchmark.json").write_text(json.dumps(report))
        with pytest.raises(ValueError, match=re.escape(f"{last} is missing")):
            read_report(where)


def test_what_is_no_report_is_named(tmp_path):
    path = tmp_path / "benchmark.json"
    for text, reason in (
        ("{", "Expecting"),
        ("[1]", "holds a list"),
        ("[" * 5000 + "]" * 5000, "RecursionError"),
        ('{"a":' * 200 + "1" + "}" * 200, "too deep"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"benchmark.json.*{reason}"):
            read_report(str(tmp_path))
    with pytest.raises(ValueError, match="is no report: name a folder"):
        read_report(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no number of steps in common"):
        one, two = (written(tmp_path / n, report_of({k: 1.0}, n)) for n, k in (("a", 1), ("b", 2)))
        compare_run([one, two], str(tmp_path / "out"))
    assert distinct(["a", "a", "a (2)", "a"]) == ["a", "a (2)", "a (2) (2)", "a (3)"]
