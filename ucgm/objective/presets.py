"""Named settings of the objective: each function is one published method.

``ucgm presets`` prints the table; docs/objective.md derives it.  A preset holds the objective
alone; the optimizer, batch and schedules of a paper are in ``configs/``.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from ucgm.objective.objective import Objective
from ucgm.timesteps import (
    ArcTan,
    Below,
    Beta,
    Dyadic,
    LogitNormal,
    LogNormal,
    Quarters,
    SortedPair,
)
from ucgm.transport import EDM, VP, Trig


def ddpm() -> Objective:
    """Noise prediction on the VP path (arXiv 2006.11239, equation 14; DiT, arXiv 2212.09748)."""
    return Objective(preset="ddpm", transport=VP("eps"))


def v_prediction() -> Objective:
    """v-prediction on the VP path (arXiv 2202.00512, appendix D)."""
    return Objective(preset="v_prediction", transport=VP("v"))


def edm() -> Objective:
    """EDM (arXiv 2206.00364, equation 8): its weight makes the loss plain in F."""
    return Objective(preset="edm", transport=EDM(), time_law=LogNormal(-1.2, 1.2))


def edm2() -> Objective:
    """EDM2 (arXiv 2312.02696, equation 21): EDM with a learned log-variance."""
    return Objective(
        preset="edm2", transport=EDM(), time_law=LogNormal(-0.4, 1.0), log_variance=True
    )


def flow_matching() -> Objective:
    """Conditional flow matching on the linear path (arXiv 2210.02747; SiT, arXiv 2401.08740)."""
    return Objective(preset="flow_matching")


def lightningdit() -> Objective:
    """LightningDiT (arXiv 2501.01423): logit-normal times and a cosine term."""
    return Objective(preset="lightningdit", time_law=LogitNormal(0.0, 1.0), cosine_loss=True)


def ot_cfm() -> Objective:
    """Minibatch optimal-transport flow matching (arXiv 2302.00482, section 3.2)."""
    return Objective(preset="ot_cfm", coupling="optimal_transport")


def ucgm_multi() -> Objective:
    """UCGM multi-step training (arXiv 2505.07447): lambda = 0, self-enhanced target.

    The loss is the root of the mean squared error with a floor of 1e-3 under the root, which the
    published code lacks: there the gradient at a residual of 0 is not a number.
    """
    return Objective(
        preset="ucgm_multi",
        time_law=Beta(1.0, 1.0),
        field="enhanced",
        enhancement_ratio=0.47,
        enhancement_interval=(0.0, 0.75),
        pseudo_huber_c=1e-3,
        cosine_loss=True,
        time_weight="cosine",
    )


def ucgm_lambda() -> Objective:
    """UCGM at a consistency ratio between 0 and 1 (arXiv 2505.07447, section 3.1); biased by it.

    The paper's ablations give no one setting of the rest; these are those of ``ucgm_multi``.
    """
    return Objective(
        preset="ucgm_lambda",
        time_law=Beta(1.0, 1.0),
        consistency_ratio=0.5,
        step_rule="ucgm",
        clamp=1.0,
        field="teacher",
        enhancement_ratio=0.0,
        enhancement_interval=(0.0, 0.75),
        pseudo_huber_c=1e-3,
        time_weight="cosine",
    )


def ucgm_few() -> Objective:
    """UCGM few-step training and tuning (arXiv 2505.07447): lambda = 1, frozen teacher."""
    return Objective(
        preset="ucgm_few",
        time_law=Beta(0.8, 1.0),
        consistency_ratio=1.0,
        step_rule="ucgm",
        clamp=1.0,
        field="teacher",
        enhancement_ratio=2.0,
        enhancement_interval=(0.0, 0.75),
        pseudo_huber_c=5.0,
        time_weight="cosine",
    )


def ucgm_paper() -> Objective:
    """The published UCGM code number by number (github.com/LINs-lab/UCGM), for comparisons only.

    The field follows from the two ratios as it does there: ``enhanced`` at lambda = 0 and
    ``teacher`` otherwise.  Two things differ: pi / 2 is exact here and 1.57 there, and the points
    of the finite difference stay in [0, 1] here.
    """
    return Objective(
        preset="ucgm_paper",
        step_rule="ucgm",
        clamp=1.0,
        field="enhanced",
        enhancement_interval=(0.0, 0.75),
        pseudo_huber_c=0.0,
    )


def ect() -> Objective:
    """Easy consistency tuning (arXiv 2406.14548, section 4), from a diffusion model.

    The anchor starts at pure diffusion and doubles its closeness eight times over the run.
    """
    return Objective(
        preset="ect",
        transport=EDM(),
        time_law=LogNormal(-1.1, 2.0),
        consistency_ratio=1.0,
        anchor_schedule="ect",
        step_rule="exact",
        time_weight="gap",
    )


def scm() -> Objective:
    """Continuous-time consistency, sCM (arXiv 2410.11081, section 4), from data or a teacher.

    The angle's law is that of data with standard deviation 1/2, tan = exp(N(-1, 1.4^2)) / (1/2).
    The paper's weight 1/tan is inside the step rule: it is what turns dX/dt into cos dX/dt.
    """
    return Objective(
        preset="scm",
        transport=Trig(),
        time_law=LogNormal(-1.0 + math.log(2.0), 1.4),
        consistency_ratio=1.0,
        tangent="jvp",
        tangent_warmup=0.025,
        step_rule="cosine",
        normalize=0.1,
        log_variance=True,
    )


def meanflow() -> Objective:
    """MeanFlow (arXiv 2505.13447, algorithm 1): the average velocity, from scratch.

    enhancement_ratio 1 and guidance_mix 0 are no guidance; the paper's ImageNet rows set both.
    """
    return Objective(
        preset="meanflow",
        time_law=LogitNormal(-0.4, 1.0),
        destination=SortedPair(0.75),
        two_time=True,
        consistency_ratio=1.0,
        tangent="jvp",
        field="mixed",
        enhancement_ratio=1.0,
        loss_power=1.0,
        loss_epsilon=0.01,
        loss_sum=True,
    )


def imf() -> Objective:
    """Improved MeanFlow (arXiv 2512.02012, section 4): along the network's own velocity.

    The guidance scale is an input of the network.  Its range and law here could not be confirmed,
    and the paper's auxiliary velocity head is not built: the velocity is the network's at s = t.
    """
    return Objective(
        preset="imf",
        time_law=LogitNormal(-0.4, 1.0),
        destination=SortedPair(0.5),
        two_time=True,
        consistency_ratio=1.0,
        tangent="jvp",
        own_velocity=True,
        field="scaled",
        enhancement_ratio=1.0,
        guidance_range=(1.0, 8.0),
        loss_power=1.0,
        loss_epsilon=0.01,
        loss_sum=True,
    )


def alpha_flow() -> Objective:
    """AlphaFlow (arXiv 2510.20771): from flow matching to MeanFlow over the run.

    The shape of the schedule and the share of s = t rows could not be confirmed.
    """
    return Objective(
        preset="alpha_flow",
        time_law=LogitNormal(-0.4, 1.0),
        destination=SortedPair(0.5),
        two_time=True,
        consistency_ratio=1.0,
        anchor_schedule="alpha",
        tangent="jvp",
        step_rule="exact",
        clamp=4.0,
        field="mixed",
        enhancement_ratio=1.0,
        loss_power=1.0,
        loss_epsilon=1e-3,
        time_weight="share",
    )


def shortcut() -> Objective:
    """Shortcut models (arXiv 2410.12557, equation 5): two half jumps make a whole one."""
    return Objective(
        preset="shortcut",
        destination=Dyadic(),
        two_time=True,
        consistency_ratio=0.5,
        step_rule="exact",
        field="jump",
        residual_network="target",
    )


def rcgm() -> Objective:
    """RCGM of order 2 (github.com/LINs-lab/RCGM): a short step, then the EMA's own path.

    The guidance ratio is that of the TwinFlow code and could not be confirmed for RCGM.
    """
    return Objective(
        preset="rcgm",
        destination=Below(),
        two_time=True,
        consistency_ratio=1.0,
        tangent="forward",
        tangent_step=0.01,
        compose_steps=2,
        residual_network="target",
        clamp=1.0,
        field="guided",
        enhancement_ratio=0.5,
    )


def facm() -> Objective:
    """Flow-anchored consistency (arXiv 2507.03738): consistency and flow matching at once.

    The paper distils a guided teacher: set ``field`` to ``distillation`` for that; this setting is
    its code's form without a teacher.  The second time is its flag between the two tasks.
    """
    return Objective(
        preset="facm",
        time_law=ArcTan(-0.8, 1.6),
        two_time=True,
        consistency_ratio=1.0,
        tangent="jvp",
        step_rule="relaxed",
        clamp=1.0,
        field="mixed",
        enhancement_ratio=1.75,
        enhancement_interval=(0.0, 0.875),
        loss_power=0.5,
        loss_epsilon=1e-3,
        time_weight="sine",
        flow_anchor=1.0,
    )


def twinflow() -> Objective:
    """TwinFlow (arXiv 2512.05150): RCGM, plus matching of the network's own samples.

    A quarter of the rows are the network's one-step samples, learned at negative times; the
    difference of the two velocities moves the one-step samples.
    """
    return dataclasses.replace(
        rcgm(),
        preset="twinflow",
        destination=Quarters(),
        loss_power=0.5,
        loss_epsilon=1e-6,
        time_weight="twinflow",
        matching=0.5,
    )


PRESETS: dict[str, Callable[[], Objective]] = {
    make.__name__: make
    for make in (
        ddpm,
        v_prediction,
        edm,
        edm2,
        flow_matching,
        lightningdit,
        ot_cfm,
        ucgm_multi,
        ucgm_lambda,
        ucgm_few,
        ucgm_paper,
        ect,
        scm,
        meanflow,
        imf,
        alpha_flow,
        shortcut,
        rcgm,
        facm,
        twinflow,
    )
}


def preset(name: str, **settings: Any) -> Objective:
    """The objective of a published method, with some of its settings replaced.

    Args:
        name: one of ``PRESETS``.
        settings: fields of :class:`Objective`.

    Raises:
        ValueError: an unknown name or field, or a value without a meaning.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    if name == "ucgm_paper" and settings.get("consistency_ratio", 0.0) != 0.0:
        settings = {"field": "teacher", **settings}
    return PRESETS[name]().with_settings(**settings)


def print_presets() -> None:
    """Print every preset: what it is, and the settings in which it differs from flow matching."""
    plain = flow_matching()
    for name, make in PRESETS.items():
        objective = make()
        print(f"{name}: {(make.__doc__ or '').strip().splitlines()[0]}")
        for field in dataclasses.fields(Objective):
            value = getattr(objective, field.name)
            if field.name != "preset" and value != getattr(plain, field.name):
                print(f"    {field.name} = {value}")
