"""``ucgm encode``: what is written, what survives a kill, what every fault says."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ucgm.data.encoding.command
from tests import group
from tests.data import toys
from ucgm.cli import commands as cli
from ucgm.data import CodecSettings, Latents, check_card, keep_card, open_for_sampling
from ucgm.data.encoding.command import encode_data
from ucgm.data.latents.autoencoder import open_autoencoder
from ucgm.data.pixels import from_uint8, read_image

REPO = Path(__file__).parents[2]
SIZE = 16


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    toys.tiny_kl(scaling_factor=0.18215).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return str(toys.image_tree(tmp_path_factory.mktemp("images") / "tree"))


@pytest.fixture
def encode(tmp_path, vae, tree):
    """Encode with small defaults; returns the folder."""

    def run(source=tree, model=vae, size=SIZE, out="out", **options):
        settings = {"shard_size": 16, "batch_size": 8, "num_workers": 0, "device": "cpu"}
        return encode_data(str(source), model, size, str(tmp_path / out), **(settings | options))

    return run


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def rows_of(folder, name="latents"):
    paths = [folder / record["file"] for record in manifest_of(folder)["shards"]]
    return torch.cat([load_file(path)[name] for path in paths])


def pixels_of(tree, name):
    return from_uint8(torch.from_numpy(read_image((Path(tree) / name).read_bytes(), SIZE).copy()))


# What is written


def test_rows_are_the_means_of_the_posterior(encode, vae, tree):
    folder = encode(store="mean", dtype="float32")
    assert sorted(p.name for p in folder.iterdir()) == [
        "codec.json", "encode.json", "manifest.json",
        "shard_00000.safetensors", "shard_00001.safetensors", "shard_00002.safetensors",
    ]  # fmt: skip
    manifest = manifest_of(folder)
    assert [r["rows"] for r in manifest["shards"]] == [16, 16, 8] and manifest["rows"] == 40
    assert manifest["classes"] == ["n0", "n1", "n2", "n3"] and manifest["num_classes"] == 4
    x = pixels_of(tree, "n2/003.JPEG")[None]
    for name, image in (("latents", x), ("latents_flip", x.flip(-1))):
        expected = open_autoencoder(vae).posterior(image)[0][0]
        torch.testing.assert_close(rows_of(folder, name)[23], expected, rtol=1e-4, atol=1e-5)
    assert rows_of(folder, "labels").tolist() == sum(([k] * 10 for k in range(4)), [])


def test_statistics_are_those_of_all_rows(encode):
    folder = encode(dtype="float32")
    both = torch.cat((rows_of(folder), rows_of(folder, "latents_flip"))).double()
    dataset = Latents(str(folder)).open()
    assert dataset.codec.normalise == "channel" and dataset.codec.store == "sample"
    torch.testing.assert_close(torch.tensor(dataset.codec.mean).double(), both.mean((0, 2, 3)))
    deviation = both.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(dataset.codec.std).double(), deviation)
    x, _ = dataset.__getitems__(range(80))
    assert x.mean((0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(4), rtol=1e-4, atol=1e-4)


def test_half_precision_is_the_default_and_close(encode):
    half, full = encode(out="half"), encode(out="full", dtype="float32")
    assert rows_of(half).dtype == torch.float16
    assert torch.equal(rows_of(half), rows_of(full).half())


def test_samples_and_moments_are_of_one_posterior(encode, vae, tree):
    moments = rows_of(encode(out="m", store="moments", dtype="float32"))
    mean, std = moments.chunk(2, dim=1)
    torch.testing.assert_close(mean, rows_of(encode(out="a", store="mean", dtype="float32")))
    sample = rows_of(encode(out="s", store="sample", dtype="float32"))
    noise = (sample - mean) / std
    assert abs(float(noise.mean())) < 4 / noise.numel() ** 0.5
    assert abs(float(noise.std()) - 1) < 4 / (2 * noise.numel()) ** 0.5
    flipped = rows_of(Path(encode(out="s", store="sample", dtype="float32")), "latents_flip")
    assert not torch.equal(flipped, sample.flip(-1))
    other = rows_of(encode(out="t", dtype="float32", shard_size=7, batch_size=3))
    torch.testing.assert_close(other, sample, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(rows_of(encode(out="u", dtype="float32", seed=1)), sample)


def test_moments_have_the_variance_of_their_samples(encode):
    codec = Latents(str(encode(out="m", store="moments", dtype="float32"))).open().codec
    many = [rows_of(encode(out=f"s{seed}", dtype="float32", seed=seed)) for seed in range(8)]
    sampled = torch.cat(many).double().std((0, 2, 3))
    torch.testing.assert_close(torch.tensor(codec.std).double(), sampled, rtol=0.02, atol=0.01)
    assert codec.shape == (4, 8, 8) and codec.stored_shape == (8, 8, 8)


def test_identity_keeps_pixels(encode, tree):
    folder = encode(model="identity", out="pixels")
    assert rows_of(folder).dtype == torch.uint8 and "latents_flip" not in load_file(
        folder / "shard_00000.safetensors"
    )
    dataset = Latents(str(folder)).open()
    assert dataset.lossless and dataset.mirrored and dataset.shape == (3, SIZE, SIZE)
    x, y = dataset.__getitems__([23, 63])
    assert torch.equal(x[0], pixels_of(tree, "n2/003.JPEG")) and torch.equal(x[1], x[0].flip(-1))
    assert y.tolist() == [2, 2]
    assert torch.equal(from_uint8(dataset.decode(x)), x)


def test_one_command_reads_a_configuration(encode, vae, tree, tmp_path):
    section = {"vae": vae, "size": SIZE, "store": "moments", "normalise": "edm2"}
    path = tmp_path / "data.yaml"
    config = {"data": {"class_path": "Latents", "init_args": {"path": "out", "codec": section}}}
    path.write_text(json.dumps(config))
    folder = encode(model=None, size=None, config=str(path))
    codec = Latents(str(folder), CodecSettings(**section)).open().codec
    assert codec.scale == 0.5 and codec.mean[0] == 5.81
    with pytest.raises(ValueError, match="--vae is missing"):
        encode(model=None)
    with pytest.raises(ValueError, match="no readable section data.init_args.codec"):
        encode(model=None, config=str(Path(tree) / "none.yaml"))
    with pytest.raises(ValueError, match="--out is missing"):
        encode_data(tree, vae)


# Other sources


def lightningdit(folder, rows=10, channels=4, flips=True, side=8):
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for rank in range(2):
        shape = (rows, channels, side, side)
        content = {"labels": torch.arange(rows) % 4}
        content["latents"] = torch.randn(shape, generator=generator)
        if flips:
            content["latents_flip"] = torch.randn(shape, generator=generator)
        save_file(content, folder / f"latents_rank{rank:02d}_shard000.safetensors")
    return folder


def test_shards_of_lightningdit_are_converted(encode, tmp_path):
    source = lightningdit(tmp_path / "source")
    folder = encode(source)
    first = load_file(source / "latents_rank00_shard000.safetensors")
    assert torch.equal(rows_of(folder)[:10], first["latents"].half())
    assert torch.equal(rows_of(folder, "latents_flip")[:10], first["latents_flip"].half())
    dataset = Latents(str(folder)).open()
    assert dataset.num_classes == 4 and dataset.mirrored
    assert dataset.decode(dataset.__getitems__([3])[0]).shape == (1, 3, SIZE, SIZE)


def test_moments_in_shards_are_recognised(encode, tmp_path, capsys):
    folder = encode(lightningdit(tmp_path / "source", channels=8, flips=False))
    dataset = Latents(str(folder)).open()
    assert dataset.codec.store == "moments" and dataset.shape == (4, 8, 8)
    assert not dataset.mirrored and "no mirrored latents" in capsys.readouterr().out
    with pytest.raises(ValueError, match="cannot be stored as mean"):
        encode(tmp_path / "source", out="mean", store="mean")


def test_wrong_channel_count(encode, tmp_path):
    source = lightningdit(tmp_path / "source", channels=16)
    with pytest.raises(ValueError, match=r"rows of \(16, 8, 8\).* latents of \(4, 8, 8\), or mom"):
        encode(source)
    with pytest.raises(ValueError, match=r"rows of \(4, 4, 4\)"):
        encode(lightningdit(tmp_path / "small", side=4))


@pytest.mark.parametrize("where", ["folder", "zip"])
def test_moments_of_repa_and_edm2(encode, tmp_path, where):
    folder = tmp_path / "vae-sd" / "00000"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = rng.random((6, 8, 8, 8), dtype=np.float32)
    names = [f"00000/img-mean-std-{k:08d}.npy" for k in range(6)]
    for name, array in zip(names, arrays, strict=True):
        np.save(folder.parent / name, array)
    listing = {"labels": [[name, k % 3] for k, name in enumerate(names)]}
    (folder.parent / "dataset.json").write_text(json.dumps(listing))
    source = folder.parent
    if where == "zip":
        source = shutil.make_archive(str(tmp_path / "edm2"), "zip", folder.parent)
    stored = encode(source, dtype="float32")
    assert torch.equal(rows_of(stored), torch.from_numpy(arrays))
    assert rows_of(stored, "labels").tolist() == [0, 1, 2, 0, 1, 2]
    assert Latents(str(stored)).open().codec.store == "moments"
    mean = encode(source, out="mean", dtype="float32", store="mean")
    assert torch.equal(rows_of(mean), torch.from_numpy(arrays[:, :4]))


# Interruptions


def member(world, arguments):
    ucgm.data.encoding.command.join_world = lambda device: world
    encode_data(**arguments)


def start(arguments, size):
    return group.start(size, member, arguments)


def test_ten_kills_leave_no_trace(vae, tmp_path):
    """Two processes, kill -9 at ten random moments: the finished set is the same byte for byte."""
    tree = toys.image_tree(tmp_path / "tree", 6, 24)
    (tree / "n3" / "007.JPEG").write_bytes(b"no image")
    arguments = {"source": str(tree), "vae": vae, "size": SIZE, "out": str(tmp_path / "whole")}
    arguments |= {"shard_size": 6, "batch_size": 3, "num_workers": 0, "device": "cpu"}
    begin = time.monotonic()
    group.finish(start(arguments, 2))
    pause = (time.monotonic() - begin) / 10
    chance, out = random.Random(0), tmp_path / "killed"
    arguments["out"] = str(out)
    interrupted = 0
    for _ in range(10):
        done = len(list(out.glob("shard_*")))
        processes = start(arguments, 2)
        more, limit = done + chance.randrange(3), time.monotonic() + 60
        while len(list(out.glob("shard_*"))) < min(more, 24) and time.monotonic() < limit:
            time.sleep(0.002)
        time.sleep(chance.random() * pause)
        interrupted += any(process.is_alive() for process in processes)
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
    assert interrupted >= 8, "the processes were too fast for the test"
    group.finish(start(arguments, 2))
    assert toys.folder_bytes(out) == toys.folder_bytes(tmp_path / "whole")
    assert manifest_of(out)["rows"] == 6 * 24 - 1
    arguments["out"] = str(tmp_path / "alone")
    encode_data(**arguments)
    assert toys.folder_bytes(tmp_path / "alone") == toys.folder_bytes(out)


def test_states_that_a_kill_can_leave(encode, tmp_path):
    whole = toys.folder_bytes(encode(out="whole"))
    folder = tmp_path / "out"

    def left_with(*names, **more):
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in {**{n: whole[n] for n in names}, **more}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    shard = "shard_00001.safetensors"
    record = json.dumps(json.loads(whole["manifest.json"])["shards"][1]).encode()
    for files, more in (
        ((), {".encode.json.123.tmp": b"{"}),
        (("encode.json",), {}),
        (("encode.json",), {f".{shard}.tmp": whole[shard][:999]}),
        (("encode.json", shard), {}),  # renamed, not yet recorded
        (("encode.json", shard), {".progress/00001.json": record}),
        (("encode.json", shard), {".progress/00001.json": record[:50]}),
        (("encode.json",), {shard: whole[shard][:-1], ".progress/00001.json": record}),
        (tuple(n for n in whole if n != "manifest.json"), {".codec.json.9.tmp": b""}),
        (tuple(whole), {".progress/00001.json": record}),
        (tuple(n for n in whole if n != shard), {}),  # finished, and a shard lost since
        ((), dict(whole) | {"manifest.json": b"{"}),
    ):
        left_with(*files, **more)
        encode()
        assert toys.folder_bytes(folder) == whole, (files, list(more))


def test_a_finished_shard_is_not_made_again(encode):
    folder = encode()
    (folder / "shard_00001.safetensors").unlink()
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("shard_*")}
    encode()
    after = {p.name: p.stat().st_mtime_ns for p in folder.glob("shard_*")}
    assert before.items() <= after.items() and len(after) == 3


# Faults


def test_corrupt_images_are_skipped_counted_and_listed(encode, tree, tmp_path, capsys):
    broken = tmp_path / "tree"
    shutil.copytree(tree, broken)
    whole = (broken / "n1" / "004.JPEG").read_bytes()
    (broken / "n1" / "004.JPEG").write_bytes(whole[: len(whole) // 2])
    (broken / "n3" / "009.JPEG").write_bytes(b"")
    for workers in (0, 2):
        folder = encode(broken, out=f"out{workers}", num_workers=workers)
        manifest = manifest_of(folder)
        assert manifest["rows"] == 38 and len(Latents(str(folder)).open()) == 38
        assert [name for name, _ in manifest["skipped"]] == ["n1/004.JPEG", "n3/009.JPEG"]
        assert rows_of(folder, "labels").tolist() == [0] * 10 + [1] * 9 + [2] * 10 + [3] * 9
        out = capsys.readouterr().out
        assert "2 items could not be read" in out and "n1/004.JPEG: OSError" in out
    assert toys.folder_bytes(tmp_path / "out0") == toys.folder_bytes(tmp_path / "out2")


def test_a_shard_of_nothing_but_garbage_stops(encode, tmp_path):
    folder = tmp_path / "tree" / "n0"
    folder.mkdir(parents=True)
    for number in range(5):
        (folder / f"{number}.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="none of the 5 items from n0/0.png on can be read"):
        encode(tmp_path / "tree")


def test_a_file_that_the_disk_does_not_give_is_not_skipped(encode, tree, tmp_path):
    broken = tmp_path / "tree"
    shutil.copytree(tree, broken)
    (broken / "n1" / "004.JPEG").unlink()
    (broken / "n1" / "004.JPEG").symlink_to(tmp_path / "gone")
    for workers in (0, 1):
        with pytest.raises(ValueError, match="n1/004.JPEG in .* is a pipe, a device, or a link"):
            encode(broken, num_workers=workers)
    (broken / "n1" / "004.JPEG").unlink()
    shutil.copy(Path(tree) / "n1" / "004.JPEG", broken / "n1" / "004.JPEG")
    assert manifest_of(encode(broken))["rows"] == 40


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_latents_that_are_not_finite(encode, tmp_path, value):
    source = lightningdit(tmp_path / "source")
    path = source / "latents_rank01_shard000.safetensors"
    content = load_file(path)
    content["latents_flip"][7, 2, 3, 3] = value
    save_file(content, path)
    with pytest.raises(ValueError, match="latents_flip of row 17 in .* are not finite in torch.fl"):
        encode(source)
    assert [p.name for p in (tmp_path / "out").glob("*.safetensors")] == ["shard_00000.safetensors"]
    if value == 1e6:
        assert rows_of(encode(source, out="full", dtype="float32")).shape[0] == 20


def test_label_out_of_range(encode, tmp_path):
    with pytest.raises(ValueError, match="row 3 in .* has label 3, out of range: .* 0 to 2"):
        encode(lightningdit(tmp_path / "source"), num_classes=3)


def test_statistics_are_checked_before_the_first_image(encode, tmp_path):
    with pytest.raises(ValueError, match="there is no statistics file"):
        encode(normalise=str(tmp_path / "latents_stats.pt"))
    torch.save({"mean": torch.zeros(32), "std": torch.ones(32)}, tmp_path / "latents_stats.pt")
    with pytest.raises(ValueError, match="4 latent channels, its statistics 32 means"):
        encode(normalise=str(tmp_path / "latents_stats.pt"))
    with pytest.raises(ValueError, match="identity keeps pixels: normalise must be none"):
        encode(model="identity", normalise="channel")
    assert not (tmp_path / "out").exists()


def test_an_autoencoder_that_moved(vae, tree, tmp_path, encode):
    shutil.copytree(vae, tmp_path / "vae")
    folder = str(encode(model=str(tmp_path / "vae")))
    open_autoencoder.cache_clear()
    x = Latents(folder).open().__getitems__([0])[0]
    (tmp_path / "vae").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="no autoencoder .*/vae.* data.vae_path"):
        Latents(folder).open().decode(x)
    moved = Latents(folder, vae_path=str(tmp_path / "moved")).open()
    assert moved.decode(x).shape == (1, 3, SIZE, SIZE)


def test_folders_of_others_are_refused(encode, tree, tmp_path):
    folder = encode()
    before = toys.folder_bytes(folder)
    with pytest.raises(ValueError, match="was made with dtype float16, this is float32"):
        encode(dtype="float32")
    with pytest.raises(ValueError, match="was made with items 40, this is 10"):
        encode(Path(tree) / "n0")
    assert toys.folder_bytes(folder) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="holds other files, nothing was written"):
        encode(out="mine")


def limited(arguments, limit, queue):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        encode_data(**arguments)
    except ValueError as error:
        queue.put(str(error))


def test_full_disk(encode, vae, tree, tmp_path, monkeypatch):
    """The write of a shard fails half way; what was finished stays, and is used again."""
    whole = toys.folder_bytes(encode(out="whole"))
    arguments = {"source": tree, "vae": vae, "size": SIZE, "out": str(tmp_path / "out")}
    arguments |= {"shard_size": 16, "batch_size": 8, "num_workers": 0, "device": "cpu"}
    smallest = min(len(v) for k, v in whole.items() if k.startswith("shard"))
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=limited, args=(arguments, smallest - 1, queue))
    process.start()
    message = queue.get()
    process.join()
    assert "shard_00000.safetensors could not be written" in message and "make room" in message
    assert not list((tmp_path / "out").glob("*shard_*"))
    assert toys.folder_bytes(encode()) == whole
    tiny = type("usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: tiny)
    with pytest.raises(ValueError, match="needs 0.0 GB more and its disk has 0.0 GB free"):
        encode(out="other")


def as_nobody(arguments, queue):
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        encode_data(**arguments)
    except ValueError as error:
        queue.put(str(error))


def test_read_only_folder(vae, tree, monkeypatch, tmp_path):
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # that another user may enter
        copy = Path(place) / "data"
        shutil.copytree(tree, copy / "tree")
        shutil.copytree(vae, copy / "vae")
        (copy / "out").mkdir()
        for path in (Path(place), *Path(place).rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        arguments = {"source": str(copy / "tree"), "vae": str(copy / "vae"), "size": SIZE}
        arguments |= {"out": str(copy / "out"), "num_workers": 0, "device": "cpu"}
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        process = context.Process(target=as_nobody, args=(arguments, queue))
        process.start()
        message = queue.get()
        process.join()
        for path in (Path(place), *Path(place).rglob("*")):
            path.chmod(0o755)
        assert "out cannot be written" in message and "Choose another place" in message
        assert not list((copy / "out").iterdir())


# From shards to a run


def test_settings_of_a_run_are_compared_with_the_shards(encode, vae):
    folder = str(encode())
    asked = CodecSettings(vae, SIZE, "sample", "channel")
    assert len(Latents(folder, asked).open()) == 40
    assert len(Latents(folder, CodecSettings(vae, SIZE)).open()) == 40
    for change, message in (
        ({"vae": "vavae-f16d32"}, f"vae vavae-f16d32 .*{folder} holds vae {vae}"),
        ({"size": 32}, f"size 32 .*{folder} holds size 16"),
        ({"store": "mean"}, "store mean .* holds store sample"),
        ({"normalise": "scale"}, "normalise scale .* holds normalise channel"),
    ):
        with pytest.raises(ValueError, match=message):
            Latents(folder, replace(asked, **change)).open()


def test_a_run_keeps_the_codec_and_refuses_another(encode, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    one = Latents(str(encode())).open()
    keep_card(one, run)
    keep_card(one, run)
    two = Latents(str(encode(out="two", normalise="scale"))).open()
    with pytest.raises(ValueError) as caught:
        keep_card(two, run)
    message = str(caught.value)
    assert f"the run {run}" in message and "the data set two" in message
    assert "normalise channel" in message and "normalise scale" in message
    pixels = Latents(str(encode(model="identity", out="pixels"))).open()
    with pytest.raises(ValueError, match="differ in vae, kind"):
        check_card(pixels, run)
    from ucgm.data import Digits

    with pytest.raises(ValueError, match="was trained on latents, and digits-train holds pixels"):
        check_card(Digits().open(), run)


def test_sampling_needs_the_card_and_not_the_shards(encode, tmp_path):
    folder, run = encode(), tmp_path / "run"
    run.mkdir()
    config = Latents(str(folder))
    dataset = config.open()
    keep_card(dataset, run)
    x = dataset.__getitems__([3, 4])[0]
    here = open_for_sampling(config, run)
    folder.rename(tmp_path / "elsewhere")
    gone = open_for_sampling(config, run)
    assert len(here) == 40 and len(gone) == 0
    assert (gone.shape, gone.num_classes) == (dataset.shape, dataset.num_classes)
    assert gone.class_names == dataset.class_names
    assert torch.equal(gone.decode(x), dataset.decode(x))
    with pytest.raises(ValueError, match="not on this machine"):
        gone.__getitems__([0])


def test_unfinished_and_damaged_folders(encode, tmp_path):
    folder = encode()
    shard = folder / "shard_00001.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(
        ValueError, match="shard_00001.safetensors .* it has .* truncated.* encode` again"
    ):
        Latents(str(folder)).open()
    shard.unlink()
    with pytest.raises(
        ValueError, match="shard_00001.safetensors cannot be read: No such.* encode` again"
    ):
        Latents(str(folder)).open()
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="is not finished"):
        Latents(str(folder)).open()
    with pytest.raises(ValueError, match="there is no folder"):
        Latents(str(tmp_path / "nowhere")).open()
    with pytest.raises(ValueError, match="has no manifest.json"):
        Latents(str(lightningdit(tmp_path / "foreign"))).open()


# ucgm data


def report_of(folder, file="report.json"):
    return folder.with_name(folder.name + ".description") / file


def describe(folder, capsys):
    cli.main(["data", str(folder)])
    return capsys.readouterr().out, json.loads(report_of(folder).read_text())


def test_description(encode, capsys):
    folder = encode()
    capsys.readouterr()
    out, report = describe(folder, capsys)
    assert "40 samples in 3 shards" in out and "classes: 4, 10 samples each" in out
    assert report["counts"] == {"n0": 10, "n1": 10, "n2": 10, "n3": 10}
    assert report["problems"] == [] and report["flips"]
    assert max(map(abs, report["normalised_mean"])) < 1e-4
    assert max(abs(s - 1) for s in report["normalised_std"]) < 1e-4
    assert report_of(folder, "grid.png").read_bytes()[:4] == b"\x89PNG"
    assert len(Latents(str(folder)).open()) == 40


def spoil_bit(folder):
    path = folder / "shard_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)


def spoil_nan(folder):
    path = folder / "shard_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[4096:4098] = b"\xff\xff"
    path.write_bytes(content)


def spoil_codec(folder):
    codec = json.loads((folder / "codec.json").read_text())
    codec["mean"][1] += 0.5
    (folder / "codec.json").write_text(json.dumps(codec))


def spoil_labels(folder):
    manifest = manifest_of(folder)
    manifest["num_classes"] = 3
    manifest["classes"] = manifest["classes"][:3]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def spoil_more(folder):
    shutil.copy(folder / "shard_00000.safetensors", folder / "x.safetensors")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (spoil_bit, "shard_00001.safetensors is not what was written: delete it"),
        (spoil_nan, "shard_00001.safetensors: latents of row 0 are not finite"),
        (spoil_codec, "manifest.json and codec.json are not of one set"),
        (spoil_labels, "has label 3, out of range"),
        (lambda f: (f / "shard_00002.safetensors").unlink(), "shard_00002.safetensors cannot be"),
        (spoil_more, "x.safetensors is not in the manifest"),
        (lambda f: os.truncate(f / "shard_00000.safetensors", 9000), "truncated"),
    ],
)  # fmt: skip
def test_description_finds_damage(encode, capsys, spoil, message):
    folder = encode()
    spoil(folder)
    with pytest.raises(SystemExit) as caught:
        cli.main(["data", str(folder)])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    problems = json.loads(report_of(folder).read_text())["problems"]
    assert any(message in problem for problem in problems)


def test_description_of_images(tree, tmp_path, capsys):
    broken = tmp_path / "tree"
    shutil.copytree(tree, broken)
    cli.main(["data", str(broken), "--size", "16", "--out", str(tmp_path / "report")])
    out = capsys.readouterr().out
    assert "40 samples, " in out and " pixels on the shorter side" in out and "\n  n0, n1, " in out
    assert (tmp_path / "report" / "grid.png").exists()
    (broken / "n2" / "001.JPEG").write_bytes(b"broken")
    with pytest.raises(SystemExit):
        cli.main(["data", str(broken), "--images", "0", "--out", str(tmp_path / "report")])
    assert "1 problem in" in (error := capsys.readouterr().err) and "n2/001.JPEG" in error


# The commands a user types


def test_prepare_imagenet(vae, tree, tmp_path):
    """The script, on forty images, with a tiny autoencoder in place of the configuration's."""
    out = tmp_path / "imagenet256_sdvae"
    config = REPO / "configs" / "data" / "imagenet256_sdvae.yaml"
    environment = {**os.environ, "PYTHON": sys.executable, "NPROC": "1", "OMP_NUM_THREADS": "1"}
    flags = ["--vae", vae, "--size", str(SIZE), "--num-workers", "1", "--device", "cpu"]
    result = subprocess.run(
        [REPO / "scripts" / "prepare_imagenet.sh", tree, out, config, *flags],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "40 samples in 1 shards" in result.stdout
    assert report_of(out, "grid.png").exists()
    codec = Latents(str(out), CodecSettings(vae, SIZE, "mean", "scale")).open().codec
    assert codec.scale == 0.18215
    usage = subprocess.run(
        [REPO / "scripts" / "prepare_imagenet.sh"], capture_output=True, text=True
    )
    assert usage.returncode == 2 and "prepare_imagenet.sh ILSVRC/train" in usage.stdout


def test_train_and_sample_on_latents(encode, vae, tmp_path, capsys):
    folder = encode()
    run = tmp_path / "run"
    settings = {
        "data": {
            "class_path": "Latents",
            "init_args": {"path": str(folder), "codec": {"vae": vae, "size": SIZE}},
        },
        "model": {"class_path": "ucgm.nn.DiTConfig", "init_args": {"size": "T/2"}},
        "objective": {"preset": "flow_matching"},
        "train": {"steps": 2, "global_batch": 8, "num_workers": 2, "log_every": 1},
        "sampler": {"steps": 1},
    }
    (tmp_path / "c.yaml").write_text(json.dumps(settings))
    command = ["train", "--config", str(tmp_path / "c.yaml"), "--run-dir", str(run)]
    cli.main(command)
    assert "4x8x8" in capsys.readouterr().out
    cli.main(["sample", str(run), "--num-images", "4", "--device", "cpu"])
    assert len(list(run.rglob("00000?.png"))) == 4
    with pytest.raises(SystemExit):
        cli.main([*command[:-1], str(tmp_path / "other"), "--data.codec.size", "32"])
    assert "asks for size 32" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(REPO.glob("configs/data/*.yaml")), ids=lambda p: p.stem)
def test_configurations_name_public_codecs(path):
    from ucgm.data.encoding.command import codec_settings
    from ucgm.data.latents.autoencoder import PUBLIC_VAES

    codec = codec_settings(str(path))
    assert codec.vae in PUBLIC_VAES and f"imagenet{codec.size}_" in path.stem
    assert codec == codec.resolved(codec.vae.startswith("dc-ae"))


def test_every_public_codec_at_both_sizes_has_a_configuration():
    found = {path.stem for path in REPO.glob("configs/data/*.yaml")}
    names = ("sdvae", "vavae", "e2evae", "dcae")
    assert {f"imagenet{size}_{name}" for size in (256, 512) for name in names} <= found
