"""CLIP, SigLIP, MAE, ConvNeXt and DINOv2 from transformers, in tiny sizes with random weights."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ucgm.cli.commands import main
from ucgm.evaluation.evaluate import make_reference
from ucgm.evaluation.extractors import open_extractor
from ucgm.evaluation.extractors.vision import ENCODERS, resampled
from ucgm.evaluation.metrics import load_reference

transformers = pytest.importorskip("transformers")
VIT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "clip": ("CLIPVisionConfig", VIT | {"patch_size": 14, "image_size": 56}),
    "siglip": ("SiglipVisionConfig", VIT | {"patch_size": 32, "image_size": 256}),
    "mae": ("ViTMAEConfig", VIT | {"patch_size": 32, "image_size": 224}),
    "convnext": ("ConvNextV2Config", {"hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1]}),
    "dinov2_256": ("Dinov2Config", VIT | {"mlp_ratio": 2, "patch_size": 14, "image_size": 70}),
}
SIDES = {"clip": 266, "siglip": 224, "mae": 224, "convnext": 224, "dinov2_256": 266}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders in the layout of the Hub."""
    found = {}
    for name, (config, settings) in CONFIGS.items():
        torch.manual_seed(0)
        module = getattr(transformers, ENCODERS[name].cls)(
            getattr(transformers, config)(**settings)
        )
        for key, value in module.named_parameters():
            torch.nn.init.normal_(value, std=0.2) if "position" not in key else None
        found[name] = tmp_path_factory.mktemp(name)
        module.save_pretrained(found[name])
    return found


def image_folder(folder, count, seed=0):
    folder.mkdir()
    random = np.random.RandomState(seed)
    for i in range(count):
        pixels = random.randint(0, 256, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return str(folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_feature_is_the_published_one(folders, name):
    """Preprocessing and feature written out, on the class that transformers itself loads."""
    extractor = open_extractor(name, str(folders[name]))
    images = torch.randint(0, 256, (3, 3, 3, 3), dtype=torch.uint8)
    images = images.repeat_interleave(8, 2).repeat_interleave(8, 3)
    features = extractor(images)["features"]
    assert features.shape == (3, 16) and features.std(0).min() > 1e-4
    size = ENCODERS[name].size
    x = F.interpolate(images.double(), (size, size), mode="bicubic", antialias=True) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ENCODERS[name].colours)
    framed = torch.zeros(3, 3, SIDES[name], SIDES[name], dtype=torch.float64)
    framed[:, :, :size, :size] = (x - mean) / std
    own = getattr(transformers, ENCODERS[name].cls).from_pretrained(folders[name]).eval()
    own = own.double()
    if name == "mae":
        own.config.mask_ratio = 0.0
    with torch.no_grad():
        if name == "convnext":
            expected = own(framed).last_hidden_state.mean((2, 3))
        elif name == "mae":
            expected = own(framed).last_hidden_state[:, 0]
        else:
            # as timm: the position table is resampled with antialiasing, transformers' is not
            patch = own.config.patch_size
            table = next(v for k, v in own.state_dict().items() if "position_embedding" in k)
            new = resampled(table, SIDES[name] // patch)
            positions = (
                own.embeddings if hasattr(own, "embeddings") else own.vision_model.embeddings
            )
            positions.interpolate_pos_encoding = lambda *_: new.view(1, *new.shape[-2:])
            more = {} if name == "dinov2_256" else {"interpolate_pos_encoding": True}
            out = own(framed, **more)
            expected = out.last_hidden_state[:, 0] if name == "dinov2_256" else out.pooler_output
    assert torch.allclose(features, expected.float(), atol=2e-5)
    # floats in place of bytes have the same features, and a gradient
    x = images.float().requires_grad_()
    again = extractor.module(x)["features"]
    assert torch.allclose(again, features, atol=1e-5)
    assert torch.autograd.grad(again.sum(), x)[0].abs().sum() > 0


def test_a_position_table_of_the_same_grid_stays_and_its_class_row_too():
    table = torch.randn(1, 17, 6)
    assert resampled(table, 4) is table
    smaller = resampled(table, 2)
    assert smaller.shape == (1, 5, 6) and torch.equal(smaller[:, 0], table[:, 0])
    flat = torch.ones(16, 3)
    assert torch.allclose(resampled(flat, 7), torch.ones(49, 3), atol=1e-6)


def test_weights_that_are_missing_give_one_line_that_names_the_file(tmp_path, folders, monkeypatch):
    with pytest.raises(ValueError, match=r"weights of clip are missing .*none.*model.safetensors"):
        open_extractor("clip", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"weights of mae are missing .*config.json"):
        open_extractor("mae", str(tmp_path))
    import huggingface_hub

    def offline(*args, **kwargs):
        raise OSError("Name or service not known\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError) as caught:
        open_extractor("siglip")
    message = str(caught.value)
    assert "model.safetensors of google/siglip2-so400m-patch16-256 could not be had" in message
    assert "--extractor-weights PATH" in message and "\n" not in message
    with pytest.raises(ValueError, match="does not hold clip .*missing keys"):
        open_extractor("clip", str(folders["convnext"]))


@pytest.mark.filterwarnings("ignore:.*samples for .* features")
def test_six_encoders_in_one_pass_of_evaluate(tmp_path, folders, capsys):
    names, places = ["random", *CONFIGS], ["default", *map(str, folders.values())]
    train, real = image_folder(tmp_path / "train", 40, 1), image_folder(tmp_path / "real", 40, 2)
    images = image_folder(tmp_path / "images", 30, 3)
    chosen = ["--extractor", *names, "--extractor-weights", *places]
    for data in (train, real):
        main(["reference", data, f"{data}.npz", *chosen, "--device", "cpu"])
    files = ["--reference", f"{train}.npz", "--held-out", f"{real}.npz"]
    main(["evaluate", images, *files, *chosen, "--device", "cpu"])
    out = capsys.readouterr().out
    assert "FDr, mean" in out and "|   real |" in out
    found = json.loads((tmp_path / "images.evaluation/evaluation.json").read_text())
    scores, prefixes = found["scores"], ["", *(f"{name}." for name in names[1:])]
    # FDr by its definition, from the features of each encoder alone
    ratios = []
    for name, prefix, place in zip(names, prefixes, places, strict=True):
        one = str(tmp_path / f"{name}.npz")
        weights = None if place == "default" else place
        make_reference(images, one, (name,), None if weights is None else (weights,), device="cpu")
        a, b, c = (
            load_reference(path, extractor=name).gaussian
            for path in (one, f"{train}.npz", f"{real}.npz")
        )
        ratios.append(by_hand(a, b) / by_hand(c, b))
        assert scores[f"{prefix}fdr"] == pytest.approx(ratios[-1], rel=1e-6)
        assert found["real"][f"{prefix}fdr"] == pytest.approx(1.0, abs=1e-9)
        assert scores[f"{prefix}kid"] is not None
    ours = [scores[f"{prefix}fdr"] for prefix in prefixes]
    assert scores["fdr_mean"] == pytest.approx(sum(ours) / 6, abs=1e-12)
    assert len(found["references"]) == 12 and found["real"]["fdr_mean"] == pytest.approx(1.0)
    # an encoder that the file does not hold is refused, not compared with another one's moments
    with pytest.raises(SystemExit):
        main(
            ["evaluate", images, *files, "--extractor", "digits", "--out-dir", str(tmp_path / "o")]
        )
    assert "was made with extractor random" in capsys.readouterr().err


def by_hand(a, b):
    """Frechet distance by the root of the product."""
    import scipy.linalg

    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
    shift = float((a.mean - b.mean).square().sum())
    return shift + float(a.covariance.trace() + b.covariance.trace()) - 2 * float(root.trace())


def test_several_extractors_take_their_turns_on_the_device():
    from ucgm.evaluation.extractors import Extractors

    parts = {f"{n}.": open_extractor("random") for n in "ab"}
    places = []
    for name, part in parts.items():
        own = part.module.to
        part.module.to = lambda device, name=name, own=own: (
            places.append((name, device)),
            own(device),
        )[1]
    Extractors(parts, "cpu:0")(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert places == [("a.", "cpu:0"), ("a.", "cpu"), ("b.", "cpu:0"), ("b.", "cpu")]
