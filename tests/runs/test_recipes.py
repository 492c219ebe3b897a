"""What a training is set to where nobody said anything."""

import numpy as np
import pytest
from PIL import Image

from tests.data.toys import image_tree
from ucgm.cli import main
from ucgm.data import Digits
from ucgm.objective.presets import POST_TRAINING, PRESETS, preset
from ucgm.objective.times import LogitNormal, Uniform
from ucgm.runs.config import flat, from_dict, read_config, to_dict, write_config
from ucgm.runs.fitted import DEFAULTS, describe_fitted
from ucgm.runs.layers import config_of, layers_of, training_config
from ucgm.runs.recipes import BUDGET, RECIPES, model_inputs, recipe_of
from ucgm.sampler import Grid, Sampler

# optimizer, rate, second beta, batch, average, target average, clipping; None: as without one.
PUBLISHED = {
    "ddpm": ("adamw", 1e-4, 0.999, 256, 0.9999, None, None),
    "ucgm_multi": ("adamw", 2e-4, 0.95, 1024, 0.9999, 0.999, None),
    "ucgm_few": ("radam", 1e-4, 0.999, 1024, 0.9999, None, 0.1),
    "ect": ("radam", 1e-4, 0.999, 128, 0.9999, None, None),
    "meanflow": ("adamw", 1e-4, 0.95, 256, 0.9999, None, None),
    "terminal_velocity": ("adamw", 1e-4, 0.95, 2048, 0.9999, 0.99, None),
    "shortcut": ("adamw", 1e-4, 0.999, 256, 0.9999, 0.999, None),
    "rcgm": ("adamw", 2e-4, 0.999, 128, 0.9999, 0.99, None),
    "twinflow": ("adamw", 1e-5, 0.99, 256, 0.9999, 0.99, 1.0),
    "soflow": ("adamw", 1e-4, 0.99, 256, 0.9999, None, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_trainings(name):
    values = {key: value for key, (value, _) in recipe_of(name).items()}
    optimizer, rate, beta, batch, decay, target, clip = PUBLISHED[name]
    assert (values["optimizer.name"], values["optimizer.lr"]) == (optimizer, rate)
    assert values["optimizer.betas"] == (0.9, beta) and values["train.global_batch"] == batch
    assert values["ema.decay"] == decay and values.get("ema.target_decay") == target
    assert values.get("train.grad_clip") == clip


def test_every_preset_has_a_recipe():
    assert set(RECIPES) == set(PRESETS | POST_TRAINING)


@pytest.mark.parametrize("name", PRESETS | POST_TRAINING)
def test_a_recipe_is_what_a_training_gets(name):
    assert all(source for _, source in recipe_of(name).values())
    # A length at which the published warm-up fits.
    words = ["--objective.preset", name, "--model.size", "N/2", "--train.steps", "1000000"]
    found = flat(config_of(words))
    for key, (value, _) in recipe_of(name).items():
        if key == "model.decoupled_depth":
            value = 1  # two thirds of two
        if key.startswith("sampler.grid"):
            key = f"sampler.grid.{key.rpartition('.')[2]}"
        assert found[key] == (list(value) if isinstance(value, tuple) else value), key


@pytest.mark.parametrize("name", PRESETS)
def test_a_small_folder_on_a_cpu_gets_rates_and_lengths_of_its_own(name, tmp_path, monkeypatch):
    monkeypatch.setattr("ucgm.runs.layers.best_device", lambda: "cpu")
    image_tree(tmp_path / "images", classes=2, per_class=4)
    data = {"class_path": "Images", "path": str(tmp_path / "images"), "size": 16}
    layers = [{"objective": {"preset": name}, "data": data, "train": {"steps": 100}}]
    config, fitted = training_config(layers, tmp_path / "run")
    recipe, found = recipe_of(name), flat(config)
    if name in DEFAULTS:
        assert (found["optimizer.name"], found["optimizer.lr"]) == ("muon", 1e-2)
        assert found["ema.std"] == 0.1 and found["optimizer.schedule"] == "cosine"
    else:
        assert found["optimizer.lr"] == 1e-3 and found["ema.decay"] == 0.999
    assert fitted is not None
    assert found["train.global_batch"] == 64
    assert 0 < found["optimizer.warmup_steps"] <= config.train.steps // 20
    for key in recipe.keys() & {"optimizer.name", "ema.target_decay", "train.grad_clip"}:
        assert found[key] == recipe[key][0] and key not in BUDGET
    assert config.sampler.nfe < 100
    assert from_dict(type(config), to_dict(config)) == config
    for key, value in model_inputs(name, 4).items():
        assert getattr(config.model, key) == value


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_brings_its_inputs_and_a_sampler_of_its_kind(name):
    config = config_of(["--objective.preset", name, "--model.size", "N/2"])
    objective = config.objective
    assert config.model.second_time == objective.two_time
    assert config.model.guidance_input == (objective.guidance_range is not None)
    maps = objective.consistency_ratio > 0
    assert (config.sampler.steps == 2) == maps
    assert (config.sampler.solver == "jump") == (maps and objective.two_time)
    # The second of two steps begins where there is work left, not at the end.
    assert not maps or 0.3 <= float(config.sampler.grid.times(2)[1]) <= 0.75


def test_what_a_preset_needs_of_the_network():
    words = ["--objective.preset", "decoupled_meanflow", "--model.size"]
    assert config_of([*words, "B/2"]).model.decoupled_depth == 8
    assert config_of([*words, "B/2", "--model.decoupled_depth", "5"]).model.decoupled_depth == 5
    with pytest.raises(ValueError, match="jit needs model.convention jit, which EDM2Config does"):
        config_of(["--objective.preset", "jit", "--model", "EDM2Config"])


def test_files_below_the_preset_give_way_and_flags_win(tmp_path):
    below, few = tmp_path / "below.yaml", tmp_path / "few.yaml"
    below.write_text("sampler: {steps: 8, extrapolation: 0.5}\noptimizer: {lr: 0.5}\n")
    few.write_text("objective: {preset: ucgm_few}\nsampler: {steps: 4}\n")
    words = ["--train.grad_clip", "7", "--config", str(below), "--config", str(few)]
    config = config_of(words)
    grid = Grid(gap=(0.001, 0.5))
    assert config.sampler == Sampler(steps=4, stochasticity=1.0, grid=grid)
    assert (config.optimizer.name, config.optimizer.lr) == ("radam", 0.5)
    assert config.train.grad_clip == 7
    # The rate belongs to a budget, so the recipe's is there where no file says one.
    alone = config_of(["--objective.preset", "ucgm_few", "--train.steps", "2000"])
    assert (alone.optimizer.lr, alone.train.global_batch) == (1e-4, 1024)
    # What a recipe does not use takes nothing away.
    below.write_text("optimizer: {betas: [0.9, 0.9], weight_decay: 0.3}\ntrain: {grad_clip: 2}\n")
    found = config_of(["--config", str(below), "--objective.preset", "shortcut"])
    assert (found.optimizer.betas, found.optimizer.weight_decay) == ((0.9, 0.999), 0.1)
    assert found.train.grad_clip == 2


def test_a_warm_up_is_at_most_a_twentieth_of_the_run_unless_it_was_given():
    words = ["--objective.preset", "imf", "--model.size", "N/2", "--train.steps", "2000"]
    assert config_of(words).optimizer.warmup_steps == 100
    given = config_of([*words, "--optimizer.warmup_steps", "1500"])
    assert given.optimizer.warmup_steps == 1500


def test_an_older_run_keeps_what_its_preset_brought(tmp_path):
    words = ["--objective.preset", "rcgm", "--model.size", "N/2", "--data", "Digits"]
    older = ["--optimizer.lr", "2e-4", "--optimizer.betas", "[0.9,0.95]", "--ema.target_decay",
             "null", "--objective.clamp", "null", "--sampler.steps", "3"]  # fmt: skip
    before = config_of([*words, *older])
    assert before != config_of(words)
    (tmp_path / "run").mkdir()
    write_config(before, tmp_path / "run" / "config.yaml")
    for again in (words, []):
        after, _ = training_config(layers_of(again), tmp_path / "run")
        assert after == before
    longer, _ = training_config(layers_of([*words, "--train.steps", "7"]), tmp_path / "run")
    assert longer.train.steps == 7 and longer.optimizer == before.optimizer
    # Also what it brought to the network: an older TVM had no factor on its prediction.
    words = ["--objective.preset", "terminal_velocity", "--model.size", "N/2"]
    before = config_of([*words, "--model.guidance_output", "false"])
    (tmp_path / "tvm").mkdir()
    write_config(before, tmp_path / "tvm" / "config.yaml")
    assert training_config(layers_of(words), tmp_path / "tvm")[0].model == before.model
    other, _ = training_config(layers_of(["--objective.preset", "meanflow"]), tmp_path / "run")
    assert other.objective.preset == "meanflow" and other.sampler.steps == 2


def test_another_solver_leaves_the_settings_of_the_one_before():
    words = ["--objective.preset", "multi_step", "--model.size", "N/2"]
    assert config_of(words).sampler == Sampler(
        steps=16, solver="adams", extrapolation=0.5, grid=Grid(gap=(0.0, 0.0))
    )
    heun = config_of([*words, "--sampler.solver", "heun"])
    assert heun.sampler == Sampler(steps=16, solver="heun", grid=Grid(gap=(0.0, 0.0)))
    more = config_of(["--sampler.solver", "unipc", "--sampler.order", "2"], heun)
    assert more.sampler == Sampler(steps=16, solver="unipc", order=2, grid=Grid(gap=(0.0, 0.0)))
    same = config_of([*words, "--sampler.solver", "adams", "--sampler.steps", "4"])
    assert same.sampler.extrapolation == 0.5
    with pytest.raises(ValueError, match="extrapolation is not a setting of solver heun"):
        config_of([*words, "--sampler.solver", "heun", "--sampler.extrapolation", "0.5"])


def test_an_input_that_was_refused_stays_refused():
    words = ["--objective.preset", "meanflow", "--model.second_time", "false"]
    assert config_of(words).model.second_time is False


def test_size_and_length_fit_the_data(tmp_path):
    config, fitted = training_config([], tmp_path / "run")
    assert fitted is not None
    model = config.model.build((1, 8, 8), 10)
    assert sum(p.numel() for p in model.parameters()) < 2e6
    assert config.train.steps * config.train.global_batch < 300_000
    # A published preset on a network that was named is as it was published.
    words = ["--model.size", "B/2", "--objective.preset", "lightningdit"]
    named, nothing = training_config(layers_of(words), tmp_path / "run")
    assert nothing is None and named.train.steps == 100_000


def optimizer_of(tmp_path, *words):
    """Name, rate, warm-up and schedule, and what the default is called."""
    config, fitted = training_config(layers_of([*words, "--data", "Digits"]), tmp_path / "run")
    assert fitted is not None and "model" not in fitted and config.ema.std == 0.1
    assert config.objective.preset == "multi_step" and config.sampler.solver == "adams"
    chosen = config.optimizer
    assert chosen.schedule == "cosine" and chosen.betas == (0.9, 0.95)
    return chosen.name, chosen.lr, chosen.warmup_steps


def test_the_default_fits_its_optimizer_to_network_and_length(tmp_path):
    """The folder of FAULTS.md: nothing is set but the network, the batch and the steps."""
    network = ["--model.hidden_size", "128", "--model.depth", "4", "--model.num_heads", "4"]
    words = [*network, "--model.patch_size", "4", "--train.steps", "2500"]
    assert optimizer_of(tmp_path, *words) == ("muon", 0.0075, 125)
    assert optimizer_of(tmp_path, "--model.size", "XL/2") == ("muon", 0.00083, 200)
    # Muon needs whole matrices of transformer blocks.
    adam = ("adamw", 0.00017, 200)
    assert optimizer_of(tmp_path, "--model.size", "XL/2", "--train.sharding", "fsdp2") == adam
    assert optimizer_of(tmp_path, "--model", "UNetConfig")[:2] == ("adamw", 0.00075)
    assert optimizer_of(tmp_path, "--model", "EDM2Config", "--model.size", "XS")[0] == "adamw"
    small = ["--model.size", "T/2"]
    # A rate belongs to its optimizer, also where that is named.
    assert optimizer_of(tmp_path, *small, "--optimizer.name", "adamw")[:2] == ("adamw", 0.002)
    assert optimizer_of(tmp_path, *small, "--optimizer.name", "lion")[:2] == ("lion", 0.0007)
    given = optimizer_of(tmp_path, *small, "--optimizer.lr", "1e-4")
    assert given == ("muon", 1e-4, 200)


def grey_tree(folder, grey=True):
    """Class folders of two digits as PNG files."""
    for name in ("3", "7"):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            pixels = np.random.default_rng(i).integers(0, 255, (8, 8) if grey else (8, 8, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return str(folder)


def test_grey_images_have_one_channel_unless_it_is_said(tmp_path):
    grey, colour = grey_tree(tmp_path / "grey"), grey_tree(tmp_path / "colour", grey=False)
    run = tmp_path / "run"
    words = ["--data", "Images", "--data.size", "8", "--model.size", "N/2", "--data.path"]
    config, fitted = training_config(layers_of([*words, grey]), run)
    assert fitted["data"] == {"channels": 1} and config.data.channels == 1
    assert "data.channels 1  (the images are grey)" in describe_fitted(config, fitted)
    run.mkdir()
    write_config(config, run / "config.yaml")
    again = [*words, grey, "--objective.preset", "multi_step"]
    assert training_config(layers_of(again), run)[0] == config
    asked = training_config(layers_of([*words, grey, "--data.channels", "3"]), tmp_path / "new")[0]
    assert asked.data.channels == 3
    assert training_config(layers_of([*words, colour]), tmp_path / "new")[0].data.channels == 3
    # A tuning has the data of its start.
    few = ["--objective.preset", "few_step", "--train.init", str(run)]
    assert training_config(layers_of(few), tmp_path / "few")[0].data == config.data


def drawings(folder, share):
    """Class folders of grey images with a square of noise on black."""
    for name in ("3", "7"):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.zeros((16, 16), np.uint8)
            side = round(16 * (1 - share) ** 0.5)
            noise = np.random.default_rng(i).integers(10, 255, (side, side))
            pixels[:side, :side] = noise.astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return ["--data", "Images", "--data.size", "16", "--data.path", str(folder)]


def test_a_network_says_the_data_of_drawings_at_later_times(tmp_path):
    size, later = ["--model.size", "N/2"], LogitNormal(1.0, 1.0)
    drawn, half = drawings(tmp_path / "drawn", 0.8), drawings(tmp_path / "half", 0.5)
    config, fitted = training_config(layers_of([*drawn, *size]), tmp_path / "run")
    assert config.model.convention == "jit" and config.objective.time_law == later
    line = describe_fitted(config, fitted)
    assert "model.convention jit" in line and "time_law LogitNormal(mean=1.0, std=1.0)" in line
    assert "(the images are drawings: most of each has one value)" in line
    assert training_config(layers_of(drawn), tmp_path / "run")[0].model.size == "T/2"
    plain, _ = training_config(layers_of([*half, *size]), tmp_path / "run")
    assert plain.model.convention == "ucgm" and plain.objective.time_law == LogitNormal(0.0, 1.0)
    words = [*drawn, *size, "--model.convention", "ucgm", "--objective.time_law", "Uniform"]
    asked, _ = training_config(layers_of(words), tmp_path / "run")
    assert asked.model.convention == "ucgm" and asked.objective.time_law == Uniform()
    # A U-Net and another path have no such network, a published preset its own settings.
    assert training_config(layers_of([*drawn, "--model", "UNetConfig"]), tmp_path / "run")[0]
    trig = training_config(layers_of([*drawn, *size, "--objective.transport", "Trig"]), tmp_path)
    assert trig[0].model.convention == "ucgm"
    named = [*drawn, "--objective.preset", "flow_matching"]
    assert training_config(layers_of(named), tmp_path / "run")[0].model.convention == "ucgm"
    # A run goes on with what it began with, a tuning has the network of its start.
    (tmp_path / "run").mkdir()
    write_config(config, tmp_path / "run" / "config.yaml")
    again = [*drawn, *size, "--objective.preset", "multi_step"]
    assert training_config(layers_of(again), tmp_path / "run")[0] == config
    few = ["--objective.preset", "few_step", "--train.init", str(tmp_path / "run")]
    tuned, _ = training_config(layers_of(few), tmp_path / "few")
    assert tuned.model.convention == "jit" and tuned.objective.time_law != later
    # It is guided a bit more; photographs, and a scale that was given, are not touched.
    assert tuned.objective.enhancement_ratio == 1.3
    said = [*few, "--objective.enhancement_ratio", "1.1"]
    assert training_config(layers_of(said), tmp_path / "few")[0].objective.enhancement_ratio == 1.1
    (tmp_path / "half_run").mkdir()
    write_config(plain, tmp_path / "half_run" / "config.yaml")
    few[-1] = str(tmp_path / "half_run")
    photographs, _ = training_config(layers_of(few), tmp_path / "few")
    assert photographs.objective.enhancement_ratio == 1.15
    # A short tuning has a higher rate, a long one not a lower.
    for steps, rate in (("125", 2e-3), ("500", 1e-3), ("5000", 1e-3)):
        tuned, _ = training_config(layers_of([*few, "--train.steps", steps]), tmp_path / "few")
        assert tuned.optimizer.lr == pytest.approx(
            rate * 96 / tuned.model.build((1, 16, 16), 2).hidden_size, rel=0.01
        )


def test_what_is_chosen_is_said_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    config, chosen = training_config([], tmp_path / "new")
    said = describe_fitted(config, chosen)
    assert "train.steps 4000, train.global_batch 64, model.size T/1  (there is no GPU)" in said
    assert "optimizer.lr 0.01  (for a network of this width)" in said
    assert "ema.std 0.1  (as in docs/results/recipe.md)" in said
    assert "optimizer.warmup_steps 200  (for this network and so many steps)" in said
    write_config(config, tmp_path / "run" / "config.yaml")
    few = ["--objective.preset", "few_step", "--train.init", str(tmp_path / "run")]
    said = describe_fitted(*training_config(layers_of(few), tmp_path / "few"))
    assert "train.steps 500  (a tuning: an eighth of what is chosen for a training" in said
    monkeypatch.setattr("ucgm.runs.fitted.best_device", lambda: "cuda")
    assert "model.size T/1  (for a GPU and so many images)" in describe_fitted(config, chosen)


def test_the_same_command_continues_what_was_fitted(tmp_path, capsys):
    run, words = str(tmp_path / "run"), ["--train.preview_every", "100"]
    main(["train", "--run-dir", run, "--train.steps", "2", *words])
    assert "model.size T/1" in capsys.readouterr().out
    before = read_config(tmp_path / "run" / "config.yaml")
    assert before.data == Digits() and before.optimizer.lr == 1e-2
    preset = ["--objective.preset", "multi_step", "--train.steps", "2", "--train.log_every", "7"]
    main(["train", "--run-dir", run, *preset, *words])
    after = read_config(tmp_path / "run" / "config.yaml")
    assert after.model == before.model and after.optimizer == before.optimizer


def test_a_tuning_takes_network_and_data_of_its_teacher(tmp_path):
    image_tree(tmp_path / "images", classes=2, per_class=4)
    data = ["--data", "Images", "--data.path", str(tmp_path / "images"), "--data.size", "16"]
    short = ["--train.steps", "2", "--train.global_batch", "4", "--train.preview_every", "100"]
    main(["train", *data, *short, "--run-dir", str(tmp_path / "multi")])
    few = ["--objective.preset", "ucgm_few", "--train.init", str(tmp_path / "multi"), *short]
    main(["train", *few, "--run-dir", str(tmp_path / "few")])
    one, two = (read_config(tmp_path / name / "config.yaml") for name in ("multi", "few"))
    assert (two.model, two.data) == (one.model, one.data)
    assert two.sampler.stochasticity == 1.0


@pytest.mark.parametrize("name", PRESETS | POST_TRAINING)
def test_the_command_prints_every_value_with_its_source(name, capsys):
    main(["presets", name])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{name}: ") and max(map(len, lines)) <= 100
    text = " ".join(" ".join(lines).split())
    for key, (value, source) in recipe_of(name).items():
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        shown = shown.lower() if value in (None, True) else shown
        assert f" {key.partition('.')[2]} {shown} {source}" in text
    objective = preset(name)
    assert f" label_dropout {objective.label_dropout} " in text
    assert " target_decay " in text or not objective.needs_target
    assert (" second_time true " in text) == objective.two_time


def test_the_command_prints_all_and_refuses_what_is_none(capsys):
    main(["presets"])
    out = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{out}" for name in PRESETS) and "rectified" not in out
    assert f"\n    {PRESETS['meanflow'].title}\n" in out and "1.00 gradient" in out
    for words in (["presets", "rectified"], ["presets", "--name", "rectified"]):
        with pytest.raises(SystemExit) as refused:
            main(words)
        error = capsys.readouterr().err
        assert refused.value.code == 2 and error.count("\n") == 1
        assert "unknown preset 'rectified'; there are multi_step, ddpm, " in error
    main(["models", "DDT"])  # the first word is the name there, too
    assert "DDT-XL/2" in capsys.readouterr().out


def test_a_batch_of_a_file_below_the_one_that_names_the_preset_is_kept(tmp_path):
    """What is fitted lies above it, and is about what nobody gave."""
    own = {"train": {"global_batch": 48, "checkpoint_every": 7}}
    for name in (*DEFAULTS, "flow_matching"):
        layers = [own, {"data": "Digits", "objective": {"preset": name}}]
        config, fitted = training_config(layers, tmp_path / name)
        assert (config.train.global_batch, config.train.checkpoint_every) == (48, 7)
        assert fitted is not None and "global_batch" not in fitted["train"]
