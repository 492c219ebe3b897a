"""Labels and lists of them: whole numbers of classes that exist, or one line with the item."""

import json

import numpy as np
import pytest

from tests.data import toys
from ucgm.data.labels import check_labels, count_classes, read_label_list
from ucgm.data.sets.image_folder import Images
from ucgm.data.sources import open_source
from ucgm.data.sources.listing import HubSource


def item(i):
    return f"item {i}"


@pytest.mark.parametrize(
    "value", [-1, True, 0.7, 1.0, float("nan"), None, "1", "cat", [1], 2**20, 10**12, 10**30]
)
def test_what_is_no_class_is_named(value):
    with pytest.raises(ValueError, match="^item 2 has label .*out of range.*1 such items"):
        check_labels([0, 1, value], item)


@pytest.mark.parametrize(
    "array", [[0.0, 1.0], [True, False], ["0", "1"], np.array([-1, 0]), np.array([0, 2**63], "u8")]
)
def test_arrays_of_no_classes(array):
    with pytest.raises(ValueError, match="^item [01] has label"):
        check_labels(np.array(array), item)


def test_labels_and_their_count():
    for labels in ([2, 0, 1], np.array([2, 0, 1], "u1"), np.array([2, 0, 1], "i4")):
        found = check_labels(labels, item)
        assert found.dtype == np.int64 and found.tolist() == [2, 0, 1]
    assert count_classes(found, item, "x") == 3
    assert count_classes(found, item, "x", asked=7) == 7
    with pytest.raises(ValueError, match="item 0 has label 2, out of range"):
        count_classes(found, item, "x", asked=2)
    with pytest.raises(ValueError, match="class 3 of x has no items: of 4 classes 1 are empty"):
        count_classes(found, item, "x", ("a", "b", "c", "3"))
    with pytest.raises(ValueError, match="class 1 of x has no items: of 10 classes 7 are empty"):
        count_classes(np.array([0, 5, 9]), item, "x")


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"labels": [["a.png", 0], ["a.png", 2]]}', r"a.png twice, in entry 1 \(class 0\) and"),
        ('{"labels": [["a.png", 0.5]]}', "a.png in dataset.json has label 0.5"),
        ('{"labels": [["a.png", true]]}', "a.png in dataset.json has label True"),
        ('{"labels": [["a.png"]]}', "is no list .*entry 1 is"),
        ('{"labels": [[5, 0]]}', "is no list .*entry 1 is"),
        ('{"labels": 5}', "is no list"),
        ('{"labels": {"a.png": 0}}', "is no list"),
        ("5", "is no list"),
        ("[" * 10**5, "is no list"),
        ('{"labels"', "is no list"),
    ],
)
def test_lists_that_are_none(content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_label_list(content.encode(), "dataset.json")
    assert "\n" not in str(caught.value)


def test_images_with_gaps_or_odd_labels_do_not_train(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(toys.jpeg(number))

    def label(*labels):
        pairs = [[f"{i}.png", k] for i, k in enumerate(labels)]
        (folder / "dataset.json").write_text(json.dumps({"labels": pairs}))
        return Images(str(folder), 8).open()

    assert label(1, 0, 1, 0).num_classes == 2
    with pytest.raises(ValueError, match="class 0 of .* has no items"):
        label(5, 9, 5, 9)
    with pytest.raises(ValueError, match="1.png in dataset.json has label -1"):
        label(0, -1, 1, 0)
    (folder / "dataset.json").unlink()
    (folder / "labels.csv").write_text("file,label\n" + "".join(f"{i}.png,{i}\n" for i in range(4)))
    assert Images(str(folder), 8).open().num_classes == 4


@pytest.mark.parametrize("labels", [[0, None, 1], ["x", "y", "x"], [0.2, 1.7, 1.0], [-1, 0, 1]])
def test_columns_of_the_hub_that_are_no_labels(labels):
    datasets = pytest.importorskip("datasets")
    cells = [{"bytes": toys.jpeg(i), "path": None} for i in range(3)]
    rows = datasets.Dataset.from_dict({"image": cells, "label": labels})
    with pytest.raises(ValueError, match="row [012] in hub:x has label .*--label-column"):
        HubSource("hub:x", rows, "image", "label")


def test_rows_of_the_hub_without_an_image(tmp_path):
    datasets = pytest.importorskip("datasets")
    from ucgm.data.encoding.encoder import read_batch

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    cells = [{"bytes": toys.jpeg(0), "path": None}, None, {"bytes": None, "path": "/dev/zero"}]
    rows = datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 0]}, features=features)
    source = HubSource("hub:x", rows, "image", "label")
    assert read_batch(source, [0, 1], 8, 8).skipped == [("row 1", "there is no image in this row")]
    with pytest.raises(ValueError, match="/dev/zero is no regular file"):
        read_batch(source, [2], 8, 8)
    with pytest.raises(ValueError, match="no images in 'label'"):
        HubSource("hub:x", rows, "label", "label")


def test_a_folder_of_samples_has_its_labels(tmp_path):
    (tmp_path / "0.png").write_bytes(toys.jpeg(0))
    (tmp_path / "labels.csv").write_text("file,label\n0.png,0\n")
    source = open_source(str(tmp_path))
    assert not source.unlabelled and source.labels.tolist() == [0]
