"""The recipe that a preset brings: optimizer, batch, averages and sampler, each with its source.

A source is a file of a public repository or a paper; what begins with "ours" is our choice, because
nothing was published or because it belongs to another network or budget.  The fitted settings of
:mod:`ucgm.runs.fitted`, files and flags lie above; ``configs/methods`` has the rows of ImageNet.
"""

from fractions import Fraction
from typing import Any

from ucgm.runs.config import to_dict
from ucgm.runs.fitted import Layer
from ucgm.sampler import Grid, Sampler

Recipe = dict[str, tuple[Any, str]]

BUDGET = {
    *(f"optimizer.{name}" for name in ("lr", "schedule", "warmup_steps", "reference_steps")),
    *("train.global_batch", "ema.decay", "ema.warmup"),
}
"""Settings of a length, a network and a machine; a file that says others means them."""

# The ramp ends where the decay is reached; short runs need it.
_RAMP = "ours: a ramp over the first updates; the public codes copy the first weights"
_IMF = "Lyy-iiis/imeanflow imf.py: evaluation during training"
_LR_EDM2 = "ours: the published 0.01 is for EDM2's normalised weights"


def _from(source: str, **settings: Any) -> Recipe:
    """Settings of one source; ``section__name`` is section.name."""
    return {name.replace("__", "."): (value, source) for name, value in settings.items()}


def _adam(
    source: str, lr: float, beta: float, batch: int, name: str = "adamw", **more: Any
) -> Recipe:
    """A training with Adam, AdamW (``name`` adamw) or RAdam, and an average of its weights.

    Args:
        source: of all these values.
        lr: the peak learning rate.
        beta: decay of the second moment; that of the first is 0.9 in all of them.
        batch: samples per step.
        name: of the optimizer; Adam is adamw with weight decay 0.
        more: further settings of the same source; without them the decay of the average is 0.9999,
            and there is no weight decay, no warm-up, no schedule and no clipping.
    """
    optimizer = {"name": name, "lr": lr, "betas": (0.9, beta), "weight_decay": 0.0}
    optimizer |= {"schedule": "constant", "warmup_steps": 0}
    settings = {f"optimizer__{key}": value for key, value in optimizer.items()}
    settings |= {"train__global_batch": batch, "train__grad_clip": None}
    settings |= {} if "ema__std" in more else {"ema__decay": 0.9999}
    return _from(source, **settings | more)


def _jumps(source: str) -> Recipe:
    """Two equal jumps along the path, from pure noise on."""
    settings = {"sampler__stochasticity": 0.0, "sampler__grid__gap": (0.0, 0.0)}
    return _from(source, sampler__steps=2, sampler__solver="jump", **settings)


def _heun(source: str, steps: int) -> Recipe:
    """EDM's sampler between its noise levels 80 and 0.002."""
    grid = {"sampler__grid__spacing": "karras", "sampler__grid__gap": (0.0, 0.01356)}
    own = {"sampler__solver": "heun", "sampler__variable": "noise"}
    return _from(source, sampler__steps=steps, **own, **grid)


def _renoised(source: str, solver: str, start: float, middle: float) -> Recipe:
    """Two maps to the data with fresh noise between (arXiv 2303.01469, algorithm 1).

    Args:
        source: of the times.
        solver: ``ucgm`` for a network of one time, ``jump`` for one of two.
        start: distance of the first time from 1.
        middle: the second time.
    """
    settings = {"sampler__stochasticity": 1.0, "sampler__grid__gap": (start, middle)}
    return _from(source, sampler__steps=2, sampler__solver=solver, **settings)


_UCGM = "LINs-lab/UCGM configs"
_MEANFLOW = "Gsunshine/meanflow configs/default.py"
_TWINFLOW = "inclusionAI/TwinFlow"
_FASTGEN = "NVlabs/FastGen configs"
_OWN_SAMPLES = "ours: the public code samples the network itself"

_FD_LOSS = "Jiawei-Yang/FD-loss: pMF and iMF; half-lives of the average were tried from 250 kimg"
_SCT = f"{_FASTGEN}/experiments/EDM/config_sct_cifar10.py"
_SCD = f"{_FASTGEN}/experiments/EDM/config_scd_cifar10.py"
_SIGMA_0_8 = _renoised(f"{_SCT}, config_scd_cifar10.py: sigma 0.821", "ucgm", 0.004, 0.652)
_STUDY = "ours: docs/results/recipe.md"

RECIPES: dict[str, Recipe] = {
    "multi_step": _from(
        _STUDY,
        train__grad_clip=1.0,
        sampler__steps=16,
        sampler__solver="adams",
        sampler__extrapolation=0.5,
        sampler__grid__gap=(0.0, 0.0),
    ),
    "few_step": _jumps(_STUDY) | _from(_STUDY, train__grad_clip=1.0, sampler__grid__gap=(0.0, 0.5)),
    "ddpm": _adam("facebookresearch/DiT train.py", 1e-4, 0.999, 256),
    "v_prediction": _adam(
        "google-research/diffusion_distillation config/cifar_base.py",
        2e-4,
        0.999,
        128,
        optimizer__weight_decay=1e-3,
        optimizer__warmup_steps=1000,
        train__grad_clip=1.0,
    ),
    # The average's half-life is 0.5 million images, the warm-up 10 million.
    "edm": _adam(
        "NVlabs/edm train.py", 1e-3, 0.999, 512, ema__decay=0.99929, optimizer__warmup_steps=19_531
    )
    | _heun("NVlabs/edm README (CIFAR-10), generate.py: 80 to 0.002", 18),
    "edm2": _adam(
        "NVlabs/edm2 train_edm2.py, training_loop.py, phema.py",
        2e-4,
        0.99,
        2048,
        ema__std=0.1,
        optimizer__warmup_steps=4883,
        optimizer__schedule="inverse_sqrt",
        optimizer__reference_steps=70_000,
    )
    | _from(_LR_EDM2, optimizer__lr=2e-4)
    | _heun("NVlabs/edm2 generate_images.py", 32),
    "flow_matching": _adam("willisma/SiT train.py", 1e-4, 0.999, 256),
    "fd_post": _adam(_FD_LOSS, 1e-6, 0.95, 1024, ema__decay=0.9986, optimizer__schedule="cosine"),
    "mmd_post": _adam("vita-epfl/RDM", 1.6e-6, 0.95, 5120, train__grad_clip=2.0),
    # Their clock is ours reversed, so their shift of 0.3 is 1 / 0.3.
    "lightningdit": _adam(
        "hustvl/LightningDiT configs/lightningdit_xl_vavae_f16d32.yaml",
        2e-4,
        0.95,
        1024,
        sampler__grid__shift=3.333,
    ),
    "ot_cfm": _adam(
        "atong01/conditional-flow-matching cifar10/train_cifar10.py",
        2e-4,
        0.999,
        128,
        optimizer__warmup_steps=5000,
        train__grad_clip=1.0,
    ),
    "ucgm_multi": _adam(f"{_UCGM}/training_multi_steps", 2e-4, 0.95, 1024, ema__target_decay=0.999)
    | _from(
        f"{_UCGM}/training_few_steps/in1k256_tit_xl_vavae.yaml",
        sampler__steps=30,
        sampler__extrapolation=0.5,
    ),
    "ucgm_lambda": _adam("ours: of ucgm_few", 1e-4, 0.999, 1024, name="radam", train__grad_clip=0.1)
    | _renoised("ours: of ucgm_few", "ucgm", 0.001, 0.5),
    "ucgm_few": _adam(
        f"{_UCGM}/training_few_steps", 1e-4, 0.999, 1024, name="radam", train__grad_clip=0.1
    )
    | _renoised(f"{_UCGM}/training_few_steps: 0.3 to 0.6 by data", "ucgm", 0.001, 0.5),
    "ucgm_paper": _adam(f"{_UCGM}/training_multi_steps", 2e-4, 0.95, 1024, ema__target_decay=0.999),
    "ect": _adam("locuslab/ect run_ecm.sh, ct_train.py", 1e-4, 0.999, 128, name="radam")
    | _renoised("locuslab/ect ct_eval.py: sigma 80 and 0.821", "ucgm", 0.0, 0.575),
    "scm": _adam(_SCT, 1e-4, 0.99, 512, name="radam") | _SIGMA_0_8,
    "scd": _adam(_SCD, 1e-4, 0.99, 512, name="radam") | _SIGMA_0_8,
    "meanflow": _adam(_MEANFLOW, 1e-4, 0.95, 256)
    | _jumps(f"{_FASTGEN}/experiments/DiT/config_mf_b.py: 0.5"),
    # 200 epochs of 48 steps.
    "pixel_meanflow": _adam(
        "Gsunshine/py-meanflow scripts/cifar10_v0.sh, train_arg_parser.py",
        6e-4,
        0.999,
        1024,
        optimizer__warmup_steps=9600,
    )
    | _jumps("ours: the paper takes 1"),
    "decoupled_meanflow": _adam(
        "kyungmnlee/dmf train_dmf.py", 1e-4, 0.95, 256, train__grad_clip=1.0
    )
    | _from("kyungmnlee/dmf README: of the blocks", model__decoupled_depth=Fraction(2, 3))
    | _jumps("kyungmnlee/dmf scripts/eval_dmf_xl_2_256.sh: 1, 2 and 4"),
    # 10 epochs of 1,251 steps.
    "imf": _adam("Lyy-iiis/imeanflow configs/train_config.yml", 1e-4, 0.95, 1024)
    | _from("Lyy-iiis/imeanflow configs/train_config.yml", optimizer__warmup_steps=12_510)
    | _jumps("Lyy-iiis/imeanflow README: 1 and 2")
    | _from(_IMF, guidance__scale=7.5, guidance__interval=(0.4, 0.65), guidance__kind="input"),
    "alpha_flow": _adam(
        "snap-research/alphaflow infra/experiments/experiments-alphaflow.yaml", 1e-4, 0.95, 256
    )
    | _from("ours: of meanflow, its file is not public", ema__decay=0.9999)
    | _jumps("snap-research/alphaflow infra/experiments: 1 and 2"),
    "terminal_velocity": _adam(
        "lumalabs/tvm configs/im256_w1p75.yaml", 1e-4, 0.95, 2048, ema__target_decay=0.99
    )
    | _from("lumalabs/tvm configs/im256_w2.yaml: do_scale_param", model__guidance_output=True)
    | _jumps("lumalabs/tvm configs/im256_w1p75.yaml: 1, 2 and 4")
    | _from("lumalabs/tvm configs/im256_w2.yaml", guidance__scale=2.0, guidance__kind="input"),
    "lsd": _adam(
        "nmboffi/flow-maps configs/cifar10.py (in a fork)",
        1e-4,
        0.999,
        512,
        name="radam",
        train__grad_clip=1.0,
        optimizer__schedule="inverse_sqrt",
        optimizer__reference_steps=35_000,
    )
    | _from(_LR_EDM2, optimizer__lr=1e-4)
    | _jumps("nmboffi/flow-maps configs/cifar10.py (in a fork): 1 to 16"),
    "shortcut": _adam(
        "kvfrans/shortcut-models train.py, README",
        1e-4,
        0.999,
        256,
        optimizer__weight_decay=0.1,
        ema__target_decay=0.999,
    )
    | _from(_OWN_SAMPLES, ema__decay=0.9999)
    | _jumps("ours: the paper takes 1, 4 and 128"),
    "rcgm": _adam(f"{_TWINFLOW} tutorials/mnist/main.py", 2e-4, 0.999, 128, ema__target_decay=0.99)
    | _from(_OWN_SAMPLES, ema__decay=0.9999)
    | _jumps("ours: the tutorial takes 1"),
    "twinflow": _adam(
        f"{_TWINFLOW} src/configs/sd_task/sd35_full.yaml",
        1e-5,
        0.99,
        256,
        train__grad_clip=1.0,
        ema__target_decay=0.99,
    )
    | _from("ours: 16 on every process there", train__global_batch=256)
    | _from(_OWN_SAMPLES, ema__decay=0.9999)
    | _renoised(f"{_TWINFLOW} src/configs/sd_task/sd35_full.yaml", "jump", 0.001, 0.7),
    "facm": _adam(
        "ali-vilab/FACM scripts/train.sh, train.py",
        1e-4,
        0.999,
        1024,
        train__grad_clip=1.0,
        ema__std=0.2,
    )
    | _renoised("ali-vilab/FACM sampler.py", "jump", 0.0, 0.5),
    "soflow": _adam("zlab-princeton/SoFlow imagenet.yaml", 1e-4, 0.99, 256)
    | _renoised("zlab-princeton/SoFlow train.py", "jump", 0.0, 0.5),
    "tim": _adam(
        "WZDTHU/TiM configs/c2i/tim_xl_p2_256.yaml",
        2e-4,
        0.95,
        512,
        optimizer__weight_decay=0.01,
        optimizer__eps=1e-6,
        train__grad_clip=1.0,
    )
    | _jumps("WZDTHU/TiM README: 2 and 500"),
    # 5 epochs of 1,251 steps.
    "jit": _adam("LTH14/JiT README, main_jit.py", 2e-4, 0.95, 1024, optimizer__warmup_steps=6255)
    | _from(
        "LTH14/JiT main_jit.py",
        sampler__steps=50,
        sampler__solver="heun",
        sampler__grid__gap=(0.0, 0.0),
    )
    | _from("LTH14/JiT denoiser.py: it says x, the loss is of v", model__convention="jit"),
}


def recipe_of(preset: str) -> Recipe:
    """Dotted settings of a preset with their values and sources."""
    return _from(_RAMP, ema__warmup=True) | RECIPES[preset]


def preset_layers(preset: str) -> tuple[Layer, Layer]:
    """What a preset brings beside its objective and :func:`model_inputs`, as two trees.

    Returns:
        Settings that belong to a budget or say what is not used, which any file may set; and those
        that belong to the method, above the files before it.
    """
    layers: tuple[Layer, Layer] = {}, {}
    for name, (value, _) in recipe_of(preset).items():
        *sections, key = name.split(".")
        place = layers[name not in BUDGET and (bool(value) or sections[0] == "sampler")]
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    budget, method = layers
    method.pop("model", None)
    if "sampler" in method:  # whole: no setting of another method's sampler stays
        grid = Grid(**method["sampler"].pop("grid", {}))
        method["sampler"] = to_dict(Sampler(**method["sampler"], grid=grid))
    return budget, method


def model_inputs(preset: str, depth: int) -> dict[str, Any]:
    """Settings of a network of ``depth`` blocks without which it is another method."""
    named = ((name.partition("."), value) for name, (value, _) in recipe_of(preset).items())
    found = {key: value for (section, _, key), value in named if section == "model"}
    shares = {key: round(v * depth) for key, v in found.items() if isinstance(v, Fraction)}
    return found | shares
