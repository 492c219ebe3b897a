"""UCGM-S as a diffusers scheduler: any pipeline with any solver of :mod:`ucgm.sampler`.

A scheduler is the same plan as a :class:`ucgm.Sampler`, run one evaluation at a time by the loop
of a pipeline:

    scheduler = UCGMScheduler.from_config(pipe.scheduler.config, extrapolation=0.4)
    pipe.scheduler = scheduler

The path comes from what the model was trained on.  ``flow_prediction`` is the linear path with
timestep N t (SD3, Flux); ``epsilon``, ``v_prediction`` and ``sample`` are the discrete path of the
betas with timestep N t - 1, its index (DiT, Stable Diffusion); ``transport`` names one of ours.

Pipelines pass no generator to ``step``: a stochastic solver then uses ``seed`` and the row number,
or the global generator where ``seed`` is None.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from ucgm.integrations.discrete import DiscreteVP
from ucgm.integrations.foreign import Generators, own_config, random_of, transport_of
from ucgm.runs.config import to_dict
from ucgm.runtime.randomness import RowRandom
from ucgm.sampler import Grid, Sampler
from ucgm.sampler.plan import History, knots
from ucgm.transport import Linear, expand

# Settings with the same name here and in Sampler or Grid.
_SAMPLER = ("order", "stochasticity", "extrapolation", "solver", "variable",
            "time_variable", "integration", "noise")  # fmt: skip
_GRID = ("warp", "gap", "spacing", "rho", "shift")


class UCGMScheduler(SchedulerMixin, ConfigMixin):
    """A sampler of :mod:`ucgm.sampler` under the contract of diffusers schedulers.

    Args:
        num_train_timesteps: N, the factor between times and the timesteps a model sees.
        prediction_type: flow_prediction, epsilon, v_prediction or sample.
        solver: as in :class:`ucgm.Sampler`, like the seven settings after it.
        warp: as in :class:`ucgm.Grid`, like the four settings after it.
        use_dynamic_shifting: take the shift from the pipeline's ``mu`` (Flux, SD3.5).
        base_shift: the four numbers from which pipelines compute ``mu``.
        beta_schedule: of the discrete path, with beta_start, beta_end, trained_betas and
            rescale_betas_zero_snr.
        transport: a path of :mod:`ucgm.transport`, as in a run's configuration: a class name, or
            ``{class_path: ..., init_args: ...}``; replaces prediction_type and betas.
        use_flow_sigmas: tells Flux's pipeline to leave the schedule to the scheduler.
        seed: of the fresh noise of stochastic solvers; None: the global generator.
    """

    _compatibles = [
        "DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "PNDMScheduler",
        "UniPCMultistepScheduler",
    ]  # fmt: skip
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        prediction_type: str = "flow_prediction",
        solver: str = "ucgm",
        order: int = 1,
        stochasticity: float = 0.0,
        extrapolation: float = 0.0,
        variable: str = "velocity",
        time_variable: str = "time",
        integration: str = "exact",
        noise: str = "share",
        warp: Sequence[float] = (1.0, 1.0, 1.0),
        gap: Sequence[float] = (0.001, 0.001),
        spacing: str = "uniform",
        rho: float = 7.0,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        beta_schedule: str = "linear",
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        transport: str | dict[str, Any] | None = None,
        use_flow_sigmas: bool = True,
        seed: int | None = None,
    ) -> None:
        self.transport = transport_of(self.config)
        if solver == "jump":
            raise ValueError("solver jump needs a network with two times: use the native sampler")
        self.sampler(1)  # bad settings are refused here, not later
        self.num_inference_steps: int | None = None
        self._begin_index: int | None = None
        self._times: list[float] = []
        self.sigmas = torch.empty(0)
        levels = torch.linspace(1.0, 1.0 / num_train_timesteps, num_train_timesteps)
        self.timesteps = levels * num_train_timesteps - self._offset

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """A scheduler for the model that another scheduler's ``config`` belongs to.

        Path, prediction, number of timesteps and shift are taken over; the solver is ours.

        Raises:
            ValueError: a scheduler whose model this one cannot serve.
        """
        if isinstance(config, Mapping):
            config = own_config(config)
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @classmethod
    def from_sampler(cls, sampler: Sampler, **settings: Any) -> "UCGMScheduler":
        """The scheduler that repeats a native sampler; steps are given to the pipeline.

        Raises:
            ValueError: the sampler has churn, restart or explicit times, which are not settings of
                a scheduler.
        """
        if sampler.restart or sampler.churn.amount or sampler.grid.explicit:
            raise ValueError(
                "churn, restart and explicit times are not settings of UCGMScheduler: explicit "
                "times go to set_timesteps(sigmas=...), the others need the native sampler"
            )
        values = {name: getattr(sampler, name) for name in _SAMPLER}
        values |= {name: getattr(sampler.grid, name) for name in _GRID}
        return cls(**values, transport=to_dict(sampler.transport), **settings)

    def sampler(self, steps: int, shift: float | None = None) -> Sampler:
        """The native sampler with these settings.

        Args:
            steps: number of steps.
            shift: replaces the configured shift.
        """
        grid: dict[str, Any] = {name: self.config[name] for name in _GRID}
        grid |= {name: tuple(grid[name]) for name in ("warp", "gap")}
        if shift is not None:
            grid["shift"] = shift
        return Sampler(
            self.transport,
            steps,
            grid=Grid(**grid),
            **{name: self.config[name] for name in _SAMPLER},
        )

    @property
    def order(self) -> int:
        """Evaluations of a step, as pipelines count them."""
        twice = self.config["solver"] == "heun"
        return 2 if twice or (self.config["solver"] == "ucgm" and self.config["order"] == 2) else 1

    @property
    def step_index(self) -> int | None:
        """Number of the next evaluation; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Number of the first evaluation, set by image-to-image pipelines."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at a later evaluation, with an empty history."""
        self._begin_index = begin_index
        if self._times:
            self._start()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Make the plan, with an empty history.

        Args:
            num_inference_steps: number of steps.
            device: of ``timesteps``.
            sigmas: noise levels of the linear path before the shift, instead of our grid.
            mu: logarithm of the shift, with use_dynamic_shifting.
            timesteps: timesteps as the model sees them, instead of our grid.
        """
        shift = float(self.config["shift"])
        if self.config["use_dynamic_shifting"]:
            if mu is None:
                raise ValueError("mu is missing: use_dynamic_shifting takes the shift from it")
            shift = math.exp(mu)
        times = self._given(sigmas, timesteps, shift)
        if times is None:
            if num_inference_steps is None:
                raise ValueError("give num_inference_steps, sigmas or timesteps")
            grid = self.sampler(num_inference_steps, shift).grid
            times = grid.times(num_inference_steps, self.transport).tolist()[:-1]
        elif num_inference_steps not in (None, len(times)):
            raise ValueError(f"{len(times)} times were given for {num_inference_steps} steps")
        self.num_inference_steps = len(times)
        self._times, self._begin_index = times, None
        self._start()
        at = torch.tensor([step.t for step in self._plan], dtype=torch.float64)
        self.timesteps = (at * len(self) - self._offset).float().to(device)
        path = knots(self.transport, times)
        self.sigmas = torch.tensor([*(knot.sigma for knot in path), 0.0])

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The state (B, ...) after one evaluation, in the type of ``model_output`` (B, ...).

        ``timestep`` is not read: steps are counted.  ``generator`` is read at the first step that
        draws noise.
        """
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps first")
        i = self._step_index or 0
        if i >= len(self._plan):
            raise ValueError(f"all {i} steps are done: call set_timesteps to begin again")
        if model_output.shape != sample.shape:
            raise ValueError(
                f"the model output {tuple(model_output.shape)} is not of the state's shape "
                f"{tuple(sample.shape)}: pass the prediction without a learned variance"
            )
        if self._plan[i].noise and self._random is None:
            self._random = random_of(generator, self.config["seed"], sample)
        state = sample if sample.dtype == torch.float64 else sample.float()
        following = self._history.advance(i, state, model_output, self._random)
        self._step_index = i + 1
        following = following.to(model_output.dtype)
        return SchedulerOutput(prev_sample=following) if return_dict else (following,)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """``sample`` (B, ...) itself: the state is what the model sees."""
        return sample

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """alpha sample + sigma noise at a timestep (B,) or ()."""
        t = self._from_timesteps(timestep.double().cpu()).reshape(-1).expand(len(sample))
        alpha, sigma = (expand(c, sample).to(sample) for c in self.transport.coefficients(t)[:2])
        return alpha * sample + sigma * noise

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The same as :meth:`scale_noise`, (B, ...), under its older name."""
        return self.scale_noise(original_samples, timesteps, noise)

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]

    @property
    def _offset(self) -> int:
        """Timestep = N t - offset: 1 where it is the index of a discrete level."""
        return int(isinstance(self.transport, DiscreteVP))

    def _from_timesteps(self, timesteps: Tensor) -> Tensor:
        """Times t of timesteps."""
        return (timesteps + self._offset) / len(self)

    def _given(
        self, sigmas: Sequence[float] | None, timesteps: Sequence[float] | None, shift: float
    ) -> list[float] | None:
        """The times that a caller chose; None for our grid."""
        if timesteps is not None:
            return self._from_timesteps(torch.as_tensor(timesteps, dtype=torch.float64)).tolist()
        if sigmas is None:
            return None
        if not isinstance(self.transport, Linear):
            raise ValueError("sigmas are times of the linear path alone: give timesteps instead")
        t = torch.as_tensor(sigmas, dtype=torch.float64)
        return (shift * t / (1.0 + (shift - 1.0) * t)).tolist()

    def _start(self) -> None:
        """Plan the evaluations from the begin index on, without a history."""
        times = tuple(self._times[(self._begin_index or 0) // self.order :])
        sampler = replace(self.sampler(len(times)), grid=Grid(explicit=times))
        self._plan = sampler.plan()
        self._history = History(self._plan)
        self._step_index: int | None = None
        self._random: RowRandom | None = None


UCGMScheduler.__module__ = "ucgm"  # the name in model_index.json, see ucgm.integrations
