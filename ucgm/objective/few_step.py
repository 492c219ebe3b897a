"""Presets of few-step models: consistency models and flow maps."""

import math
from dataclasses import replace

from ucgm.objective import times
from ucgm.objective.objective import Objective
from ucgm.transport import EDM, Trig


def ucgm_few() -> Objective:
    """UCGM few-step training and tuning (arXiv 2505.07447): lambda = 1, frozen teacher."""
    return Objective(
        preset="ucgm_few",
        time_law=times.Beta(0.8, 1.0),
        consistency_ratio=1.0,
        step_rule="ucgm",
        clamp=1.0,
        field="teacher",
        enhancement_ratio=2.0,
        enhancement_interval=(0.0, 0.75),
        pseudo_huber_c=5.0,
        time_weight="cosine",
    )


def ucgm_lambda() -> Objective:
    """UCGM at a consistency ratio between 0 and 1 (arXiv 2505.07447, section 3.1); biased by it.

    The paper's ablations give no one setting of the rest; these are those of ``ucgm_multi``.
    """
    return replace(
        ucgm_few(),
        preset="ucgm_lambda",
        time_law=times.Beta(1.0, 1.0),
        consistency_ratio=0.5,
        enhancement_ratio=0.0,
        pseudo_huber_c=1e-3,
    )


def ect() -> Objective:
    """Easy consistency tuning (arXiv 2406.14548, section 4), from a diffusion model.

    The anchor starts at pure diffusion and doubles its closeness eight times over the run.
    """
    return Objective(
        preset="ect",
        transport=EDM(),
        time_law=times.LogNormal(-1.1, 2.0),
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
        time_law=times.LogNormal(-1.0 + math.log(2.0), 1.4),
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
        time_law=times.LogitNormal(-0.4, 1.0),
        destination=times.SortedPair(0.75),
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
    return replace(
        meanflow(),
        preset="imf",
        destination=times.SortedPair(0.5),
        own_velocity=True,
        field="scaled",
        guidance_range=(1.0, 8.0),
    )


def alpha_flow() -> Objective:
    """AlphaFlow (arXiv 2510.20771): from flow matching to MeanFlow over the run.

    The shape of the schedule and the share of s = t rows could not be confirmed.
    """
    return replace(
        meanflow(),
        preset="alpha_flow",
        destination=times.SortedPair(0.5),
        anchor_schedule="alpha",
        step_rule="exact",
        clamp=4.0,
        loss_epsilon=1e-3,
        loss_sum=False,
        time_weight="share",
    )


def terminal_velocity() -> Objective:
    """Terminal velocity matching (arXiv 2511.19797): the jump's derivative by its end.

    The laws of t and s and the share of flow-matching rows (s = t, half here) could not be
    confirmed, and the paper's changes of the network (normalised modulation) are not made.
    """
    return Objective(
        preset="terminal_velocity",
        time_law=times.LogitNormal(-0.4, 1.0),
        destination=times.SortedPair(0.5),
        two_time=True,
        consistency_ratio=1.0,
        tangent="jvp",
        terminal=True,
        residual_network="target",
    )


def shortcut() -> Objective:
    """Shortcut models (arXiv 2410.12557, equation 5): two half jumps make a whole one."""
    return Objective(
        preset="shortcut",
        destination=times.Dyadic(),
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
        destination=times.Below(),
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
        time_law=times.ArcTan(-0.8, 1.6),
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
    return replace(
        rcgm(),
        preset="twinflow",
        destination=times.TwinFlowSplit(),
        loss_power=0.5,
        loss_epsilon=1e-6,
        time_weight="twinflow",
        matching=0.5,
    )
