"""What lies in folders beside images: passed over, or named; and pixels of other depths."""

import io
import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.data import toys
from ucgm import cli
from ucgm.data import Images
from ucgm.data.pixels import UnreadableImage, read_image
from ucgm.data.sources import open_source


@pytest.fixture
def tree(tmp_path):
    return toys.image_tree(tmp_path / "tree", 2, 2)


def test_hidden_and_left_behind_folders_are_passed_over(tree, tmp_path):
    for name in ("__MACOSX/n0/._000.JPEG", "@eaDir/x.jpg", "$RECYCLE.BIN/x.jpg", ".git/x.jpg"):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_bytes(b"junk")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(tree.rglob("*")):
            archive.write(path, path.relative_to(tree))
    for where in (tree, tmp_path / "a.zip"):
        source = open_source(str(where))
        assert source.classes == ("n0", "n1") and len(source) == 4


@pytest.mark.parametrize("suffix, kind", [("pgm", "PPM"), ("jfif", "JPEG"), ("jpe", "JPEG"),
                                          ("AVIF", "AVIF"), ("jp2", "JPEG2000")])  # fmt: skip
def test_every_suffix_of_images_counts(tree, suffix, kind):
    grey = Image.new("L", (8, 8), 9)
    (grey if kind == "PPM" else grey.convert("RGB")).save(tree / f"n0/x.{suffix}", kind)
    (tree / "n0" / "notes.txt").write_text("no image")
    (tree / "n1" / "x.heic").write_text("not read")
    source = open_source(str(tree))
    assert len(source) == 5 and source.note == "no images, left out: 1 .heic, 1 .txt"
    read = [read_image(source.content_of(i), 8) for i in range(5)]
    assert min(abs(pixels.astype(int) - 9).max() for pixels in read) <= 1


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "test"),
        ("train", "val", "test", "extra"),
        ("train2017", "val2017", "annotations"),
        ("Training", "Testing"),
        ("train",),
    ],
)
@pytest.mark.parametrize("deep", ["", "/a"])
def test_splits_are_no_classes(tmp_path, folders, deep):
    for name in folders:
        (tmp_path / f"{name}{deep}").mkdir(parents=True)
        (tmp_path / f"{name}{deep}/0.png").write_bytes(toys.jpeg(0))
    with pytest.raises(ValueError, match="give the folder whose subfolders are the classes"):
        open_source(str(tmp_path))


def test_a_class_may_be_called_train(tmp_path):
    for name in ("boat", "bus", "train"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(toys.jpeg(0))
    assert open_source(str(tmp_path)).classes == ("boat", "bus", "train")


def link(tree, name, target):
    (tree / name).symlink_to(target)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda tree: os.mkfifo(tree / "n0" / "x.png"), "n0/x.png in .* is a pipe"),
        (lambda tree: link(tree, "n0/x.png", "/dev/zero"), "n0/x.png in .* a device"),
        (lambda tree: link(tree, "n0/x.png", "nowhere"), "n0/x.png in .* leads nowhere"),
        (lambda tree: link(tree, "n0/x.png", "000.JPEG"), "n0/x.png .* is n0/000.JPEG once more"),
        (lambda tree: link(tree, "n2", "n1"), "n[12]/ in .* leads to a folder that is listed"),
        (lambda tree: link(tree, "n0/up", ".."), "n0/up/ in .* leads to a folder that is listed"),
        (lambda tree: link(tree, "n0/top", "/"), "n0/top/ in .* leads to a folder that is listed"),
    ],
)
def test_links_pipes_and_devices(tree, spoil, message):
    spoil(tree)
    with pytest.raises(ValueError, match=message):
        open_source(str(tree))


def test_links_that_lead_out_are_what_they_lead_to(tree, tmp_path):
    shutil.copytree(tree, other := tmp_path / "other")
    link(tree, "n2", other / "n0")
    link(tree, "n0/x.png", other / "n1" / "000.JPEG")
    source = open_source(str(tree))
    assert source.classes == ("n0", "n1", "n2") and len(source) == 7
    link(tree, "n1/x.png", other / "n1" / "000.JPEG")
    with pytest.raises(ValueError, match="x.png once more"):
        open_source(str(tree))


def test_members_of_a_zip(tree, tmp_path):
    with zipfile.ZipFile(path := tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/x.png", toys.jpeg(0))
        with pytest.warns(UserWarning):
            archive.writestr("a/x.png", toys.jpeg(1))
    with pytest.raises(ValueError, match="holds a/x.png twice"):
        open_source(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/x.png", toys.jpeg(0))
    content = bytearray(path.read_bytes())
    for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(sign) + place] |= 1  # encrypted
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a/x.png in .*a.zip cannot be read .*encrypted"):
        Images(str(path), 8).open().read([0])


def test_what_may_not_be_read_is_not_to_be_deleted(tree, monkeypatch):
    dataset = Images(str(tree), 8).open()
    (tree / "n0" / "000.JPEG").write_bytes(b"")
    with pytest.raises(ValueError, match=r"n0/000.JPEG in .*delete it, or save it anew\."):
        dataset.read([0])

    def refused(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(ValueError, match="n0/001.JPEG in .*Permission denied") as caught:
        dataset.read([1])
    assert "delete" not in str(caught.value)


def test_names_that_are_no_utf8(tmp_path):
    os.mkdir(os.fsencode(tmp_path) + b"/a")
    with open(os.fsencode(tmp_path) + b"/a/\xff\x1b.png", "wb") as file:
        file.write(toys.jpeg(0))
    source = open_source(str(tmp_path))
    assert source.content_of(0) == toys.jpeg(0) and source.names_digest()


def test_the_description_lies_beside_the_images(tree, capsys):
    for _ in range(2):
        cli.main(["data", str(tree), "--size", "8"])
        assert sorted(p.name for p in tree.iterdir()) == ["n0", "n1"]
    assert (tree.parent / "tree.description" / "grid.png").exists()
    # A folder that an earlier version wrote into can be trained on.
    shutil.copytree(tree.parent / "tree.description", tree / "description")
    assert open_source(str(tree)).classes == ("n0", "n1")
    for words in (
        ["data", str(tree), "--out", str(tree / "report")],
        ["encode", str(tree), "--vae", "identity", "--size", "8", "--out", str(tree / "set")],
        ["reference", str(tree), str(tree / "x.npz")],
        ["evaluate", str(tree), "--out-dir", str(tree / "x")],
    ):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert "lies in" in capsys.readouterr().err
    assert sorted(p.name for p in tree.iterdir()) == ["description", "n0", "n1"]


def encoded(array, kind):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("value, level", [(0, 0), (128, 0), (129, 1), (16384, 64), (65535, 255)])
def test_sixteen_bit_grey(kind, value, level):
    content = encoded(np.full((8, 8), value, np.uint16), kind)
    for channels in (1, 3):
        assert (read_image(content, 8, channels) == level).all()


@pytest.mark.parametrize("value, level", [(0.0, 0), (0.5, 128), (1.0, 255)])
def test_float_grey(value, level):
    assert (read_image(encoded(np.full((8, 8), value, np.float32), "TIFF"), 8) == level).all()


@pytest.mark.parametrize(
    "array",
    [
        np.full((8, 8), 70.0, np.float32),
        np.full((8, 8), np.nan, np.float32),
        np.full((8, 8), 10**6, np.int32),
    ],
)
def test_grey_without_a_white_is_refused(array):
    with pytest.raises(UnreadableImage, match="have no white"):
        read_image(encoded(array, "TIFF"), 8)


def test_postscript_and_narrow_images():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"
    with pytest.raises(UnreadableImage, match="no known image format"):
        read_image(postscript, 8)
    with pytest.raises(UnreadableImage, match="1x60000 pixels are too narrow"):
        read_image(encoded(np.zeros((60000, 1), np.uint8), "PNG"), 256)
