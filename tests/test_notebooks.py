"""The notebooks of docs/notebooks run, with fewer steps; what they claim is what they printed."""

import ast
import json
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
# Numbers that only cost time; the last cell of each claims what the full ones give.
SHORTER = {
    "digits": {
        '"steps": 300': '"steps": 4',
        '"steps": 100': '"steps": 2',
        "steps=[1, 2, 4], num_images=1000": "steps=[2], num_images=40",
    },
    "own_method": {"range(1500)": "range(20)"},
    "checkpoint": {
        "num_images=64, steps=16": "num_images=10, steps=2",
        "steps=[2, 4, 16], num_images=64": "steps=[1, 2], num_images=10",
    },
}


def code_cells(name):
    content = json.loads((DOCS / "notebooks" / f"{name}.ipynb").read_text())
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", SHORTER)
@pytest.mark.filterwarnings("ignore:.*samples for .* features")
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, replaced = {"__name__": "__main__"}, set()
    for cell in code_cells(name)[:-1]:
        text = "".join(cell["source"])
        for full, short in SHORTER[name].items():
            replaced |= {full} if full in text else set()
            text = text.replace(full, short)
        exec(compile(text, name, "exec"), names)
    assert replaced == set(SHORTER[name])


@pytest.mark.parametrize("name", SHORTER)
def test_what_a_notebook_claims_is_what_it_printed(name):
    *_, shown, claim = code_cells(name)
    assert "".join(claim["source"]).startswith("assert ")
    variable = ast.parse("".join(shown["source"])).body[-1].value.id
    printed = ast.literal_eval("".join(shown["outputs"][0]["data"]["text/plain"]))
    exec("".join(claim["source"]), {variable: printed})


def test_every_notebook_is_small_and_listed():
    files = {path.stem: path for path in DOCS.glob("notebooks/*.ipynb")}
    page = (DOCS / "notebooks.md").read_text()
    assert set(files) == set(SHORTER)
    for name, path in files.items():
        assert f"(notebooks/{name}.ipynb)" in page and path.stat().st_size < 60_000
