import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests import group
from tests.digits_oracle import Affine, Memoriser, make_run, perturbed_dit
from ucgm.data import DataSpec, Digits
from ucgm.generation.command import protocol_of, sample_run, samples_of_run
from ucgm.generation.samples import RowCounter, SampleSet, SamplingConfig
from ucgm.generation.writers import grid_indices, save_grid, sink_of
from ucgm.nn import DiTConfig
from ucgm.runs.checkpoint import load_run
from ucgm.runs.config import write_config
from ucgm.runs.saving import save_checkpoint
from ucgm.runtime.processes import World
from ucgm.sampler import Autoguided, Guidance, GuidanceInput, Sampler


def labels_of(indices, num_classes, rule="balanced", names=(), **settings):
    data = DataSpec(shape=(1, 2, 2), num_classes=num_classes).open()
    data.class_names = names
    settings = SamplingConfig(labels=rule, **settings)
    return SampleSet(None, Sampler(), data, settings).labels_at(indices)


def test_labels_balanced_prefix_random_and_restricted():
    indices = torch.arange(1003)
    assert labels_of(indices, 10).bincount().tolist() == [101] * 3 + [100] * 7
    random = labels_of(indices, 10, "random", seed=3)
    assert torch.equal(random[500:510], labels_of(indices[500:510], 10, "random", seed=3))
    assert not torch.equal(random, labels_of(indices, 10, "random", seed=4))
    counts = labels_of(torch.arange(20_000), 10, "random").bincount(minlength=10)
    assert ((counts - 2000).abs() < 5 * 1800**0.5).all() and counts.unique().numel() > 3
    assert labels_of(indices, 10, classes=(7, 2)).unique().tolist() == [2, 7]
    named = labels_of(torch.arange(4), 3, names=("car", "horse", "ship"), classes=("ship", 0))
    assert named.tolist() == [2, 0, 2, 0]
    assert labels_of(indices, 0).unique().tolist() == [0]


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(num_classes=10, classes=[3, 12]), "class 12 is out of range: choose from 0 to 9"),
        (dict(num_classes=10, classes=[-1]), "class -1 is out of range"),
        (
            dict(num_classes=2, names=("car", "horse"), classes=["cat"]),
            r"class cat is unknown: choose from 0 to 1 \(0 car, 1 horse\)",
        ),
        (dict(num_classes=10, classes=[]), "empty"),
        (dict(num_classes=0, classes=[1]), "have none"),
        (dict(num_classes=10, rule="sorted"), "labels must be one of balanced, random"),
    ],
)
def test_bad_labels(kwargs, message):
    with pytest.raises(ValueError, match=message):
        labels_of(torch.arange(4), **kwargs)


GUIDED = dict(steps=4, guidance=Guidance(scale=2.0, interval=(0.0, 0.6)))


@pytest.mark.parametrize("options", [dict(steps=1), dict(steps=4, stochasticity=1.0), GUIDED])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_a_sample_depends_on_its_index_alone(tmp_path, options, precision):
    """To the last bit, in every precision."""
    run = make_run(tmp_path, perturbed_dit(), **options)
    samples = samples_of_run(run, SamplingConfig(seed=5, precision=precision))
    everything = samples.latents(torch.arange(103))
    assert everything.shape == (103, 1, 8, 8)
    for batch in (7, 32, 50):
        parts = [samples.latents(part) for part in torch.arange(103).split(batch)]
        assert torch.equal(torch.cat(parts), everything)
    shuffled = torch.randperm(103, generator=torch.Generator().manual_seed(0))
    assert torch.equal(samples.latents(shuffled), everything[shuffled])
    other = samples_of_run(run, SamplingConfig(seed=6, precision=precision))
    assert not torch.equal(other.latents(torch.arange(8)), everything[:8])


def test_every_call_has_one_shape(tmp_path):
    """Whatever is asked for, network and decoder see whole tiles, and each index its own slot."""
    run = make_run(tmp_path, Recorder(), **GUIDED)
    samples = samples_of_run(run, SamplingConfig(tile=16))
    decoded, decode = set(), samples.data.decode
    object.__setattr__(samples.data, "decode", lambda x: decoded.add(len(x)) or decode(x))
    requests = (torch.arange(5), torch.arange(37, 70), torch.tensor([3, 19, 35, 4]))
    for indices in requests:
        samples.images(indices)
    assert {len(x) for x in run.network.seen} == {16, 32} and decoded == {16}
    starts = [x for x in run.network.seen if len(x) == 16][::2]  # t = 1, outside the interval
    assert len(starts) == 1 + 3 + 3  # 3, 19 and 35 have one slot
    alone = samples.latents(torch.tensor([40]))
    assert torch.equal(run.network.seen[-4][8], starts[1][8]) and len(alone) == 1
    with pytest.raises(ValueError, match="tile must be at least 1"):
        SamplingConfig(tile=0)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_fp32_means_fp32(tmp_path, precision):
    """Torch's own setting, TF32 in convolutions, neither decides nor is changed."""
    seen = []

    class Looks(Affine):
        def forward(self, x_t, t, y, s=None):
            note()
            return super().forward(x_t, t, y, s)

    def note():
        backends = torch.backends
        seen.append((backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32))

    with warnings.catch_warnings(record=True) as told:
        samples = samples_of_run(make_run(tmp_path, Looks()), SamplingConfig(precision=precision))
    assert [str(w.message)[:14] for w in told] == ["precision tf32"] * (precision == "tf32")
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    assert before == (False, True)
    samples.images(torch.arange(3))
    assert set(seen) == {(precision == "tf32",) * 2} and len(seen) == 2
    note()
    assert seen[-1] == before


class Recorder(Affine):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x_t, t, y, s=None):
        self.seen.append(x_t)
        return super().forward(x_t, t, y, s)


def test_equal_indices_at_every_number_of_steps(tmp_path):
    samples = samples_of_run(make_run(tmp_path, Memoriser(), steps=8), SamplingConfig())
    indices = torch.arange(20)
    few, many = samples.with_steps(6).images(indices), samples.images(indices)
    # the same noise ends on the same training image, or on one that looks alike
    distance = (few.float() - many.float()).flatten(1).norm(dim=1)
    mixed = (few.float() - many.roll(10, 0).float()).flatten(1).norm(dim=1)
    assert distance.median() < 0.5 * mixed.median()
    with pytest.raises(ValueError, match="steps is 0"):
        samples.with_steps(0)


def test_guidance_reaches_the_network_and_counts_double(tmp_path):
    run = make_run(tmp_path, steps=4, guidance=Guidance(scale=3.0, interval=(0.0, 0.6)))
    indices = torch.arange(10)
    guided = samples_of_run(run, SamplingConfig())
    plain = samples_of_run(run, SamplingConfig(guidance_scale=1.0))
    assert not torch.equal(guided.images(indices), plain.images(indices))
    assert plain.counter.rows == 40
    inside = sum(step.t <= 0.6 for step in run.config.sampler.plan())
    assert 0 < inside < 4 and guided.counter.rows == 10 * (4 + inside)


@pytest.mark.parametrize("told", [False, True])
def test_guidance_as_an_input_reaches_the_network_and_counts_once(tmp_path, told):
    network = perturbed_dit(scale=0.1, guidance_input=True, guidance_interval=told)
    run = make_run(tmp_path, network, steps=4, guidance=Guidance(3.0, (0.0, 0.6), kind="input"))
    samples, indices = samples_of_run(run, SamplingConfig()), torch.arange(10)
    by_hand = replace(samples, network=GuidanceInput(network, 3.0, (0.0, 0.6)))
    x = samples.latents(indices)
    assert torch.equal(x, by_hand.latents(indices)) and samples.counter.rows == 40
    plain = samples_of_run(run, SamplingConfig(guidance_scale=1.0)).latents(indices)
    whole = replace(samples, network=GuidanceInput(network, 3.0)).latents(indices)
    assert min((x - plain).abs().max(), (x - whole).abs().max()) > 1e-3


def test_autoguidance_loads_counts_and_records_its_guide(run_dir, tmp_path):
    network, weaker = perturbed_dit(scale=0.1), perturbed_dit()
    guidance = Guidance(2.0, (0.0, 0.6), kind="auto", guide=str(run_dir))
    run = make_run(tmp_path, network, steps=4, guidance=guidance)
    samples, indices = samples_of_run(run, SamplingConfig()), torch.arange(10)
    by_hand = replace(
        samples, network=Autoguided(network, weaker, 2.0, (0.0, 0.6)), counter=RowCounter()
    )
    torch.testing.assert_close(
        samples.latents(indices), by_hand.latents(indices), atol=1e-5, rtol=0
    )
    inside = sum(step.t <= 0.6 for step in run.config.sampler.plan())
    assert 0 < inside < 4 and samples.counter.rows == 10 * (4 + inside)
    protocol = protocol_of(run, samples)
    assert protocol["guide_sha256"] == load_run(run_dir).digest
    plain = samples_of_run(run, SamplingConfig(guidance_scale=1.0))
    assert "guide_sha256" not in protocol_of(run, plain)
    with pytest.raises(ValueError, match="guide .* has the classes 10 and .* has 3"):
        samples_of_run(replace(run, num_classes=3), SamplingConfig())


def test_divergence_is_an_error():
    class Diverging(Affine):
        def forward(self, x_t, t, y, s=None):
            return torch.full_like(x_t, torch.nan)

    samples = SampleSet(Diverging(), Sampler(steps=1), Digits().open())
    with pytest.raises(ValueError, match="not finite"):
        samples.images(torch.arange(4))


def test_preview_has_one_class_per_row(tmp_path):
    samples = SampleSet(Memoriser(), Sampler(steps=2), Digits().open())
    indices = grid_indices(samples)
    assert indices.shape == (10, 10)
    labels = samples.labels_at(indices.flatten()).view(10, 10)
    assert torch.equal(labels, torch.arange(10)[:, None].expand(10, 10))
    save_grid(samples, tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").size == (10 * 49 + 1, 10 * 49 + 1)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = make_run(folder)
    config = run.config
    config = type(config)(**{**vars(config), "model": DiTConfig(size="N/2")})
    write_config(config, folder / "config.yaml")
    network = perturbed_dit()
    facts = {"shape": [1, 8, 8], "num_classes": 10}
    weights = dict(network.state_dict())
    save_checkpoint(folder, 3, {"network": weights, "ema": weights}, facts, 1)
    return folder


def test_sample_run_writes_pngs_that_equal_the_npz(run_dir, tmp_path):
    png = sample_run(str(run_dir), 23, out_dir=str(tmp_path / "a"), batch_size=10, device="cpu")
    npz = sample_run(
        str(run_dir), 23, out_dir=str(tmp_path / "b"), batch_size=23, format="npz", device="cpu"
    )
    with np.load(npz / "samples.npz") as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert images.shape == (23, 8, 8, 1) and labels.tolist() == [i % 10 for i in range(23)]
    for index in range(23):
        pixels = np.asarray(Image.open(png / "images" / f"{index:06d}.png"))
        assert np.array_equal(pixels, images[index, :, :, 0])
    protocol = json.loads((png / "protocol.json").read_text())
    assert (
        protocol["seed"] == 0 and protocol["steps"] == 2 and len(protocol["weights_sha256"]) == 64
    )
    assert (png / "grid.png").is_file()


def draw(world, run_dir, out, format, batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ucgm.generation.command.join_world", lambda device: world)
        sample_run(run_dir, 103, out_dir=out, format=format, batch_size=batch)


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("format", ["png", "npz", "latents"])
def test_sample_run_on_several_processes(run_dir, tmp_path, format):
    """The same files to the last bit, on the ruins of a job that was killed."""
    out = tmp_path / "alone"
    draw(World(), str(run_dir), str(out), format, 32)
    expected = files_of(out)
    assert len(expected) == {"png": 103 + 3, "npz": 3, "latents": 2}[format]
    for size, batch in ((2, 7), (3, 50)):
        out = tmp_path / f"{size}"
        out.mkdir()
        (out / "protocol.json").write_bytes(expected["protocol.json"])
        black = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
        sink_of(format, out).write(torch.arange(5, 9), black)
        group.finish(group.start(size, draw, str(run_dir), str(out), format, batch))
        assert files_of(out) == expected


def test_sample_run_again_and_elsewhere(run_dir, tmp_path):
    out = str(tmp_path / "a")
    sample_run(str(run_dir), 5, out_dir=out, device="cpu")

    def content():
        files = [p for p in (tmp_path / "a").rglob("*") if p.is_file()]
        return {p.name: p.read_bytes() for p in files}

    before = content()
    sample_run(str(run_dir), 5, out_dir=out, device="cpu")  # the same again: the same files
    assert content() == before and len(before) == 5 + 3
    with pytest.raises(ValueError, match="made with seed 0, this is 1"):
        sample_run(str(run_dir), 5, settings=SamplingConfig(seed=1), out_dir=out, device="cpu")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files"):
        sample_run(str(run_dir), 5, out_dir=str(tmp_path / "b"), device="cpu")
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="class 11 is out of range"):
        sample_run(
            str(run_dir),
            5,
            settings=SamplingConfig(classes=(11,)),
            out_dir=str(tmp_path / "c"),
            device="cpu",
        )
    with pytest.raises(ValueError, match="at least 1"):
        sample_run(str(run_dir), 5, steps=0, out_dir=str(tmp_path / "c"), device="cpu")
    assert not (tmp_path / "c").exists()
