import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.digits_oracle import Memoriser, make_run
from tests.evaluation.test_extractors import random_inception  # noqa: F401
from ucgm.data import Digits
from ucgm.evaluation.benchmark import benchmark
from ucgm.evaluation.chunks import FeatureExtractor
from ucgm.evaluation.evaluate import evaluate, make_reference
from ucgm.evaluation.extractors import open_extractor
from ucgm.evaluation.extractors.dinov2 import DinoV2
from ucgm.evaluation.image_sets import open_images
from ucgm.evaluation.metrics import load_reference, moments_of
from ucgm.evaluation.references import reference_of
from ucgm.evaluation.scoring import MetricConfig
from ucgm.generation.command import samples_of_run
from ucgm.generation.samples import SamplingConfig
from ucgm.generation.writers import NpzSink, PngSink

pytestmark = pytest.mark.filterwarnings("ignore:.*samples for")


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "digits.npz"
    return str(make_reference("digits", str(path), device="cpu"))


def write_samples(samples, sink, count, batch=100):
    for indices in torch.arange(count).split(batch):
        sink.write(indices, samples.images(indices))
    return str(sink.close(samples.labels_at(torch.arange(count))))


def test_reference_file_equals_the_data(train_file):
    got, extractor = load_reference(train_file), open_extractor("digits")
    expected = reference_of(Digits().open(), extractor)
    assert torch.allclose(got.gaussian.covariance, expected.gaussian.covariance, rtol=1e-12)
    assert torch.equal(got.features, expected.features)
    assert got.extractor == ("digits", extractor.digest) and got.gaussian.count == 1343
    assert got.protocol["images"]["images"].startswith("digits-train: 1,343 samples")


def test_shards_and_kept_rows(tmp_path, monkeypatch):
    def make(name, **kwargs):
        out = str(tmp_path / name)
        return make_reference("digits-test", out, "digits", num_rows=100, device="cpu", **kwargs)

    whole = make("a.npz")
    made, real = [], FeatureExtractor._moments

    def count(*args):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(args[1])
        return real(*args)

    monkeypatch.setattr(FeatureExtractor, "_moments", count)
    with pytest.raises(KeyboardInterrupt):
        make("b.npz", shard_size=70)
    assert not (tmp_path / "b.npz").exists()
    made.clear()
    monkeypatch.setattr(FeatureExtractor, "_moments", lambda *a: made.append(a[1]) or real(*a))
    parts = make("b.npz", shard_size=70)
    assert len(made) == 7 - 3  # the finished ones are kept
    one, two = load_reference(whole), load_reference(parts)
    assert torch.allclose(one.gaussian.covariance, two.gaussian.covariance, rtol=1e-9, atol=1e-12)
    assert torch.equal(one.features, two.features) and len(one.features) == 100
    images = open_images("digits-test").images(torch.arange(100) * 454 // 100)
    rows = open_extractor("digits")(images)["features"]
    assert torch.allclose(one.features, rows, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_evaluate_equals_the_benchmark(tmp_path, train_file):
    run = make_run(tmp_path, Memoriser(), steps=4)
    result = benchmark(run, (4,), 120, out_dir=tmp_path / "bench")
    expected = result["rows"][0]
    samples = samples_of_run(run, SamplingConfig())
    (tmp_path / "npz").mkdir()
    npz = write_samples(samples, NpzSink(tmp_path / "npz"), 120)
    png = write_samples(samples, PngSink(tmp_path / "png"), 120)
    made = tmp_path / "made"  # what `ucgm sample` prints as its folder
    made.mkdir()
    write_samples(samples, PngSink(made / "images"), 120)
    Image.new("L", (8, 8)).save(made / "grid.png")
    (tmp_path / "npz" / "protocol.json").write_text("{}")
    for where in (npz, png, str(made), str(tmp_path / "npz")):
        found = evaluate(where, MetricConfig(reference=train_file), device="cpu")
        assert found["images_hash"] == expected["images_hash"]
        for name in ("fid", "kid", "sw", "precision", "recall", "inception_score", "accuracy"):
            assert found["scores"][name] == pytest.approx(expected["scores"][name], rel=1e-6), name
        report = json.loads((tmp_path / f"{where}.evaluation" / "evaluation.json").read_text())
        assert report["scores"] == found["scores"]
        assert report["protocol"]["extractor"]["name"] == "digits"  # that of the reference


def test_no_labels_no_accuracy(tmp_path, train_file):
    data = Digits("test").open()
    pixels = data.decode(data.x[:60]).permute(0, 2, 3, 1).numpy()
    np.savez_compressed(tmp_path / "x.npz", arr_0=pixels)  # compressed: read whole
    found = evaluate(str(tmp_path / "x.npz"), MetricConfig(reference=train_file), device="cpu")
    assert "accuracy" not in found["scores"] and "fid" in found["scores"]
    with pytest.raises(ValueError, match="the images have no labels"):
        evaluate(
            str(tmp_path / "x.npz"), MetricConfig(("accuracy",), reference=train_file), device="cpu"
        )


def test_changed_samples_are_not_mixed(tmp_path, train_file):
    data = Digits("test").open()
    for count in (60, 50):
        np.savez(tmp_path / "x.npz", arr_0=data.decode(data.x[:count]).permute(0, 2, 3, 1).numpy())
        if count == 60:
            evaluate(str(tmp_path / "x.npz"), MetricConfig(reference=train_file), device="cpu")
    with pytest.raises(ValueError, match="nothing was overwritten"):
        evaluate(str(tmp_path / "x.npz"), MetricConfig(reference=train_file), device="cpu")


@pytest.mark.parametrize("zipped", [False, True])
def test_files_that_were_written_again_are_not_the_same_samples(tmp_path, train_file, zipped):
    folder = tmp_path / "x"
    folder.mkdir()

    def write(value):
        for i in range(40):
            pixels = torch.full((8, 8), value, dtype=torch.uint8)
            pixels[i // 8, i % 8] = 0
            Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
        return shutil.make_archive(str(folder), "zip", folder) if zipped else str(folder)

    name = write(100)
    evaluate(name, MetricConfig(reference=train_file), device="cpu")
    write(200)
    with pytest.raises(ValueError, match="changed_sha256.*nothing was overwritten"):
        evaluate(name, MetricConfig(reference=train_file), device="cpu")


def test_bad_image_sets(tmp_path, train_file):
    with pytest.raises(ValueError, match="does not exist"):
        open_images(str(tmp_path / "none.npz"))
    np.savez(tmp_path / "float.npz", arr_0=np.zeros((2, 8, 8, 1)))
    with pytest.raises(ValueError, match=r"need \(N, H, W, C\) uint8"):
        open_images(str(tmp_path / "float.npz"))
    np.savez(tmp_path / "small.npz", arr_0=np.zeros((2, 8, 8, 1), np.uint8))
    assert len(open_images(str(tmp_path / "small.npz"), size=8)) == 2
    for name in (str(tmp_path / "small.npz"), "digits"):
        with pytest.raises(ValueError, match="arrays of 8x8 pixels, .* leave out --size"):
            open_images(name, size=16)
    np.savez(tmp_path / "mu.npz", mu=np.zeros(2))
    with pytest.raises(ValueError, match="no images under arr_0"):
        open_images(str(tmp_path / "mu.npz"))
    folder = tmp_path / "mixed"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    Image.new("RGB", (9, 8)).save(folder / "b.png")
    with pytest.raises(ValueError, match="b.png .* is 9x8, the first image 8x8: give --size"):
        open_images(str(folder)).images(torch.arange(2))
    assert open_images(str(folder), size=8).images(torch.arange(2)).shape == (2, 3, 8, 8)
    (folder / "labels.csv").write_text("file,label\na.png,3\n")
    with pytest.raises(ValueError, match="holds b.png, which labels.csv does not list"):
        open_images(str(folder))
    with pytest.raises(ValueError, match="exists and was not overwritten"):
        make_reference("digits", train_file, device="cpu")
    with pytest.raises(ValueError, match="num_rows is -3"):
        make_reference("digits", str(tmp_path / "out.npz"), num_rows=-3, device="cpu")
    with pytest.raises(ValueError, match="is an .npz"):
        make_reference("digits", str(tmp_path / "out.pkl"), device="cpu")


def adm_like(path, real, outputs):
    """Statistics in ADM's layout, with the images."""
    arrays = {}
    for name, suffix in (("features", ""), ("spatial", "_s")):
        moments = moments_of(outputs[name])
        arrays |= {
            f"mu{suffix}": moments.mean.numpy(),
            f"sigma{suffix}": moments.covariance.numpy(),
        }
    np.savez(path, arr_0=real.permute(0, 2, 3, 1).numpy(), **arrays)


@pytest.mark.slow
def test_sixty_four_images_through_inception_and_dinov2(tmp_path, random_inception):  # noqa: F811
    """From the generator to the report, with references in the layouts of ADM and EDM2."""
    inception = str(random_inception)
    data = Digits("test").open()
    real = data.decode(data.x[:24])
    adm_like(tmp_path / "adm.npz", real, open_extractor("inception", inception)(real))
    torch.manual_seed(0)
    torch.save(DinoV2(64, 2, 14, 37).state_dict(), tmp_path / "vit.pth")
    files = (inception, str(tmp_path / "vit.pth"))
    moments = moments_of(open_extractor("dinov2", files[1])(real)["features"])
    entry = {"mu": moments.mean.numpy(), "sigma": moments.covariance.numpy()}
    (tmp_path / "edm2.pkl").write_bytes(pickle.dumps({"fd_dinov2": entry}))
    run = make_run(tmp_path, Memoriser(), steps=2)
    references = (str(tmp_path / "adm.npz"), str(tmp_path / "edm2.pkl"))
    config = MetricConfig(None, ("inception", "dinov2"), files, references)
    with pytest.warns(
        UserWarning, match="64 samples for 2048 features: the covariance is singular"
    ):
        result = benchmark(run, (2,), 64, metrics_config=config, out_dir=tmp_path / "out")
    names = ["fid", "sfid", "kid", "sw", "precision", "recall", "inception_score", "dinov2.fid"]
    assert result["metrics"] == names
    assert all(np.isfinite(result["rows"][0]["scores"][name]) for name in names)
    text = (tmp_path / "out" / "benchmark.md").read_text()
    assert "sFID" in text and "FD-DINOv2" in text and "not comparable with any FID" in text


def test_evaluation_of_a_reference_with_itself_is_zero(tmp_path, train_file):
    config = MetricConfig(metrics=("fid",), reference=train_file)
    found = evaluate("digits", config, out_dir=tmp_path / "self", device="cpu")
    assert abs(found["scores"]["fid"]) < 1e-8
