"""Scores in features that a run was trained on: known, marked, and not the headline."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.digits_oracle import Memoriser, make_run
from tests.evaluation.test_report import report_of
from ucgm.data import Digits
from ucgm.evaluation.benchmark import benchmark
from ucgm.evaluation.evaluate import evaluate, make_reference
from ucgm.evaluation.extractors import open_extractor
from ucgm.evaluation.report.saved import read_report
from ucgm.evaluation.report.tables import chief, headline, label, table, trained_on
from ucgm.evaluation.scoring import MetricConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*samples for .* features")
METRICS = ("fid", "clip.fid", "mae.swr", "fdr_mean", "swr_mean")


def report(*known, metrics=METRICS):
    found = report_of({1: 0.5}, metrics=metrics)
    found["protocol"]["more_extractors"] = [
        {"name": "clip", "sha256": "1"},
        {"name": "mae", "sha256": "2"},
    ]
    if known:
        found["protocol"]["trained_on"] = [{"name": n, "sha256": d} for n, d in known]
    return found


def test_an_encoder_is_known_by_its_name_or_by_its_weights():
    cases = {
        (): (),
        (("digits", "9"),): ("fid", "fdr_mean", "swr_mean"),
        (("other", "1"),): ("clip.fid", "fdr_mean", "swr_mean"),
        (("digits", "0"), ("mae", "8")): ("fid", "mae.swr", "fdr_mean", "swr_mean"),
        (("siglip", "9"),): (),
    }
    for known, marked in cases.items():
        found = report(*known)
        assert tuple(m for m in METRICS if trained_on(m, found)) == marked, known
        assert all(label(m, found).endswith("†") == (m in marked) for m in METRICS)


def test_the_headline_is_of_an_encoder_that_the_run_was_not_trained_on():
    assert chief(report()) == chief(report(("mae", "2"))) == "fid"
    assert chief(report(("digits", "0"))) == "clip.fid"
    assert chief(report(("digits", "0"), ("clip", "1"))) == "mae.swr"
    all_known = report(("digits", "0"), ("clip", "1"), ("mae", "2"))
    sentence, _ = headline({"a": all_known}, chief(all_known))
    assert "FID † is 0.500" in sentence and sentence.endswith("ask another --extractor.")
    # beside a run that was not trained on it, the column is one, and marked
    head, cells, _ = table({"a": report(("clip", "1")), "b": report()})
    assert [h for h in head if "clip" in h] == ["FID (clip) †"] and len(cells) == 2
    assert cells[1][head.index("FID (clip) †")] == "0.500"


def test_benchmark_and_evaluate_say_what_the_run_folder_knows(tmp_path, capsys):
    run = make_run(tmp_path / "run", Memoriser())
    digest = open_extractor("digits").digest
    known = [{"name": "digits", "sha256": digest}]
    run.run_dir.mkdir()
    (run.run_dir / "encoders.json").write_text(json.dumps({"encoders": known}))
    chosen = MetricConfig(metrics=("fid", "fdr"), extractor=("digits", "random"))
    found = benchmark(run, [1], 60, metrics_config=chosen, device="cpu")
    out = capsys.readouterr().out
    assert "The best FD-random is " in out and "FID †" in out and "FDr, mean †" in out
    assert "† The run was trained on digits" in (Path(found["folder"]) / "benchmark.md").read_text()
    assert read_report(found["folder"])[0]["protocol"]["trained_on"] == known
    images = tmp_path / "images"
    images.mkdir()
    data = Digits("test").open()
    for i, image in enumerate(data.decode(data.x[:40])):
        Image.fromarray(image[0].numpy()).save(images / f"{i:02d}.png")
    (images / "protocol.json").write_text(json.dumps({"trained_on": known}))
    made = str(make_reference("digits", tmp_path / "r.npz", device="cpu"))
    result = evaluate(str(images), MetricConfig(reference=made), device="cpu")
    assert result["protocol"]["trained_on"] == known
    out = capsys.readouterr().out
    assert "FID †" in out and "† the run was trained on digits" in out
    (run.run_dir / "encoders.json").write_text('{"encoders": [{"name": 3}]}')
    with pytest.raises(ValueError, match="encoders.json"):
        benchmark(run, [1], 60, metrics_config=chosen, device="cpu", out_dir=tmp_path / "b")
