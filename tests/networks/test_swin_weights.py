"""Loading published Swin-T weights: a synthetic file with their names, at a small size."""

import logging

import pytest
import torch

from medseg_kit.networks.swin_unet import SwinUNet2D
from medseg_kit.typing import UserError

SMALL = {"image_size": 128, "window_size": 4, "embed_dim": 12, "num_heads": (1, 1, 2, 2)}
BLOCK = {
    "norm1.weight": (1,),
    "norm1.bias": (1,),
    "attn.qkv.weight": (3, 1),
    "attn.qkv.bias": (3,),
    "attn.proj.weight": (1, 1),
    "attn.proj.bias": (1,),
    "norm2.weight": (1,),
    "norm2.bias": (1,),
    "mlp.fc1.weight": (4, 1),
    "mlp.fc1.bias": (4,),
    "mlp.fc2.weight": (1, 4),
    "mlp.fc2.bias": (1,),
}


def published(dim=12, window=4, heads=(1, 1, 2, 2)):
    """A state dict with the names and shapes of Swin, filled with random numbers."""
    shapes = {
        "patch_embed.proj.weight": (dim, 3, 4, 4),
        "patch_embed.proj.bias": (dim,),
        "patch_embed.norm.weight": (dim,),
        "patch_embed.norm.bias": (dim,),
        "norm.weight": (8 * dim,),
        "norm.bias": (8 * dim,),
        "head.weight": (1000, 8 * dim),
        "head.bias": (1000,),
    }
    for stage in range(4):
        width = dim * 2**stage
        for block in range(2):
            prefix = f"layers.{stage}.blocks.{block}."
            shapes |= {prefix + key: [n * width for n in shape] for key, shape in BLOCK.items()}
            table = prefix + "attn.relative_position_bias_table"
            shapes[table] = ((2 * window - 1) ** 2, heads[stage])
            shapes[prefix + "attn.relative_position_index"] = (window**2, window**2)
        if stage < 3:
            prefix = f"layers.{stage}.downsample."
            shapes[prefix + "reduction.weight"] = (2 * width, 4 * width)
            shapes[prefix + "norm.weight"] = shapes[prefix + "norm.bias"] = (4 * width,)
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(tuple(shape), generator=generator) for key, shape in shapes.items()}


def save(tmp_path, content):
    path = tmp_path / "swin_tiny_patch4_window7_224.pth"
    torch.save(content, path)
    return path


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_load__encoder_and_mirrored_decoder(tmp_path, key):
    weights = published()
    path = save(tmp_path, weights if key is None else {key: weights})
    network = SwinUNet2D(1, 3, **SMALL, pretrained_path=path)
    # 4 embedding + 2 norm + 8 blocks of 13 + 3 mergings of 3; 6 blocks of 13 in the decoder.
    assert (network.pretrained.encoder, network.pretrained.decoder) == (119, 78)
    assert network.pretrained.left_out == ()
    state = network.state_dict()
    for ours, theirs in {
        "embedding.proj.weight": "patch_embed.proj.weight",
        "norm.weight": "norm.weight",
        "encoder.0.downsample.reduction.weight": "layers.0.downsample.reduction.weight",
        "encoder.3.blocks.1.attention.projection.qkv.bias": "layers.3.blocks.1.attn.qkv.bias",
        "decoder.0.blocks.0.norm.bias": "layers.2.blocks.0.norm1.bias",
        "decoder.0.blocks.1.attention.output.weight": "layers.2.blocks.1.attn.proj.weight",
        "decoder.1.blocks.0.feed_forward.mlp.linear1.weight": "layers.1.blocks.0.mlp.fc1.weight",
        "decoder.2.blocks.0.attention.position.relative_position_bias_table": (
            "layers.0.blocks.0.attn.relative_position_bias_table"
        ),
    }.items():
        torch.testing.assert_close(state[ours], weights[theirs])


def test_load__says_what_it_loaded_and_left_out(tmp_path, caplog):
    path = save(tmp_path, published(window=7))
    with caplog.at_level(logging.INFO, "medseg_kit.networks.swin_weights"):
        network = SwinUNet2D(1, 3, **SMALL, pretrained_path=path)
    assert len(network.pretrained.left_out) == 8
    assert all(key.endswith("bias_table") for key in network.pretrained.left_out)
    assert "111 tensors loaded into the encoder and 72 into the decoder" in caplog.text


def test_load__without_a_path_nothing_is_pretrained():
    assert SwinUNet2D(1, 3, **SMALL).pretrained is None


def test_load__nothing_fits_is_an_error(tmp_path):
    path = save(tmp_path, {"model": published(dim=16)})
    with pytest.raises(UserError, match=r"only 8 of its 129 tensors fit.*embed_dim 96"):
        SwinUNet2D(1, 3, **SMALL, pretrained_path=path)


def test_load__missing_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        SwinUNet2D(1, 3, **SMALL, pretrained_path=tmp_path / "none.pth")


def test_load__other_content_is_an_error(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not weights")
    with pytest.raises(UserError, match="not a file of weights"):
        SwinUNet2D(1, 3, **SMALL, pretrained_path=path)
    with pytest.raises(UserError, match="only 0 of its 0 tensors"):
        SwinUNet2D(1, 3, **SMALL, pretrained_path=save(tmp_path, [1, 2]))
