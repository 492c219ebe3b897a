"""Public checkpoints from the file to diffusers: import, sample, tune, sample, export, load."""

import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.data.toys import image_tree, tiny_kl
from ucgm import UCGMPipeline, load_run
from ucgm.cli import commands as cli
from ucgm.data import Codec, DataSpec, Latents
from ucgm.data.encoding.command import encode_data
from ucgm.generation.command import samples_of_run
from ucgm.generation.samples import TILE, SamplingConfig
from ucgm.integrations.export import export_run
from ucgm.nn import ARCHITECTURES, EDM2, import_weights
from ucgm.runs.config import read_config
from ucgm.runs.imported import codec_of, config_of, import_run
from ucgm.runtime.randomness import RowRandom
from ucgm.transport import EDM, VP, Linear, TrigLinear

GOLDEN = Path(__file__).parents[1] / "nn" / "golden"
SIZE, CLASSES = 16, 5
FAMILIES = ("dit", "lightningdit", "ddt")


def published(name, folder):
    """The weights of a published network in the file layout of its publication."""
    state = load_file(GOLDEN / f"{name}.state.safetensors")
    other = {key: value + 1.0 for key, value in state.items()}
    path = folder / f"{name}.{'ckpt' if name == 'ddt' else 'pt'}"
    if name == "ddt":
        both = {f"ema_denoiser._orig_mod.{k}": v for k, v in state.items()}
        both |= {f"denoiser._orig_mod.{k}": v for k, v in other.items()}
        torch.save({"epoch": 1, "state_dict": both | {"diffusion_trainer.w": torch.ones(1)}}, path)
    elif name == "dit":
        torch.save(state, path)
    else:
        wrapped = ({f"module.{k}": v for k, v in s.items()} for s in (other, state))
        torch.save(dict(zip(("model", "ema"), wrapped, strict=True)) | {"opt": {"lr": 1}}, path)
    return path


OPTIONS = {
    "dit": ["--num-heads", "4"],
    "lightningdit": [],
    "ddt": ["--input-size", "8", "--encoder-depth", "1"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny autoencoder, data encoded with it, and statistics of the latents."""
    folder = tmp_path_factory.mktemp("import")
    tiny_kl().save_pretrained(folder / "vae")
    common = {"vae": str(folder / "vae"), "size": SIZE, "num_workers": 0, "device": "cpu"}
    tree = str(image_tree(folder / "tree", CLASSES, 8))
    channel = encode_data(tree, out=str(folder / "channel"), normalise="channel", **common)
    codec = Codec.load(channel)
    statistics = {"mean": torch.tensor(codec.mean), "std": torch.tensor(codec.std)}
    torch.save(statistics, folder / "stats.pt")
    encode_data(tree, out=str(folder / "scale"), normalise="scale", **common)
    return folder


def imported(name, place, out, *more):
    words = ["import", str(published(name, out.parent)), "--architecture", name, "--out", str(out)]
    words += ["--vae", str(place / "vae"), *OPTIONS[name], *more]
    if name == "lightningdit":
        words += ["--stats", str(place / "stats.pt")]
    cli.main(words)
    return out


def tuning(name, place, path, **train):
    """The delta that turns the configuration of an imported run into few-step tuning."""
    data = str(place / ("channel" if name == "lightningdit" else "scale"))
    content = {
        "data": {"class_path": "Latents", "init_args": {"path": data}},
        "objective": {
            "preset": "ucgm_few",
            "field": "teacher_cfg",
            "enhancement_ratio": 1.0,
            "transport": {"class_path": "VP" if name == "dit" else "Linear"},
        },
        "optimizer": {"lr": 1e-4, "name": "radam"},
        "ema": {"decay": 0.9},
        "train": {"steps": 20, "global_batch": 8, "log_every": 10} | train,
        "guidance": {"scale": 1.0},
        "sampler": {"steps": 2, "stochasticity": 1.0, "grid": {"gap": [0.001, 0.5]}},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def drawn(folder):
    return np.stack([np.asarray(Image.open(p)) for p in sorted((folder / "images").glob("*.png"))])


def by_pipeline(pipe, run, count, steps, tile=TILE, **guidance):
    """What a loaded pipeline makes of the noise and the labels of `ucgm sample`."""
    # Batches of a tile, as `ucgm sample` makes them: another size rounds otherwise.
    random = RowRandom.for_samples(0, torch.arange(tile))
    noise = random.normal(*run.shape)
    pipe.set_progress_bar_config(disable=True)
    labels = [i % run.num_classes for i in range(len(noise))]
    images = pipe(labels, steps, latents=noise, generator=random, **guidance).images
    return np.stack([np.asarray(image) for image in images[:count]])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_whole_walk(name, place, tmp_path, capsys):
    run_dir = imported(name, place, tmp_path / "run")
    run = load_run(run_dir)
    io = load_file(GOLDEN / f"{name}.io.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(
            run.network.native(io["x"], io["t"], io["y"]), io["out"], rtol=1e-5, atol=1e-5
        )
    cli.main(["sample", str(run_dir), "--num-images", "6", "--steps", "3"])
    first = drawn(run_dir / "samples" / "step_0000000_ema_steps_03_seed_0")
    assert first.shape == (6, SIZE, SIZE, 3)

    config = str(run_dir / "config.yaml")
    tune = str(tuning(name, place, tmp_path / "tune.yaml"))
    words = ["train", "--config", config, "--config", tune, "--train.init", str(run_dir)]
    cli.main([*words, "--run-dir", str(tmp_path / "tuned")])
    tuned = load_run(tmp_path / "tuned")
    assert tuned.step == 20 and tuned.config.model == run.config.model
    moved = [
        (a - b).abs().max()
        for a, b in zip(tuned.network.parameters(), run.network.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 0.1, "started from the imported weights and moved"

    cli.main(["sample", str(tmp_path / "tuned"), "--num-images", "6"])
    second = drawn(tmp_path / "tuned/samples/step_0000020_ema_steps_02_seed_0")
    cli.main(["export", str(tmp_path / "tuned"), "--diffusers", str(tmp_path / "out")])
    pipe = UCGMPipeline.from_pretrained(tmp_path / "out")
    assert type(pipe.model) is type(run.network)
    third = by_pipeline(pipe, tuned, 6, 2)
    assert np.array_equal(second, third)


@pytest.mark.parametrize("name", FAMILIES)
def test_guidance_of_an_imported_run_is_exported(name, place, tmp_path):
    """Scale, interval and, for DiT and LightningDiT, the three channels."""
    run_dir = imported(name, place, tmp_path / "run")
    export_run(str(run_dir), str(tmp_path / "out"), raw=True)
    assert list((tmp_path / "out/model").glob("*.raw.safetensors"))
    run = load_run(run_dir)
    guidance = run.config.guidance
    assert guidance.scale > 1.0 and guidance.channels == (None if name == "ddt" else 3)
    samples = samples_of_run(run, SamplingConfig(), steps=4).images(torch.arange(5))
    pipe = UCGMPipeline.from_pretrained(tmp_path / "out")
    same = by_pipeline(pipe, run, 5, 4)
    assert np.array_equal(same, samples.permute(0, 2, 3, 1).numpy())
    off = by_pipeline(pipe, run, 5, 4, guidance_scale=1.0)
    assert not np.array_equal(same, off)
    pipe.save_pretrained(tmp_path / "again")
    again = UCGMPipeline.from_pretrained(tmp_path / "again")
    assert np.array_equal(by_pipeline(again, run, 5, 4), same)


def test_bundled_code_loads_without_ucgm(place, tmp_path):
    run_dir = imported("ddt", place, tmp_path / "run")
    out = export_run(str(run_dir), str(tmp_path / "out"), bundle_code=True)
    code = f"""
import sys, importlib.util
sys.path = [p for p in sys.path if p and "site-packages" in p or "lib/python" in p]
sys.meta_path = [f for f in sys.meta_path if "ucgm" not in repr(f) and "editable" not in repr(f)]
assert importlib.util.find_spec("ucgm") is None
from diffusers import DiffusionPipeline
import torch
try:
    DiffusionPipeline.from_pretrained({str(out)!r})
except ValueError as error:
    assert "trust_remote_code" in str(error)
else:
    raise SystemExit("code was run without asking")
pipe = DiffusionPipeline.from_pretrained({str(out)!r}, trust_remote_code=True)
x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
torch.save(pipe([0, 1], 2, latents=x, output_type="latent").images, {str(tmp_path / "x.pt")!r})
"""
    environment = {"HF_MODULES_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    environment |= {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = export_run(str(run_dir), str(tmp_path / "plain"))
    pipe = UCGMPipeline.from_pretrained(plain)
    expected = pipe([0, 1], 2, latents=x, output_type="latent").images
    torch.testing.assert_close(torch.load(tmp_path / "x.pt"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("late", [None, 1])
def test_tuning_with_a_second_time(place, tmp_path, capsys, late):
    """A flow map starts from weights of one time: the new input is zero, so nothing changes.

    With decoupled_depth there is no new weight, and nothing changes at s = t.
    """
    run_dir = imported("lightningdit", place, tmp_path / "run")
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config["model"]["init_args"] |= {"second_time": True, "decoupled_depth": late}
    config["data"] = {"class_path": "Latents", "init_args": {"path": str(place / "channel")}}
    config["objective"] = {"preset": "meanflow"}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(config))
    words = ["train", "--config", str(tmp_path / "two.yaml"), "--train.init", str(run_dir)]
    words += ["--train.steps", "2", "--train.global-batch", "4", "--guidance.scale", "1"]
    cli.main([*words, "--run-dir", str(tmp_path / "two")])
    network = load_run(tmp_path / "two").network
    assert network.config.second_time
    assert late or network.h_embedder.mlp[2].weight.abs().max() > 0
    assert (network.config.decoupled_depth, network.h_embedder is None) == (late, late == 1)
    if late:
        words = [*words[:4], str(tmp_path / "two"), "--model.init_args.decoupled_depth", "null"]
        error = refused(capsys, *words, "--run-dir", str(tmp_path / "three"))
        assert "has decoupled_depth = 1, this decoupled_depth = None" in error
    cli.main(["sample", str(tmp_path / "two"), "--num-images", "2", "--steps", "2"])


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_start_with_another_meaning_is_refused(place, tmp_path, capsys):
    """Weights that would load and mean something else: sign, classes, path, scaling of latents."""
    run_dir = imported("lightningdit", place, tmp_path / "run")
    tune = str(tuning("lightningdit", place, tmp_path / "tune.yaml"))
    words = ["train", "--config", str(run_dir / "config.yaml"), "--config", tune]
    words += ["--train.init", str(run_dir)]
    for change, message in (
        (["--model.init_args.convention", "ucgm"], "has convention = reversed, this convention"),
        (["--objective.transport", "Trig"], "set objective.transport"),
        (["--data.init_args.path", str(place / "scale")], "works on .* and the data set scale"),
    ):
        error = refused(capsys, *words, *change, "--run-dir", str(tmp_path / change[0][2:]))
        assert re.search(message, error), error
    error = refused(capsys, *words[:3], *words[5:], "--run-dir", str(tmp_path / "none"))
    assert "no samples" in error and "Latents" in error


class Boom:
    def __reduce__(self):
        return print, ("code ran",)


def test_a_file_that_would_run_code(place, tmp_path, capsys):
    state = load_file(GOLDEN / "sit.state.safetensors")
    torch.save({"ema": state, "args": Boom()}, tmp_path / "sit.pt")
    words = ["import", str(tmp_path / "sit.pt"), "--architecture", "sit", "--num-heads", "4"]
    words += ["--out", str(tmp_path / "run")]
    error = refused(capsys, *words)
    assert "would run code stored in it (it calls print)" in error
    assert "--unsafe-pickle" in error and not (tmp_path / "run").exists()
    cli.main([*words, "--unsafe-pickle"])
    assert "code ran" in capsys.readouterr().out
    assert load_run(tmp_path / "run").num_classes == CLASSES


def test_errors_name_the_setting_that_fits(tmp_path, capsys):
    path = str(published("lightningdit", tmp_path))
    out = ["--out", str(tmp_path / "run")]
    cases = [
        (["--architecture", "sit"], 'mlp=.gelu. .architecture "sit"'),
        (["--architecture", "lightningdit", "--input-size", "16"], "input_size=8 would fit"),
        (["--architecture", "lightningdit", "--settings.qk_norm", "true"], "qk_norm=False would"),
        (["--architecture", "vit"], "architecture must be one of dit, sit"),
        (["--architecture", "lightningdit", "--transport", "Line"], "one of EDM, Linear"),
        (["--architecture", "lightningdit", "--stats", "channel"], "--stats FILE"),
        (["--architecture", "lightningdit", "--stats", "no.pt"], "no statistics file"),
        ([], "--architecture is missing"),
    ]
    for words, message in cases:
        error = refused(capsys, "import", path, *words, *out)
        assert re.search(message, error), error
    assert "--out is missing" in refused(capsys, "import", path, "--architecture", "tit")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    error = refused(capsys, "import", path, "--architecture", "lightningdit", *out)
    assert "nothing was written" in error


def test_an_autoencoder_of_other_latents(tmp_path, capsys):
    tiny_kl(latent_channels=8).save_pretrained(tmp_path / "vae")
    path = str(published("dit", tmp_path))
    words = ["import", path, "--architecture", "dit", "--num-heads", "4"]
    error = refused(capsys, *words, "--out", str(tmp_path / "run"), "--vae", str(tmp_path / "vae"))
    assert "8 latent channels and the network 4" in error


def test_without_statistics_samples_are_latents(tmp_path, capsys, place):
    out = tmp_path / "run"
    cli.main(["import", str(published("lightningdit", tmp_path)), "--architecture",
              "lightningdit", "--out", str(out)])  # fmt: skip
    assert "--stats FILE" in capsys.readouterr().out
    cli.main(["sample", str(out), "--num-images", "3", "--steps", "2"])
    with np.load(out / "samples/step_0000000_ema_steps_02_seed_0/latents.npz") as arrays:
        assert arrays["arr_0"].shape == (3, 4, 8, 8) and arrays["arr_0"].dtype == np.float32
    assert "--stats" in refused(capsys, "sample", str(out), "--format", "png")
    error = refused(capsys, "export", str(out), "--diffusers", str(tmp_path / "d"))
    assert "--stats" in error and not (tmp_path / "d").exists()

    known = imported("lightningdit", place, tmp_path / "known")
    cli.main(["sample", str(known), "--num-images", "3", "--steps", "2", "--format", "latents"])
    with np.load(known / "samples/step_0000000_ema_steps_02_seed_0/latents.npz") as arrays:
        raw = torch.from_numpy(arrays["arr_0"])
    samples = samples_of_run(load_run(known), SamplingConfig(), 2)
    assert torch.equal(raw, samples.data.codec.to_raw(samples.latents(torch.arange(3))))
    images = samples.images(torch.arange(3))
    assert torch.equal(images, samples.data.decode(samples.data.codec.to_network(raw)))


def test_the_diffusers_repository_of_dit(tmp_path, capsys):
    """`transformer/` with its config.json: nothing has to be said."""
    from tests.integrations.tiny import dit_pipeline

    theirs = dit_pipeline().transformer
    with torch.no_grad():
        first = theirs.transformer_blocks[0].norm1.emb.state_dict()
        theirs.transformer_blocks[1].norm1.emb.load_state_dict(first)
    theirs.save_pretrained(tmp_path / "repo/transformer")
    import_run(str(tmp_path / "repo"), "dit", str(tmp_path / "run"))
    run = load_run(tmp_path / "run")
    assert run.shape == (4, 8, 8) and run.num_classes == 1000
    assert run.config.model.num_heads == 2 and run.config.model.convention == "ddpm"


def test_what_travels(tmp_path):
    """Path, direction, null class, guidance and scaling of each family, as published."""
    sit = load_file(GOLDEN / "sit.state.safetensors")

    def config(name, state, **more):
        return config_of(name, import_weights(name, state, num_heads=4), **more)

    dit = config("dit", sit)
    assert dit.objective.transport == dit.sampler.transport == VP("eps")
    assert dit.guidance.channels == 3 and dit.model.learn_sigma
    assert dit.sampler.noise == "ddim" and dit.sampler.stochasticity == 1.0
    codec = dit.data.codec
    assert (codec.scale, codec.normalise, codec.size) == (0.18215, "scale", 64)
    assert config("sit", sit).model.convention == "reversed"
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(codec.to_raw(codec.to_network(x)), x)

    light = config("lightningdit", load_file(GOLDEN / "lightningdit.state.safetensors"))
    assert light.guidance.interval == (0.0, 0.875) and light.guidance.scale == 6.7
    assert light.data.codec is None and light.sampler.grid.warp == (1.17, 0.8, 1.1)

    tit = load_file(GOLDEN / "tit.state.safetensors")
    other = config("tit", tit, transport="TrigLinear", vae="sd-vae-ft-ema", stats="none")
    assert other.objective.transport == TrigLinear() and other.model.convention == "ucgm"
    assert other.data.codec.vae == "sd-vae-ft-ema" and other.data.codec.scale == 1.0

    statistics = {"running_mean": torch.arange(4.0), "running_var": torch.full((4,), 4.0)}
    repae = sit | {f"bn.{k}": v for k, v in statistics.items()}
    repae = config("repae", repae | {"bn.num_batches_tracked": torch.tensor(1)})
    assert repae.data.codec.mean == (0.0, 1.0, 2.0, 3.0) and repae.data.codec.std == (2.0,) * 4
    assert repae.guidance.interval == (0.0, 0.76) and repae.objective.transport == Linear()

    rae = import_weights("rae_ddt", load_file(GOLDEN / "rae_ddt.state.safetensors"))
    other = config_of("rae_ddt", rae)
    assert other.model.convention == "ucgm" and other.data.codec is None
    times = other.sampler.grid.times(50)
    shifted = 48**0.5 * 0.001 / (1 + (48**0.5 - 1) * 0.001)
    assert times[0] == 1 and times[-2] == pytest.approx(shifted, rel=1e-6)
    codec = codec_of(ARCHITECTURES["rae_ddt"].source, (768, 16, 16), None, None)
    assert (codec.vae, codec.kind, codec.size) == ("rae-dinov2", "rae", 256)
    assert (codec.normalise, codec.scale) == ("none", 1.0)


@pytest.mark.parametrize("channels", [3, 4])
def test_edm2_on_latents_and_on_pixels(channels, tmp_path):
    options = dict(model_channels=64, channel_mult=(1, 2), num_blocks=1, attention=(4,))
    network = EDM2(input_size=8, in_channels=channels, num_classes=CLASSES, **options)
    state = {f"unet.{k}": v.half() for k, v in network.state_dict().items()}
    save_file(state | {"logvar_linear.weight": torch.ones(1, 8)}, tmp_path / "edm2.safetensors")
    import_run(str(tmp_path / "edm2.safetensors"), "edm2", str(tmp_path / "run"))
    config = read_config(tmp_path / "run/config.yaml")
    assert config.objective.transport == EDM() and config.guidance.scale == 1.0
    if channels == 4:
        assert config.data.codec.normalise == "edm2" and config.data.codec.scale == 0.5
        return
    assert config.data == DataSpec((3, 8, 8), CLASSES, "edm2", pixels=True)
    cli.main(["sample", str(tmp_path / "run"), "--num-images", "2", "--steps", "2"])
    folder = tmp_path / "run/samples/step_0000000_ema_steps_02_seed_0"
    assert drawn(folder).shape == (2, 8, 8, 3)


def test_models_prints_the_published_sizes(capsys):
    cli.main(["models", "--name", "DiT-XL/2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["DiT-XL/2", "4x32x32", "675.1", "M", "118.6", "G"]
    assert "EDM2-XS" in refused(capsys, "models", "--name", "GPT")


@pytest.mark.parametrize("name", ["ddt", "lightningdit", "repa", "repae"])
def test_the_configurations_of_published_rows_fit_imported_runs(name, monkeypatch):
    """At toy width: same network, path, sampler and guidance from the file and from the YAML."""
    configs, found = Path(__file__).parents[2] / "configs", []
    module = importlib.import_module("ucgm.training.loop")
    monkeypatch.setattr(module, "train", lambda config, run_dir: found.append(config))
    for kind in ("tune", "sample"):
        row = configs / kind / f"imagenet256_{name}.yaml"
        if row.exists():
            layers = re.search(r"# layers: (.*)", row.read_text())[1].split()
            files = [str(configs.parent / layer) for layer in layers] + [str(row)]
            words = [word for file in files for word in ("--config", file)]
            cli.main(["train", *words, "--run-dir", "unused"])
    tune, *sample = found
    patch, channels = tune.model.size[-1], 4 if name in ("ddt", "repa") else 32
    small = {"size": f"N/{patch}"} | ({"encoder_depth": 1} if name == "ddt" else {})
    network = replace(tune.model, **small).build((channels, 8, 8), 10)
    options = {"encoder_depth": 1} if name == "ddt" else {"num_heads": 4}
    weights = import_weights(name, network.state_dict(), input_size=8, **options)
    ours, theirs = (
        {k: v for k, v in n.config.items() if not k.startswith("_")}
        for n in (network, weights.network)
    )
    assert ours == theirs
    config = config_of(name, weights)
    assert config.objective.transport == tune.objective.transport
    for other in sample:
        assert config.sampler == other.sampler and config.guidance == other.guidance


def test_the_manifest_says_where_the_weights_are_from(place, tmp_path):
    run_dir = imported("ddt", place, tmp_path / "run", "--which", "model")
    manifest = json.loads((run_dir / "checkpoints/step_0000000/manifest.json").read_text())
    assert manifest["imported"]["architecture"] == "ddt"
    assert manifest["imported"]["weights"] == "model" and "epoch" in manifest["imported"]["dropped"]
    codec = read_config(run_dir / "config.yaml").data.codec
    assert codec.digest and codec.size == SIZE
    assert Latents(str(place / "scale")).open().codec.digest == codec.digest
