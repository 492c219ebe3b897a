"""`ucgm plot`: what it reads, what it draws, what it refuses."""

import json
import math

import pytest
from PIL import Image

from ucgm.cli import commands as cli
from ucgm.training.plot import curve, names_of, profile, read_metrics


def log(folder, count, **more):
    folder.mkdir(parents=True)
    rows = [
        {"step": 10 * i, "loss": 1.0 / i, "grad_norm": 0.1 * i, "lr": 1e-3} | more
        for i in range(1, count + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_runs_against_each_other(tmp_path, capsys):
    one, two = log(tmp_path / "a", 5), log(tmp_path / "b c,d", 1, images_per_second=7.0)
    out = tmp_path / "new" / "curves.png"
    cli.main(["plot", str(one), str(two), "--out", str(out)])
    said = capsys.readouterr().out
    assert "a: step 50  loss 0.2" in said and "b c,d: step 10  loss 1" in said
    with Image.open(out) as picture:
        four = picture.size
        assert (
            picture.format == "PNG"
            and len({color for _, color in picture.convert("RGB").getcolors(2**24)}) > 10
        )
    cli.main(["plot", str(one), "--out", str(out), "--keys", "loss"])
    with Image.open(out) as picture:
        assert picture.width < four[0] and picture.height < four[1]
    assert [p.name for p in out.parent.iterdir()] == ["curves.png"]


def test_two_runs_are_two_colours(tmp_path):
    colours = []
    for count in (1, 2):
        runs = [str(log(tmp_path / f"{count}{i}", 3 + i)) for i in range(count)]
        cli.main(["plot", *runs, "--out", str(tmp_path / "x.png"), "--keys", "loss"])
        with Image.open(tmp_path / "x.png") as picture:
            pixels = {color for _, color in picture.convert("RGB").getcolors(2**24)}
        colours.append(((31, 119, 180) in pixels, (255, 127, 14) in pixels))
    assert colours == [(True, False), (True, True)]


def test_a_line_that_is_being_written_and_numbers_that_are_none(tmp_path):
    run = log(tmp_path / "a", 3, loss=float("nan"))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    rows = read_metrics(run)
    assert len(rows) == 3
    steps, values = curve(rows, "loss")
    assert steps == [10, 20, 30] and all(math.isnan(v) for v in values)
    assert curve(rows, "other") == ([], [])
    cli.main(["plot", str(run), "--out", str(tmp_path / "x.png")])
    content = (run / "metrics.jsonl").read_text().replace('"step": 20', '"step"')
    (run / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match="line 2 is damaged"):
        read_metrics(run)


def test_loss_over_the_times_is_the_mean_of_the_last_tenth(tmp_path):
    """Bins that were empty are left out of a mean; a bin that never held a row is a gap."""
    run = log(tmp_path / "a", 20)
    rows = [
        row | {"loss_by_time": [float(i), None if i == 19 else 2.0, None]}
        for i, row in enumerate(read_metrics(run))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    times, values = profile(read_metrics(run), "loss_by_time")
    assert times == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    assert values[:2] == [18.5, 2.0] and math.isnan(values[2])
    assert profile(rows[:1], "other") == ([], [])
    other = log(tmp_path / "b", 2)  # a run that has just begun, of a version without this number
    out = tmp_path / "x.png"
    cli.main(["plot", str(run), str(other), "--out", str(out)])
    with Image.open(out) as picture:
        default = picture.size
    cli.main(["plot", str(run), str(other), "--out", str(out), "--keys", "loss_by_time"])
    with Image.open(out) as picture:
        assert picture.width < default[0]
        assert (31, 119, 180) in {c for _, c in picture.convert("RGB").getcolors(2**24)}


def test_names_tell_runs_apart(tmp_path):
    assert names_of([tmp_path / "x" / "a", tmp_path / "y" / "b"]) == ["a", "b"]
    assert names_of([tmp_path / "x" / "a", tmp_path / "y" / "a"]) == ["x/a", "y/a"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["none"], "is it a run folder"),
        (["empty"], "has no line yet"),
        (["run", "--keys", "los"], "there are grad_norm, loss, lr"),
        (["run", "--out", "x.pdf"], "name it with .png"),
        ([], "runs"),
    ],
)
def test_bad_input(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    log(tmp_path / "run", 2)
    log(tmp_path / "empty", 0)
    with pytest.raises(SystemExit) as stop:
        cli.main(["plot", *words])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "run"]
