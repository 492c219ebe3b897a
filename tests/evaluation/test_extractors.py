import hashlib
import json
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from torch import nn

from ucgm.data import Digits, Images, asset_path
from ucgm.data import extractor as extractor_module
from ucgm.evaluation.evaluate import evaluate, make_reference
from ucgm.evaluation.extractors import Extractor, open_extractor
from ucgm.evaluation.extractors.dinov2 import DinoV2
from ucgm.evaluation.extractors.inception import FILE, InceptionFeatures
from ucgm.evaluation.metrics import conditional_accuracy, load_reference, moments_of
from ucgm.evaluation.references import open_evaluators
from ucgm.evaluation.scoring import MetricConfig
from ucgm.runs.config import allow_module


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory):
    """The real architecture with random weights, through torchvision's copy of it."""
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.inception_v3(
        weights=None, aux_logits=False, num_classes=1008, init_weights=False
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


def test_the_shipped_classifier_is_what_it_says():
    extractor = open_extractor("digits")
    with safe_open(asset_path("digits_classifier.safetensors"), framework="pt") as file:
        stated = float(file.metadata()["accuracy_test"])
    data = Digits("test").open()
    accuracy = conditional_accuracy(extractor(data.decode(data.x))["logits"], data.y)
    assert accuracy == pytest.approx(stated, abs=1e-4) and accuracy > 0.98
    assert f"accuracy {stated:.4f} on held-out" in extractor.note
    train = Digits("train").open()
    features = extractor(train.decode(train.x))["features"]
    assert moments_of(features).covariance.trace().item() == pytest.approx(32, rel=1e-5)
    content = asset_path("digits_classifier.safetensors").read_bytes()
    assert extractor.digest == hashlib.sha256(content).hexdigest()


def test_features_do_not_depend_on_the_caller(tmp_path):
    extractor = open_extractor("digits")
    data = Digits("test").open()
    images = data.decode(data.x)
    alone = extractor(images)
    with torch.autocast("cpu", torch.bfloat16):
        cast = extractor(images)
    assert torch.equal(alone["features"], cast["features"])
    with pytest.raises(ValueError, match=r"takes \(N, 1, H, W\) uint8"):
        extractor(images.expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match="uint8"):
        extractor(images.float())
    assert extractor(images[:0])["features"].shape == (0, 32)
    with pytest.raises(ValueError, match="takes images of 8x8 pixels, got 16x8"):
        extractor(images.repeat(1, 1, 1, 2))
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="train_digits_classifier.py"):
        open_extractor("digits", str(tmp_path / "x.safetensors"))


def build_flat(weights):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, images):
            return {"features": images.flatten(1).float() * self.weight}

    return Extractor("flat", "00", Flat(), {"features": 64}, 1)


def test_your_own_by_module_and_function():
    name = "tests.evaluation.test_extractors:build_flat"
    images = torch.full((2, 1, 8, 8), 7, dtype=torch.uint8)
    for _ in range(2):  # a second time as well
        assert open_extractor(name)(images)["features"].unique().tolist() == [7.0]
    with pytest.raises(ValueError, match="cannot be imported"):
        open_extractor("tests.nowhere:build")
    with pytest.raises(ValueError, match="or your own as module:function"):
        open_extractor("nothing")


@pytest.mark.parametrize("option", ["--extractor-weights", "--alignment.weights"])
def test_an_error_of_any_kind_is_said_with_the_option_at_hand(option, monkeypatch):
    def refuse(weights):
        json.loads("{")  # a ValueError that is not made of a message alone

    monkeypatch.setitem(extractor_module._REGISTRY, "broken", refuse)
    with pytest.raises(ValueError, match="Expecting property name"):
        open_extractor("broken", option=option)
    with pytest.raises(ValueError, match=f"name it with {option} PATH"):
        open_extractor("dinov2", option=option)


def test_your_own_without_weights_and_with_other_outputs_than_announced():
    class Flat(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.width = width

        def forward(self, images):
            return {"features": images.flatten(1).float()[:, : self.width]}

    images = torch.full((2, 1, 8, 8), 7, dtype=torch.uint8)
    assert Extractor("own", "00", Flat(64), {"features": 64}, 1)(images)["features"].shape[1] == 64
    for width in (20, 1):  # one column would broadcast over all
        with pytest.raises(ValueError, match="announces features of width 64"):
            Extractor("own", "00", Flat(width), {"features": 64}, 1)(images)
    with pytest.raises(ValueError, match="announces logits of width 10"):
        Extractor("own", "00", Flat(64), {"features": 64, "logits": 10}, 1)(images)


def test_features_that_are_not_finite_are_refused():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(torch.nan))

        def forward(self, images):
            return {"features": images.flatten(1).float() * self.weight}

    extractor = Extractor("broken", "", Broken(), {"features": 64}, 1)
    with pytest.raises(ValueError, match="extractor broken gave features that are not finite"):
        extractor(torch.ones(2, 1, 8, 8, dtype=torch.uint8))


def test_inception_outputs_and_the_spatial_channels(random_inception):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        extractor = open_extractor("inception", str(random_inception))
    assert any("not the published weights" in str(w.message) for w in caught)
    assert "not comparable" in extractor.note
    images = torch.randint(0, 256, (3, 3, 40, 56), dtype=torch.uint8)
    outputs = extractor(images)
    assert {k: tuple(v.shape) for k, v in outputs.items()} == {
        "features": (3, 2048),
        "logits": (3, 1008),
        "spatial": (3, 2023),
    }
    # the spatial features are channels 0..6 of branch1x1 at all 17 x 17 places, after the ReLU
    module = extractor.module
    assert isinstance(module, InceptionFeatures)
    kept = []
    branch = module.network.Mixed_6d.branch1x1
    hook = branch.register_forward_hook(lambda m, i, o: kept.append((i[0], o)))
    module(images)
    hook.remove()
    into, out = kept[0]
    assert out.shape == (3, 192, 17, 17)
    by_hand = F.relu(branch.bn(branch.conv(into)))[:, :7]  # not [..., :7], seven columns
    assert torch.allclose(outputs["spatial"].view(3, 7, 17, 17), by_hand, atol=1e-5)
    assert (outputs["spatial"] >= 0).all()
    # floats in place of bytes have the same features, and a gradient
    x = images.float().requires_grad_()
    assert torch.allclose(module(x)["features"], outputs["features"], atol=1e-5)
    # grey is repeated, and the logits carry no bias
    grey = images[:, :1]
    repeated = extractor(grey.repeat(1, 3, 1, 1))["features"]
    assert torch.equal(extractor(grey)["features"], repeated)
    weight = module.network.fc.weight
    assert torch.allclose(outputs["logits"], outputs["features"] @ weight.T, atol=1e-4)


def test_inception_without_weights_names_file_hash_and_flag(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError) as caught:
        open_extractor("inception")
    message = str(caught.value)
    assert FILE in message and "6726825d..." in message and "--extractor-weights PATH" in message
    assert "\n" not in message
    with pytest.raises(ValueError, match="none.pth does not exist.*--extractor-weights"):
        open_extractor("inception", "none.pth")
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is not the Inception of FID"):
        open_extractor("inception", str(tmp_path / "other.pth"))


class Harm:
    def __reduce__(self):
        return (print, ("EXECUTED",))


@pytest.mark.parametrize("name", ["inception", "dinov2"])
def test_weights_that_carry_code_are_refused(tmp_path, capsys, name):
    torch.save({"x": Harm()}, tmp_path / "harm.pth")
    with pytest.raises(ValueError, match="--extractor-weights"):
        open_extractor(name, str(tmp_path / "harm.pth"))
    assert "EXECUTED" not in capsys.readouterr().out


def test_dinov2_from_a_local_file(tmp_path):
    torch.manual_seed(0)
    network = DinoV2(width=64, depth=2, patch=14, grid=37)
    for value in network.parameters():
        nn.init.normal_(value, std=0.1)
    state = network.state_dict() | {"mask_token": torch.zeros(1, 64)}  # as published
    assert {"blocks.0.attn.qkv.weight", "blocks.1.ls2.gamma", "patch_embed.proj.bias"} < set(state)
    torch.save(state, tmp_path / "vit.pth")
    extractor = open_extractor("dinov2", str(tmp_path / "vit.pth"))
    images = torch.randint(0, 256, (2, 3, 64, 48), dtype=torch.uint8)
    features = extractor(images)["features"]
    assert features.shape == (2, 64) and extractor.dimensions == {"features": 64}
    assert network.positions().shape == (1, 1 + 16 * 16, 64)
    # another image, another feature; the same image in another batch, the same
    assert not torch.allclose(features[0], features[1], atol=1e-3)
    assert torch.allclose(extractor(images[1:])["features"], features[1:], atol=1e-5)
    with pytest.raises(ValueError, match="dinov2_vitl14_pretrain.pth .*--extractor-weights"):
        open_extractor("dinov2")
    torch.save({"head": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold DINOv2"):
        open_extractor("dinov2", str(tmp_path / "other.pth"))


def test_dinov2_block_by_hand():
    """Attention and MLP written out, against the module."""
    torch.manual_seed(0)
    network = DinoV2(width=128, depth=1, patch=14, grid=2, size=28)
    for value in network.parameters():
        nn.init.normal_(value, std=0.2)
    x = torch.randn(1, 5, 128)
    block = network.blocks[0]
    h = F.layer_norm(x, (128,), block.norm1.weight, block.norm1.bias, 1e-6)
    q, k, v = (h @ block.attn.qkv.weight.T + block.attn.qkv.bias).view(5, 3, 2, 64).unbind(1)
    heads = [
        ((q[:, i] @ k[:, i].T) / 8).softmax(dim=1) @ v[:, i]
        for i in range(2)  # 8 = sqrt(64)
    ]
    mixed = torch.cat(heads, dim=1) @ block.attn.proj.weight.T + block.attn.proj.bias
    y = x + block.ls1.gamma * mixed
    h = F.layer_norm(y, (128,), block.norm2.weight, block.norm2.bias, 1e-6)
    h = F.gelu(h @ block.mlp["fc1"].weight.T + block.mlp["fc1"].bias)
    y = y + block.ls2.gamma * (h @ block.mlp["fc2"].weight.T + block.mlp["fc2"].bias)
    assert torch.allclose(block(x), y, atol=1e-4)


def offline(*args, **kwargs):
    raise OSError("Name or service not known")


def image_folder(folder, count=60):
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        pixels = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i:02d}.png")
    return str(folder)


@pytest.mark.filterwarnings("ignore:.*samples for 64 features")
def test_without_weights_and_network_a_built_in_extractor_is_used_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    images = image_folder(tmp_path / "images")
    with pytest.warns(UserWarning, match="extractor random is used: .* are no FID"):
        made = make_reference(images, tmp_path / "r.npz", device="cpu")
    assert load_reference(made).extractor[0] == "random"
    found = evaluate(images, MetricConfig(reference=str(made)), device="cpu")
    assert abs(found["scores"]["fid"]) < 1e-8
    data = Images(images, 8)
    with pytest.warns(UserWarning, match="extractor random is used"):
        evaluators = open_evaluators(MetricConfig(), data, data.open())
    assert [part.extractor.name for part in evaluators.parts] == ["random"]
    with pytest.raises(ValueError, match="could not be downloaded"):  # asked for by name
        open_evaluators(MetricConfig(extractor="inception"), data, data.open())
    np.savez(tmp_path / "adm.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(ValueError, match="could not be downloaded"):  # a reference of Inception
        open_evaluators(MetricConfig(reference=str(tmp_path / "adm.npz")), None, None)


OWN = """
import torch

from ucgm.evaluation.extractors import Extractor


class Means(torch.nn.Module):
    def forward(self, images):
        return {"features": images.float().mean(dim=(2, 3)) / 255.0}


def build(weights):
    return Extractor("means", "none", Means(), {"features": 3}, channels=3)
"""


@pytest.mark.filterwarnings("ignore:.*samples for 3 features")
def test_the_reference_remembers_an_extractor_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_means.py").write_text(OWN)
    images = image_folder(tmp_path / "images")
    made = str(make_reference(images, tmp_path / "r.npz", "own_means:build", device="cpu"))
    assert load_reference(made).protocol["extractor_spec"] == "own_means:build"
    # a file runs no code on its own; who calls says so, once per process or by --extractor
    with pytest.raises(ValueError, match="is code: if it is yours, say --extractor own_means:buil"):
        evaluate(images, MetricConfig(reference=made), device="cpu")
    named = MetricConfig(reference=made, extractor="own_means:build")
    assert abs(evaluate(images, named, device="cpu")["scores"]["fid"]) < 1e-8
    allow_module("own_means")
    found = evaluate(images, MetricConfig(reference=made), device="cpu")
    assert found["protocol"]["extractor"]["name"] == "means"
    for text, reason in (("1 / 0", "ZeroDivisionError"), ("import nowhere_at_all", "No module")):
        (tmp_path / "own_broken.py").write_text(text)
        with pytest.raises(ValueError, match=f"own_broken:build cannot be imported: .*{reason}"):
            open_extractor("own_broken:build")
