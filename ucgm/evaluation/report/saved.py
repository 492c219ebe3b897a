"""Reports that were written before, by us or by somebody else: read, and checked field by field."""

from pathlib import Path
from typing import Annotated, Any

from ucgm.evaluation.report.tables import COLUMNS
from ucgm.runtime.reading import check_fields, read_json, refuse_bomb
from ucgm.runtime.values import Count, Range

_MOST_VALUES = 1_000_000
_Number = Annotated[float, Range(-1e12, 1e12)]
_IDENTITY = {"name": str, "sha256": str}
# What tables, pictures and comparisons look at.
_REPORT: dict[str, Any] = {
    "name": str,
    "nfe_convention": str,
    "metrics": [str],
    "machine": {},
    "protocol": {"num_samples": Count, "repeats": Count, "labels": str, "extractor": _IDENTITY},
    "references": [{"extractor": str, **_IDENTITY}],
    "rows": [
        {
            "steps": Count,
            "repeat": Annotated[int, Range(0, 10**9)],
            "nfe": _Number,
            "images_hash": str,
            "images_per_second": float | None,
        }
    ],
    "real": dict | None,
}


def read_report(where: str) -> tuple[dict[str, Any], Path]:
    """The content of a ``benchmark.json``, and its folder.

    Args:
        where: the file, or its folder.

    Raises:
        ValueError: there is none, or a field of it is missing or of another type.
    """
    path = Path(where)
    path = path if path.suffix == ".json" else path / "benchmark.json"
    try:
        result = read_json(path)
        refuse_bomb(result, _MOST_VALUES)
        check_fields(result, _REPORT)
        metrics, rows = result["metrics"], result["rows"]
        if not metrics or not rows:
            raise ValueError(f"{'rows' if metrics else 'metrics'} is empty")
        for metric in metrics:
            if metric.rpartition(".")[2] not in COLUMNS:
                raise ValueError(f"metrics holds {metric!r:.60}, which is no known metric")
        scores = dict.fromkeys(metrics, _Number)
        check_fields(rows, [{"scores": scores}], "rows")
        for key in ("more_extractors", "trained_on"):
            check_fields(result["protocol"].get(key, []), [_IDENTITY], f"protocol.{key}")
        check_fields(result.get("strip", []), [str], "strip")
        if result["real"] is not None:
            check_fields(result["real"], {"scores": {}}, "real")
            measured = result["real"]["scores"]
            check_fields(measured, dict.fromkeys(measured, _Number), "real.scores")
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{path} is no report: name a folder that `ucgm benchmark` printed."
        ) from None
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    return result, path.parent
