"""The scheduler by itself: against diffusers' own, configurations, noise, bad input."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SCMScheduler,
    UniPCMultistepScheduler,
)

from ucgm import Churn, DiscreteVP, Grid, Linear, Restart, Sampler, UCGMScheduler
from ucgm.integrations.times import SCHEDULES
from ucgm.sampler import NAMED
from ucgm.transport import Trig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Z = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def network(x, t):
    """Any smooth prediction; t in timesteps."""
    t = t.float().reshape(-1, *[1] * (x.ndim - 1)) / 1000
    return torch.tanh(1.3 * x + torch.sin(3 * t)) - 0.4 * t * x


def run(scheduler, z=Z, **arguments):
    """The loop of a pipeline."""
    x = z
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, return_dict=False, **arguments)[0]
    return x


def native(sampler, offset=0, **arguments):
    return sampler(lambda x, t, y=None: network(x, 1000 * t - offset), Z, **arguments)


def test_euler_is_flow_match_euler():
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(7)
    ours = UCGMScheduler.from_config(theirs.config)
    ours.set_timesteps(timesteps=theirs.timesteps)
    assert ours.config.shift == 3.0
    torch.testing.assert_close(ours.timesteps, theirs.timesteps)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas)
    torch.testing.assert_close(run(ours), run(theirs), rtol=0, atol=1e-5)
    ours.set_timesteps(sigmas=np.linspace(1.0, 1 / 7, 7))
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / 7, 7))
    torch.testing.assert_close(run(ours), run(theirs), rtol=0, atol=1e-5)


def test_velocity_heun_is_flow_match_heun():
    theirs = FlowMatchHeunDiscreteScheduler(shift=2.0)
    theirs.set_timesteps(6)
    with pytest.raises(ValueError, match="FlowMapEuler.*, FlowMatchHeun.*: add the name"):
        UCGMScheduler.from_config(theirs.config)
    config = {**theirs.config, "_class_name": type(theirs).__name__}
    ours = UCGMScheduler.from_config(config, solver="heun")
    ours.set_timesteps(timesteps=theirs.timesteps[[0, *range(1, 11, 2)]])
    assert ours.order == theirs.order == 2 and len(ours.timesteps) == len(theirs.timesteps)
    torch.testing.assert_close(run(ours), run(theirs), rtol=0, atol=1e-4)


def test_dpmpp_2m_is_dpm_solver_multistep():
    theirs = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=2.0
    )
    theirs.set_timesteps(8)
    grid = Grid(explicit=tuple(theirs.sigmas[:-1].double().tolist()))
    ours = native(Sampler(Linear(), 8, grid=grid, **NAMED["dpmpp_2m"]))
    x = Z
    for t, sigma in zip(theirs.timesteps, theirs.sigmas, strict=False):
        x = theirs.step(network(x, 1000 * sigma), t, x, return_dict=False)[0]
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "schedule", [{}, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
                 {"beta_schedule": "squaredcos_cap_v2"}, {"trained_betas": [0.01] * 1000}]
)  # fmt: skip
def test_ddim_is_ddim(prediction, schedule):
    """The default scheduler of diffusers keeps its class and its defaults to itself."""
    theirs = DDIMScheduler(
        prediction_type=prediction, timestep_spacing="trailing", clip_sample=False, **schedule
    )
    theirs.set_timesteps(5)
    ours = UCGMScheduler.from_config(theirs.config)
    ours.set_timesteps(timesteps=theirs.timesteps)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps.float())
    scale = run(theirs).abs().max()
    assert (run(ours) - run(theirs)).abs().max() < 2e-5 * max(1.0, scale)


def test_discrete_levels_are_met_exactly():
    path = DiscreteVP()
    theirs = DDPMScheduler()
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    c = path.coefficients(t)
    assert (c.alpha**2 - theirs.alphas_cumprod.double()).abs().max() < 1e-6
    torch.testing.assert_close(c.alpha**2 + c.sigma**2, torch.ones_like(t))
    between = torch.rand(50, dtype=torch.float64) * 0.999 + 0.0005
    torch.testing.assert_close(path.time_at_log_snr(path.log_snr(between)), between)
    zero = DiscreteVP(zero_terminal=True)
    assert zero.coefficients(t).alpha[-1] == pytest.approx(2.0**-12)


@pytest.mark.parametrize(
    "theirs, path, shift",
    [
        (DDIMScheduler(), DiscreteVP(), 1.0),
        (PNDMScheduler(skip_prk_steps=True), DiscreteVP(), 1.0),
        (EulerDiscreteScheduler(prediction_type="v_prediction"), DiscreteVP("v"), 1.0),
        (DPMSolverMultistepScheduler(beta_end=0.012), DiscreteVP(beta=(0.0001, 0.012)), 1.0),
        (DDPMScheduler(prediction_type="sample"), DiscreteVP("x"), 1.0),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), Linear(), 3.0),
        (UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction",
                                 flow_shift=2.0), Linear(), 2.0),
    ],
)  # fmt: skip
def test_from_config_of_the_usual_schedulers(theirs, path, shift, tmp_path):
    more = {"schedule": None} if isinstance(theirs, PNDMScheduler) else {}
    ours = UCGMScheduler.from_config(theirs.config, extrapolation=0.3, **more)
    assert ours.transport == path and ours.config.shift == shift
    assert ours.config.extrapolation == 0.3 and ours.config.order == 1
    # The same through the file, where the class is named, and back again.
    theirs.save_pretrained(tmp_path / "theirs")
    read = UCGMScheduler.from_pretrained(tmp_path / "theirs", **more)
    assert read.transport == path and read.config.shift == shift
    ours.save_pretrained(tmp_path / "ours")
    again = UCGMScheduler.from_pretrained(tmp_path / "ours")
    assert again.transport == path and again.sampler(5) == ours.sampler(5)
    assert UCGMScheduler.from_config(ours.config).sampler(5) == ours.sampler(5)
    back = type(theirs).from_config(ours.config)
    for key in ("prediction_type", "shift", "beta_end"):
        if key in theirs.config:
            assert back.config[key] == theirs.config[key]


@pytest.mark.parametrize("name", [n for n in NAMED if n != "any_step"])
@pytest.mark.parametrize("path", [Linear(), Trig()], ids=str)
def test_a_native_sampler_and_its_scheduler_agree(name, path, tmp_path):
    sampler = Sampler(path, 6, **NAMED[name])
    scheduler = UCGMScheduler.from_sampler(sampler, seed=4)
    scheduler.save_pretrained(tmp_path)
    scheduler = UCGMScheduler.from_pretrained(tmp_path)
    assert scheduler.sampler(6) == sampler
    scheduler.set_timesteps(6)
    generator = torch.Generator().manual_seed(2)
    out = run(scheduler, generator=generator)
    expected = native(sampler, generator=torch.Generator().manual_seed(2))
    assert (out - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


def test_fresh_noise_follows_its_generator():
    scheduler = UCGMScheduler(stochasticity=0.7)

    def draw(**arguments):
        scheduler.set_timesteps(4)
        return run(scheduler, **arguments)

    def generators(*seeds):
        return [torch.Generator().manual_seed(s) for s in seeds]

    torch.manual_seed(0)
    first = draw()
    torch.manual_seed(0)
    assert torch.equal(first, draw()) and not torch.equal(first, draw())
    together = draw(generator=generators(1, 2, 3))
    assert torch.equal(together[:2], draw(generator=generators(1, 2, 9))[:2])
    seeded = UCGMScheduler(stochasticity=0.7, seed=8)
    seeded.set_timesteps(4)
    whole = run(seeded)
    seeded.set_timesteps(4)
    assert torch.equal(whole[:2], run(seeded, Z[:2]))


def test_a_second_run_does_not_remember_the_first():
    scheduler = UCGMScheduler(solver="adams", order=3)
    scheduler.set_timesteps(5)
    first = run(scheduler)
    scheduler.set_timesteps(5)
    assert scheduler.step_index is None
    assert torch.equal(first, run(scheduler)) and scheduler.step_index == 5


def test_half_precision_models_get_their_type_back():
    scheduler = UCGMScheduler(solver="adams", order=2)
    scheduler.set_timesteps(3)
    out = scheduler.step(Z.bfloat16(), 999.0, Z.bfloat16()).prev_sample
    assert out.dtype == torch.bfloat16


def test_noising_meets_the_path():
    for path, offset in ((Linear(), 0), (DiscreteVP(), 1)):
        scheduler = UCGMScheduler() if offset == 0 else UCGMScheduler(prediction_type="epsilon")
        scheduler.set_timesteps(4)
        noise = torch.randn_like(Z)
        t = (scheduler.timesteps[1].double() + offset) / 1000
        expected = path.mix(Z, noise, t.float().expand(3))
        for result in (
            scheduler.scale_noise(Z, scheduler.timesteps[1:2], noise),
            scheduler.add_noise(Z, noise, scheduler.timesteps[1].expand(3)),
        ):
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


BAD = [
    ({"prediction_type": "trigflow"}, "prediction_type 'trigflow' is not supported"),
    ({"stochasticity": 2.0}, "stochasticity"),
    ({"solver": "adams", "order": 9}, "1 to 4"),
    ({"gap": (0.7, 0.7)}, "gap"),
    ({"prediction_type": "epsilon", "beta_schedule": "sigmoid"}, "schedule must be one of linear"),
    ({"transport": "Straight"}, "not a Transport"),
]


@pytest.mark.parametrize("settings, message", BAD)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        UCGMScheduler(**settings)


def test_a_pipeline_of_others_has_no_second_time():
    jumps = UCGMScheduler(solver="jump", gap=(0.0, 0.0))
    assert jumps.sampler(2).plan()[0].second == 0.5
    with pytest.raises(ValueError, match="two times"):
        jumps.set_timesteps(2)


@pytest.mark.parametrize(
    "theirs, message",
    [
        (EDMEulerScheduler(), "name the path"),
        (SCMScheduler(), "name the path"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling"),
        (CogVideoXDDIMScheduler(), "CogVideoXDDIMScheduler or .* is none"),
        (
            EulerDiscreteScheduler.from_config(PNDMScheduler(skip_prk_steps=True).config),
            "no class that can be told",
        ),
        (DDPMScheduler(variance_type="learned_range"), "learned variance"),
        (DDIMScheduler(trained_betas=[0.01] * 10), "10 betas are none of 1000 levels"),
        (DPMSolverMultistepScheduler(use_flow_sigmas=True), "prediction_type epsilon is no model"),
        (LMSDiscreteScheduler(), "may be of KDPM2.*LMSDiscreteScheduler: add the name"),
    ],
)
def test_configurations_of_models_it_cannot_serve(theirs, message):
    with pytest.raises(ValueError, match=message):
        UCGMScheduler.from_config(theirs.config)


def test_what_a_foreign_configuration_says_beside_is_understood_or_refused():
    config = {**DDIMScheduler().config, "_class_name": "DDIMScheduler"}
    with pytest.raises(ValueError, match="DDIMScheduler with snr_shift_scale = 3.0 is not"):
        UCGMScheduler.from_config({**config, "snr_shift_scale": 3.0})
    for harmless in ({"snr_shift_scale": None}, {"new_switch": False}, {"skip_prk_steps": True}):
        UCGMScheduler.from_config({**config, **harmless})
    linear = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    with pytest.raises(ValueError, match="linear has no form with schedule=None"):
        UCGMScheduler.from_config(linear.config, schedule=None)
    with pytest.raises(ValueError, match="no setting of our grid .*: give schedule=None"):
        UCGMScheduler.from_config(config, gap=(0.1, 0.1))
    video = EulerDiscreteScheduler(sigma_max=700.0, sigma_min=0.002, use_karras_sigmas=True)
    with pytest.raises(ValueError, match="noise levels that are none of its betas"):
        UCGMScheduler.from_config(video.config)


def test_an_explicit_schedule_of_none_gives_our_grid():
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert UCGMScheduler.from_config(theirs.config).config.schedule == type(theirs).__name__
    ours = UCGMScheduler.from_config(theirs.config, schedule=None, gap=(0.02, 0.03))
    ours.set_timesteps(5)
    times = Grid(gap=(0.02, 0.03), shift=3.0).times(5)[:-1]
    torch.testing.assert_close(ours.timesteps, (1000 * times).float())
    # A setting of theirs is changed by the call, and makes other times.
    again = UCGMScheduler.from_config(DDIMScheduler().config, timestep_spacing="trailing")
    again.set_timesteps(4)
    assert again.timesteps.tolist() == [999, 749, 499, 249]


SETTINGS = [
    {},
    {"solver": "adams", "order": 2, "transport": "Trig", "warp": (1.1, 0.9, 1.0), "seed": 3},
    {"prediction_type": "v_prediction", "beta_end": 0.012, "order": 2, "gap": (0.01, 0.02)},
    {"shift": 3.0, "stochasticity": 0.5, "noise": "ddim", "use_dynamic_shifting": True},
]


@pytest.mark.parametrize("name", UCGMScheduler._compatibles)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_configuration_goes_through_every_compatible_class_and_back(name, settings, tmp_path):
    ours = UCGMScheduler(**settings)
    expected = {k: v for k, v in ours.config.items() if k[:1] != "_"}
    cls = getattr(diffusers, name)
    theirs = cls.from_config(ours.config)
    theirs.save_pretrained(tmp_path)
    for back in (
        UCGMScheduler.from_config(theirs.config),
        UCGMScheduler.from_config(cls.from_pretrained(tmp_path).config),
        UCGMScheduler.from_pretrained(tmp_path),
    ):
        assert back.sampler(3) == ours.sampler(3) if not ours.config.use_dynamic_shifting else True
        config = {k: tuple(v) if isinstance(v, list) else v for k, v in back.config.items()}
        assert expected.items() <= config.items() and back.order == ours.order


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_foreign_configuration_comes_back_whole(name, tmp_path):
    """Theirs, ours on disk, theirs: the same settings; and ours through another class."""
    cls = getattr(diffusers, name)
    shared = {"num_train_timesteps": 500, "steps_offset": 1, "set_alpha_to_one": False}
    theirs = cls(**{k: v for k, v in shared.items() if k in cls().config})
    before = {k: v for k, v in theirs.config.items() if k[:1] != "_"}
    config = before | {"_class_name": name}
    ours = UCGMScheduler.from_config(config, solver="adams", order=2)
    ours.save_pretrained(tmp_path)
    other = EulerDiscreteScheduler if "Flow" in name else DDIMScheduler
    for back in (
        UCGMScheduler.from_pretrained(tmp_path),
        UCGMScheduler.from_config(other.from_config(ours.config).config),
    ):
        theirs.set_timesteps(6)
        back.set_timesteps(6)
        once = theirs.timesteps if theirs.order == 1 else theirs.timesteps[[0, *range(1, 11, 2)]]
        assert torch.equal(back.timesteps, once)
        again = cls.from_config(back.config)
        assert {k: again.config[k] for k in before} == before


@pytest.mark.parametrize("solver", [{}, {"order": 2}, {"solver": "heun"}], ids=str)
@pytest.mark.parametrize("schedule", [None, "FlowMatchEulerDiscreteScheduler"])
def test_a_loop_over_later_timesteps_is_the_loop_from_that_index(solver, schedule):
    """As pipelines that turn images into images do it, with and without set_begin_index."""
    one = UCGMScheduler(**solver, schedule=schedule)
    one.set_timesteps(10)
    other = UCGMScheduler(**solver, schedule=schedule)
    other.set_timesteps(10)
    first = 4 * one.order
    other.set_begin_index(first)
    assert len(one.sigmas) == len(one.timesteps) + 1 == 10 * one.order + (one.order == 1)
    x = y = Z
    for i, t in enumerate(one.timesteps[first:]):
        x = one.step(network(x, t), t, x).prev_sample
        y = other.step(network(y, t), t, y).prev_sample
        assert one.step_index == other.step_index == first + i + 1
        assert torch.equal(x, y)
    assert one.begin_index is None and other.begin_index == first
    times = tuple((one.timesteps[first :: one.order].double() / 1000).tolist())
    expected = native(Sampler(Linear(), 6, grid=Grid(explicit=times), **solver))
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    # Noise that such a pipeline adds is that of the timestep.
    t = one.timesteps[first]
    torch.testing.assert_close(one.add_noise(Z, -Z, t[None]), Z * (1 - 2 * t / 1000))


def test_a_step_at_an_unknown_timestep_or_in_the_middle_of_a_step():
    scheduler = UCGMScheduler(solver="heun")
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="timestep 333 is none of those .* 999 to 1: pass one"):
        scheduler.step(Z, 333.0, Z)
    scheduler.set_begin_index(3)
    with pytest.raises(ValueError, match="evaluation 3 is the second of a step"):
        scheduler.step(Z, 999.0, Z)


def test_bad_calls():
    scheduler = UCGMScheduler()
    with pytest.raises(ValueError, match="set_timesteps first"):
        scheduler.step(Z, 1.0, Z)
    with pytest.raises(ValueError, match="num_inference_steps, sigmas or timesteps"):
        scheduler.set_timesteps()
    with pytest.raises(ValueError, match="falling"):
        scheduler.set_timesteps(timesteps=[100.0, 900.0])
    with pytest.raises(ValueError, match="2 timesteps were given for 5 steps"):
        scheduler.set_timesteps(5, timesteps=[900.0, 100.0])
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="without a learned variance"):
        scheduler.step(torch.cat((Z, Z), 1), 999.0, Z)
    run(scheduler)
    with pytest.raises(ValueError, match="all 2 steps are done"):
        scheduler.step(Z, 1.0, Z)
    with pytest.raises(ValueError, match="mu is missing"):
        UCGMScheduler(use_dynamic_shifting=True).set_timesteps(4)
    with pytest.raises(ValueError, match="linear path alone"):
        UCGMScheduler(prediction_type="epsilon").set_timesteps(sigmas=[0.9, 0.5])
    for sampler in (
        Sampler(restart=Restart()),
        Sampler(solver="heun", churn=Churn(1.0)),
        Sampler(steps=1, grid=Grid(explicit=(0.9,))),
    ):
        with pytest.raises(ValueError, match="not settings of UCGMScheduler"):
            UCGMScheduler.from_sampler(sampler)
