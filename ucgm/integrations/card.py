"""The model card of an exported run, as the Hub shows it: what it is, scores, how to load it."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ucgm.data import open_for_sampling
from ucgm.data.labels import some_names
from ucgm.runs.checkpoint import Run
from ucgm.runtime.reading import read_json, reading

_TEXT = """---
{meta}
---

# {name}

{size} parameters, {classes}, samples of {shape}, made with
[ucgm](https://arxiv.org/abs/2505.07447): `objective.preset {preset}`, path {path}.

{origin}

## Use

```python
{loader}
images = pipe({labels}, num_inference_steps={steps}).images
```

The sampler of the folder: {sampler}. {guidance}

## Scores

{scores}

## Licence

{licence}
"""


def write_card(folder: Path, run: Run, licence: str | None, loader: str) -> None:
    """Write ``README.md`` into an exported folder.

    Args:
        folder: the pipeline.
        run: what was exported.
        licence: an identifier of the Hub such as apache-2.0; None: it is said to be unknown.
        loader: the statement that makes ``pipe``.
    """
    config, classes = run.config, run.num_classes
    sampler, guidance = config.sampler, config.guidance
    tags = ["ucgm", "diffusion", "flow-matching", str(config.objective.preset)]
    meta = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        license=licence,
        tags=[*tags, *["class-conditional"] * bool(classes)],
    )
    guided = f"Guidance of scale {guidance.scale:g} on t in {list(guidance.interval)}."
    text = _TEXT.format(
        meta=meta.to_yaml(),
        name=run.run_dir.resolve().name,
        size=f"{sum(p.numel() for p in run.network.parameters()):,}",
        classes=_classes(run),
        shape="x".join(map(str, run.shape)),
        preset=config.objective.preset,
        path=type(config.objective.transport).__name__,
        origin=_origin(run),
        loader=loader,
        labels="[0, 1]" if classes else "num_images=2",
        steps=sampler.steps,
        sampler=f"{sampler.steps} steps, stochasticity {sampler.stochasticity:g}, extrapolation "
        f"{sampler.extrapolation:g}, solver {sampler.solver}",
        guidance=guided if guidance.scale != 1.0 else "No guidance.",
        scores=_scores(run),
        licence=f"`{licence}`."
        if licence
        else "Not stated: ask whoever gave you the weights, and "
        "those of the data, before you pass them on.",
    )
    ModelCard(text).save(folder / "README.md")


def _classes(run: Run) -> str:
    """How many classes, and what up to twenty are called."""
    if not run.num_classes:
        return "no classes"
    names = open_for_sampling(run.config.data, run.run_dir).class_names
    return f"{run.num_classes} classes" + (f" ({some_names(names)})" if names else "")


def _origin(run: Run) -> str:
    """Sentences on the training."""
    train, weights = run.config.train, f"These are the weights `{run.weights}`"
    lines = [f"{weights} of step {run.step:,}." if run.step else f"{weights}, imported."]
    if run.step:
        lines.append(f"Trained with batches of {train.global_batch:,}, seed {train.seed}")
        card = run.run_dir / "data.json"
        data = read_json(card, {"name": str}) if card.exists() else {}
        count = f" ({data['samples']})" if "samples" in data else ""
        lines[-1] += f", on {data['name']}{count}." if data else "."
    if train.init:
        lines.append(f"The training started from `{Path(train.init).name}`.")
    return " ".join(lines)


def _scores(run: Run) -> str:
    """The tables of the run's benchmarks of these weights, newest last, each with its measure."""
    parts = []
    for path in sorted(
        run.run_dir.glob("benchmark/*/benchmark.json"), key=lambda p: p.stat().st_mtime
    ):
        protocol = read_json(path, {"protocol": {"weights_sha256": str}})["protocol"]
        report = path.with_suffix(".md")
        if protocol["weights_sha256"] != run.digest or not report.exists():
            continue
        with reading(report):
            lines = report.read_text(encoding="utf-8").splitlines()
        parts.append(
            "\n".join(line for line in lines if line.startswith(("|", "- "))).replace(
                "\n- ", "\n\n- ", 1
            )
        )
    return (
        "\n\n".join(parts) or "Not measured: `ucgm benchmark` before `ucgm export` puts them here."
    )
