"""Which data a run was trained on: names, sizes and counts, kept in its folder for sampling."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from tests.data import toys
from ucgm.data import DataSpec, Digits, Images, check_card, keep_card, open_for_sampling
from ucgm.data.dataset import Dataset, other_classes


@pytest.fixture
def config(tmp_path):
    (tmp_path / "run").mkdir()
    return Images(str(toys.image_tree(tmp_path / "tree", 2, 2)), 8, channels=1)


@pytest.fixture
def run(config, tmp_path):
    keep_card(config.open(), tmp_path / "run")
    return tmp_path / "run"


def rewrite(run, **changes):
    path = run / "data.json"
    card = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in card.items() if v != "left out"}))


def test_samples_that_came_or_went_are_refused(config, run, tmp_path):
    tree = tmp_path / "tree"
    keep_card(config.open(), run)
    (tree / "n1" / "x.jpg").write_bytes(toys.jpeg(0))
    message = r"was trained on 4 samples .*, and tree has 5 samples .* --train.init .*run and a new"
    with pytest.raises(ValueError, match=message):
        keep_card(config.open(), run)
    (tree / "n1" / "x.jpg").unlink()
    (tree / "n1" / "000.JPEG").rename(tree / "n0" / "999.JPEG")  # as many, of another class
    with pytest.raises(ValueError, match="was trained on 4 samples .*, and tree has 4 samples"):
        keep_card(config.open(), run)
    rewrite(run, samples="left out")  # an earlier version did not say
    keep_card(config.open(), run)


def test_other_classes_of_the_same_count_are_refused(config, run, tmp_path):
    (tmp_path / "tree" / "n1").rename(tmp_path / "tree" / "wolf")
    with pytest.raises(ValueError, match="other classes: class 1 is 'n1' there and 'wolf' in tree"):
        check_card(config.open(), run)
    three = DataSpec((1, 8, 8), 3, "three", pixels=True).open()
    with pytest.raises(ValueError, match=r"2 classes \(n0, n1, ...\), and three has 3 classes\."):
        check_card(three, run)
    assert other_classes(Digits().open(), DataSpec((1, 8, 8), 10).open()) == ""
    with pytest.raises(ValueError, match="2 class_names for 3 classes"):
        DataSpec((1, 8, 8), 3, class_names=("a", "b"))


def test_held_out_images_of_other_classes_are_refused(config, tmp_path):
    held = toys.image_tree(tmp_path / "held", 2, 1)
    with_held = replace(config, held_out_path=str(held))
    assert len(with_held.open()) == 4 and len(with_held.held_out().open()) == 2
    (held / "n1").rename(held / "n2")
    with pytest.raises(ValueError, match="held_out_path: class 1 is 'n1' there and 'n2' in held"):
        with_held.open()


def test_sampling_needs_no_images(config, run, tmp_path, recwarn):
    x = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    assert len(open_for_sampling(config, run)) == 4
    shutil.rmtree(tmp_path / "tree")
    for there in (False, True):  # nothing, or the empty place of a disk
        data = open_for_sampling(config, run)
        assert (len(data), data.shape, data.class_names) == (0, (1, 8, 8), ("n0", "n1"))
        assert data.extractor == "inception" and torch.equal(
            data.decode(x), Dataset.decode(data, x)
        )
        assert len(recwarn) == there
        (tmp_path / "tree").mkdir(exist_ok=True)
    assert "holds no images" in str(recwarn[0].message)
    rewrite(run, own_decoder=True)
    with pytest.raises(ValueError, match="holds no images"):
        open_for_sampling(config, run)


def test_sampling_goes_by_the_run_where_the_path_has_other_data(config, run, tmp_path):
    (tmp_path / "tree" / "n0").rename(tmp_path / "tree" / "cat")
    with pytest.warns(UserWarning, match="class 0 is 'n0' there and 'cat' in tree"):
        assert open_for_sampling(config, run).class_names == ("n0", "n1")
