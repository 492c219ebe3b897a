"""Scores from rows of features and logits, by torch-fidelity's functions.

KID                 unbiased squared MMD with the kernel (a.b / d + 1)^3, averaged over 100
                    random subsets (1801.01401).  It may come out slightly below zero, and does
                    not need n >> d as FID does
precision, recall   share of generated samples inside the balls that reach from each reference
                    sample to its third nearest (k = 3 as in ADM, 2105.05233), and the other way
                    round (1904.06991).  Both depend on the sizes: compare equal ones only
inception score     exp E_x KL( p(y|x) || p(y) ), averaged over ten parts of a fixed shuffle
                    (1606.03498): parts of a class-sorted set would each hold a tenth of the
                    classes
accuracy            how often a classifier names the class that was asked for: the only score
                    here that sees permuted labels
"""

from torch import Tensor

_LARGEST_LOGIT = 700.0  # exp(-700) is not yet 0 in float64


def kernel_distance(
    generated: Tensor, reference: Tensor, subsets: int = 100, subset_size: int = 1000
) -> tuple[float, float]:
    """Mean and standard deviation over subsets of the squared MMD.

    Args:
        generated: (N, d) features.
        reference: (M, d) features.
        subsets: how many subsets.
        subset_size: rows of each; lowered to the smaller set when that is smaller.

    Raises:
        ValueError: when a set has fewer than two rows.
    """
    from torch_fidelity import metric_kid

    size = min(subset_size, len(generated), len(reference))
    if size < 2:
        raise ValueError(f"the kernel distance needs at least 2 samples of each set, got {size}.")
    sizes = {"kid_subsets": subsets, "kid_subset_size": size, "verbose": False}
    found = metric_kid.kid_features_to_metric(generated.double(), reference.double(), **sizes)
    return found[metric_kid.KEY_METRIC_KID_MEAN], found[metric_kid.KEY_METRIC_KID_STD]


def precision_recall(
    generated: Tensor, reference: Tensor, k: int = 3, block: int = 1024
) -> tuple[float, float]:
    """Precision and recall of ``generated`` (N, d) against ``reference`` (M, d), in this order.

    Distances are taken in blocks of rows.  The mean of the reference is subtracted first, which
    changes no distance but the rounding of float32 for the better.

    Raises:
        ValueError: when a set has no k-th neighbour.
    """
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    for name, rows in (("generated", generated), ("reference", reference)):
        if len(rows) <= k:
            raise ValueError(f"precision and recall at k={k} need more than {k} {name} samples.")
    centre = reference.double().mean(dim=0).to(reference.dtype)
    return calculate_precision_recall_part(generated - centre, reference - centre, k, block)


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over ``splits`` parts, from logits (N, K).

    Raises:
        ValueError: when there are fewer samples than parts.
    """
    from torch_fidelity import metric_isc

    if len(logits) < splits:
        raise ValueError(f"the inception score needs at least {splits} samples, got {len(logits)}.")
    below = logits.double() - logits.double().amax(dim=1, keepdim=True)
    found = metric_isc.isc_features_to_metric(below.clamp_min(-_LARGEST_LOGIT), splits)
    return found[metric_isc.KEY_METRIC_ISC_MEAN], found[metric_isc.KEY_METRIC_ISC_STD]


def conditional_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows (N, K) whose largest logit is that of ``labels`` (N,)."""
    if len(logits) != len(labels):
        raise ValueError(f"{len(logits)} rows of logits for {len(labels)} labels.")
    return float((logits.argmax(dim=1) == labels).double().mean())
