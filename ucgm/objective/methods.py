"""The published methods, each a row of data: what it is called, and its settings.

Of a multi-step method (diffusion, flow matching) F_tgt is the field itself; few-step methods are
consistency models and flow maps.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

from ucgm.objective import times
from ucgm.objective.objective import Objective
from ucgm.transport import EDM, VP, Trig


class Method(NamedTuple):
    """A row of :data:`PRESETS`."""

    title: str
    objective: Objective


_FLOW_MATCHING = Objective()


def _method(title: str, base: Objective = _FLOW_MATCHING, **settings: Any) -> Method:
    """A method, with the settings in which it differs from ``base``."""
    return Method(title, replace(base, **settings))


_FEW = Objective(
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
# enhancement_ratio 1 and guidance_mix 0 are no guidance; the paper's ImageNet rows set both.
_MEANFLOW = Objective(
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
# The guidance ratio is that of the TwinFlow code and could not be confirmed for RCGM.
_RCGM = Objective(
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

PRESETS: dict[str, Method] = {
    "ddpm": _method(
        "Noise prediction on the VP path (arXiv 2006.11239, equation 14; DiT, arXiv 2212.09748).",
        transport=VP("eps"),
    ),
    "v_prediction": _method(
        "v-prediction on the VP path (arXiv 2202.00512, appendix D).",
        transport=VP("v"),
    ),
    "edm": _method(
        "EDM (arXiv 2206.00364, equation 8): its weight makes the loss plain in F.",
        transport=EDM(),
        time_law=times.LogNormal(-1.2, 1.2),
    ),
    "edm2": _method(
        "EDM2 (arXiv 2312.02696, equation 21): EDM with a learned log-variance.",
        transport=EDM(),
        time_law=times.LogNormal(-0.4, 1.0),
        log_variance=True,
    ),
    "flow_matching": _method(
        "Conditional flow matching on the linear path (arXiv 2210.02747; SiT, arXiv 2401.08740)."
    ),
    "lightningdit": _method(
        "LightningDiT (arXiv 2501.01423): logit-normal times and a cosine term.",
        time_law=times.LogitNormal(0.0, 1.0),
        cosine_loss=True,
    ),
    "ot_cfm": _method(
        "Minibatch optimal-transport flow matching (arXiv 2302.00482, section 3.2).",
        coupling="optimal_transport",
    ),
    # The loss is the root of the mean squared error with a floor of 1e-3 under the root, which the
    # published code lacks: there the gradient at a residual of 0 is not a number.
    "ucgm_multi": _method(
        "UCGM multi-step training (arXiv 2505.07447): lambda = 0, self-enhanced target.",
        time_law=times.Beta(1.0, 1.0),
        field="enhanced",
        enhancement_ratio=0.47,
        enhancement_interval=(0.0, 0.75),
        pseudo_huber_c=1e-3,
        cosine_loss=True,
        time_weight="cosine",
    ),
    # The paper's ablations give no one setting of the rest; these are those of ucgm_multi.
    "ucgm_lambda": _method(
        "UCGM at a consistency ratio between 0 and 1 (arXiv 2505.07447, section 3.1); biased by "
        "it.",
        _FEW,
        time_law=times.Beta(1.0, 1.0),
        consistency_ratio=0.5,
        enhancement_ratio=0.0,
        pseudo_huber_c=1e-3,
    ),
    "ucgm_few": _method(
        "UCGM few-step training and tuning (arXiv 2505.07447): lambda = 1, frozen teacher.", _FEW
    ),
    # The field follows from the two ratios as it does there: enhanced at lambda = 0 and teacher
    # otherwise.  Two things differ: pi / 2 is exact here and 1.57 there, and the points of the
    # finite difference stay in [0, 1] here.
    "ucgm_paper": _method(
        "The published UCGM code number by number (github.com/LINs-lab/UCGM), for comparisons "
        "only.",
        step_rule="ucgm",
        clamp=1.0,
        field="enhanced",
        enhancement_interval=(0.0, 0.75),
        pseudo_huber_c=0.0,
        cosine_floor=1e-8,
    ),
    # The anchor starts at pure diffusion and doubles its closeness eight times over the run.
    "ect": _method(
        "Easy consistency tuning (arXiv 2406.14548, section 4), from a diffusion model.",
        transport=EDM(),
        time_law=times.LogNormal(-1.1, 2.0),
        consistency_ratio=1.0,
        anchor_schedule="ect",
        step_rule="exact",
        time_weight="gap",
    ),
    # The angle's law is that of data with standard deviation 1/2, tan = exp(N(-1, 1.4^2)) / (1/2).
    # The paper's weight 1/tan is inside the step rule: it is what turns dX/dt into cos dX/dt.
    "scm": _method(
        "Continuous-time consistency, sCM (arXiv 2410.11081, section 4), from data or a teacher.",
        transport=Trig(),
        time_law=times.LogNormal(-1.0 + math.log(2.0), 1.4),
        consistency_ratio=1.0,
        tangent="jvp",
        tangent_warmup=0.025,
        step_rule="cosine",
        normalize=0.1,
        log_variance=True,
    ),
    "meanflow": _method(
        "MeanFlow (arXiv 2505.13447, algorithm 1): the average velocity, from scratch.", _MEANFLOW
    ),
    # The guidance scale is an input of the network.  Its range and law here could not be confirmed,
    # and the paper's auxiliary velocity head is not built: the velocity is the network's at s = t.
    "imf": _method(
        "Improved MeanFlow (arXiv 2512.02012, section 4): along the network's own velocity.",
        _MEANFLOW,
        destination=times.SortedPair(0.5),
        own_velocity=True,
        field="scaled",
        guidance_range=(1.0, 8.0),
    ),
    # The shape of the schedule and the share of s = t rows could not be confirmed.
    "alpha_flow": _method(
        "AlphaFlow (arXiv 2510.20771): from flow matching to MeanFlow over the run.",
        _MEANFLOW,
        destination=times.SortedPair(0.5),
        anchor_schedule="alpha",
        step_rule="exact",
        clamp=4.0,
        loss_epsilon=1e-3,
        loss_sum=False,
        time_weight="share",
    ),
    # The laws of t and s and the share of flow-matching rows (s = t, half here) could not be
    # confirmed, and the paper's changes of the network (normalised modulation) are not made.
    "terminal_velocity": _method(
        "Terminal velocity matching (arXiv 2511.19797): the jump's derivative by its end.",
        time_law=times.LogitNormal(-0.4, 1.0),
        destination=times.SortedPair(0.5),
        two_time=True,
        consistency_ratio=1.0,
        tangent="jvp",
        terminal=True,
        residual_network="target",
    ),
    "shortcut": _method(
        "Shortcut models (arXiv 2410.12557, equation 5): two half jumps make a whole one.",
        destination=times.Dyadic(),
        two_time=True,
        consistency_ratio=0.5,
        step_rule="exact",
        field="jump",
        residual_network="target",
    ),
    "rcgm": _method(
        "RCGM of order 2 (github.com/LINs-lab/RCGM): a short step, then the EMA's own path.", _RCGM
    ),
    # The paper distils a guided teacher: set field to distillation for that; this setting is its
    # code's form without a teacher.  The second time is its flag between the two tasks.
    "facm": _method(
        "Flow-anchored consistency (arXiv 2507.03738): consistency and flow matching at once.",
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
        time_weight="sine",
        flow_anchor=1.0,
    ),
    # A quarter of the rows are the network's one-step samples, learned at negative times; the
    # difference of the two velocities moves the one-step samples.
    "twinflow": _method(
        "TwinFlow (arXiv 2512.05150): RCGM, plus matching of the network's own samples.",
        _RCGM,
        destination=times.TwinFlowSplit(),
        loss_power=0.5,
        loss_epsilon=1e-6,
        time_weight="twinflow",
        matching=0.5,
    ),
}
