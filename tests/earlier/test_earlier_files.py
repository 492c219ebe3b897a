"""Files of earlier versions are read, continued to the last bit, and compared with new ones.

files/ was made by make.py with the version before the package was rearranged.
"""

import hashlib
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import ucgm
from ucgm.cli import commands as cli
from ucgm.data import Latents
from ucgm.evaluation.benchmark import versions
from ucgm.runs.config import read_config

from .kernels import kernels

HERE = Path(__file__).parent
FILES = HERE / "files"
# Between two processors the earlier version differed from itself by 2e-6 in a gradient norm and by
# 1e-8 in a FID, whose features are float32: its figures were written on one of them.
ROUNDING = 5e-6
AFTER = json.loads((FILES / "after_8_steps.json").read_text())


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with a copy of the earlier files."""
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    warnings.simplefilter("ignore")
    return tmp_path


def test_configurations_name_the_classes_of_today():
    multi, few = (read_config(FILES / name / "config.yaml") for name in ("multi", "few"))
    own = {"hidden_size": 16, "depth": 1, "num_heads": 2, "patch_size": 4}
    assert multi.model == ucgm.nn.DiTConfig(size="XL/2", **own)
    assert multi.objective.time_law == ucgm.objective.Beta(1.5, 1.0)
    assert multi.sampler.order == 2 and multi.sampler.solver == "adams"
    assert few.objective.preset == "twinflow" and few.objective.transport == ucgm.Linear()


def test_new_files_name_classes_by_their_public_path(place):
    text = (place / "few" / "config.yaml").read_text()
    ucgm.train(read_config(place / "few" / "config.yaml"), place / "new")
    written = (place / "new" / "config.yaml").read_text()
    assert "ucgm.nn.configs.DiTConfig" in text
    for name in ("ucgm.nn.DiTConfig", "ucgm.data.Digits", "ucgm.transport.Linear"):
        assert f"class_path: {name}\n" in written
    paths = [line.split(": ")[1] for line in written.splitlines() if "class_path" in line]
    assert all(path.count(".") == 2 for path in paths)


@pytest.mark.parametrize("name", ["multi", "few"])
def test_a_training_goes_on_to_the_last_bit(name, place):
    words = ["train", "--config", f"{name}/config.yaml", "--run-dir", name]
    cli.main([*words, "--train.steps", "8"])
    folder = place / name / "checkpoints" / "step_0000008"
    rows = [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]
    expected = AFTER[name]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    for row, before in zip(rows, expected["metrics"], strict=True):
        assert {k: row[k] for k in before} == pytest.approx(before, rel=ROUNDING)
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.safe*")}
    sums = {
        file.stem: float(sum(v.double().abs().sum() for v in load_file(file).values()))
        for file in folder.glob("*.safetensors")
    }
    assert sums == pytest.approx(expected["sums"], rel=ROUNDING)
    known = AFTER["files_by_kernels"]
    # Digests that the earlier version itself wrote with these kernels.  RAdam has other kernels
    # since, which do not wait for the host: what is above holds of it, the last bits do not.
    if kernels() in known and name != "few":
        assert found == known[kernels()][name]


def test_a_run_is_sampled_and_averaged(place, capsys):
    cli.main(["sample", "few", "--num-images", "10", "--out-dir", "images"])
    assert len(list((place / "images" / "images").glob("**/*.png"))) == 10
    cli.main(["ema", "multi", "--std", "0.07"])
    assert ucgm.load_run("multi", weights="std_0.070").step == 4


def test_a_benchmark_goes_on_and_is_compared(place, capsys):
    before = json.loads((place / "benchmark" / "benchmark.json").read_text())
    # It goes on where these versions alone are installed, which are not what is tried here.
    record = place / "benchmark" / "protocol.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"versions": versions()}))
    chunks = {p: p.stat().st_mtime_ns for p in place.glob("benchmark/chunks/*/*")}
    words = ["benchmark", "multi", "--num-images", "40", "--seed", "3"]
    cli.main([*words, "--steps", "1", "2", "--out-dir", "benchmark"])
    after = json.loads((place / "benchmark" / "benchmark.json").read_text())
    assert len(chunks) == 2 and all(p.stat().st_mtime_ns == t for p, t in chunks.items())
    for old, new in zip(before["rows"], after["rows"], strict=True):
        assert new["images_hash"] == old["images_hash"]
        later = new["scores"].keys() - old["scores"].keys()  # scores of later versions
        assert later == {"fdr", "sw", "swr"}
        again = {name: new["scores"][name] for name in old["scores"]}
        assert again == pytest.approx(old["scores"], rel=ROUNDING)
    shutil.copytree(FILES / "benchmark", place / "old")
    cli.main([*words, "--steps", "1", "2", "--out-dir", "new"])
    words = ["compare", "old", "new", "--out-dir", "both"]
    digests = [[one["sha256"] for one in r["references"]] for r in (before, after)]
    if digests[0] != digests[1]:  # the moments of the reference were summed by other kernels
        with pytest.raises(SystemExit):
            cli.main(words)
        assert "benchmark both with one --reference file" in capsys.readouterr().err
        words[1] = "benchmark"
    cli.main(words)
    assert "page: both/comparison.html" in capsys.readouterr().out
    assert (place / "both" / "comparison.html").is_file()


def test_latents_are_checked_and_read(place, capsys):
    cli.main(["data", "latents", "--images", "0"])
    assert "8 samples" in capsys.readouterr().out
    data = Latents("latents").open()
    x, y = data.__getitems__(torch.arange(8))
    assert x.shape == (8, 2, 8, 8) and sorted(y.tolist()) == [0] * 4 + [1] * 4
    assert abs(float(x.mean())) < 0.2 and bool(x.isfinite().all())


def test_a_pipeline_is_loaded_and_samples_as_its_run(place):
    pipeline = ucgm.UCGMPipeline.from_pretrained("pipeline")
    run = ucgm.load_run("multi")
    z, y = torch.randn(4, *run.shape, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    labels = [int(k) for k in y]
    x = pipeline(labels, latents=z, num_inference_steps=2, output_type="latent").images
    expected = run.config.sampler(run.network, z, y)
    assert torch.allclose(x, expected, rtol=1e-5, atol=1e-6)


def test_an_earlier_configuration_layers_under_a_new_one(place):
    (place / "more.yaml").write_text(yaml.safe_dump({"train": {"steps": 2}}))
    words = ["train", "--config", "multi/config.yaml", "--config", "more.yaml"]
    cli.main([*words, "--run-dir", "again"])
    assert ucgm.load_run("again").step == 2
