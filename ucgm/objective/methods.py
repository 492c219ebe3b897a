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
# Guidance of scale 1 / (1 - 1/2), the default of the code; the paper's ImageNet rows set both
# numbers.  A tenth of the batch has no label, all of it among the three quarters with s = t.
_MEANFLOW = Objective(
    time_law=times.LogitNormal(-0.4, 1.0),
    destination=times.SortedPair(0.75),
    two_time=True,
    consistency_ratio=1.0,
    tangent="jvp",
    field="mixed",
    enhancement_ratio=1.0,
    guidance_mix=0.5,
    label_dropout=0.1 / 0.75,
    dropped_rows="field",
    loss_power=1.0,
    loss_epsilon=0.01,
    loss_sum=True,
)
# RCGM's own guidance ratio is not known: TwinFlow's repository has 0.5 and 0 for its RCGM.
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
# The angle's law is that of data with standard deviation 1/2, tan = exp(N(-1, 1.4^2)) / (1/2).
# The paper's weight 1/tan is inside the step rule: it is what turns dX/dt into cos dX/dt.
_SCM = Objective(
    transport=Trig(),
    time_law=times.LogNormal(-1.0 + math.log(2.0), 1.4),
    consistency_ratio=1.0,
    tangent="jvp",
    tangent_warmup=0.025,
    step_rule="cosine",
    normalize=0.1,
    log_variance=True,
)
_TERMINAL: dict[str, Any] = dict(two_time=True, consistency_ratio=1.0, tangent="jvp", terminal=True)

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
    # The anchor starts at pure diffusion and doubles its closeness eight times over the run.  The
    # loss is the norm of the difference of the two data estimates, over the gap of noise levels;
    # 0.8 % of the times lie outside the noise levels of EDM and are moved to its ends here.
    "ect": _method(
        "Easy consistency tuning (arXiv 2406.14548, section 4), from a diffusion model.",
        transport=EDM(),
        time_law=times.LogNormal(-1.1, 2.0),
        consistency_ratio=1.0,
        anchor_schedule="ect",
        step_rule="exact",
        loss_sum=True,
        pseudo_huber_c=0.0,
        time_weight="gap",
    ),
    "scm": _method(
        "Continuous-time consistency, sCM (arXiv 2410.11081, section 4), from data.", _SCM
    ),
    "scd": _method(
        "Continuous-time consistency distillation, sCD (arXiv 2410.11081, section 4).",
        _SCM,
        field="distillation",
        enhancement_ratio=1.0,
    ),
    "meanflow": _method(
        "MeanFlow (arXiv 2505.13447, algorithm 1): the average velocity, from scratch.", _MEANFLOW
    ),
    # Its first settings, "used in paper"; the code has later ones, with other laws.
    "pixel_meanflow": _method(
        "MeanFlow on pixels without labels (github.com/Gsunshine/py-meanflow, CIFAR-10, v0).",
        _MEANFLOW,
        time_law=times.LogitNormal(-2.0, 2.0),
        destination=times.SortedPair(0.25),
        field="data",
        enhancement_ratio=0.0,
        guidance_mix=0.0,
        label_dropout=0.1,
        dropped_rows="all",
        loss_power=0.75,
        loss_epsilon=1e-3,
    ),
    # Published code shows every image twice in a step, once in each half; here each row is in one.
    # There u also meets the errors of all other rows, by the shapes of its tensors.
    "decoupled_meanflow": _method(
        "Decoupled MeanFlow (arXiv 2510.24474): the second time in the last blocks only.",
        time_law=times.LogitNormal(0.0, 1.0),
        destination=times.Apart(
            0.5, times.LogitNormal(0.4, 1.0), times.LogitNormal(-1.2, 1.0), swap=True
        ),
        two_time=True,
        consistency_ratio=1.0,
        tangent="jvp",
        field="guided_online",
        enhancement_ratio=0.6,
        enhancement_interval=(0.0, 0.7),
        log_variance=True,
        log_loss=0.01,
    ),
    # The scale w of the guidance is log-uniform on [1, 8] and an input of the network, as is its
    # interval of t.  A tenth of the batch has no label, all of it in the half with s = t.
    "imf": _method(
        "Improved MeanFlow (arXiv 2512.02012, section 4): along the network's own velocity.",
        _MEANFLOW,
        destination=times.SortedPair(0.5),
        own_velocity=True,
        field="scaled",
        guidance_mix=0.0,
        guidance_range=(1.0, 8.0),
        guidance_interval=True,
        label_dropout=0.2,
    ),
    # The guided DiT-B/2 of the code; dropped rows are guided towards the unconditional prediction.
    "alpha_flow": _method(
        "AlphaFlow (arXiv 2510.20771): from flow matching to MeanFlow over the run.",
        _MEANFLOW,
        destination=times.SortedPair(0.25, single=True),
        anchor_schedule="alpha",
        step_rule="exact",
        target_clamp=4.0,
        field="mixed_dropped",
        label_dropout=0.1,
        dropped_rows="inside",
        loss_epsilon=1e-3,
        loss_sum=False,
        time_weight="share",
    ),
    "soflow": _method(
        "SoFlow (arXiv 2512.15657): a solution of the flow from t to s, anchors closing in on t.",
        time_law=times.LogitNormal(-0.2, 1.0),
        destination=times.Apart(0.75, times.LogitNormal(0.2, 0.8), times.LogitNormal(-1.0, 0.8)),
        two_time=True,
        consistency_ratio=1.0,
        anchor_schedule="soflow",
        field="faded",
        enhancement_ratio=3.0,
        guidance_mix=0.25,
        loss_power=1.0,
        loss_epsilon=0.01,
        time_weight="half",
    ),
    # The term with an encoder's features is a setting, alignment, and off.
    "tim": _method(
        "Transition models, TiM (arXiv 2509.04394): any step, by differences of the prediction.",
        time_law=times.LogitNormal(-0.4, 1.0),
        destination=times.SortedPair(0.5, to_data=0.1),
        two_time=True,
        consistency_ratio=1.0,
        tangent="central_prediction",
        loss_power=1.0,
        loss_epsilon=1e-5,
        cosine_loss=True,
        cosine_powered=True,
        time_weight="tan",
    ),
    # The network is told the scale, so one of two sizes of guidance is in its weights; every image
    # takes both terms.
    "terminal_velocity": _method(
        "Terminal velocity matching (arXiv 2511.19797): the jump's derivative by its end.",
        **_TERMINAL,
        time_law=times.LogitNormal(-0.4, 1.0),
        destination=times.GapFirst(),
        residual_network="target",
        field="cfg_target",
        guidance_range=(2.0, 2.0),
        over_scale=True,
        flow_anchor=1.0,
        flow_anchor_law=times.LogitNormal(-0.4, 1.0),
        flow_anchor_cosine=False,
    ),
    "lsd": _method(
        "Lagrangian self-distillation (arXiv 2505.18825): its own end velocity, one network.",
        **_TERMINAL,
        destination=times.SortedPair(0.75, single=True),
        loss_sum=True,
        log_variance=True,
    ),
    "shortcut": _method(
        "Shortcut models (arXiv 2410.12557, equation 5): two half jumps make a whole one.",
        destination=times.Dyadic(0.125, 7, on_grid=True),
        two_time=True,
        consistency_ratio=0.5,
        step_rule="exact",
        field="jump",
        enhancement_ratio=1.5,
        residual_network="target",
        target_clamp=4.0,
        state_clamp=4.0,
        dropped_rows="field",
    ),
    "rcgm": _method(
        "RCGM of order 2 (github.com/LINs-lab/RCGM): a short step, then the EMA's own path.", _RCGM
    ),
    # From a teacher, as published; with field cfg it needs none.  The second time is its flag
    # between the two tasks.
    "facm": _method(
        "Flow-anchored consistency (arXiv 2507.03738): consistency and flow matching at once.",
        time_law=times.ArcTan(-0.8, 1.6),
        two_time=True,
        consistency_ratio=1.0,
        tangent="jvp",
        step_rule="relaxed",
        clamp=1.0,
        field="distillation",
        enhancement_ratio=1.75,
        enhancement_interval=(0.0, 0.875),
        label_dropout=0.0,
        loss_power=0.5,
        time_weight="sine",
        flow_anchor=1.0,
    ),
    # A quarter of the rows are the network's one-step samples, learned at negative times; the
    # difference of the two velocities moves the one-step samples.  The loss is that of the code
    # over sqrt(1.01), and its floor is c^2 + 1e-8 with c = 1e-3.
    "twinflow": _method(
        "TwinFlow (arXiv 2512.05150): RCGM, plus matching of the network's own samples.",
        _RCGM,
        destination=times.TwinFlowSplit(),
        enhancement_ratio=0.8,
        label_dropout=0.0,
        loss_power=0.5,
        loss_epsilon=1.01e-6,
        time_weight="twinflow",
        matching=0.5,
    ),
    "jit": _method(
        "JiT (arXiv 2511.13720): flow matching by a network that predicts the data.",
        time_law=times.LogitNormal(0.8, 0.8),
    ),
}
