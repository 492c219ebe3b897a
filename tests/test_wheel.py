"""The package as pip gets it: a wheel, built from the sdist, that trains without this tree."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]


def run(words, folder, **environment):
    found = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={"PATH": "", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


def build(kind, tree, out):
    """File name of the sdist or wheel of a tree."""
    program = f"from setuptools import build_meta as b; b.build_{kind}({str(out)!r})"
    run(["-c", program], tree)
    return next(out.glob("*.tar.gz" if kind == "sdist" else "*.whl"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder with the wheel that was built from the sdist of what git tracks."""
    folder = tmp_path_factory.mktemp("wheel")
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPO, capture_output=True, check=True, text=True
    ).stdout.split("\0")
    for name in filter(None, names):
        if (REPO / name).is_file() and not name.startswith("tests/"):
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "tree" / name).write_bytes((REPO / name).read_bytes())
    (folder / "dist").mkdir()
    source = build("sdist", folder / "tree", folder / "dist")
    run(["-m", "tarfile", "-e", str(source), str(folder / "unpacked")], folder)
    wheel = build("wheel", next((folder / "unpacked").iterdir()), folder / "dist")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_every_file_of_the_package(installed):
    places = {"ucgm": "ucgm", "configs": "ucgm/configs", "assets": "ucgm/assets"}
    for source, place in places.items():
        for path in (REPO / source).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert (installed / place / path.relative_to(REPO / source)).is_file(), path


def test_the_wheel_trains_samples_and_scores_the_digits(installed, tmp_path):
    said = run(["-c", "import ucgm; print(ucgm.__file__)"], tmp_path, PYTHONPATH=str(installed))
    assert Path(said.strip()).is_relative_to(installed)
    config = str(installed / "ucgm/configs/digits.yaml")
    words = ["--config", config, "--run-dir", "run", "--train.steps", "2", "--model.size", "N/2"]
    run(["-m", "ucgm", "train", *words], tmp_path, PYTHONPATH=str(installed))
    words = ["run", "--steps", "1", "--num-images", "64", "--device", "cpu"]
    said = run(["-m", "ucgm", "benchmark", *words], tmp_path, PYTHONPATH=str(installed))
    assert "The best FID is" in said
