"""Tiny autoencoders of the real classes, and images to put through them."""

import functools
import io

import numpy as np
import torch
from PIL import Image


def tiny_kl(latent_channels=4, levels=2, attention=False, seed=0, **options):
    """AutoencoderKL with f = 2^(levels - 1); ``attention`` as VA-VAE has it, on the last level."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    down, up = ["DownEncoderBlock2D"] * levels, ["UpDecoderBlock2D"] * levels
    if attention:
        down[-1], up[0] = "AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"
    model = AutoencoderKL(
        latent_channels=latent_channels,
        block_out_channels=(32,) * levels,
        layers_per_block=1,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        **options,
    )
    return model.eval()


def tiny_dc(seed=0):
    """AutoencoderDC with f = 4 and 8 channels, linear attention in the last stage."""
    from diffusers import AutoencoderDC

    torch.manual_seed(seed)
    model = AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(16, 16, 32),
        decoder_block_out_channels=(16, 16, 32),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        decoder_norm_types=("batch_norm", "batch_norm", "rms_norm"),
        scaling_factor=0.4,
    )
    return model.eval()


def tiny_rae(seed=0):
    """AutoencoderRAE on a 16-channel DINOv2: 16 px -> 16 x 4 x 4, with its own statistics."""
    from diffusers import AutoencoderRAE

    torch.manual_seed(seed)
    model = AutoencoderRAE(
        encoder_hidden_size=64,
        encoder_patch_size=4,
        encoder_num_hidden_layers=1,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        patch_size=4,
        encoder_input_size=16,
        latents_mean=torch.full((64, 1, 1), 0.1).tolist(),
        latents_std=torch.full((64, 1, 1), 2.0).tolist(),
    )
    return model.eval()


@functools.cache
def photo():
    """A 427 x 640 photograph that ships with scikit-learn."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg"))


def jpeg(seed, width=40, height=36):
    """Bytes of a small piece of the photograph."""
    rng = np.random.default_rng(seed)
    left, top = (int(rng.integers(0, s - 200)) for s in photo().size)
    piece = photo().crop((left, top, left + 200, top + 180)).resize((width, height))
    file = io.BytesIO()
    piece.save(file, format="JPEG")
    return file.getvalue()


def image_tree(folder, classes=4, per_class=10):
    """Class folders n0, n1, ... of JPEG files of two sizes."""
    for label in range(classes):
        place = folder / f"n{label}"
        place.mkdir(parents=True)
        for number in range(per_class):
            content = jpeg(100 * label + number, *((40, 36), (30, 52))[number % 2])
            (place / f"{number:03d}.JPEG").write_bytes(content)
    return folder


def folder_bytes(folder):
    """Content of every file below ``folder``, hidden ones too."""
    paths = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}
