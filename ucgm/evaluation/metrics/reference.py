"""Reference statistics: what generated images are compared with, and the files they come in.

Read by their keys, without executing anything they may carry:

    ours            mu, sigma [, mu_s, sigma_s] [, features], protocol (JSON)     .npz
    ADM             mu, sigma, mu_s, sigma_s, arr_0 (10,000 images)               .npz
    pytorch-fid, EDM   mu, sigma                                                  .npz
    MeanFlow        ref_mu, ref_sigma                                             .npz
    EDM2            {"fid": {"mu", "sigma"}, "fd_dinov2": {...}}                  .pkl

Statistics become float64 whatever the file holds.  Ours name the extractor and the hash of its
weights, and a run with another one is refused; foreign files do not say, and are taken for
Inception's when they have 2,048 features.
"""

import hashlib
import io
import json
import pickle
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ucgm.evaluation.metrics.moments import Gaussian
from ucgm.runtime.files import sha256

_UNREADABLE = (
    AttributeError,
    KeyError,
    TypeError,
    OSError,
    ValueError,
    EOFError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of real images in the feature space of one extractor.

    Attributes:
        name: what the report calls it.
        gaussian: moments of the features, for FID.
        digest: sha256 of the file, or of the moments when there is no file.
        spatial: moments of the spatial features, for sFID.
        features: (N, d) float32 rows, for KID, precision and recall.
        extractor: name and weights hash of the extractor, None where the file does not say.
        protocol: how it was made, for the report.
        images: path of a file with the ``arr_0`` images of the reference.
    """

    name: str
    gaussian: Gaussian
    digest: str
    spatial: Gaussian | None = None
    features: Tensor | None = None
    extractor: tuple[str, str] | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    images: Path | None = None

    def check(self, extractor: str, digest: str, dimension: int) -> None:
        """Refuse an extractor that is not the one the statistics were made with."""
        if self.extractor is not None and self.extractor != (extractor, digest):
            name, known = self.extractor
            raise ValueError(
                f"reference {self.name} was made with extractor {name} ({known[:12]}), this is "
                f"{extractor} ({digest[:12]}): make it again with `ucgm reference`."
            )
        if self.gaussian.dimension != dimension:
            raise ValueError(
                f"reference {self.name} has {self.gaussian.dimension} features, extractor "
                f"{extractor} gives {dimension}: give the reference of this extractor."
            )


def digest_of(gaussian: Gaussian) -> str:
    """sha256 over mean and covariance."""
    digest = hashlib.sha256(gaussian.mean.numpy().tobytes())
    digest.update(gaussian.covariance.numpy().tobytes())
    return digest.hexdigest()


def save_reference(path: Path, reference: Reference) -> None:
    """Write ours: readable by every tool that wants ``mu`` and ``sigma``.

    ``path`` is written as given; the caller renames it into place.
    """
    arrays: dict[str, Any] = {
        "mu": reference.gaussian.mean.numpy(),
        "sigma": reference.gaussian.covariance.numpy(),
    }
    if reference.spatial is not None:
        arrays["mu_s"] = reference.spatial.mean.numpy()
        arrays["sigma_s"] = reference.spatial.covariance.numpy()
    if reference.features is not None:
        arrays["features"] = reference.features.numpy()
    name, digest = reference.extractor or ("", "")
    protocol = reference.protocol | {
        "name": reference.name,
        "extractor": name,
        "extractor_sha256": digest,
        "num_samples": reference.gaussian.count,
    }
    with open(path, "wb") as file:
        np.savez(file, protocol=np.array(json.dumps(protocol)), **arrays)


def load_reference(path: str | Path, features: str = "fid") -> Reference:
    """Read a reference of any of the formats above.

    Args:
        path: the file.
        features: which entry of an EDM2 file: ``fid`` or ``fd_dinov2``.

    Raises:
        ValueError: for a missing or damaged file, or one without the keys of any format.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"reference {path} does not exist: check the path.")
    try:
        return _reference(path, _read_edm2(path, features) if path.suffix == ".pkl" else _npz(path))
    except _UNREADABLE as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"reference {path} cannot be read: {reason}.") from error


def _npz(path: Path) -> dict[str, Any]:
    """The arrays of an npz; of images, which may be large, the name alone."""
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no npz")
    with np.load(path, allow_pickle=False) as file:
        images = {key for key in file.files if key in ("arr_0", "arr_1")}
        return {key: None if key in images else file[key] for key in file.files}


def _reference(path: Path, arrays: dict[str, Any]) -> Reference:
    """The reference that the arrays of a file stand for."""
    prefix = "ref_" if "ref_mu" in arrays else ""
    if f"{prefix}mu" not in arrays or f"{prefix}sigma" not in arrays:
        raise ValueError(
            f"it holds {sorted(arrays)}, need mu and sigma (ADM, pytorch-fid, EDM), ref_mu and "
            "ref_sigma (MeanFlow), or a file of `ucgm reference`"
        )
    protocol = json.loads(str(arrays["protocol"])) if "protocol" in arrays else {}
    count = protocol.get("num_samples")
    spatial = None
    if "mu_s" in arrays and "sigma_s" in arrays:
        spatial = _gaussian(arrays["mu_s"], arrays["sigma_s"], count)
    extractor = protocol.get("extractor")
    rows = arrays.get("features")
    return Reference(
        name=protocol.get("name", path.stem),
        gaussian=_gaussian(arrays[f"{prefix}mu"], arrays[f"{prefix}sigma"], count),
        digest=sha256(path),
        spatial=spatial,
        features=None if rows is None else torch.from_numpy(rows.astype(np.float32)),
        extractor=(extractor, protocol["extractor_sha256"]) if extractor else None,
        protocol=protocol or {"file": path.name, "format": "foreign: mean and covariance as given"},
        images=path if "arr_0" in arrays else None,
    )


def _gaussian(mean: np.ndarray, covariance: np.ndarray, count: int | None) -> Gaussian:
    """Float64, and symmetrised within the tolerance Gaussian grants."""
    mu = torch.from_numpy(np.asarray(mean, dtype=np.float64))
    sigma = torch.from_numpy(np.asarray(covariance, dtype=np.float64))
    checked = Gaussian(mu, sigma, count)
    return Gaussian(mu, (checked.covariance + checked.covariance.T) / 2, count)


class _NumpyOnly(pickle.Unpickler):
    """A pickle of dicts and arrays; anything else is refused, nothing is executed."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "scalar"),
            ("_codecs", "encode"),
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, only numpy arrays are read")
        if module == "numpy.core.multiarray":
            module = "numpy._core.multiarray" if hasattr(np, "_core") else module
        return super().find_class(module, name)


def _read_edm2(path: Path, features: str) -> dict[str, np.ndarray]:
    """One entry of the nested dictionary of an EDM2 reference file."""
    content = _NumpyOnly(io.BytesIO(path.read_bytes())).load()
    if not isinstance(content, dict):
        raise ValueError("not a dictionary of statistics")
    if "mu" in content:
        content = {"fid": content}
    if features not in content:
        raise ValueError(f"it holds {sorted(content)}, need {features}")
    return content[features]
