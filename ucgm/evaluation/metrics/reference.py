"""Reference statistics: what generated images are compared with, and the files they come in.

Read by their keys, without executing anything they may carry:

    ours            mu, sigma [, mu_s, sigma_s] [, features], protocol (JSON)     .npz
                    of further extractors clip.mu, clip.sigma, ...
    ADM             mu, sigma, mu_s, sigma_s, arr_0 (10,000 images)               .npz
    pytorch-fid, EDM   mu, sigma                                                  .npz
    MeanFlow        ref_mu, ref_sigma                                             .npz
    EDM2            {"fid": {"mu", "sigma"}, "fd_dinov2": {...}}                  .pkl

A pickle is read as words; its arrays are built here from shape, dtype and bytes, and never by
numpy's own way of restoring state, which trusts what it is given.

Statistics become float64 whatever the file holds.  Ours name the extractor and the hash of its
weights, and a run with another one is refused; foreign files do not say, and are taken for
Inception's when they have 2,048 features.
"""

import hashlib
import io
import json
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from ucgm.evaluation.metrics.moments import Gaussian
from ucgm.runtime.files import sha256
from ucgm.runtime.values import Range, checked


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of real images in the feature space of one extractor.

    Attributes:
        name: what the report calls it.
        gaussian: moments of the features, for FID.
        digest: sha256 of the file, or of the moments when there is no file.
        spatial: moments of the spatial features, for sFID.
        features: (N, d) float32 rows, for KID, SW, precision and recall.
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


def digest_of(*tensors: Tensor) -> str:
    """SHA-256 of the bytes of tensors of any shape, one after the other."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().data)
    return digest.hexdigest()


def save_reference(
    path: Path, reference: Reference, more: Mapping[str, Reference] | None = None
) -> None:
    """Write ours: readable by every tool that wants ``mu`` and ``sigma``.

    ``path`` is written as given; the caller renames it into place.

    Args:
        path: of the npz.
        reference: whose arrays have plain names.
        more: those of further extractors, by the prefix of their names.
    """
    arrays = {
        prefix + key: value
        for prefix, one in {"": reference, **(more or {})}.items()
        for key, value in _arrays_of(one).items()
    }
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def _arrays_of(reference: Reference) -> dict[str, Any]:
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
    return arrays | {"protocol": np.array(json.dumps(protocol))}


def load_reference(
    path: str | Path, features: str = "fid", extractor: str | None = None
) -> Reference:
    """Read a reference of any of the formats above.

    Args:
        path: the file.
        features: which entry of an EDM2 file: ``fid`` or ``fd_dinov2``.
        extractor: whose statistics, where the file holds those of several; else the first one's.

    Raises:
        ValueError: for a missing or damaged file, or one without the keys of any format.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"reference {path} does not exist: check the path.")
    try:
        edm2 = path.suffix == ".pkl"
        return _reference(path, _read_edm2(path, features) if edm2 else _npz(path, extractor))
    except Exception as error:  # zip, zlib, pickle, json and numpy have their own
        reason = str(error).rstrip(".")[:300] or type(error).__name__
        raise ValueError(f"reference {path} cannot be read: {reason}.") from error


def _npz(path: Path, extractor: str | None) -> dict[str, Any]:
    """The arrays of one extractor in an npz; of images, which may be large, the name alone."""
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no npz")
    with np.load(path, allow_pickle=False) as file:
        images = {key for key in file.files if key in ("arr_0", "arr_1")}
        prefix = f"{extractor}." if f"{extractor}.mu" in file.files else ""
        names = [key for key in file.files if key.startswith(prefix) and (prefix or "." not in key)]
        arrays = {k.removeprefix(prefix): None if k in images else file[k] for k in names}
    for key, value in arrays.items():
        if isinstance(value, bytes):  # numpy hands out whatever else is in the zip
            raise ValueError(f"its {key} is no array")
    return arrays


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
    if count is not None:
        count = checked(Annotated[int, Range(2)], count, "num_samples")
    for key in ("name", "extractor", "extractor_sha256", "extractor_spec"):
        checked(str, protocol.get(key, ""), key)
    spatial = None
    if "mu_s" in arrays and "sigma_s" in arrays:
        spatial = _gaussian(arrays["mu_s"], arrays["sigma_s"], count)
    extractor = protocol.get("extractor")
    gaussian = _gaussian(arrays[f"{prefix}mu"], arrays[f"{prefix}sigma"], count)
    rows = arrays.get("features")
    if rows is not None and (
        rows.shape[1:] != (gaussian.dimension,) or not np.isfinite(rows).all()
    ):
        raise ValueError(f"its features {rows.shape} are no finite rows of {gaussian.dimension}")
    foreign = {"file": path.name, "format": "foreign: mean and covariance as given"}
    return Reference(
        name=protocol.get("name", path.stem),
        gaussian=gaussian,
        digest=sha256(path),
        spatial=spatial,
        features=None if rows is None else torch.from_numpy(rows.astype(np.float32)),
        extractor=(extractor, protocol["extractor_sha256"]) if extractor else None,
        protocol={"extractor_spec": extractor, **protocol} if protocol else foreign,
        images=path if "arr_0" in arrays else None,
    )


def _gaussian(mean: np.ndarray, covariance: np.ndarray, count: int | None) -> Gaussian:
    """Float64, and symmetrised within the tolerance Gaussian grants."""
    mu = torch.from_numpy(np.asarray(mean, dtype=np.float64))
    sigma = torch.from_numpy(np.asarray(covariance, dtype=np.float64))
    Gaussian(mu, sigma, count)  # refuses what is not symmetric
    return Gaussian(mu, (sigma + sigma.T) / 2, count)


# Codes of a pickle from protocol 2 on that arrays and dictionaries of them are written with.
_CODES = b"\x80\x95.(}utu)\x85\x86\x87sqrhj\x94XVU\x8c\x8dCB\x8eTKMJ\x8aN\x88\x89c\x93Rb0\x96"
_NAMES = re.compile(
    r"numpy\.(ndarray|dtype)|numpy\._?core\.multiarray\.(_reconstruct|scalar)"
    r"|numpy\._?core\.numeric\._frombuffer|_codecs\.encode"
)


class _Part:
    """A call that a pickle asks for, kept as words: its name, arguments and state."""

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = ()

    def __call__(self, *arguments: Any) -> "_Part":
        return _Part(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Table(dict):
    """A dictionary whose keys are names: the hash of a nested tuple can take for ever."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, str):
            raise ValueError(f"it has a key that is a {type(key).__name__}, no name")
        super().__setitem__(key, value)


class _Parts(pickle._Unpickler):
    """A pickle read as parts, without numpy; the one in C would allot any memo it is told to."""

    dispatch = {code: do for code, do in pickle._Unpickler.dispatch.items() if code in _CODES}

    def find_class(self, module: str, name: str) -> Any:
        if not _NAMES.fullmatch(f"{module}.{name}"):
            raise ValueError(f"it asks for {module}.{name}, only numpy arrays are read")
        return _Part(name)

    def load_empty_dictionary(self: Any) -> None:
        self.append(_Table())

    dispatch[ord("}")] = load_empty_dictionary  # type: ignore[assignment]


def _array(part: Any) -> np.ndarray:
    """The array that a pickle describes, from its shape, the name of its dtype, and its bytes."""
    if isinstance(part, _Part) and part.name == "_frombuffer":  # protocol 5
        content, dtype, shape, fortran = part.arguments[:3] + (part.arguments[3:] == ("F",),)
        content = bytes(content) if isinstance(content, bytearray) else content
    elif isinstance(part, _Part) and part.name == "_reconstruct" and len(part.state) == 5:
        _, shape, dtype, fortran, content = part.state
    else:
        raise ValueError(f"mu and sigma must be arrays, found {type(part).__name__}")
    known = isinstance(dtype, _Part) and dtype.name == "dtype" and len(dtype.state) > 1
    order = str(dtype.state[1]) if known else ""
    kind = dtype.arguments[0] if order in ("<", ">", "=", "|") else None
    if kind not in ("f2", "f4", "f8"):
        raise ValueError(f"it holds an array of {kind}, only floating point is read")
    if isinstance(content, _Part) and content.name == "encode":  # Python 2 and protocol 2
        content = content.arguments[0].encode("latin1")
    if not isinstance(content, bytes) or len(content) != math.prod(shape) * int(kind[1]):
        raise ValueError(f"the bytes of an array do not fill its shape {shape}")
    numbers = np.frombuffer(content, np.dtype(order + kind))
    return numbers.reshape(shape, order="F" if fortran else "C").copy()


def _read_edm2(path: Path, features: str) -> dict[str, np.ndarray]:
    """One entry of the nested dictionary of an EDM2 reference file."""
    try:
        content = _Parts(io.BytesIO(path.read_bytes())).load()
    except KeyError as error:
        raise ValueError(f"it uses code {error} of pickle, which no arrays need") from error
    if not isinstance(content, dict):
        raise ValueError("not a dictionary of statistics")
    if "mu" in content:
        content = {"fid": content}
    if features not in content:
        raise ValueError(f"it holds {sorted(content)}, need {features}")
    entry = content[features]
    if not isinstance(entry, dict):
        raise ValueError(f"{features} is a {type(entry).__name__}, no dictionary of mu and sigma")
    return {key: _array(entry[key]) for key in ("mu", "sigma") if key in entry}
