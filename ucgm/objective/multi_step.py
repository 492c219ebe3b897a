"""Presets of multi-step models: diffusion and flow matching (F_tgt is the field itself)."""

from ucgm.objective.objective import Objective
from ucgm.objective.times import Beta, LogitNormal, LogNormal
from ucgm.transport import EDM, VP


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
        cosine_floor=1e-8,
    )
