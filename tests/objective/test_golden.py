"""UCGM-T against targets, losses and gradients of the published trainer.

The published code writes 1.57 for pi / 2.  With that constant we agree to rounding, which is the
sharp test of every formula; with the exact constant, to the difference of the constants.
"""

import pytest
import torch

from tests.conftest import golden, golden_network, published_transport
from ucgm import transport as paths
from ucgm.objective import Draw, losses, preset, residual

ROWS, ARRAYS = golden("ucgm_t")
# ReLinear is Linear with t -> 1 - t and F -> -F, which its rows without a time weight allow.
PUBLIC_VAES = [
    row
    for row in ROWS
    if hasattr(paths, {"TrigFlow": "Trig"}.get(row["transport_type"], row["transport_type"]))
    or (row["transport_type"] == "ReLinear" and not row.get("weight_funcion"))
]
each_row = pytest.mark.parametrize(
    "row", PUBLIC_VAES, ids=lambda r: f"{r['index']}-{r['transport_type']}"
)


def published_terms(row):
    """(terms, gradient by the network's only parameter) of our objective on a golden row."""
    reverse = row["transport_type"] == "ReLinear"
    one = torch.ones((), dtype=torch.float64, requires_grad=True)

    def network(x, t, y):
        if reverse:
            return -golden_network(one)(x, 1 - t, y)
        return golden_network(one)(x, t, y)

    interval = tuple(row.get("enhanced_range", (0.0, 0.75)))
    t = ARRAYS["t"].flatten()
    if reverse:
        t, interval = 1 - t, (1 - interval[1], 1 - interval[0])
    objective = preset(
        "ucgm_paper",
        transport=published_transport(row["transport_type"]),
        consistency_ratio=row["consistc_ratio"],
        enhancement_ratio=row["enhanced_ratio"],
        enhancement_interval=interval,
        pseudo_huber_c=row.get("scaled_cbl_eps", 0.0),
        cosine_loss=row.get("wt_cosine_loss", False),
        time_weight="cosine" if row.get("weight_funcion") == "Cosine" else None,
        label_dropout=0.1,
    )
    dropped = torch.arange(20) >= 18
    y = torch.where(dropped, 4, ARRAYS["y"])
    assert y.tolist() == row["labels_after"]
    draw = Draw(ARRAYS["x"], y, ARRAYS["z"], t, dropped=dropped, null_label=4)
    terms = objective.terms(network, draw, target=network, teacher=network)
    (gradient,) = torch.autograd.grad(terms.loss, one)
    return terms, gradient, -1.0 if reverse else 1.0


@each_row
def test_with_the_published_constant_to_rounding(row, monkeypatch):
    for module in (paths, residual, losses):
        monkeypatch.setattr(module, "HALF_PI", 1.57)
    terms, gradient, sign = published_terms(row)
    i = row["index"]
    close = dict(rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sign * terms.target, ARRAYS[f"target_{i}"], **close)
    torch.testing.assert_close(terms.per_sample, ARRAYS[f"per_sample_{i}"], **close)
    assert terms.loss.item() == pytest.approx(row["loss"], abs=1e-12)
    assert gradient.item() == pytest.approx(row["grad"], abs=1e-12)


@each_row
def test_with_the_exact_constant(row):
    terms, gradient, sign = published_terms(row)
    i = row["index"]
    tolerance = 2e-3 if row["transport_type"] == "TrigFlow" else 1e-3
    for mine, published in (
        (terms.per_sample, ARRAYS[f"per_sample_{i}"]),
        (terms.loss, torch.tensor(row["loss"], dtype=torch.float64)),
    ):
        scale = published.abs().max().clamp(min=1.0)
        assert (mine - published).abs().max() < tolerance * scale
    assert gradient.item() == pytest.approx(row["grad"], abs=tolerance)
