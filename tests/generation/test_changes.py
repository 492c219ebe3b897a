"""Sampling and benchmarks take the sampler's settings as training does, and say what they made."""

import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ucgm import cli

RUN = Path(__file__).parents[1] / "earlier" / "files" / "multi"


@pytest.fixture
def run(tmp_path):
    return str(shutil.copytree(RUN, tmp_path / "run"))


def protocol(folder):
    return yaml.safe_load((folder / "protocol.json").read_text())


def test_settings_of_the_sampler_are_flags_and_files(run, tmp_path):
    (tmp_path / "s.yaml").write_text("sampler: {solver: heun, order: 1}\nguidance: {scale: 1.5}\n")
    words = ["sample", run, "--num-images", "4", "--out-dir", str(tmp_path / "out")]
    cli.main([*words, "--config", str(tmp_path / "s.yaml"), "--sampler.grid.gap", "[0.01, 0.2]"])
    found = protocol(tmp_path / "out")
    assert found["sampler"]["solver"] == "heun" and found["guidance"]["scale"] == 1.5
    assert found["sampler"]["grid"]["gap"] == [0.01, 0.2]


def test_the_picture_says_what_its_rows_are(run, tmp_path, capsys):
    words = ["sample", run, "--steps", "1", "--out-dir", str(tmp_path / "out")]
    cli.main([*words, "--num-images", "7", "--classes", "3", "7"])
    assert "grid.png (from the top: class 3, class 7)\n" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "grid.png") as sheet:
        assert sheet.size == (3 * 49 + 1, 2 * 49 + 1)


def test_a_benchmark_takes_them_too(run, tmp_path):
    out = str(tmp_path / "b")
    words = ["benchmark", run, "--steps", "1", "--num-images", "20", "--out-dir", out]
    cli.main([*words, "--sampler.order", "1", "--metrics", "fid"])
    assert protocol(tmp_path / "b")["sampler"]["order"] == 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["--sampler.stps", "3"], "unknown setting sampler.stps; did you mean sampler.steps?"),
        (["--sampler.order", "9"], "sampler.order of solver adams must be 1 to 4"),
        (["--sampler.transport", "Trig"], "set objective.transport"),
    ],
)
def test_what_has_no_meaning_is_refused(run, words, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["sample", run, *words])
    assert message in capsys.readouterr().err


def test_a_file_that_trains_otherwise_is_refused(run, tmp_path, capsys):
    (tmp_path / "t.yaml").write_text("sampler: {steps: 3}\ntrain: {steps: 9}\n")
    with pytest.raises(SystemExit):
        cli.main(["sample", run, "--config", str(tmp_path / "t.yaml")])
    assert "only sampler and guidance" in capsys.readouterr().err


def test_other_settings_have_another_folder_and_overwrite_replaces(run, tmp_path, capsys):
    words = ["sample", run, "--num-images", "4"]
    cli.main(words)
    cli.main([*words, "--classes", "3,7"])
    cli.main([*words, "--classes", "3", "7", "--guidance-scale", "2"])
    assert len(list((Path(run) / "samples").glob("step_*/protocol.json"))) == 3
    out = ["--out-dir", str(tmp_path / "o")]
    cli.main([*words, *out])
    with pytest.raises(SystemExit):
        cli.main([*words, *out, "--seed", "1"])
    said = capsys.readouterr().err
    assert "was made with seed 0, this is 1" in said and "--overwrite it" in said
    cli.main([*words, *out, "--seed", "1", "--overwrite"])
    assert protocol(tmp_path / "o")["seed"] == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        cli.main([*words, "--out-dir", str(tmp_path / "mine"), "--overwrite"])
    assert "--overwrite" not in capsys.readouterr().err  # it would not help
    assert (tmp_path / "mine" / "photo.png").read_bytes() == b"mine"
