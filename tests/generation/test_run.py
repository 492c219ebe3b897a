"""A run in Python: trained and sampled in a line each."""

import numpy as np
import pytest
from PIL import Image

import ucgm


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    settings = {
        "model": {"size": "N/2"},
        "objective": {"preset": "meanflow"},
        "train": {"steps": 2, "global_batch": 8},
    }
    return ucgm.train(settings, folder / "run")


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


def test_training_gives_a_run(run):
    assert isinstance(run, ucgm.Run) and run.step == 2
    assert run.config.model.second_time and run.config.sampler.solver == "jump"


def test_images_of_classes(run):
    images = run.sample(classes=[3, 7], steps=2)
    assert [image.size for image in images] == [(8, 8)] * 2
    four = run.sample(4, classes=[3, 7], steps=2)
    assert (pixels(four[:2]) == pixels(images)).all()
    assert (pixels(run.sample(classes=[3, 7], steps=2, seed=1)) != pixels(images)).any()
    with pytest.raises(ValueError, match="class 11"):
        run.sample(classes=[11])
    with pytest.raises(ValueError, match="num_images"):
        run.sample(0)


def test_the_same_images_as_the_command(run):
    from ucgm.generation.command import sample_run

    folder = sample_run(str(run.run_dir), 3, steps=2, device="cpu")
    files = [Image.open(folder / "images" / f"{i:06d}.png") for i in range(3)]
    assert (pixels(run.sample(3, steps=2)) == pixels(files)).all()
