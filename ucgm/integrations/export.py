"""A run in the layout of diffusers: ``ucgm export RUN --diffusers OUT``.

    OUT/model_index.json   the pipeline: class names, scaling of latents, guidance
    OUT/model/             config.json and the EMA weights (``variant="raw"``: the others)
    OUT/scheduler/         the run's sampler
    OUT/vae/               its autoencoder, for latents
    OUT/README.md          the model card: origin, sampler, scores of its benchmarks, licence
    OUT/pipeline.py        with --bundle-code: the source of ucgm, for machines without it

    ucgm.UCGMPipeline.from_pretrained(OUT)
    diffusers.DiffusionPipeline.from_pretrained(OUT, trust_remote_code=True)

The first needs ucgm; the second the bundle, and not ucgm.

The folder is what ``huggingface-cli upload`` takes.  Weights and configuration run no code; only
the bundle does, and diffusers asks before it reads that.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from diffusers import ModelMixin

from ucgm.data import open_for_sampling
from ucgm.integrations.card import write_card
from ucgm.integrations.pipeline import UCGMPipeline
from ucgm.runs.checkpoint import load_run
from ucgm.runtime.files import new_folder

_STUB = '''"""ucgm, bundled by `ucgm export --bundle-code`; an installed ucgm is used instead.

SOURCES holds the modules as they are in the package: name -> (is a package, source).
"""

import importlib
import importlib.abc
import importlib.util
import sys

SOURCES = {
%s
}


class Bundle(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds and loads the modules of SOURCES."""

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name in SOURCES else None

    def is_package(self, name):
        return SOURCES[name][0]

    def get_source(self, name):
        return SOURCES[name][1]


if importlib.util.find_spec("ucgm") is None:
    sys.meta_path.append(Bundle())
UCGMPipeline = importlib.import_module("ucgm").UCGMPipeline
'''


def export_run(
    run_dir: str,
    diffusers: str | None = None,
    bundle_code: bool = False,
    raw: bool = False,
    weights: Literal["ema", "network"] = "ema",
    checkpoint: int | None = None,
    licence: str | None = None,
) -> Path:
    """Write a run as a pipeline of diffusers.

    Args:
        run_dir: folder of the run.
        diffusers: folder to make.
        bundle_code: add the source of ucgm, so that diffusers alone can load the folder.
        raw: add the weights without averaging, as the variant raw.
        weights: ema or network, which become the default weights.
        checkpoint: training step of the checkpoint; the latest when left out.
        licence: of weights and card, an identifier of the Hub such as apache-2.0 or cc-by-nc-4.0.

    Returns:
        the folder.

    Raises:
        ValueError: the run has guidance by a second network, which a pipeline would draw
            differently, latents that cannot be decoded, or a network that diffusers cannot save.
    """
    if diffusers is None:
        raise ValueError("--diffusers is missing: name the folder to make")
    out, run = Path(diffusers), load_run(run_dir, step=checkpoint, weights=weights)
    guidance = run.config.guidance
    if guidance.scale != 1.0 and guidance.kind == "auto":
        raise ValueError(
            "guidance.kind auto is not part of a diffusers pipeline: set guidance.scale to 1 or "
            f"another guidance.kind in {run_dir}/config.yaml"
        )
    if not open_for_sampling(run.config.data, run_dir).decodes:
        raise ValueError(
            f"the autoencoder of {run_dir} or its scaling is not known, so the pipeline could "
            "not make images: import it again with --vae and --stats"
        )
    if not isinstance(run.network, ModelMixin):
        raise ValueError(
            f"{type(run.network).__name__} is no model of diffusers, which could be saved in its "
            "layout: make it a diffusers.ModelMixin with a config"
        )
    loader = 'UCGMPipeline.from_pretrained("{}")'
    if bundle_code:
        loader = 'DiffusionPipeline.from_pretrained("{}", trust_remote_code=True)'
    with new_folder(out, "ucgm export") as folder:
        UCGMPipeline.from_run(run).save_pretrained(folder)
        if raw:
            other: Any = load_run(run_dir, step=checkpoint, weights="network").network
            other.save_pretrained(folder / "model", variant="raw")
        if bundle_code:
            _bundle(folder)
        call = loader.format(out.name)
        module = "diffusers import DiffusionPipeline" if bundle_code else "ucgm import UCGMPipeline"
        write_card(folder, run, licence, f"from {module}\n\npipe = {call}")
    print(f"pipeline: {out}\nload it:  {loader.format(out)}")
    return out


def _bundle(folder: Path) -> None:
    """Add pipeline.py, and name it in model_index.json."""
    root, lines = Path(str(files("ucgm"))), []
    for path in sorted(root.rglob("*.py")):
        *packages, name = path.relative_to(root.parent).with_suffix("").parts
        package = name == "__init__"
        module = ".".join(packages if package else [*packages, name])
        lines.append(f"    {json.dumps(module)}: ({package}, {json.dumps(path.read_text())}),")
    (folder / "pipeline.py").write_text(_STUB % "\n".join(lines))
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    content["_class_name"] = ["pipeline", "UCGMPipeline"]
    index.write_text(json.dumps(content, indent=2) + "\n")
