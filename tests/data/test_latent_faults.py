"""Latent folders that something happened to: damage, other files, other users, two commands."""

import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.data import toys
from tests.data.test_loader import make_set
from ucgm.cli import commands as cli
from ucgm.data import CodecSettings, check_card, keep_card
from ucgm.data.encoding.command import codec_settings, encode_data
from ucgm.data.latents.autoencoder import open_autoencoder
from ucgm.data.latents.shards import ShardSet
from ucgm.data.latents.statistics import read_statistics
from ucgm.data.sets.latent_shards import Latents


@pytest.fixture
def folder(tmp_path):
    return make_set(tmp_path / "set")


def rows_of(folder, **options):
    return Latents(str(folder), **options).open().read(range(24))


def change_manifest(folder, **values):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Damage


@pytest.mark.parametrize("where", [4200, -1])
def test_a_flipped_bit_is_refused_when_the_shard_is_first_read(folder, where, monkeypatch):
    path = folder / "shard_00002.safetensors"
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    for limit in (2**28, 0):
        monkeypatch.setattr("ucgm.data.latents.shards.KEEP_BELOW", limit)
        dataset = Latents(str(folder)).open()
        for _ in range(2):  # a second thread that comes to it is not let through
            with pytest.raises(ValueError, match=f"{path} is not what was written.*delete it and "):
                dataset.read([23])
        dataset.read([0])
        Latents(str(folder), checksums=False).open().read([14])


def test_train_refuses_a_flipped_bit(folder, tmp_path, capsys):
    path = folder / "shard_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[4097] ^= 64
    path.write_bytes(content)
    data = {"class_path": "Latents", "init_args": {"path": str(folder)}}
    model = {"class_path": "ucgm.nn.DiTConfig", "init_args": {"size": "T/2"}}
    train = {"steps": 4, "global_batch": 24, "num_workers": 1}
    settings = {"data": data, "model": model, "train": train}
    (tmp_path / "c.yaml").write_text(
        json.dumps(settings | {"objective": {"preset": "flow_matching"}})
    )
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--config", str(tmp_path / "c.yaml"), "--run-dir", str(tmp_path / "r")])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert caught.value.code == 2 and f"{path} is not what was written" in error
    assert "`ucgm encode` again" in error


def test_shards_that_shrink_or_are_replaced_under_a_training(folder, monkeypatch):
    whole, _ = rows_of(folder)
    kept = Latents(str(folder)).open()
    kept.read(range(24))
    monkeypatch.setattr("ucgm.data.latents.shards.KEEP_BELOW", 0)
    called = Latents(str(folder)).open()
    called.read(range(24))
    other = folder / "other"
    other.write_bytes(b"another set")
    other.rename(folder / "shard_00000.safetensors")
    assert torch.equal(called.read([0, 1])[0], whole[:2])  # the file that was opened
    os.truncate(folder / "shard_00002.safetensors", 4096)
    with pytest.raises(ValueError, match="shard_00002.safetensors has become shorter"):
        called.read([23])
    assert torch.equal(kept.read(range(24))[0], whole)
    late = Latents(str(make_set(folder.parent / "late"))).open()
    os.truncate(folder.parent / "late" / "shard_00002.safetensors", 4096)
    with pytest.raises(ValueError, match="shard_00002.safetensors has become shorter"):
        late.read([23])


# Files that are none, or of somebody else


@pytest.mark.parametrize("content", ["{}", "[]", "5", "null", '"x"', "[" * 10**5, "\0", ""])
def test_json_that_is_no_set(folder, tmp_path, content):
    run = tmp_path / "run"
    run.mkdir()
    dataset = Latents(str(folder)).open()
    keep_card(dataset, run)
    (run / "data.json").write_text(content)
    with pytest.raises(ValueError, match="data.json"):
        check_card(dataset, run)
    for name in ("codec.json", "manifest.json"):
        before = (folder / name).read_text()
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match=name):
            Latents(str(folder)).open()
        (folder / name).write_text(before)


def test_manifests_that_name_other_files(folder, tmp_path):
    records = json.loads((folder / "manifest.json").read_text())["shards"]
    (tmp_path / "x.safetensors").write_bytes((folder / records[0]["file"]).read_bytes())
    for change, message in (
        ({"file": "../x.safetensors"}, "'../x.safetensors', which is no file of its folder"),
        ({"file": str(tmp_path / "x.safetensors")}, "which is no file of its folder"),
        ({"file": ""}, "no file of its folder"),
        ({"file": ".."}, "no file of its folder"),
        ({"file": records[1]["file"]}, "one shard twice"),
        ({"bytes": -1}, r"manifest.json cannot be read: shards\[0\].bytes must be a count, got -1"),
        ({"rows": True}, "rows must be a count, got True"),
        ({"rows": 14}, "25|24 rows, which are not those"),
        ({"bytes": 7}, "shard_00000.safetensors has .* bytes, in manifest.json 7: one of them"),
    ):
        change_manifest(folder, shards=[records[0] | change, *records[1:]])
        with pytest.raises(ValueError, match=message):
            rows_of(folder)
    change_manifest(
        folder, shards=[records[0] | {"rows": 12}, records[1] | {"rows": 2}, records[2]]
    )
    with pytest.raises(
        ValueError, match="shard_00000.safetensors has 13 rows, in manifest.json 12"
    ):
        rows_of(folder)


def test_pipes_devices_and_links(folder):
    shard, manifest = folder / "shard_00000.safetensors", folder / "manifest.json"
    content = shard.read_bytes()
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(ValueError, match="no regular file"):
        rows_of(folder)
    shard.unlink()
    shard.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="no regular file"):
        rows_of(folder)
    shard.unlink()
    shard.write_bytes(content)
    (folder / "z.safetensors").symlink_to(shard)
    with pytest.raises(ValueError, match="z.safetensors is .*shard_00000.safetensors once more"):
        ShardSet(sorted(folder.glob("*.safetensors")))
    manifest.unlink()
    os.mkfifo(manifest)
    with pytest.raises(ValueError, match="manifest.json is no regular file"):
        rows_of(folder)


def test_headers_that_lie(tmp_path):
    """Offsets that overlap, shapes that the bytes do not have, nesting without end."""
    path = tmp_path / "a.safetensors"
    for header in (
        {"latents": {"dtype": "F16", "shape": [2, 1, 1, 1], "data_offsets": [-4, 4]}},
        {"latents": {"dtype": "F16", "shape": [2, 1, 1, 2], "data_offsets": [0, 4]}},
        {"latents": {"dtype": "F16", "shape": [2.0, 1, 1, 1], "data_offsets": [0, 4]}},
        {"latents": {"dtype": ["F16"], "shape": [2, 1, 1, 1], "data_offsets": [0, 4]}},
        {"latents": 5},
        [],
    ):
        if isinstance(header, dict):
            header["labels"] = {"dtype": "I64", "shape": [2], "data_offsets": [4, 20]}
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(20))
        with pytest.raises(ValueError, match=f"shard {path} cannot be read"):
            ShardSet([path])
    text = b"[" * 10**5
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match=f"shard {path} cannot be read"):
        ShardSet([path])
    save_file({"latents": torch.zeros(0, 1, 2, 2), "labels": torch.zeros(0).long()}, path)
    with pytest.raises(ValueError, match="none of them empty"):
        ShardSet([path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mean": [0, 1], "std": [1, 0]}, "deviation 0 for channel 1"),
        ({"mean": [0, float("nan")], "std": [1, 1]}, "mean nan .* for channel 1"),
        ({"mean": [0, 0], "std": [float("inf"), 1]}, "deviation inf for channel 0"),
        ({"latents_bias": [0], "latents_scale": [0]}, "deviation inf for channel 0"),
        ({"mean": [0, 0], "std": [1]}, "2 means and 1 deviations"),
        ({"mean": "x", "std": [1]}, "mean and std that are no numbers"),
        ({"mean": {}, "std": None}, "no numbers"),
        ([1, 2], "holds a list"),
    ],
)
def test_statistics_that_cannot_be_divided_by(tmp_path, content, message):
    (tmp_path / "s.json").write_text(json.dumps(content))
    torch.save(content, tmp_path / "s.pt")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=message):
            read_statistics(path)


def test_weights_that_are_none(tmp_path):
    for name in ("a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(b"<html>")
    endless = {}
    endless["state_dict"] = endless
    for number, content in enumerate(([1], {1: torch.ones(1)}, endless, torch.ones(2))):
        torch.save(content, tmp_path / f"{number}.pt")
    state = {"encoder.down.0.block.0.conv1.weight": torch.ones(32, 3, 3, 3)}
    torch.save(state, tmp_path / "part.pt")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=path.name):
            open_autoencoder(str(path))


def test_settings_of_a_codec_without_meaning(tmp_path):
    for change in ({"size": 0}, {"size": "big"}, {"size": True}, {"store": "best"}, {"vae": 5}):
        with pytest.raises(ValueError, match="data.codec.{}".format(*change)):
            CodecSettings(**change).resolved(False)
    for name, content in (("a", "a: [\n"), ("b", "data: 5"), ("c", "[" * 10**5)):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match="has no readable section") as caught:
            codec_settings(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        codec_settings(str(tmp_path / "pipe"))


def read_as_nobody(folder, queue):
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        rows_of(folder)
    except (ValueError, OSError) as error:
        queue.put(str(error))


@pytest.mark.parametrize("name", ["codec.json", "manifest.json", "shard_00001.safetensors"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(name):
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # that another user may enter
        os.chmod(place, 0o755)
        folder = make_set(Path(place) / "set")
        (folder / name).chmod(0)
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        process = context.Process(target=read_as_nobody, args=(folder, queue))
        process.start()
        message = queue.get()
        process.join()
    assert "no permission" in message and name in message
    assert "delete" not in message and "again" not in message


# ucgm encode


def settings_of(tmp_path, tree, **more):
    settings = {"source": str(tree), "vae": "identity", "size": 16, "out": str(tmp_path / "out")}
    return settings | {"shard_size": 6, "batch_size": 3, "num_workers": 0, "device": "cpu"} | more


def test_the_second_of_two_is_refused(tmp_path):
    tree = toys.image_tree(tmp_path / "tree", 4, 100)
    settings = settings_of(tmp_path, tree)
    process = multiprocessing.get_context("fork").Process(target=encode_data, kwargs=settings)
    process.start()
    out, limit = tmp_path / "out", time.monotonic() + 60
    while not list(out.glob("shard_*")) and time.monotonic() < limit:
        time.sleep(0.001)
    first = f"ucgm encode .process {process.pid} on .*is writing {out}"
    with pytest.raises(ValueError, match=first) as caught:
        encode_data(**settings)
    process.join()
    assert process.exitcode == 0 and "\n" not in str(caught.value)
    alone = encode_data(**settings | {"out": str(tmp_path / "alone")})
    assert toys.folder_bytes(out) == toys.folder_bytes(alone)
    assert not list(tmp_path.rglob(".*"))


def test_labels_with_gaps(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    content = {"latents": torch.zeros(4, 3, 16, 16), "labels": torch.tensor([0, 1, 5, 9])}
    save_file(content, source / "a.safetensors")
    toys.tiny_kl(3).save_pretrained(tmp_path / "vae")
    settings = settings_of(tmp_path, source, vae=str(tmp_path / "vae"), size=32, normalise="scale")
    with pytest.raises(ValueError, match="class 2 of .* of 10 classes 6 are empty.*num-classes 10"):
        encode_data(**settings)
    folder = encode_data(**settings, num_classes=10)
    assert Latents(str(folder)).open().num_classes == 10
    content["labels"][2] = 10**12
    save_file(content, source / "a.safetensors")
    with pytest.raises(ValueError, match="row 2 of .* has label 1000000000000, out of range"):
        encode_data(**settings)


@pytest.mark.parametrize("content", ["5", "{}", '{"file": 5}', "[" * 10**5])
def test_records_that_are_none_are_made_again(tmp_path, content):
    tree = toys.image_tree(tmp_path / "tree", 2, 6)
    settings = settings_of(tmp_path, tree)
    whole = toys.folder_bytes(encode_data(**settings))
    out = tmp_path / "out"
    (out / "manifest.json").write_text(content)
    (out / ".progress").mkdir()
    (out / ".progress" / "00001.json").write_text(content)
    assert toys.folder_bytes(encode_data(**settings)) == whole
