"""Public weights as networks under our contract.

    network = from_state_dict("sit", torch.load(path, weights_only=True))
    F = network(x_t, t, y)                    # our time and sign
    v = network.native(x, t, y)               # the published forward pass

Settings are read off the shapes; what shapes cannot show (heads, latent side, published switches)
has the architecture's default or must be given, under our name or that of the published
constructor. A setting that contradicts the file, an unknown, a missing or a mis-shaped key is an
error that names the value that would fit. `import_weights` also returns what a run needs beside
the network: its config, transport, guidance rule and latent normalisation.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ucgm.nn.configs import FAMILIES, DiTConfig, DiTDHConfig, NetworkConfig
from ucgm.nn.network import ADDED, Network
from ucgm.nn.pretrained.files import unwrap
from ucgm.nn.pretrained.layouts import State, drop, read_settings, translate
from ucgm.nn.pretrained.published import ALIASES, ARCHITECTURES, Architecture, Source
from ucgm.nn.token_configs import MiTConfig, RAEv2Config


@dataclass(frozen=True)
class Imported:
    """A loaded network and what was learnt on the way."""

    network: Network
    config: NetworkConfig
    """`config.build(shape, num_classes)` makes the same network with new weights."""
    shape: tuple[int, int, int]
    """(C, H, W) of the latents."""
    num_classes: int
    """The null label is `num_classes`; 0: unconditional."""
    source: Source
    dropped: tuple[str, ...]
    """Entries and keys of the file that no network needs."""


def from_state_dict(architecture: str, state_dict: Mapping[str, Any], **config: Any) -> Network:
    """Return the network of `import_weights`."""
    return import_weights(architecture, state_dict, **config).network


def import_weights(
    architecture: str, state_dict: Mapping[str, Any], which: str = "ema", **config: Any
) -> Imported:
    """Load published weights.

    - `architecture`: a key of `ARCHITECTURES`; the diffusers layout of DiT is recognised.
    - `state_dict`: the flat tensors, or a whole checkpoint around them.
    - `which`: "ema" or "model", for a checkpoint that has both.
    - `config`: settings of the network; second_time=True or guidance_input=True add a
      zero-initialised input.
    """
    architecture = ALIASES.get(architecture, architecture)
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}"
        )
    base = ARCHITECTURES[architecture]
    flat, left = unwrap(state_dict, which)
    state = translate(architecture, flat)
    settings = _settings(architecture, state, _rename(base.config, config))
    shape = (settings.pop("in_channels"), *(settings.pop("input_size"),) * 2)
    num_classes = settings.pop("num_classes")
    built = replace(base.config, **settings)
    needed, dropped = drop(architecture, state)
    network = _load(architecture, built, shape, num_classes, needed)
    source = _source(base, state, shape[0])
    return Imported(network, built, shape, num_classes, source, (*left, *dropped))


_OUR_NAMES = {
    "use_qknorm": "qk_norm",
    "use_rope": "rope",
    "num_groups": "num_heads",
    "num_encoder_blocks": "encoder_depth",
    "bottleneck_dim": "bottleneck",
    "in_context_len": "context_tokens",
    "in_context_start": "context_start",
    "use_cls": "feature_token",
    "dmf_depth": "decoupled_depth",
    "base_model_depth": "exit_layer",
    "repa_layer_depth": "feature_layer",
    "aux_head_depth": "velocity_blocks",
    "num_class_tokens": "class_tokens",
    "num_time_tokens": "time_tokens",
    "num_cfg_tokens": "guidance_tokens",
    "num_interval_tokens": "interval_tokens",
    "learned_pe": "learned_positions",
    "num_attention_heads": "num_heads",
    "num_layers": "depth",
    "sample_size": "input_size",
    "num_embeds_ada_norm": "num_classes",
}
"""Settings of published constructors (the last four: diffusers' config.json) -> ours."""

_NO_EFFECT = {
    *("class_dropout_prob", "use_checkpoint", "fused_attn", "attn_drop", "proj_drop"),
    *("attention_head_dim", "attention_bias", "activation_fn", "dropout", "norm_num_groups"),
    *("upcast_attention", "norm_type", "norm_elementwise_affine", "norm_eps", "out_channels"),
    *("use_cfg", "decoder_hidden_size", "attn_func", "use_logvar", "t_eps", "projector_dim"),
    *("z_dims", "z_dim", "projection_layer_type", "proj_kwargs_kernel_size", "enable_repa"),
    *("condition_type", "cond_arch", "use_cfg_conds", "output_type"),
}
"""Settings that change nothing here, or that the shapes show."""


def _rename(config: NetworkConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Settings under our names of settings under those of the published constructors."""
    given = dict(given)
    if "z_dims" in given:  # of REPA: a block whose tokens were projected, of no use any more
        given.pop("encoder_depth", None)
    given = {k: v for k, v in given.items() if k not in _NO_EFFECT and not k.startswith("_")}
    if isinstance(config, DiTConfig):
        if "use_swiglu" in given:
            given["mlp"] = "swiglu" if given.pop("use_swiglu") else "gelu"
        if "wo_shift" in given:
            given["shift"] = not given.pop("wo_shift")
        if "use_rmsnorm" in given and not given.pop("use_rmsnorm"):
            given |= {"norm": "layer", "norm_affine": False}
    elif isinstance(config, DiTDHConfig | RAEv2Config):
        pairs = {"hidden_size": "head_width", "depth": "head_depth", "num_heads": "head_heads"}
        for name, other in pairs.items():
            if isinstance(given.get(name), list | tuple):
                given[name], given[other] = given[name]
        only = {"use_swiglu": True, "use_rope": True, "use_rmsnorm": True, "use_pos_embed": True}
        only["wo_shift"] = False
        given = {k: v for k, v in given.items() if k not in only or v != only[k]}
        if isinstance(given.get("patch_size"), list | tuple):
            given["patch_size"] = given["patch_size"][0]
    elif isinstance(config, MiTConfig):
        if "rope_2d" in given:
            given["rope"] = "blocks" if given.pop("rope_2d") else "line"
        if given.get("bottleneck_dim", 0) < 0:
            given["bottleneck_dim"] = None
    elif "num_blocks" in given and "encoder_depth" in {f.name for f in fields(config)}:
        given["depth"] = given.pop("num_blocks")
    given = {_OUR_NAMES.get(key, key): value for key, value in given.items()}
    known = {f.name for f in fields(config)} | {"input_size", "in_channels", "num_classes"}
    known -= {"size", "family", "gradient_checkpointing"}
    unknown = given.keys() - known
    if unknown:
        raise ValueError(
            f"unknown setting {', '.join(sorted(unknown))}: it must be one of "
            f"{', '.join(sorted(known))}"
        )
    return given


def _settings(architecture: str, state: State, given: dict[str, Any]) -> dict[str, Any]:
    """Join what the shapes show with what is given; raise where they contradict."""
    evidence = read_settings(architecture, state, given)
    config = ARCHITECTURES[architecture].config
    expected = dict(given)
    if isinstance(config, DiTConfig):
        defining = ("norm", "norm_affine", "mlp", "rope")
        expected = {name: FAMILIES[config.family][name] for name in defining} | expected
    conflicts = []
    for name, value in expected.items():
        fit, key = evidence.get(name, (value, ""))
        if key and fit != (tuple(value) if isinstance(value, list) else value):
            shape = tuple(state[key].shape) if key in state else ""
            origin = "" if name in given else f' (architecture "{architecture}")'
            conflicts.append(f"{name}={value!r}{origin} does not fit {key} {shape}: {name}={fit!r}")
    if conflicts:
        raise ValueError(
            f"the settings do not fit these weights of {architecture}:\n  "
            + "\n  ".join(f"{conflict} would fit" for conflict in conflicts)
        )
    settings = {name: value for name, (value, _) in evidence.items()} | given
    needed = {"num_heads", "encoder_depth"} & {f.name for f in fields(config)} | {"input_size"}
    missing = sorted(needed - settings.keys())
    if missing:
        raise ValueError(
            f"the weights do not show {', '.join(missing)}: pass it (input_size is the side of the "
            "latents, 32 for 256 pixels under an f8 autoencoder)"
        )
    return settings


_OPTIONAL = (*ADDED, "pos_embed")
"""Keys that a new network fills in by itself: zero-initialised parts, fixed positions."""

_HINTS = {
    r"attn\.[qk]_norm": ("qk_norm=True", "qk_norm=False"),
    r"norm(1|2|_final)\.": ("norm_affine=True", "norm_affine=False"),
    r"mlp\.w": ('mlp="swiglu"', 'mlp="gelu"'),
    r"mlp\.fc": ('mlp="gelu"', 'mlp="swiglu"'),
    r"y_embedder\.": ("num_classes > 0", "num_classes=0"),
    r"projectors\.": ('architecture "repa"', ""),
    r"bn\.": ('architecture "repae"', ""),
    r"feat_rope\.": ('architecture "lightningdit" or "tit"', ""),
}
"""Pattern in a key -> (what would fit if it is unknown, what would fit if it is missing)."""


def _hint(key: str, missing: bool) -> str:
    fits = next((pair[missing] for part, pair in _HINTS.items() if re.search(part, key)), "")
    return f"{key} ({fits} would fit)" if fits else key


def _misfit(name: str, network: Network, state: State) -> str:
    """Describe every key of `state` that `network` has not, lacks, or has in another shape."""
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    lacking = [k for k in expected if k not in found and not k.startswith(_OPTIONAL)]
    groups = {
        "unknown": [_hint(key, False) for key in found if key not in expected],
        "missing": [_hint(key, True) for key in lacking],
        "mis-shaped": [
            f"{key} is {shape} in the file, {expected[key]} in the network"
            for key, shape in found.items()
            if expected.get(key, shape) != shape
        ],
    }
    lines = [f"the weights do not fit {name}:"]
    for kind, keys in groups.items():
        more = [f"and {len(keys) - 8} more"] if len(keys) > 8 else []
        if keys:
            lines.append("\n    ".join([f"  {kind}:", *keys[:8], *more]))
    return "\n".join(lines) if len(lines) > 1 else ""


def _load(
    name: str, config: NetworkConfig, shape: tuple[int, int, int], num_classes: int, state: State
) -> Network:
    with torch.device("meta"):
        network = config.build(shape, num_classes)
    problem = _misfit(name, network, state)
    if problem:
        raise ValueError(problem)
    if network.state_dict().keys() - state.keys():
        network = config.build(shape, num_classes)
    else:
        network.to_empty(device="cpu")
    state = {key: value.float() for key, value in state.items()}
    network.load_state_dict(state, strict=False)
    return network.eval()


def _source(base: Architecture, state: State, channels: int) -> Source:
    """Return the source, with the latent statistics that the file carries or that fit it."""
    source = base.source
    if "bn.running_mean" in state:
        mean, var = state["bn.running_mean"].double(), state["bn.running_var"].double()
        return replace(
            source, latent_mean=tuple(mean.tolist()), latent_std=tuple(var.sqrt().tolist())
        )
    if source.latent_mean is not None and len(source.latent_mean) != channels:
        return replace(source, vae=None, latent_mean=None, latent_std=None)
    return source
