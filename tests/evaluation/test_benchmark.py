import csv
import functools
import json
import warnings
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tests.digits_oracle import Affine, Memoriser, make_run
from ucgm.data import DataSpec, Digits, Images, to_uint8
from ucgm.evaluation.benchmark import benchmark, check_sizes, commit
from ucgm.evaluation.chunks import ChunkFolder
from ucgm.evaluation.extractors import Extractor, open_extractor, register_extractor
from ucgm.evaluation.metrics import save_reference
from ucgm.evaluation.references import open_evaluators, reference_of
from ucgm.evaluation.report.tables import encoders_sentence
from ucgm.evaluation.scoring import MetricConfig
from ucgm.generation.samples import SamplingConfig
from ucgm.runtime.files import write_atomic
from ucgm.sampler import Guidance

pytestmark = pytest.mark.filterwarnings("ignore:.*samples for 32 features")
FAST = MetricConfig(metrics=("fid", "accuracy"))


def run_benchmark(folder, network=None, steps=(2,), num_images=103, metrics_config=FAST, **kwargs):
    run_options = {k: kwargs.pop(k) for k in ("digest", "guidance") if k in kwargs}
    run = make_run(folder, network, **run_options)
    kwargs.setdefault("out_dir", folder / "out")
    kwargs.setdefault("device", "cpu")
    return benchmark(run, steps, num_images, metrics_config=metrics_config, **kwargs)


def statistics_of(result):
    return [(row["images_hash"], row["scores"]["fid"]) for row in result["rows"]]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """The perfect memoriser, measured with everything."""
    folder = tmp_path_factory.mktemp("oracle")
    return run_benchmark(folder, Memoriser(), (1, 8), 960, MetricConfig())


def test_scores_of_the_memoriser(oracle):
    one, eight = (row["scores"] for row in oracle["rows"])
    floor = oracle["real"]["scores"]["fid"]
    assert 0 < floor < 0.3
    assert eight["fid"] < 0.5 * floor  # closer to the training data than real data are
    assert eight["fid_heldout"] > floor  # and no closer to what it has not seen
    assert one["fid"] > eight["fid"] + 1.0  # the class means
    assert eight["accuracy"] == 1.0 and eight["precision"] == 1.0
    assert one["recall"] < 0.05 < 0.7 < eight["recall"]
    assert oracle["real"]["scores"]["accuracy"] > 0.98


def test_fdr_is_fid_in_units_of_held_out_real_images(oracle):
    floor = oracle["real"]["scores"]
    for row in (*oracle["rows"], oracle["real"]):
        found = row["scores"]["fdr"]
        assert found == pytest.approx(row["scores"]["fid"] / floor["fid"], rel=1e-9)
    assert floor["fdr"] == pytest.approx(1.0, rel=1e-9)


def test_sliced_distances_of_the_memoriser(oracle):
    (one, eight), real = (row["scores"] for row in oracle["rows"]), oracle["real"]["scores"]
    assert real["swr"] == 1.0 and eight["sw"] < real["sw"] < one["sw"]
    assert eight["swr"] < 1.1 and one["swr"] > 3.0


def test_permuted_labels_show_in_accuracy_alone(tmp_path, oracle):
    moved = run_benchmark(tmp_path, Memoriser(shift=1), (8,), 960)["rows"][0]["scores"]
    assert moved["accuracy"] < 0.01
    assert moved["fid"] == pytest.approx(oracle["rows"][1]["scores"]["fid"], abs=0.03)


def test_report_files(oracle):
    from pathlib import Path

    folder = Path(oracle["folder"])
    report = json.loads((folder / "benchmark.json").read_text())
    assert report["rows"][1]["scores"] == oracle["rows"][1]["scores"]
    protocol = report["protocol"]
    for key in ("weights_sha256", "seed", "labels", "guidance", "precision", "sampler", "uint8"):
        assert key in protocol
    assert protocol["extractor"]["name"] == "digits" and len(protocol["extractor"]["sha256"]) == 64
    assert protocol["versions"]["torch"] and len(report["references"]) == 2
    assert "counts 2" in report["nfe_convention"]
    assert [row["nfe"] for row in report["rows"]] == [1.0, 8.0]
    lines = list(csv.DictReader((folder / "benchmark.csv").open()))
    assert float(lines[1]["fid"]) == oracle["rows"][1]["scores"]["fid"]
    text = (folder / "benchmark.md").read_text()
    assert "| FID held-out |" in text and "Not comparable" in text and "sha256" in text
    assert "no multiple" not in text  # 960 samples of 10 classes
    assert report["machine"]["commit"] == commit() and report["machine"]["threads"] >= 1
    for name in ("grid_steps_01.png", "grid_steps_08.png", "strip.png", "fid_vs_steps.png"):
        assert Image.open(folder / name).width > 100
    assert Image.open(folder / "strip.png").size == (10 * 49 + 1, 2 * 49 + 1)


def test_commit_is_that_of_this_source(tmp_path, monkeypatch):
    import ucgm.evaluation.benchmark as module

    monkeypatch.setattr(module, "__file__", str(tmp_path / "benchmark.py"))
    assert commit() is None


def test_uneven_classes_are_mentioned(tmp_path):
    run_benchmark(tmp_path, num_images=103)
    text = (tmp_path / "out" / "benchmark.md").read_text()
    assert "no multiple of 10 classes: counts differ by one" in text


def test_guided_evaluations_count_two(tmp_path):
    guidance = Guidance(scale=2.0, interval=(0.0, 0.6))
    run = make_run(tmp_path, guidance=guidance)
    result = benchmark(run, (4,), 20, metrics_config=FAST, out_dir=tmp_path / "out")
    times = [step.t for step in run.config.sampler.plan()]
    inside = sum(step.t <= 0.6 for step in type(run.config.sampler)(steps=4).plan())
    assert len(times) == 2 and result["rows"][0]["nfe"] == 4 + inside


def test_repeats_are_disjoint_and_summarised(tmp_path):
    result = run_benchmark(tmp_path, steps=(1, 2), num_images=50, repeats=3)
    assert [row["first_index"] for row in result["rows"]] == [0, 50, 100] * 2
    assert len({row["images_hash"] for row in result["rows"]}) == 6
    values = torch.tensor([row["scores"]["fid"] for row in result["rows"][:3]], dtype=torch.float64)
    report = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    summary = report["summary"][0]["scores"]["fid"]
    assert summary["mean"] == pytest.approx(values.mean().item())
    assert summary["std"] == pytest.approx(values.std().item())
    assert summary["min"] == values.min().item()
    assert "±" in (tmp_path / "out" / "benchmark.md").read_text()
    # the first repeat is what a benchmark without repeats measures
    alone = run_benchmark(tmp_path, None, (1, 2), 50, out_dir=tmp_path / "alone")
    assert statistics_of(alone)[0] == statistics_of(result)[0]


def test_other_numbers_of_steps_join_the_report(tmp_path):
    two = run_benchmark(tmp_path, steps=(2,))
    both = run_benchmark(tmp_path, steps=(1, 4))
    assert [row["steps"] for row in both["rows"]] == [1, 2, 4] and both["rows"][1] == two["rows"][0]
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text())["rows"] == both["rows"]
    again = run_benchmark(tmp_path, steps=(4,))
    assert statistics_of(again) == statistics_of(both)
    other = run_benchmark(tmp_path, steps=(2,), metrics_config=MetricConfig(metrics=("fid",)))
    assert [row["steps"] for row in other["rows"]] == [2]  # another measure is another report


def test_random_features_are_said_to_miss_faults(tmp_path, capsys):
    run_benchmark(tmp_path, metrics_config=MetricConfig(("fid",), ("random",)))
    assert "Inception features. Random features miss faults" in capsys.readouterr().out


def test_references_may_be_folders_of_images(tmp_path):
    for split in ("train", "test"):
        data = Digits(split).open()
        x, y = data.__getitems__(range(60))
        for i, (image, label) in enumerate(zip(to_uint8(x), y.tolist(), strict=True)):
            (tmp_path / split / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(tmp_path / split / str(label) / f"{i}.png")
    train, test = (str(tmp_path / split) for split in ("train", "test"))
    config = Images(train, 8, 1, flips=False)
    measure = MetricConfig(("fid",), ("random",), reference=(test,), held_out=(train,))
    (part,) = open_evaluators(measure, config, config.open()).parts
    for found, where in ((part.reference, test), (part.held_out, train)):
        expected = reference_of(Images(where, 8, 1, flips=False).open(), part.extractor)
        assert torch.equal(found.gaussian.mean, expected.gaussian.mean)
        assert found.digest == expected.digest
    both = replace(measure, extractor=("random", "digits"))  # a folder serves all extractors
    for part in open_evaluators(both, config, config.open()).parts:
        expected = reference_of(Images(train, 8, 1, flips=False).open(), part.extractor)
        assert part.held_out.digest == expected.digest
    with pytest.raises(ValueError, match="is a folder, and a reference is a file"):
        open_evaluators(measure, None, None)


def test_restart_keeps_finished_chunks_and_remakes_damaged_ones(tmp_path):
    def run(network):
        return run_benchmark(tmp_path, network, num_images=103, chunk_size=25)

    first = run(Affine())
    chunks = sorted((tmp_path / "out" / "chunks" / "steps_002_repeat_0").iterdir())
    assert len(chunks) == 5
    network = Affine()
    assert statistics_of(run(network)) == statistics_of(first)
    again = network.calls  # the pictures alone
    chunks[1].unlink()
    data = bytearray(chunks[3].read_bytes())
    data[-5] ^= 1  # one bit of one feature
    chunks[3].write_bytes(data)
    chunks[4].write_bytes(chunks[4].read_bytes()[:100])
    network = Affine()
    with pytest.warns(UserWarning, match="damaged .* made again") as caught:
        assert statistics_of(run(network)) == statistics_of(first)
    assert len([w for w in caught if "damaged" in str(w.message)]) == 2
    assert network.calls - again == 3 * 2  # three chunks of one batch, two steps


def test_another_checkpoint_does_not_resume(tmp_path):
    run_benchmark(tmp_path)
    before = (tmp_path / "out" / "benchmark.json").read_bytes()
    with pytest.raises(ValueError, match="made with weights_sha256 0000.*this is 1111"):
        run_benchmark(tmp_path, digest="1" * 64)
    with pytest.raises(ValueError, match="made with seed 0, this is 1"):
        run_benchmark(tmp_path, settings=SamplingConfig(seed=1))
    assert (tmp_path / "out" / "benchmark.json").read_bytes() == before
    # without out_dir each has its own folder
    one = run_benchmark(tmp_path, out_dir=None)
    two = run_benchmark(tmp_path, digest="1" * 64, out_dir=None)
    assert one["folder"] != two["folder"] and str(tmp_path) in one["folder"]


def test_a_full_disk_loses_nothing_finished(tmp_path, monkeypatch):
    import ucgm.evaluation.chunks as chunks

    real, written = chunks.save_file, []

    def fill_up(rows, path, metadata):
        if len(written) == 2:
            path.write_bytes(b"half a chunk")
            raise OSError(28, "No space left on device")
        written.append(path)
        real(rows, path, metadata)

    monkeypatch.setattr(chunks, "save_file", fill_up)
    with pytest.raises(ValueError, match="No space left .* What was finished is kept"):
        run_benchmark(tmp_path, chunk_size=25)
    folder = tmp_path / "out" / "chunks" / "steps_002_repeat_0"
    assert sorted(p.name[:11] for p in folder.iterdir()) == ["chunk_00000", "chunk_00001"]
    monkeypatch.setattr(chunks, "save_file", real)

    def no_room(path):
        raise OSError(28, "No space left on device")

    def no_strip(columns, path):
        write_atomic(path, no_room)

    with monkeypatch.context() as patch:
        patch.setattr("ucgm.evaluation.report.save_strip", no_strip)
        with pytest.raises(ValueError, match="strip.png could not .* No space left .* is kept"):
            run_benchmark(tmp_path, chunk_size=25)
    kept = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(kept) == 5
    resumed = run_benchmark(tmp_path, chunk_size=25)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    whole = run_benchmark(tmp_path, chunk_size=25, out_dir=tmp_path / "whole")
    assert statistics_of(resumed) == statistics_of(whole)


class Failing(Affine):
    """Not a number from the given call on."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def forward(self, x_t, t, y, s=None):
        return super().forward(x_t, t, y, s) + (torch.nan if self.calls >= self.after else 0.0)


def test_samples_that_are_not_finite_stop_the_benchmark_and_lose_nothing(tmp_path):
    with pytest.raises(ValueError, match="not finite"):
        run_benchmark(tmp_path, Failing(after=5), chunk_size=32)
    folder = tmp_path / "out" / "chunks" / "steps_002_repeat_0"
    kept = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(kept) == 2 and not (tmp_path / "out" / "benchmark.json").exists()
    resumed = run_benchmark(tmp_path, chunk_size=32)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    whole = run_benchmark(tmp_path, chunk_size=32, out_dir=tmp_path / "whole")
    assert statistics_of(resumed) == statistics_of(whole)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(steps=(0, 1)), r"steps\[0\] must be at least 1, got 0"),
        (dict(steps=()), "for example --steps"),
        (dict(num_images=3), "num_images must be at least 10, got 3"),
        (dict(repeats=0), "repeats must be at least 1, got 0"),
        (
            dict(metrics_config=MetricConfig(extractor="resnet")),
            "unknown extractor 'resnet': choose one of",
        ),
        (
            dict(metrics_config=MetricConfig(metrics=("fdd",))),
            "unknown metric 'fdd': choose from fid",
        ),
        (
            dict(metrics_config=MetricConfig(metrics=("sfid",))),
            "sfid cannot be computed: digits has no spatial",
        ),
        (dict(metrics_config=MetricConfig(reference="none.npz")), "none.npz does not exist"),
        (dict(settings=SamplingConfig(classes=(12,))), "class 12 is out of range"),
    ],
)
def test_bad_input_writes_nothing(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        run_benchmark(tmp_path, **kwargs)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="labels must be one of balanced, random, got 'sorted'"):
        SamplingConfig(labels="sorted")


def test_reference_of_another_extractor_is_refused(tmp_path):
    digits = open_extractor("digits")
    reference = reference_of(Digits("test").open(), digits)
    save_reference(tmp_path / "ours.npz", reference)
    named = MetricConfig(metrics=("fid",), reference=str(tmp_path / "ours.npz"))
    result = run_benchmark(tmp_path, metrics_config=named)
    assert result["references"][0]["name"] == "digits-test" and result["real"] is None

    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(1))

        def forward(self, images):
            return {"features": images.flatten(1).float()[:, :32] * self.w}

    def build(weights):
        return Extractor("flat", "ef" * 32, Flat(), {"features": 32}, 1)

    register_extractor("flat", build)
    with pytest.raises(ValueError, match="made with extractor digits .* this is flat"):
        run_benchmark(
            tmp_path, metrics_config=MetricConfig(extractor="flat", reference=named.reference)
        )
    with pytest.raises(ValueError, match="an extractor named flat exists"):
        register_extractor("flat", lambda weights: build(weights))
    # a registered extractor works like ours
    mine = run_benchmark(
        tmp_path, metrics_config=MetricConfig(extractor="flat"), out_dir=tmp_path / "flat"
    )
    names = ["fid", "fid_heldout", "fdr", "kid", "sw", "swr", "precision", "recall"]
    assert mine["metrics"] == names


class Blocks(torch.nn.Module):
    """Means of 2x2 blocks as features."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        pooled = torch.nn.functional.avg_pool2d(images.float() / 64, 2)
        return {"features": pooled.flatten(1) * self.w}


def test_fdr_of_several_extractors_has_a_mean(tmp_path, capsys):
    register_extractor(
        "means", lambda weights: Extractor("means", "b2" * 32, Blocks(), {"features": 16}, 1)
    )
    both = MetricConfig(("fid", "fdr", "swr"), extractor=("digits", "means"))
    result = run_benchmark(tmp_path, metrics_config=both)
    own, more = ["fid", "fdr", "swr"], ["means.fid", "means.fdr", "means.swr"]
    assert result["metrics"] == [*own, *more, "fdr_mean", "swr_mean"]
    for row in (*result["rows"], result["real"]):
        scores = row["scores"]
        assert scores["fdr_mean"] == (scores["fdr"] + scores["means.fdr"]) / 2
        assert scores["swr_mean"] == (scores["swr"] + scores["means.swr"]) / 2
    assert scores["swr"] == scores["means.swr"] == 1.0
    page = (tmp_path / "out" / "benchmark.md").read_text()
    assert "FDr, mean" in page and "FDr (means)" in page and "SWr (means)" in page
    sentence = encoders_sentence(result)
    assert sentence.startswith("2 steps are best over 2 encoders") and f"\n{sentence}\n" in page
    assert f"\n{sentence}\n" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "encoders.png").width == 960
    page = (tmp_path / "out" / "benchmark.html").read_text()
    assert sentence in page and '"picture": "data:image/png' in page
    alone = run_benchmark(tmp_path, metrics_config=MetricConfig(("fdr",)), out_dir=tmp_path / "one")
    assert alone["metrics"] == ["fdr"]


def test_several_extractors_see_the_same_images_once(tmp_path):
    register_extractor(
        "blocks", lambda weights: Extractor("blocks", "b1" * 32, Blocks(), {"features": 16}, 1)
    )
    calls = []
    for names in (("digits",), ("blocks",), ("digits", "blocks")):
        network = Affine()
        metrics = ("fid", "recall", "accuracy") if "digits" in names else ("fid", "recall")
        config = MetricConfig(metrics, names)
        result = run_benchmark(
            tmp_path, network, (1, 2), 103, config, out_dir=tmp_path / "-".join(names)
        )
        calls.append((network.calls, result))
    (one, digits), (_, blocks), (both, result) = calls
    assert one == both
    assert result["metrics"] == ["fid", "recall", "accuracy", "blocks.fid", "blocks.recall"]
    for row, first, second in zip(*(r["rows"] for r in (result, digits, blocks)), strict=True):
        assert row["images_hash"] == first["images_hash"]
        more = {f"blocks.{name}": value for name, value in second["scores"].items()}
        assert row["scores"] == {**first["scores"], **more}
    assert set(result["real"]["scores"]) == set(result["metrics"])
    assert [r["extractor"] for r in result["references"]] == ["digits"] * 2 + ["blocks"] * 2
    text = (tmp_path / "digits-blocks" / "benchmark.md").read_text()
    assert "FID (blocks)" in text and "Extractor blocks, weights sha256 b1b1" in text
    with pytest.raises(ValueError, match="named twice"):
        run_benchmark(tmp_path, metrics_config=MetricConfig(extractor=("digits", "digits")))
    with pytest.raises(ValueError, match=r"2 files for reference, but 1 extractor"):
        run_benchmark(tmp_path, metrics_config=MetricConfig(reference=("a.npz", "b.npz")))


def test_the_command_takes_every_setting(monkeypatch):
    """Fields of the settings are options like the arguments of the command."""
    import ucgm.evaluation.benchmark as module
    from ucgm.cli import commands as cli

    seen = {}

    @functools.wraps(module.benchmark)
    def note(**kwargs):
        seen.update(kwargs)

    monkeypatch.setattr(module, "benchmark", note)
    words = "RUN --steps 1 2 --seed 3 --classes 4 5 --tile 8 --extractor inception dinov2"
    cli.main(["benchmark", *words.split(), "--reference", "a, b.npz", "default"])
    assert seen["run"] == "RUN" and seen["steps"] == [1, 2]
    assert seen["settings"] == SamplingConfig(seed=3, classes=(4, 5), tile=8)
    names = ("inception", "dinov2")
    assert seen["metrics_config"] == MetricConfig(
        extractor=names, reference=("a, b.npz", "default")
    )
    assert [row[2] for row in seen["metrics_config"].each()] == ["a, b.npz", None]
    with pytest.raises(SystemExit):
        cli.main(["benchmark", "RUN", "--tiles", "8"])


def test_few_held_out_images_leave_cells_empty_and_lose_no_report(tmp_path, monkeypatch):
    data = Digits("test").open()
    data.x, data.y = data.x[:6], data.y[:6]
    whole = Digits.open
    monkeypatch.setattr(Digits, "open", lambda d: data if d.split == "test" else whole(d))
    with pytest.warns(UserWarning, match="6 held-out images are too few for inception_score:"):
        result = run_benchmark(tmp_path, metrics_config=MetricConfig())
    assert "inception_score" in result["metrics"]
    assert "inception_score" not in result["real"]["scores"] and result["real"]["scores"]["fid"] > 0
    lines = (tmp_path / "out" / "benchmark.md").read_text().splitlines()
    head, *_, real = [line.split("|") for line in lines if line.startswith("|")]
    assert dict(zip(map(str.strip, head), map(str.strip, real), strict=True))["IS"] == "-"


def test_data_that_are_not_here_ask_for_a_reference(tmp_path):
    """An imported run has a description of its data alone."""
    run = make_run(tmp_path)
    declared = DataSpec((1, 8, 8), 10, "imported", pixels=True)
    run = replace(run, config=replace(run.config, data=declared))
    with pytest.raises(ValueError, match="images of imported are not here .* --reference"):
        benchmark(
            run, (1,), 20, metrics_config=MetricConfig(extractor="digits"), out_dir=tmp_path / "out"
        )
    run = replace(run, config=replace(run.config, data=replace(declared, pixels=False)))
    with pytest.raises(ValueError, match="the autoencoder of imported .* is not known"):
        benchmark(
            run, (1,), 20, metrics_config=MetricConfig(extractor="digits"), out_dir=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists() and run.network.calls == 0


def test_a_reference_from_many_images_says_that_it_could_be_a_file(monkeypatch):
    monkeypatch.setattr("ucgm.evaluation.references.MANY", 100)
    with pytest.warns(UserWarning, match="make them once with `ucgm reference`"):
        reference_of(Digits("test").open(), open_extractor("digits"))


def test_too_few_samples_warn(tmp_path):
    with pytest.warns(UserWarning, match="20 samples for 32 features: the covariance is singular"):
        run_benchmark(tmp_path, num_images=20)
    with pytest.warns(UserWarning, match="Use at least 960"):
        run_benchmark(tmp_path, num_images=100, out_dir=tmp_path / "b")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_benchmark(tmp_path, num_images=960, out_dir=tmp_path / "c")
        accuracy = MetricConfig(metrics=("accuracy",))  # a mean, without that bias
        run_benchmark(tmp_path, num_images=20, metrics_config=accuracy, out_dir=tmp_path / "d")


def test_chunks_that_do_not_fit_are_not_used(tmp_path):
    folder = ChunkFolder(tmp_path)
    assert folder.read(0) is None
    assert check_sizes([4, 1, 4], 10, 1, 1) == (1, 4)
