"""UCGM-S as a diffusers scheduler: any pipeline with any solver of :mod:`ucgm.sampler`.

A scheduler is the same plan as a :class:`ucgm.Sampler`, run one evaluation at a time by the loop
of a pipeline:

    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config, extrapolation=0.4)

The times are those that the replaced scheduler would take; ``schedule=None`` gives our grid, with
its settings.

The path comes from what the model was trained on.  ``flow_prediction`` is the linear path with
timestep N t (SD3, Flux); ``epsilon``, ``v_prediction`` and ``sample`` are the discrete path of the
betas with timestep N t - 1, its index (DiT, Stable Diffusion); ``transport`` names one of ours.

Pipelines pass no generator to ``step``: a stochastic solver then uses ``seed`` and the row number,
or the global generator where ``seed`` is None.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from ucgm.integrations.foreign import OTHERS, Generators, own_config, random_of, transport_of
from ucgm.integrations.times import GRID, SCHEDULES, grid_of, offset_of, places_of, times_of
from ucgm.runs.config import to_dict
from ucgm.runtime.randomness import RowRandom
from ucgm.runtime.values import Count, checked
from ucgm.sampler import Grid, Sampler
from ucgm.sampler.plan import History
from ucgm.transport import Linear, expand

# Settings with the same name here and in Sampler or Grid.
_SAMPLER = ("order", "stochasticity", "extrapolation", "solver", "variable",
            "time_variable", "integration", "noise")  # fmt: skip


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
        schedule: class of diffusers that makes the times, from its settings, which
            :meth:`from_config` keeps; None: our grid.
        use_flow_sigmas: tells Flux's pipeline to leave the schedule to the scheduler.
        seed: of the fresh noise of stochastic solvers; None: the global generator.
    """

    _compatibles = [*SCHEDULES, *OTHERS]
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
        schedule: str | None = None,
        use_flow_sigmas: bool = True,
        seed: int | None = None,
    ) -> None:
        checked(Count, num_train_timesteps, "num_train_timesteps")
        checked(int | None, seed, "seed")
        self.transport = transport_of(self.config)
        self._sampler(1, grid_of(self.config, shift))  # bad settings are refused here, not later
        # All of it goes through the configuration of other classes, the defaults as well.
        flow = isinstance(self.transport, Linear)
        self.register_to_config(
            use_flow_sigmas=use_flow_sigmas and flow, flow_shift=shift, _use_default_values=[]
        )
        self.num_inference_steps = self._begin_index = self._step_index = None
        self._levels: list[float] = []  # the times of the evaluations
        self.sigmas = torch.empty(0)
        levels = torch.linspace(1.0, 1.0 / num_train_timesteps, num_train_timesteps)
        if flow and not use_dynamic_shifting:
            levels = shift * levels / (1.0 + (shift - 1.0) * levels)
        self.timesteps = levels * num_train_timesteps - offset_of(self.transport)

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """A scheduler for the model that another scheduler's ``config`` belongs to.

        Path, prediction and timesteps are taken over; the solver is ours.

        Raises:
            ValueError: a scheduler whose model this one cannot serve.
        """
        if isinstance(config, Mapping):
            config = own_config(config, kwargs)
        made: Any = super().from_config(config, return_unused_kwargs, **kwargs)
        scheduler = made[0] if return_unused_kwargs else made
        if scheduler.config["schedule"] is not None:  # what it cannot make is refused here
            mu = 0.5 if scheduler.config["use_dynamic_shifting"] else None
            times_of(scheduler.config, scheduler.transport, min(4, len(scheduler)), mu=mu)
        return made

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
        values |= {name: getattr(sampler.grid, name) for name in (*GRID, "shift")}
        return cls(**values, transport=to_dict(sampler.transport), **settings)

    def sampler(self, steps: int) -> Sampler:
        """The native sampler with these settings."""
        grid = grid_of(self.config, float(self.config["shift"]))
        if self.config["schedule"] is not None:
            times, _ = times_of(self.config, self.transport, steps)
            grid = Grid(explicit=tuple(times))
        return self._sampler(steps, grid)

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
        self._begin_index, self._step_index = begin_index, None

    def index_for_timestep(
        self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None
    ) -> int:
        """Number of the first evaluation at a timestep () that begins a step.

        Raises:
            ValueError: there is none.
        """
        known = self.timesteps if schedule_timesteps is None else schedule_timesteps
        found = places_of(timestep, known, self.order)
        if not found:
            raise ValueError(
                f"timestep {float(timestep):g} is none of those of set_timesteps, which are "
                f"{float(known[0]):g} to {float(known[-1]):g}: pass one of scheduler.timesteps"
            )
        return found[0]

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
            sigmas: noise levels of the linear path before the shift, instead of the schedule.
            mu: logarithm of the shift, with use_dynamic_shifting.
            timesteps: timesteps as the model sees them, instead of the schedule.
        """
        if self.config["solver"] == "jump":  # of which other pipelines tell a network one
            raise ValueError("solver jump needs a network with two times: use UCGMPipeline")
        given = num_inference_steps, sigmas, timesteps, mu
        times, seen = times_of(self.config, self.transport, *given)
        self.num_inference_steps, self._times, self._first = len(times), times, -1
        self._begin(0)
        self._levels = [step.t for step in self._plan]
        self.timesteps = seen[[times.index(t) for t in self._levels]].to(device)
        levels = torch.tensor(self._levels, dtype=torch.float64, device="cpu")
        self.sigmas = torch.tensor([*self.transport.coefficients(levels).sigma.tolist(), 0.0])
        self._begin_index = self._step_index = None

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The state (B, ...) after one evaluation, in the type of ``model_output`` (B, ...).

        ``timestep`` is read at the first step, which may be a later one of ``timesteps``; then
        steps are counted.  ``generator`` is read at the first step that draws noise.
        """
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps first")
        if self._step_index is None:
            begin = self._begin_index
            self._begin(self.index_for_timestep(timestep) if begin is None else begin)
        index: Any = self._step_index
        i = index - self._first
        if i >= len(self._plan):
            raise ValueError(f"all {index} steps are done: call set_timesteps to begin again")
        if model_output.shape != sample.shape:
            raise ValueError(
                f"the model output {tuple(model_output.shape)} is not of the state's shape "
                f"{tuple(sample.shape)}: pass the prediction without a learned variance"
            )
        if self._plan[i].noise and self._random is None:
            self._random = random_of(generator, self.config["seed"], sample)
        state = sample if sample.dtype == torch.float64 else sample.float()
        following = self._history.advance(i, state, model_output, self._random)
        self._step_index = index + 1
        following = following.to(model_output.dtype)
        return SchedulerOutput(prev_sample=following) if return_dict else (following,)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """``sample`` (B, ...) itself: the state is what the model sees."""
        return sample

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """alpha sample + sigma noise at a timestep (B,) or (); at one of ours, the levels there."""
        flat = timestep.reshape(-1)
        t = (flat.double().cpu() + offset_of(self.transport)) / len(self)
        for i, u in enumerate(flat if self._levels else ()):
            found = places_of(u, self.timesteps, self.order)[:2]  # theirs take the second of many
            t[i] = self._levels[found[-1]] if found else t[i]
        t = t.expand(len(sample))
        alpha, sigma = (expand(c, sample).to(sample) for c in self.transport.coefficients(t)[:2])
        return alpha * sample + sigma * noise

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The same as :meth:`scale_noise`, (B, ...), under its older name."""
        return self.scale_noise(original_samples, timesteps, noise)

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]

    def _sampler(self, steps: int, grid: Grid) -> Sampler:
        """The native sampler with these settings on a grid."""
        settings: dict[str, Any] = {name: self.config[name] for name in _SAMPLER}
        return Sampler(self.transport, steps, grid=grid, **settings)

    def _begin(self, index: int) -> None:
        """Plan the evaluations from number ``index`` on, without a history."""
        if index % self.order:
            raise ValueError(f"evaluation {index} is the second of a step: begin at an even number")
        if index != self._first:  # the plan that is there begins elsewhere
            times = tuple(self._times[index // self.order :])
            self._plan = self._sampler(len(times), Grid(explicit=times)).plan()
        self._history = History(self._plan)
        self._first = self._step_index = index
        self._random: RowRandom | None = None


UCGMScheduler.__module__ = "ucgm"  # the name in model_index.json, see ucgm.integrations
