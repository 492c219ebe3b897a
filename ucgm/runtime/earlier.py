"""Names in files that earlier versions wrote, and the names of today.

Run folders, configurations, protocols of benchmarks and exported schedulers are read through
:func:`current_names`; nothing is written under an earlier name.
"""

from typing import Any

# Packages that had a class, classes, and settings.
_PACKAGES = {"timesteps": "objective"}
_CLASSES = {"Declared": "DataSpec", "Present": "SameTime", "Quarters": "TwinFlowSplit"}
_SETTINGS = {"clock": "time_variable", "quadrature": "integration"}


def current_names(content: Any) -> Any:
    """The same tree of lists and mappings, with the names of today."""
    if isinstance(content, list):
        return [current_names(item) for item in content]
    if not isinstance(content, dict):
        return content
    result = {_SETTINGS.get(key, key): current_names(item) for key, item in content.items()}
    if isinstance(result.get("class_path"), str):
        result["class_path"] = current_path(result["class_path"])
    return result


def current_path(path: str) -> str:
    """The public path of a class: the package that exports it, and its name."""
    *packages, name = path.split(".")
    name = _CLASSES.get(name, name)
    if packages[:1] != ["ucgm"] or len(packages) < 2:
        return ".".join([*packages, name])
    return f"ucgm.{_PACKAGES.get(packages[1], packages[1])}.{name}"
