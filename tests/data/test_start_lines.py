"""What a training says of its images before it begins, and whether it mirrors them."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.data import toys
from tests.data.test_loader import make_set
from ucgm import cli
from ucgm.data import Images, Latents


def images(folder, names, grey):
    levels = np.random.RandomState(0).randint(0, 255, (16, 16, 1 if grey else 3))
    for name in names:
        (folder / name).mkdir(parents=True)
        pixels = np.broadcast_to(levels, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name / "0.jpg", subsampling=0, quality=95)
    return folder


@pytest.mark.parametrize(
    "names, asked, mirrored",
    [
        (("cat", "dog"), None, True),
        (("0", "1"), None, False),
        (("A", "é"), None, False),
        (("0", "10"), None, True),
        ((".",), None, True),  # a flat folder: no classes
        (("0", "1"), True, True),
        (("cat", "dog"), False, False),
    ],
)
def test_letters_and_digits_are_not_mirrored_unless_asked(tmp_path, names, asked, mirrored):
    if names == (".",):
        (tmp_path / "0.jpg").write_bytes(toys.jpeg(0))
    else:
        images(tmp_path, names, grey=True)
    dataset = Images(str(tmp_path), 8, flips=asked).open()
    assert dataset.mirrored == mirrored
    assert ("half of them shown mirrored (data.flips)" in dataset.describe()) == mirrored


def test_shards_of_digits_are_not_mirrored(tmp_path):
    folder = make_set(tmp_path / "set", rows=(5,))
    manifest = json.loads((folder / "manifest.json").read_text())
    for names, mirrored in (("abcde", False), (["a", "b", "c", "d", "ee"], True)):
        (folder / "manifest.json").write_text(json.dumps(manifest | {"classes": list(names)}))
        assert Latents(str(folder)).open().mirrored == mirrored
        assert Latents(str(folder), flips=True).open().mirrored


def test_grey_images_and_what_is_left_out_are_said(tmp_path):
    grey = images(tmp_path / "grey", ("cat", "dog"), grey=True)
    (grey / "cat" / "notes.txt").write_text("")
    (grey / "cat" / "damaged.png").write_bytes(b"")
    said = Images(str(grey), 8).open().describe().splitlines()
    assert said[0].startswith("grey: 3 samples of 3x8x8, 2 classes")
    assert said[1:] == [
        "  no images, left out: 1 .txt",
        "  2 of 2 images looked at are grey: data.channels 1 would do",
    ]
    assert len(Images(str(grey), 8, channels=1).open().describe().splitlines()) == 2
    colour = images(tmp_path / "colour", ("cat", "dog"), grey=False)
    assert len(Images(str(colour), 8).open().describe().splitlines()) == 1
    assert "2 of 2 images looked at have colours" in Images(str(colour), 8, 1).open().describe()
    damaged = tmp_path / "damaged" / "cat"
    damaged.mkdir(parents=True)
    (damaged / "0.png").write_bytes(b"not an image")
    fits = [Images(str(path), 8).open().channels_that_fit() for path in (grey, colour, damaged)]
    assert fits == [1, 3, 3]  # of what cannot be read nothing is known


def test_a_description_lists_every_file_that_cannot_be_read(tmp_path, capsys):
    tree = toys.image_tree(tmp_path / "tree", 2, 2)
    for name in ("n0/000.JPEG", "n1/001.JPEG"):
        (tree / name).write_bytes(b"")
    with pytest.raises(SystemExit):
        cli.main(["data", str(tree), "--size", "8"])
    said = capsys.readouterr().err
    assert "2 problems" in said and "n0/000.JPEG" in said and "n1/001.JPEG" in said
