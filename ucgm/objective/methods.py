"""The published methods of one time, each a row of data: what it is called, and its settings.

Of a multi-step method (diffusion, flow matching) F_tgt is the field itself; the others are
consistency models, which jump to the data.  Flow maps, which jump to any time, are in
:mod:`ucgm.objective.flow_maps`.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

from ucgm.objective import times
from ucgm.objective.objective import Objective
from ucgm.transport import EDM, VP, Trig


class Method(NamedTuple):
    """A row of :data:`ucgm.objective.PRESETS`."""

    title: str
    objective: Objective


_FLOW_MATCHING = Objective()


def method(title: str, base: Objective = _FLOW_MATCHING, **settings: Any) -> Method:
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

SINGLE_TIME: dict[str, Method] = {
    # docs/results/recipe.md: what was tried beside it.
    "multi_step": method(
        "Our default for many steps: flow matching with logit-normal times (arXiv 2403.03206).",
        time_law=times.LogitNormal(0.0, 1.0),
    ),
    "ddpm": method(
        "Noise prediction on the VP path (arXiv 2006.11239, equation 14; DiT, arXiv 2212.09748).",
        transport=VP("eps"),
    ),
    "v_prediction": method(
        "v-prediction on the VP path (arXiv 2202.00512, appendix D).", transport=VP("v")
    ),
    "edm": method(
        "EDM (arXiv 2206.00364, equation 8): its weight makes the loss plain in F.",
        transport=EDM(),
        time_law=times.LogNormal(-1.2, 1.2),
    ),
    "edm2": method(
        "EDM2 (arXiv 2312.02696, equation 21): EDM with a learned log-variance.",
        transport=EDM(),
        time_law=times.LogNormal(-0.4, 1.0),
        log_variance=True,
    ),
    "flow_matching": method(
        "Conditional flow matching on the linear path (arXiv 2210.02747; SiT, arXiv 2401.08740)."
    ),
    "lightningdit": method(
        "LightningDiT (arXiv 2501.01423): logit-normal times and a cosine term.",
        time_law=times.LogitNormal(0.0, 1.0),
        cosine_loss=True,
    ),
    "ot_cfm": method(
        "Minibatch optimal-transport flow matching (arXiv 2302.00482, section 3.2).",
        coupling="optimal_transport",
    ),
    "jit": method(
        "JiT (arXiv 2511.13720): flow matching by a network that predicts the data.",
        time_law=times.LogitNormal(0.8, 0.8),
    ),
    # The loss is the root of the mean squared error with a floor of 1e-3 under the root, which the
    # published code lacks: there the gradient at a residual of 0 is not a number.
    "ucgm_multi": method(
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
    "ucgm_lambda": method(
        "UCGM at a consistency ratio between 0 and 1 (arXiv 2505.07447, section 3.1); biased by "
        "it.",
        _FEW,
        time_law=times.Beta(1.0, 1.0),
        consistency_ratio=0.5,
        enhancement_ratio=0.0,
        pseudo_huber_c=1e-3,
    ),
    "ucgm_few": method(
        "UCGM few-step training and tuning (arXiv 2505.07447): lambda = 1, frozen teacher.", _FEW
    ),
    # The field follows from the two ratios as it does there: enhanced at lambda = 0 and teacher
    # otherwise.  Two things differ: pi / 2 is exact here and 1.57 there, and the points of the
    # finite difference stay in [0, 1] here.
    "ucgm_paper": method(
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
    "ect": method(
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
    "scm": method(
        "Continuous-time consistency, sCM (arXiv 2410.11081, section 4), from data.", _SCM
    ),
    "scd": method(
        "Continuous-time consistency distillation, sCD (arXiv 2410.11081, section 4).",
        _SCM,
        field="distillation",
        enhancement_ratio=1.0,
    ),
}
