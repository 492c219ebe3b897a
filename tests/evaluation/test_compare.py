import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.digits_oracle import Affine, Memoriser, make_run
from ucgm.evaluation.benchmark import benchmark
from ucgm.evaluation.compare import T_975, compare_run, half_width
from ucgm.evaluation.scoring import MetricConfig
from ucgm.generation.samples import SamplingConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*samples for 32 features")
METRICS = MetricConfig(metrics=("fid", "accuracy"))


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Two runs, three repeats, names that try to be markup."""
    folders = []
    for name, network in (("a", Memoriser()), ("b", Affine())):
        run = make_run(tmp_path_factory.mktemp("runs") / name, network)
        folders.append(Path(benchmark(run, (1, 2, 10), 60, 3, metrics_config=METRICS)["folder"]))
    path = folders[1] / "benchmark.json"
    report = json.loads(path.read_text())
    path.write_text(json.dumps(report | {"name": "</script><b>"}))
    return [str(folder) for folder in folders]


def test_paired_differences_and_intervals(reports, tmp_path):
    compare_run(reports, str(tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    rows = [json.loads(open(f"{folder}/benchmark.json").read())["rows"] for folder in reports]
    first = [
        b["scores"]["fid"] - a["scores"]["fid"]
        for a, b in zip(*rows, strict=True)
        if a["steps"] == 1
    ]
    assert len(first) == 3
    row = found["differences"][0]
    assert row["steps"] == 1 and row["repeats"] == 3
    assert row["difference"] == pytest.approx(sum(first) / 3)
    assert row["half_width"] == pytest.approx(half_width(first)) and row["half_width"] > 0
    curves = Image.open(tmp_path / "out" / "curves.png")
    assert curves.width > 500 and curves.height > 0.9 * curves.width  # with samples of both below


def test_the_interval_covers():
    """2,000 means of three normal numbers: the 95 % interval holds the truth in 95 %."""
    import torch

    draws = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)).tolist()
    inside = sum(abs(sum(v) / 3) <= half_width(v) for v in draws)
    assert abs(inside / 2000 - 0.95) < 0.02
    assert half_width([1.0]) is None
    assert half_width([0.0, 1.0] * 10) == pytest.approx(2.093 * 0.51299 / 20**0.5, rel=2e-3)
    assert list(T_975) == sorted(T_975, reverse=True)


def test_one_repeat_has_no_interval_and_says_so(tmp_path, capsys):
    folders = []
    for name, network in (("a", Memoriser()), ("b", Affine())):
        run = make_run(tmp_path / name, network)
        folders.append(benchmark(run, (1,), 60, metrics_config=METRICS)["folder"])
    path = compare_run(folders, str(tmp_path / "out"), metric="accuracy")
    said = "One repeat has no interval: benchmark all with --repeats 3."
    assert said in capsys.readouterr().out and said in path.read_text()
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [row["half_width"] for row in found["differences"]] == [None]


def test_numbers_that_do_not_compare_are_refused(reports, tmp_path):
    run = make_run(tmp_path / "run", Affine())
    other = benchmark(run, (1,), 60, metrics_config=METRICS, settings=SamplingConfig(seed=1))[
        "folder"
    ]
    with pytest.raises(ValueError, match="repeats differs: 3 in .*1 in"):
        compare_run([reports[0], other], str(tmp_path / "out"))
    fewer = benchmark(run, (1,), 50, 3, metrics_config=METRICS)["folder"]
    with pytest.raises(ValueError, match="num_samples differs: 60 in .*50 in"):
        compare_run([reports[0], fewer], str(tmp_path / "out"))
    with pytest.raises(ValueError, match="has no kid"):
        compare_run(reports, str(tmp_path / "out"), metric="kid")
    with pytest.raises(ValueError, match="at least two"):
        compare_run(reports[:1], str(tmp_path / "out"))
    with pytest.raises(ValueError, match="is no report"):
        compare_run([reports[0], str(tmp_path)], str(tmp_path / "out"))
    changed = json.loads(open(f"{reports[1]}/benchmark.json").read())
    for key, value in (("extractor", "sha256"), ("reference", "sha256")):
        wrong = json.loads(json.dumps(changed))
        (wrong["references"][0] if key == "reference" else wrong["protocol"][key])[value] = "00"
        (tmp_path / "benchmark.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=f"{key} differs: "):
            compare_run([reports[0], str(tmp_path)], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_held_out_distances_compare_with_one_held_out_reference_only(reports, tmp_path):
    folders = []
    for name, sha in (("a", "00"), ("b", "11")):
        report = json.loads((Path(reports[0]) / "benchmark.json").read_text())
        report["references"][1]["sha256"] = sha
        report["metrics"] = ["fid", "fid_heldout", "fdr", "sw", "swr"]
        for row in report["rows"]:
            row["scores"] |= dict.fromkeys(report["metrics"][1:], 1.0)
        report["real"] = None
        shutil.copytree(reports[0], tmp_path / name)
        (tmp_path / name / "benchmark.json").write_text(json.dumps(report))
        folders.append(str(tmp_path / name))
    for metric in ("fid", "sw"):
        compare_run(folders, str(tmp_path / metric), metric=metric)
    for metric in ("fid_heldout", "fdr", "swr"):
        with pytest.raises(ValueError, match="reference differs: "):
            compare_run(folders, str(tmp_path / "out"), metric=metric)


def test_numbers_stay_under_their_heads_when_runs_have_other_metrics(reports, tmp_path):
    run = make_run(tmp_path / "run", Affine())
    other = benchmark(run, (1, 2), 60, 3, metrics_config=MetricConfig(metrics=("accuracy",)))[
        "folder"
    ]
    path = compare_run([reports[0], other], str(tmp_path / "out"), metric="accuracy")
    data = json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.S)[1])
    rows = [dict(zip(data["head"], row, strict=True)) for row in data["rows"]]
    fids = {row["FID"] == "-" for row in rows if row["run"] == "run"}
    assert fids == {True} and {row["FID"] == "-" for row in rows if row["run"] == "a"} == {False}
    assert all(float(row["accuracy"].split()[0]) <= 1 for row in rows)


def test_pages_load_nothing_and_escape(reports, tmp_path):
    path = compare_run(reports, str(tmp_path / "out"))
    text = path.read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//)""", text)
    assert "<b>" not in text.split("<script", 1)[0]  # the title is escaped
    assert text.count("</script>") == 2  # the name in the data does not end the element
    assert "&lt;/script&gt;&lt;b&gt;" in text


CHECKS = """
<script>
const out = {};
try {
  const cells = column => [...document.querySelectorAll("#scores tbody tr")]
    .map(row => row.cells[column].textContent);
  out.heads = [...document.querySelectorAll("#scores th")].map(th => th.textContent);
  out.before = cells(1);
  const fid = out.heads.indexOf("FID");
  document.querySelectorAll("#scores th button")[fid].click();
  out.up = cells(fid);
  document.querySelectorAll("#scores th button")[fid].click();
  out.down = cells(fid);
  const buttons = [...document.querySelectorAll(".steps button")];
  out.steps = buttons.map(button => button.textContent);
  buttons[2].click();
  const grids = [...document.querySelectorAll("#grids img")];
  await new Promise(done => setTimeout(done, 500));
  out.grids = grids.map(image => image.naturalWidth);
  out.captions = [...document.querySelectorAll("#grids figcaption")].map(c => c.textContent);
  out.pressed = buttons.map(button => button.getAttribute("aria-pressed"));
  grids[0].click();
  const dialog = document.querySelector("dialog"), large = dialog.querySelector("img");
  out.open = dialog.open;
  const width = parseFloat(large.style.width);
  dialog.dispatchEvent(new WheelEvent("wheel", {deltaY: -1, cancelable: true}));
  out.zoom = parseFloat(large.style.width) / width;
  large.click();
  out.closed = !dialog.open;
  out.strips = document.querySelectorAll("#strips img").length;
  out.curve = document.getElementById("curve").naturalWidth;
  out.differences = document.querySelectorAll("#differences tbody tr").length;
  out.differs = [...document.querySelectorAll("#protocol td.differs")].length;
  out.injected = document.querySelectorAll("b").length;
} catch (error) { out.error = String(error); }
document.body.append(Object.assign(document.createElement("pre"),
  {id: "out", textContent: JSON.stringify(out)}));
</script>
"""


def in_browser(path, tmp_path):
    """What the checks found in the page, by headless Chromium."""
    browser = next(
        (p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None
    )
    if browser is None:
        pytest.skip("no Chromium on this machine")
    copy = tmp_path / "checked.html"
    late = CHECKS.replace("<script>", "<script>window.addEventListener('load', async () => {", 1)
    late = "});</script>".join(late.rsplit("</script>", 1))
    copy.write_text(path.read_text().replace("</body>", late + "</body>"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [
        f"--user-data-dir={tmp_path}/profile",
        "--virtual-time-budget=5000",
        f"file://{copy}",
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    found = re.search(r'<pre id="out">(.*?)</pre>', dom, re.S)
    assert found, dom[-500:]
    result = json.loads(html.unescape(found[1]))
    assert "error" not in result, result
    return result


@pytest.mark.slow
def test_comparison_page_in_a_browser(reports, tmp_path):
    found = in_browser(compare_run(reports, str(tmp_path / "out")), tmp_path)
    assert found["heads"][:3] == ["run", "steps", "NFE"] and found["steps"] == ["1", "2", "10"]
    numbers = [float(text.split()[0]) for text in found["up"]]
    assert numbers == sorted(numbers) and len(numbers) == 8  # two runs, three steps and real
    assert [float(text.split()[0]) for text in found["down"]] == sorted(numbers, reverse=True)
    assert found["grids"] == [491, 491]  # two runs side by side
    assert found["captions"] == ["a, 10 steps", "</script><b>, 10 steps"]
    assert found["pressed"] == ["false", "false", "true"]
    assert found["open"] and found["closed"] and found["zoom"] == pytest.approx(1.25)
    assert found["strips"] == 2 and found["curve"] > 500 and found["differences"] == 1
    assert found["differs"] > 0 and found["injected"] == 0


@pytest.mark.slow
def test_report_page_in_a_browser(reports, tmp_path):
    found = in_browser(Path(reports[0]) / "benchmark.html", tmp_path)
    assert found["grids"] == [491] and found["strips"] == 1 and found["differences"] == 0
    assert found["differs"] == 0 and found["open"] and found["closed"]
