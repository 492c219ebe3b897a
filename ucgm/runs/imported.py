"""Public weights to a run folder: ``ucgm import FILE --architecture NAME --out RUN``.

The folder is that of a training which ended at step 0, so every command takes it as it is:

    ucgm sample RUN
    ucgm train --config RUN/config.yaml --config TUNE.yaml --train.init RUN --run-dir TUNED

What a checkpoint means is written into its config.yaml and nowhere else: direction of time, sign
and learned variance with the network, the path with the objective, null class, shape and scaling of
latents with the data, guidance (its channels too) and sampler as published.  The samples it was
trained on are not here: the data are *declared* (:mod:`ucgm.data.sets.declared`).
"""

from pathlib import Path
from typing import Any, Literal

import torch

from ucgm import transport as paths
from ucgm.data import Codec, DataSpec
from ucgm.data.latents.autoencoder import PUBLIC_VAES, Autoencoder, open_autoencoder
from ucgm.data.latents.statistics import EDM2_MEAN, EDM2_STD, normalisation
from ucgm.nn import Imported, Source, import_weights, read_checkpoint
from ucgm.nn.cost import count_parameters
from ucgm.nn.pretrained.published import ARCHITECTURES, published_at
from ucgm.objective import preset
from ucgm.runs.config import Config, write_config
from ucgm.runs.saving import host_copies, save_checkpoint
from ucgm.runtime.files import new_folder, sha256
from ucgm.runtime.reading import read_json
from ucgm.sampler import Grid, Guidance, Sampler
from ucgm.transport import Transport

Statistics = tuple[tuple[float, ...], tuple[float, ...], float]


def import_run(
    checkpoint: str,
    architecture: str | None = None,
    out: str | None = None,
    which: Literal["ema", "model"] = "ema",
    unsafe_pickle: bool = False,
    vae: str | None = None,
    stats: str | None = None,
    transport: str | None = None,
    input_size: int | None = None,
    num_heads: int | None = None,
    encoder_depth: int | None = None,
    settings: dict[str, Any] | None = None,
) -> Path:
    """Make a run folder of a public checkpoint.

    Args:
        checkpoint: .safetensors, .pt or .ckpt file; a folder of shards; or the folder of DiT in
            the diffusers layout.
        architecture: dit, sit, repa, repae, lightningdit, tit, ddt, edm2, rae_dit, rae_ddt,
            jit, rit, raev2, mf_rae, imf, pmf, meanflow_sit or dmf.
        out: folder to make.
        which: ema or model, where the file has both.
        unsafe_pickle: load a file that runs code when it is read; only for files you would run.
        vae: autoencoder: a name, folder, file or Hub id; as published when left out.
        stats: statistics file of the latents, or scale, edm2, none; as published when left out.
        transport: path of the weights, such as TrigLinear; as published when left out.
        input_size: side of the latents, where the weights do not show it.
        num_heads: attention heads, where the weights do not show them.
        encoder_depth: blocks of a DDT's encoder, where the depth is no published one.
        settings: any other setting of the network, as --settings.second_time true.

    Returns:
        the folder.

    Raises:
        ValueError: the file does not fit, or would run code; with what would fit.
    """
    if architecture is None or out is None:
        raise ValueError(
            f"{'--out' if architecture else '--architecture'} is missing: ucgm import FILE "
            f"--architecture NAME --out RUN, with NAME one of {', '.join(ARCHITECTURES)}"
        )
    with new_folder(Path(out), "ucgm import") as folder:
        pipeline = Path(checkpoint) / "transformer"
        file = pipeline if pipeline.is_dir() else Path(checkpoint)
        beside = file / "config.json"
        found = read_json(beside) if beside.exists() else {}
        given = {"input_size": input_size, "num_heads": num_heads, "encoder_depth": encoder_depth}
        found |= {k: v for k, v in given.items() if v is not None} | (settings or {})
        weights = read_checkpoint(file, unsafe_pickle)
        imported = _understood(file, architecture, weights, which, found)
        config = config_of(architecture, imported, vae, stats, transport)
        facts: dict[str, Any] = {"architecture": architecture, "file": str(file), "weights": which}
        facts["sha256"] = sha256(file) if file.is_file() else None
        _fill_run(folder, config, imported, facts)
    _report(Path(out), config, imported)
    return Path(out)


def _understood(
    file: Path, architecture: str, weights: dict[str, Any], which: str, settings: dict[str, Any]
) -> Imported:
    """The network of weights, whose shapes and settings may be anything."""
    try:
        return import_weights(architecture, weights, which=which, **settings)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{file} does not hold weights of {architecture}, or config.json beside it is of "
            f"others ({type(error).__name__}: {error})"
        ) from error


def config_of(
    architecture: str,
    imported: Imported,
    vae: str | None = None,
    stats: str | None = None,
    transport: str | None = None,
) -> Config:
    """The configuration of a run that would have made these weights, and samples as published.

    Args:
        architecture: a key of :data:`ucgm.nn.ARCHITECTURES`.
        imported: the weights.
        vae: autoencoder; None: as published.
        stats: statistics of the latents; None: as published.
        transport: name of a class of :mod:`ucgm.transport`; None: as published.
    """
    shape, classes = imported.shape, imported.num_classes
    source = published_at(architecture, imported.source, imported.config, shape[1])
    path = _path(transport) if transport else _path(source.transport, **source.transport_args)
    pixels = vae is None and source.vae is None and stats is None and shape[0] in (1, 3)
    data = DataSpec(
        shape=shape,
        num_classes=classes,
        name=architecture,
        pixels=pixels,
        codec=None if pixels else codec_of(source, shape, vae, stats),
    )
    values = dict(source.sampler)
    grid = Grid(**values.pop("grid", {}))
    return Config(
        model=imported.config,
        objective=preset("flow_matching", transport=path),
        data=data,
        sampler=Sampler(path, grid=grid, **values),
        guidance=Guidance(
            source.guidance_scale if classes else 1.0,
            source.guidance_interval,
            source.guidance_channels,
            source.guidance_kind,
        ),
    )


def codec_of(
    source: Source, shape: tuple[int, int, int], vae: str | None, stats: str | None
) -> Codec | None:
    """The codec of the weights, as far as it is known; None: latents cannot be decoded.

    An autoencoder that is on this machine is opened and tried; one on the Hub is only named.
    """
    name = vae or source.vae
    opened = open_autoencoder(name) if name is not None and Path(name).exists() else None
    scaling = _scaling(source, shape[0], name, stats)
    if name is None or scaling is None:
        return None
    known, normalise, (mean, std, scale) = PUBLIC_VAES.get(name), *scaling
    if opened is not None:
        kind, digest, size = opened.kind, opened.digest, _side(opened, shape)
    else:
        kind = next((kind for kind in ("dc", "rae") if name.startswith(f"{kind}-")), "kl")
        digest, size = "", shape[1] * source.factor
    store = known.store if known else "sample" if kind == "kl" else "mean"
    return Codec(name, kind, digest, size, shape, store, normalise, mean, std, scale)


def _path(name: str, **settings: Any) -> Transport:
    cls = getattr(paths, name, None)
    if not (isinstance(cls, type) and issubclass(cls, Transport)) or cls is Transport:
        ours = (c.__name__ for c in Transport.__subclasses__() if c.__module__ == paths.__name__)
        raise ValueError(f"transport must be one of {', '.join(sorted(ours))}, got {name!r}")
    return cls(**settings)


def _scaling(
    source: Source, channels: int, vae: str | None, stats: str | None
) -> tuple[str, Statistics] | None:
    """Rule, and (mean, std, scale) of the latents; None when it is in a file that was not given."""
    if stats == "channel":
        raise ValueError("the statistics of each channel are in a file: give --stats FILE")
    if stats is not None:
        if stats == "scale" and vae is None:
            raise ValueError("--stats scale is the factor of an autoencoder: give --vae as well")
        autoencoder = open_autoencoder(vae if stats == "scale" and vae else "identity")
        return stats, normalisation(stats, autoencoder, None, channels)
    mean, std = source.latent_mean, source.latent_std
    if mean is None or std is None:
        return None
    if not any(mean) and len(set(std)) == 1:
        rule = "none" if std[0] == 1.0 else "scale"
        return rule, (mean, (1.0,) * channels, 1.0 / std[0])
    if mean == EDM2_MEAN:
        return "edm2", (EDM2_MEAN, EDM2_STD, 0.5)
    return "channel", (mean, std, 1.0)


@torch.no_grad()
def _side(autoencoder: Autoencoder, shape: tuple[int, int, int]) -> int:
    """Side of the images, found by decoding one."""
    if autoencoder.kind in ("kl", "dc"):
        channels = autoencoder.module.config.latent_channels
        if channels != shape[0]:
            raise ValueError(
                f"the autoencoder {autoencoder.name} has {channels} latent channels and the "
                f"network {shape[0]}: give the one it was trained with as --vae"
            )
    return autoencoder.decode(torch.zeros(1, *shape)).shape[-1]


def _fill_run(folder: Path, config: Config, imported: Imported, facts: dict[str, Any]) -> None:
    (folder / "samples").mkdir()
    manifest = {
        "shape": list(imported.shape),
        "num_classes": imported.num_classes,
        "ema_updates": 0,
        "skipped": 0,
        "imported": {**facts, "dropped": list(imported.dropped)},
    }
    weights = host_copies(imported.network.state_dict())
    save_checkpoint(folder, 0, {"network": weights, "ema": weights}, manifest, keep=1)
    write_config(config, folder / "config.yaml")


def _report(folder: Path, config: Config, imported: Imported) -> None:
    guidance, data, dropped = config.guidance, config.data.open(), imported.dropped
    inside = f" in {list(guidance.interval)}" if guidance.interval != (0.0, 1.0) else ""
    first = f", first {guidance.channels} channels" if guidance.channels else ""
    latents = data.codec.describe() if data.codec else "pixels" if data.decodes else "not known"
    print(
        f"run {folder}: {type(imported.network).__name__} with "
        f"{count_parameters(imported.network):,} parameters, {data.num_classes} classes\n"
        f"  transport {config.objective.transport}, {config.sampler.steps} steps, guidance "
        f"{guidance.scale}{inside}{first}\n"
        f"  latents {'x'.join(map(str, data.shape))}: {latents}"
    )
    if dropped:
        more = f" and {len(dropped) - 4} more" if len(dropped) > 4 else ""
        print(f"  not needed: {', '.join(dropped[:4])}{more}")
    if not data.decodes:
        print(
            "  `ucgm sample` will write latents: the statistics of these are in a file beside the "
            "weights; import again with --stats FILE (and --vae) for images"
        )
