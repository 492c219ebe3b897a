"""Random configurations of every scheduler class of diffusers: refused in one line, or right.

Right is: the timesteps of the class itself, the noise that it adds as the model sees it, one more
sigma than timesteps, finite states, and the same after a way through a compatible class.
"""

import math

import diffusers
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.rules import right_or_one_line
from ucgm import UCGMScheduler
from ucgm.integrations.times import SCHEDULES, defaults_of

diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = sorted(n for n in dir(diffusers) if n.endswith("Scheduler"))
HOSTILE = st.sampled_from([math.nan, math.inf, -1, 0, 1e30, 10**30, True, "two", None, [], [1], {}])
SWITCH = st.sampled_from([True, True, True, False, None])
USUAL = {
    "num_train_timesteps": st.sampled_from([1, 2, 10, 100, 400, 1000, 4000]),
    "beta_start": st.sampled_from([1e-5, 1e-4, 0.00085, 0.01]),
    "beta_end": st.sampled_from([0.002, 0.012, 0.02, 0.3]),
    "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]),
    "trained_betas": st.sampled_from([None, [0.01] * 10, [0.001 * k for k in range(1, 101)]]),
    "prediction_type": st.sampled_from(["epsilon", "v_prediction", "sample", "flow_prediction"]),
    "timestep_spacing": st.sampled_from(["linspace", "leading", "trailing"]),
    "steps_offset": st.sampled_from([0, 1, 2]),
    "shift": st.floats(0.2, 8.0),
    "flow_shift": st.floats(0.2, 8.0),
    "shift_terminal": st.sampled_from([None, 0.02, 0.3]),
    "time_shift_type": st.sampled_from(["exponential", "linear"]),
    "interpolation_type": st.sampled_from(["linear", "log_linear"]),
    "final_sigmas_type": st.sampled_from(["zero", "sigma_min"]),
    "timestep_type": st.sampled_from(["discrete", "continuous"]),
    "sigma_min": st.sampled_from([None, 0.002, 0.1, 2.0]),
    "sigma_max": st.sampled_from([None, 1.0, 20.0, 700.0]),
    "variance_type": st.sampled_from([None, "fixed_small", "fixed_large", "learned_range"]),
    "lambda_min_clipped": st.sampled_from([-math.inf, -5.1, -1.0]),
    "solver_order": st.sampled_from([1, 2, 3]),
    "algorithm_type": st.sampled_from(["dpmsolver++", "sde-dpmsolver++", "deis"]),
}
STRANGE = {"snr_shift_scale": st.just(3.0), "skip_prk_steps": SWITCH, "set_alpha_to_one": SWITCH,
           "sigma_data": st.just(0.5), "new_switch": SWITCH}  # fmt: skip
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@st.composite
def configurations(draw):
    """A class and up to five of its settings, now and then hostile or of another class."""
    name = draw(st.one_of(*[st.sampled_from(sorted(SCHEDULES))] * 9, st.sampled_from(NAMES)))
    keys = sorted(defaults_of(name).keys() - {"args"})
    chosen = draw(st.lists(st.sampled_from(keys), max_size=5)) if keys else []
    config = {}
    if "use_flow_sigmas" in keys and draw(st.integers(0, 2)) == 0:
        config |= FLOW
    for key in chosen:
        usual = USUAL.get(key, SWITCH if isinstance(defaults_of(name)[key], bool) else None)
        if usual is not None or draw(st.integers(0, 3)) == 0:
            rarely = draw(st.integers(0, 15)) == 0
            config[key] = draw(HOSTILE if usual is None or rarely else usual)
    if draw(st.integers(0, 9)) == 0:
        key = draw(st.sampled_from(sorted(STRANGE)))
        config[key] = draw(STRANGE[key])
    return name, config


def made(name, config, steps, mu):
    """The scheduler of the class itself after set_timesteps, or None where it fails."""
    cls = getattr(diffusers, name)
    try:
        theirs = cls(**{key: config[key] for key in defaults_of(name) if key in config})
        theirs.set_timesteps(steps, **mu)
    except Exception:  # whatever it is
        return None
    return theirs


def noised(theirs, i, x, noise):
    """Their noisy state (...) at timestep ``i``, as the model sees it."""
    t = theirs.timesteps[i]
    if type(theirs).__name__ == "FlowMatchHeunDiscreteScheduler":
        return (1 - theirs.sigmas[i]) * x + theirs.sigmas[i] * noise
    flow = hasattr(theirs, "scale_noise")
    state = theirs.scale_noise(x, t[None], noise) if flow else theirs.add_noise(x, noise, t[None])
    theirs._step_index = None
    return theirs.scale_model_input(state, t) if hasattr(theirs, "scale_model_input") else state


@given(
    made_up=configurations(),
    steps=st.integers(1, 25),
    solver=st.sampled_from([{}, {"solver": "adams", "order": 2}, {"solver": "heun"}]),
    way=st.sampled_from(UCGMScheduler._compatibles),
    is_named=st.sampled_from([True, True, True, False]),
)
@example(("HeunDiscreteScheduler", {"beta_end": 0.3}), 1, {}, "DDIMScheduler", True)
@example(("DDIMScheduler", {"prediction_type": []}), 1, {}, "DDIMScheduler", True)
@example(("DEISMultistepScheduler", {"trained_betas": 0.1}), 1, {}, "DDIMScheduler", True)
@example(
    ("DEISMultistepScheduler", {"use_beta_sigmas": True, "beta_schedule": "squaredcos_cap_v2"}),
    3,
    {"solver": "heun"},
    "DDIMScheduler",
    True,
)
@example(("CogVideoXDDIMScheduler", {}), 5, {}, "DDIMScheduler", True)
@example(("DDIMScheduler", {"snr_shift_scale": 3.0}), 5, {}, "DDIMScheduler", True)
@example(("FlowMatchHeunDiscreteScheduler", {}), 5, {}, "DDIMScheduler", False)
@example(("EulerDiscreteScheduler", {"sigma_max": 700.0, "use_karras_sigmas": True}), 5, {},
         "DDIMScheduler", True)  # fmt: skip
def test_a_configuration_is_refused_or_right(made_up, steps, solver, way, is_named):
    name, config = made_up
    mu = {"mu": 0.7} if config.get("use_dynamic_shifting") else {}
    theirs = made(name, config, steps, mu)
    whole = defaults_of(name) | config | ({"_class_name": name} if is_named else {})
    with right_or_one_line():
        ours = UCGMScheduler.from_config(whole, **solver)
        ours.set_timesteps(steps, **mu)
        # From here on nothing may fail: it was accepted.
        check(ours, theirs, name, mu, way)


def check(ours, theirs, name, mu, way):
    try:
        assert theirs is not None, "the class itself refuses it"
        seen = theirs.timesteps
        if ours.order > theirs.order:
            seen = torch.cat((seen[:1], seen[1:].repeat_interleave(2)))
        elif ours.order < theirs.order:
            seen = seen[[0, *range(1, len(seen), 2)]]
        assert torch.equal(ours.timesteps, seen)
        assert len(ours.sigmas) == len(ours.timesteps) + 1 and ours.sigmas.isfinite().all()
        x, noise = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
        for i in range(len(theirs.timesteps)):
            wanted = noised(theirs, i, x, noise)
            found = ours.add_noise(x, noise, theirs.timesteps[i][None])
            assert found.isfinite().all()
            if wanted.isfinite().all():  # theirs are not where float32 ends
                assert (found - wanted).abs().max() < 2e-5 * max(1.0, float(wanted.abs().max()))
        state = noise
        for t in ours.timesteps:
            state = ours.step(torch.tanh(state), t, state).prev_sample
        assert state.isfinite().all()
    except ValueError as error:
        raise AssertionError(f"accepted, and then: {error}") from error
    try:
        through = getattr(diffusers, way).from_config(ours.config)
    except Exception:  # that class has no such solver, or reads what the other does not
        return
    back = UCGMScheduler.from_config(through.config)
    back.set_timesteps(ours.num_inference_steps, **mu)
    assert torch.equal(back.timesteps, ours.timesteps) and back.order == ours.order
    assert back.config.schedule in (name, name.replace("Parallel", ""))
