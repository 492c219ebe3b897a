"""The published methods of two times, each a row of data: flow maps, which jump from t to any s."""

from typing import Any

from ucgm.objective import destinations, times
from ucgm.objective.methods import Method, method
from ucgm.objective.objective import Objective

# Guidance of scale 1 / (1 - 1/2), the default of the code; the paper's ImageNet rows set both
# numbers.  A tenth of the batch has no label, all of it among the three quarters with s = t.
_MEANFLOW = Objective(
    time_law=times.LogitNormal(-0.4, 1.0),
    destination=destinations.SortedPair(0.75),
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
    destination=destinations.Below(),
    two_time=True,
    consistency_ratio=1.0,
    tangent="forward",
    tangent_step=0.01,
    compose_steps=2,
    residual_network="target",
    clamp=1.0,
    clamp_near=True,
    field="guided",
    enhancement_ratio=0.5,
)
# From a teacher, as published; with field cfg it needs none.  The second time is its flag between
# the two tasks.
_FACM = Objective(
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
)
_TERMINAL: dict[str, Any] = dict(two_time=True, consistency_ratio=1.0, tangent="jvp", terminal=True)


FLOW_MAPS: dict[str, Method] = {
    # docs/results/recipe.md: what was tried beside it.
    "few_step": method(
        "Our default for few steps, from a trained model: FACM (arXiv 2507.03738), mildly guided.",
        _FACM,
        enhancement_ratio=1.15,
        enhancement_interval=(0.0, 1.0),
    ),
    "meanflow": method(
        "MeanFlow (arXiv 2505.13447, algorithm 1): the average velocity, from scratch.", _MEANFLOW
    ),
    # Its first settings, "used in paper"; the code has later ones, with other laws.
    "pixel_meanflow": method(
        "MeanFlow on pixels without labels (github.com/Gsunshine/py-meanflow, CIFAR-10, v0).",
        _MEANFLOW,
        time_law=times.LogitNormal(-2.0, 2.0),
        destination=destinations.SortedPair(0.25),
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
    "decoupled_meanflow": method(
        "Decoupled MeanFlow (arXiv 2510.24474): the second time in the last blocks only.",
        time_law=times.LogitNormal(0.0, 1.0),
        destination=destinations.Apart(
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
    "imf": method(
        "Improved MeanFlow (arXiv 2512.02012, section 4): along the network's own velocity.",
        _MEANFLOW,
        destination=destinations.SortedPair(0.5),
        own_velocity=True,
        field="scaled",
        guidance_mix=0.0,
        guidance_range=(1.0, 8.0),
        guidance_interval=True,
        label_dropout=0.2,
        velocity_head=1.0,
    ),
    # The guided DiT-B/2 of the code; dropped rows are guided towards the unconditional prediction.
    "alpha_flow": method(
        "AlphaFlow (arXiv 2510.20771): from flow matching to MeanFlow over the run.",
        _MEANFLOW,
        destination=destinations.SortedPair(0.25, single=True),
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
    "soflow": method(
        "SoFlow (arXiv 2512.15657): a solution of the flow from t to s, anchors closing in on t.",
        time_law=times.LogitNormal(-0.2, 1.0),
        destination=destinations.Apart(
            0.75, times.LogitNormal(0.2, 0.8), times.LogitNormal(-1.0, 0.8)
        ),
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
    "tim": method(
        "Transition models, TiM (arXiv 2509.04394): any step, by differences of the prediction.",
        time_law=times.LogitNormal(-0.4, 1.0),
        destination=destinations.SortedPair(0.5, to_data=0.1),
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
    "terminal_velocity": method(
        "Terminal velocity matching (arXiv 2511.19797): the jump's derivative by its end.",
        **_TERMINAL,
        time_law=times.LogitNormal(-0.4, 1.0),
        destination=destinations.GapFirst(),
        residual_network="target",
        field="cfg_target",
        guidance_range=(2.0, 2.0),
        over_scale=True,
        flow_anchor=1.0,
        flow_anchor_law=times.LogitNormal(-0.4, 1.0),
        flow_anchor_cosine=False,
    ),
    "lsd": method(
        "Lagrangian self-distillation (arXiv 2505.18825): its own end velocity, one network.",
        **_TERMINAL,
        destination=destinations.SortedPair(0.75, single=True),
        loss_sum=True,
        log_variance=True,
    ),
    "shortcut": method(
        "Shortcut models (arXiv 2410.12557, equation 5): two half jumps make a whole one.",
        destination=destinations.Dyadic(0.125, 7, on_grid=True),
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
    "rcgm": method(
        "RCGM of order 2 (github.com/LINs-lab/RCGM): a short step, then the EMA's own path.", _RCGM
    ),
    "facm": method(
        "Flow-anchored consistency (arXiv 2507.03738): consistency and flow matching at once.",
        _FACM,
    ),
    # A quarter of the rows are the network's one-step samples, learned at negative times; the
    # difference of the two velocities moves the one-step samples.  The loss is that of the code
    # over sqrt(1.01), and its floor is c^2 + 1e-8 with c = 1e-3.
    "twinflow": method(
        "TwinFlow (arXiv 2512.05150): RCGM, plus matching of the network's own samples.",
        _RCGM,
        destination=destinations.TwinFlowSplit(),
        enhancement_ratio=0.8,
        label_dropout=0.0,
        loss_power=0.5,
        loss_epsilon=1.01e-6,
        time_weight="twinflow",
        matching=0.5,
    ),
}
