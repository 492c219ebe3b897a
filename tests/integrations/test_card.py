"""The model card of an export says what the run says; a run is read from the Hub."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError

import ucgm
from ucgm.cli import main
from ucgm.runs import remote as runs

RUN = Path(__file__).parents[1] / "earlier/files/multi"
DIGEST = ucgm.load_run(RUN).digest


def exported(run, tmp_path, *words):
    main(["export", str(run), "--diffusers", str(tmp_path / "out"), *words])
    return ModelCard.load(tmp_path / "out/README.md")


def test_a_card_states_origin_sampler_licence_and_how_to_load(tmp_path):
    run = ucgm.load_run(RUN)
    card = exported(RUN, tmp_path, "--licence", "apache-2.0")
    assert card.data.license == "apache-2.0" and card.data.library_name == "diffusers"
    assert "class-conditional" in card.data.tags and run.config.objective.preset in card.data.tags
    data = json.loads((RUN / "data.json").read_text())
    for said in (
        f"step {run.step}",
        f"on {data['name']}",
        f"{run.config.sampler.steps} steps",
        "Not measured",
    ):
        assert said in card.text, said
    code = card.text.split("```python\n")[1].split("```")[0]
    code = code.replace('"out"', repr(str(tmp_path / "out")))
    found = {}
    exec(code, found)
    assert len(found["images"]) == 2


def test_a_card_quotes_benchmarks_of_its_own_weights_alone(tmp_path):
    run = shutil.copytree(RUN, tmp_path / "run")
    for name, digest, score in (("a", DIGEST, "0.123"), ("b", "0" * 64, "0.456")):
        folder = run / "benchmark" / name
        folder.mkdir(parents=True)
        (folder / "benchmark.json").write_text(json.dumps({"protocol": {"weights_sha256": digest}}))
        (folder / "benchmark.md").write_text(f"# A\n\n| steps | FID |\n|--|--|\n| 2 | {score} |\n")
    text = exported(run, tmp_path).text
    assert "| 2 | 0.123 |" in text and "0.456" not in text and "Not measured" not in text
    assert "Not stated" in text


def test_a_run_from_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(runs, "snapshot_download", lambda name, **k: asked.append(name) or RUN)
    assert ucgm.load_run("hf://someone/digits").digest == DIGEST and asked == ["someone/digits"]


@pytest.mark.parametrize("name", ["someone/digits", "a/b/c", ""])
def test_a_run_that_is_not_on_the_hub(monkeypatch, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    missing = LocalEntryNotFoundError("no connection")
    if name == "someone/digits":
        monkeypatch.setattr(
            runs, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(missing)
        )
    with pytest.raises(
        ValueError, match=f"hf://{name} could not be downloaded .*name a run folder"
    ):
        ucgm.load_run(f"hf://{name}")
