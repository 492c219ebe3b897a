"""The settings of a condensation, and the published ones."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ucgm.runtime.values import Count, NotNegative, Positive, Range, Share, check_values

Selector = Literal["herding", "realism", "random", "kmeans", "interval"]
Labels = Literal["stored", "online", "hard"]


@dataclass(frozen=True)
class CondenseConfig:
    """How a set is condensed; the defaults are what measured best (docs/condense.md)."""

    ipc: Count = 10
    """images per class of the condensed set."""
    per_class: Literal["equal", "confusion"] = "equal"
    """the same number of every class, or, of as many in all, the more of a class the less sure the
    observer is of it: in proportion to 1 - its mean probability of the right class, at least 1."""
    pool_per_class: Count = 300
    """candidates per class that are looked at."""
    selector: Selector = "herding"
    """herding (means of features), realism (lowest loss: RDED), kmeans, interval (spread over the
    losses) or random."""
    accept: bool = True
    """keep only candidates that the observer takes for their class; generated ones are refilled."""
    max_rounds: Count = 8
    """times that many candidates are generated at most where few are accepted."""
    crops: Count = 1
    """crops that are looked at per candidate, of which the best is kept; 1: the whole image."""
    crop_scale: Annotated[tuple[Share, Share], "rising"] = (0.5, 1.0)
    """share of the area of a crop."""
    factor: Annotated[int, Range(1, 8)] = 1
    """patches along the side of an image of the set; 2 for images of 128 pixels and more."""
    labels: Labels = "stored"
    """labels of the set: of stored views by the observer, of the observer at every step, or none
    beside the class."""
    label_views: Count = 20
    """views per image whose labels are stored."""
    temperature: Positive = 4.0
    """of soft labels."""
    match: Literal["none", "mean", "characteristic"] = "none"
    """optimize the selected images so that features match in mean, or in characteristic function
    (NCFM)."""
    match_steps: Count = 250
    """steps of that optimization."""
    match_lr: Positive = 0.03
    """its rate, of Adam, in units of pixels in [0, 1]."""
    frequencies: Count = 1024
    """frequencies of the characteristic function."""
    amplitude: Share = 0.5
    """share of the amplitude in its distance; the phase has the rest."""
    adversarial: bool = True
    """a frequency sampler that is trained against the images."""
    calibration: NotNegative = 0.0
    """weight of the observer's cross-entropy of the matched images."""
    min_accuracy: Share = 0.0
    """accuracy on real candidates below which an observer is refused; at least twice chance."""
    seed: Annotated[int, Range(0, 2**31)] = 0
    """of pools, crops, views and observers."""

    def __post_init__(self) -> None:
        """Refuse settings without a meaning."""
        check_values(self, "condense")
        if self.pool_per_class < self.ipc * self.factor**2:
            raise ValueError(
                f"{self.ipc} images per class of {self.factor}x{self.factor} patches need "
                f"{self.ipc * self.factor**2} candidates, and pool_per_class is "
                f"{self.pool_per_class}: raise it, or lower ipc"
            )
        if self.per_class == "confusion" and (self.factor > 1 or self.match != "none"):
            raise ValueError(
                "per_class confusion is for whole images that are not matched: leave out factor "
                "and match"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # RDED (arXiv 2312.03526, its public scripts): five crops, lowest loss, online labels.
    "rded": {
        "selector": "realism",
        "crops": 5,
        "crop_scale": (0.08, 1.0),
        "accept": False,
        "labels": "online",
        "temperature": 20.0,
    },
    # NCFM (arXiv 2502.20653): characteristic functions, 1,024 frequencies, class calibration; its
    # 20,000 steps at the published rate.
    "ncfm": {
        "selector": "random",
        "accept": False,
        "match": "characteristic",
        "match_steps": 20_000,
        "match_lr": 1e-3,
        "calibration": 1.0,
        "labels": "hard",
    },
}
"""The published methods, by the settings in which they differ from the defaults."""
