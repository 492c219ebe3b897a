"""Every scheduler class of diffusers: refused with the reason, or its own noise and times."""

import diffusers
import numpy as np
import pytest
import torch

from ucgm import UCGMScheduler
from ucgm.runtime.randomness import RowRandom
from ucgm.sampler import NAMED

ACCEPTED = {
    "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler",
    "UniPCMultistepScheduler",
}  # fmt: skip
# Their path is known, their timesteps or noise are of use to their own solver alone.
PATH_ALONE = {"KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler",
              "SASolverScheduler"}  # fmt: skip
NAMES = sorted(n for n in dir(diffusers) if n.endswith("Scheduler"))
Z = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(1))

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def named(theirs):
    return {**theirs.config, "_class_name": type(theirs).__name__}


def close(a, b):
    assert torch.isfinite(a).all()
    assert (a - b).abs().max() < 1e-5 * max(1.0, float(b.abs().max()))


def shown(theirs, x, t):
    """What the model sees of their state (...)."""
    scale = getattr(theirs, "scale_model_input", None)
    return scale(x, t) if scale else x


def network(x, t):
    t = torch.as_tensor(t).float() / 1000
    return torch.tanh(1.3 * x + torch.sin(3 * t)) - 0.4 * t * x


def test_classes_are_accepted_or_refused_by_name():
    assert len(NAMES) > 40 and ACCEPTED | PATH_ALONE < set(NAMES)
    for name in NAMES:
        config = {"_class_name": name}
        if name in ACCEPTED:
            assert UCGMScheduler.from_config(config).config.schedule == name
            continue
        with pytest.raises(ValueError, match=name) as error:
            UCGMScheduler.from_config(config)
        assert "\n" not in str(error.value)
        hint = "add schedule=None" if name in PATH_ALONE else "name the path of its model"
        assert hint in str(error.value)
        if name in PATH_ALONE:
            grid = UCGMScheduler.from_config(config, schedule=None)
            assert grid.sampler(4) == UCGMScheduler(
                prediction_type="epsilon", beta_start=grid.config.beta_start,
                beta_end=grid.config.beta_end,
            ).sampler(4)  # fmt: skip


VP = ["DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
      "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
      "LMSDiscreteScheduler", "UniPCMultistepScheduler"]  # fmt: skip
SPACED = [{"timestep_spacing": s, "steps_offset": s == "leading"}
          for s in ("linspace", "leading", "trailing")]  # fmt: skip
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
OTHER = {f"use_{name}_sigmas": True for name in ("karras", "exponential", "beta")}
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
CASES = [
    *((name, spaced | SD) for name in VP for spaced in SPACED),
    *((name, {key: True}) for name in VP if name[:3] not in ("DDI", "DDP") and "Anc" not in name
      for key in OTHER),
    *((name, ZERO | SPACED[2]) for name in VP if name[:2] not in ("DE", "He", "LM")),
    *((name, {"prediction_type": p}) for name in VP[:4] for p in ("sample", "v_prediction")),
    *((name, FLOW) for name in (VP[2], VP[3], VP[-1], "DPMSolverSinglestepScheduler")),
    ("DDIMParallelScheduler", {"trained_betas": np.linspace(1e-4, 0.01, 1000)}),
    ("DDPMParallelScheduler", {"num_train_timesteps": 400}),
    ("DPMSolverSinglestepScheduler", {"beta_schedule": "squaredcos_cap_v2",
                                      "lambda_min_clipped": -5.1}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
    ("UniPCMultistepScheduler", FLOW | {"use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", FLOW | {"shift_terminal": 0.1}),
    *(("FlowMatchEulerDiscreteScheduler", s)
      for s in ({}, {"shift": 3.0}, {"shift": 3.0, "shift_terminal": 0.1},
                *({k: True} for k in OTHER), {"use_dynamic_shifting": True, "shift_terminal": 0.1},
                {"use_dynamic_shifting": True, "time_shift_type": "linear"})),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
]  # fmt: skip


@pytest.mark.parametrize("name, settings", CASES)
def test_timesteps_and_noise_are_those_of_the_class(name, settings):
    theirs = getattr(diffusers, name)(**settings)
    two = {"solver": "heun"} if theirs.order == 2 else {}
    ours = UCGMScheduler.from_config(named(theirs), **two)
    for steps in (1, 7, 20):
        if settings.get("shift_terminal") and steps == 1:
            continue  # theirs divides by zero
        mu = {"mu": 0.7} if settings.get("use_dynamic_shifting") else {}
        theirs.set_timesteps(steps, **mu)
        ours.set_timesteps(steps, **mu)
        assert torch.equal(ours.timesteps, theirs.timesteps), (ours.timesteps, theirs.timesteps)
        assert ours.timesteps.dtype == theirs.timesteps.dtype
        assert len(ours.sigmas) == len(ours.timesteps) + 1
        for i, t in enumerate(theirs.timesteps):
            if name == "FlowMatchHeunDiscreteScheduler":
                noised = (1 - theirs.sigmas[i]) * Z + theirs.sigmas[i] * NOISE
            elif hasattr(theirs, "scale_noise"):
                noised = theirs.scale_noise(Z, t[None], NOISE)
            else:
                noised = theirs.add_noise(Z, NOISE, t[None])
            theirs._step_index = None
            close(ours.add_noise(Z, NOISE, t[None]), shown(theirs, noised, t))


@pytest.fixture
def no_noise(monkeypatch):
    """Fresh noise that is zero, in their schedulers and in ours."""
    modules = [getattr(diffusers.schedulers, f"scheduling_{name}") for name in
               ("ddpm", "ddpm_parallel", "euler_ancestral_discrete")]  # fmt: skip
    for module in modules:
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: torch.zeros(shape))
    monkeypatch.setattr(RowRandom, "normal", lambda self, *shape, dtype: torch.zeros(2, *shape))


DDPM = NAMED["ddpm"]
ONE = {"solver_order": 1, "use_karras_sigmas": True}
SAME = [
    ("DDIMScheduler", {"clip_sample": False, "steps_offset": 1}, {}),
    ("DDIMScheduler", {"clip_sample": False} | ZERO | SPACED[2], {}),
    ("DDIMParallelScheduler", {"clip_sample": False}, {}),
    ("DDPMScheduler", {"clip_sample": False}, DDPM),
    ("DDPMParallelScheduler", {"clip_sample": False, "prediction_type": "sample"}, DDPM),
    ("DEISMultistepScheduler", ONE, {}),
    ("DPMSolverMultistepScheduler", ONE, {}),
    ("DPMSolverMultistepScheduler", SD | {"solver_order": 2}, NAMED["dpmpp_2m"]),
    ("DPMSolverMultistepScheduler", FLOW | {"solver_order": 2}, NAMED["dpmpp_2m"]),
    ("DPMSolverSinglestepScheduler", ONE, {}),
    ("EulerDiscreteScheduler", {}, {}),
    ("EulerDiscreteScheduler", SD | {"use_karras_sigmas": True}, {}),
    ("EulerAncestralDiscreteScheduler", SPACED[1], DDPM),
    ("HeunDiscreteScheduler", {}, {"solver": "heun", "variable": "noise"}),
    ("LMSDiscreteScheduler", {}, {}),
    ("UniPCMultistepScheduler", ONE | {"disable_corrector": list(range(10))}, {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "shift_terminal": 0.1}, {}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, {"solver": "heun"}),
]


@pytest.mark.parametrize("name, settings, solver", SAME)
@pytest.mark.parametrize("first", [0, 4])
def test_the_same_solver_gives_the_same_states(name, settings, solver, first, no_noise):
    """From the first step on, or from the fifth, found by its timestep."""
    theirs = getattr(diffusers, name)(**settings)
    ours = UCGMScheduler.from_config(named(theirs), **solver)
    more = {"order": 1} if name == "LMSDiscreteScheduler" else {}
    theirs.set_timesteps(10)
    ours.set_timesteps(10)
    by_ratio = name.startswith(("Euler", "Heun", "LMS"))  # their state is ours over alpha
    first = first * theirs.order
    x = y = Z
    if by_ratio:
        y = Z * (theirs.sigmas[first] ** 2 + 1) ** 0.5
    last_level = theirs.sigmas[-1] if hasattr(theirs, "sigmas") else 0
    for i, t in list(enumerate(theirs.timesteps))[first : None if last_level == 0 else -1]:
        x = ours.step(network(x, t), t, x).prev_sample
        y = theirs.step(network(shown(theirs, y, t), t), t, y, **more).prev_sample
        assert ours.step_index == i + 1
    close(x, y / (theirs.sigmas[i + 1] ** 2 + 1) ** 0.5 if by_ratio else y)
