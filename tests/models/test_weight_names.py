"""Weights load under official names and those of timm and transformers, from both kinds of files."""

import pytest
import torch
from safetensors.torch import save_file

from scripts.errors import InputError
from scripts.models.timm_encoder import make_encoder
from scripts.models.weight_names import from_transformers
from scripts.models.weights import load_encoder_weights, read_weights, set_weights

TINY = {"depth": 2, "embed_dim": 32, "num_heads": 2}
GIANT = {**TINY, "embed_dim": 96}
BIASED, UNBIASED, GATED = (
    f"timm:vit_small{kind}_patch16_dinov3{bias}" for kind, bias in (("", "_qkvb"), ("", ""), ("_plus", "_qkvb"))
)
DINOV2 = ["rad_dino", "dinov2_vitb14_reg", "dinov2_vitg14"]
DINOV3 = [BIASED, UNBIASED, GATED]


def tiny(name, seed=0):
    torch.manual_seed(seed)
    encoder = make_encoder(name, 448, vit_options=GIANT if "vitg" in name else TINY)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def official(encoder):
    """Return the weights of an encoder as the official repository of DINOv2 or DINOv3 stores them."""
    state = {name: tensor.clone() for name, tensor in encoder.vit.state_dict().items()}
    width = encoder.vit.embed_dim
    if encoder.name in DINOV3:
        state["storage_tokens"] = state.pop("reg_token")
        state["rope_embed.periods"] = torch.ones(4)
        for block in (f"blocks.{index}" for index in range(TINY["depth"])):
            zeros = torch.zeros(width)
            query, value = (state.pop(f"{block}.attn.{part}_bias", zeros) for part in "qv")
            state[f"{block}.attn.qkv.bias"] = torch.cat([query, torch.full((width,), 9.0), value])
            state[f"{block}.attn.qkv.bias_mask"] = torch.ones(3 * width)
            for part in "12":
                state[f"{block}.ls{part}.gamma"] = state.pop(f"{block}.gamma_{part}")
        renamed = {"fc1_g": "w1", "fc1_x": "w2", "fc2": "w3"} if encoder.name == GATED else {}
    else:
        if "reg_token" in state:
            state["register_tokens"] = state.pop("reg_token")
            class_position = torch.randn(1, 1, width)
            state["cls_token"] -= class_position
            state["pos_embed"] = torch.cat([class_position, state["pos_embed"]], dim=1)
        renamed = {"fc1": "w12", "fc2": "w3"} if "vitg" in encoder.name else {}
    for old, new in renamed.items():
        state = {name.replace(f"mlp.{old}.", f"mlp.{new}."): tensor for name, tensor in state.items()}
    return {**state, "mask_token": torch.zeros(1, width)}


def transformers(encoder):
    """Return the weights of an encoder as a Dinov2Model, Dinov2WithRegistersModel or DINOv3ViTModel stores them."""
    is_dinov3 = encoder.name in DINOV3
    state = {}
    for name, tensor in official(encoder).items():
        if name.endswith("bias_mask") or name.startswith("rope_embed"):
            continue
        if ".attn.qkv." in name:
            for part, values in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                if not (is_dinov3 and part == "key" and name.endswith("bias")):
                    of_part = f"attention.{part[0]}_proj" if is_dinov3 else f"attention.attention.{part}"
                    state[name.replace("attn.qkv", of_part)] = values
        else:
            state[name] = tensor
    mlp = {"w1": "gate_proj", "w2": "up_proj", "w3": "down_proj", "fc1": "up_proj", "fc2": "down_proj"}
    if not is_dinov3:
        mlp = {"w12": "weights_in", "w3": "weights_out"}
    rules = {
        "blocks.": "layer." if is_dinov3 else "encoder.layer.",
        "attn.proj": "attention.o_proj" if is_dinov3 else "attention.output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "patch_embed.proj": "embeddings.patch_embeddings" + ("" if is_dinov3 else ".projection"),
        "pos_embed": "embeddings.position_embeddings",
        "storage_tokens": "register_tokens",
        **{f"mlp.{old}.": f"mlp.{new}." for old, new in mlp.items()},
    }
    renamed = {}
    for name, tensor in state.items():
        for old, new in rules.items():
            name = name.replace(old, new)
        if name.endswith("_token") or name.endswith("_tokens"):
            name = f"embeddings.{name}"
        if not is_dinov3 and name.startswith("norm."):
            name = f"layer{name}"
        renamed[name] = tensor
    return renamed


def of_timm(encoder):
    """Return the weights of an encoder as timm stores them, with a head."""
    return {**encoder.vit.state_dict(), "head.weight": torch.ones(5, encoder.vit.embed_dim), "head.bias": torch.ones(5)}


class TestNames:
    @pytest.mark.parametrize("name", [*DINOV2, *DINOV3])
    @pytest.mark.parametrize("naming", [official, transformers, of_timm])
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_weights_load(self, name, naming, suffix, tmp_path):
        source, target = tiny(name), tiny(name, seed=1)
        checkpoint = {key: tensor.contiguous() for key, tensor in naming(source).items()}
        path = tmp_path / f"weights{suffix}"
        torch.save(checkpoint, path) if suffix == ".pth" else save_file(checkpoint, path)
        load_encoder_weights(target, path)
        for key, tensor in source.vit.state_dict().items():
            torch.testing.assert_close(target.vit.state_dict()[key], tensor, rtol=0, atol=1e-6)
        assert len(target.weights_digest) == 64

    @pytest.mark.parametrize("name", ["dinov2_vitg14", BIASED, GATED])
    def test_transformers_become_official_names(self, name):
        encoder = tiny(name)
        expected = {key for key in official(encoder) if not key.endswith("bias_mask") and "rope" not in key}
        known = {"mlp.w12.": "mlp.fc1.", "mlp.w3.": "mlp.fc2.", "storage_tokens": "register_tokens"}
        for old, new in known.items():
            expected = {key.replace(old, new) for key in expected}
        assert set(from_transformers(transformers(encoder))) == expected

    def test_half_precision_becomes_single(self):
        source, target = tiny(BIASED), tiny(BIASED, seed=1)
        set_weights(target, {name: tensor.bfloat16() for name, tensor in transformers(source).items()})
        assert {tensor.dtype for tensor in target.vit.state_dict().values()} == {torch.float32}
        torch.testing.assert_close(target.vit.cls_token, source.vit.cls_token, rtol=1e-2, atol=1e-2)


class TestWrongWeights:
    @pytest.mark.parametrize("name", [*DINOV2[:2], *DINOV3])
    @pytest.mark.parametrize("naming", [official, transformers])
    def test_parameters_are_named(self, name, naming):
        encoder = tiny(name)
        before = {key: tensor.clone() for key, tensor in encoder.vit.state_dict().items()}
        checkpoint = naming(tiny(name, seed=1))
        removed = next(key for key in checkpoint if "norm1.weight" in key)
        wrong = next(key for key in checkpoint if "norm2.bias" in key)
        checkpoint = {**checkpoint, wrong: torch.ones(31), "extra.weight": torch.ones(2)}
        del checkpoint[removed]
        said = (
            rf"not the weights of {name}: missing blocks\.0\.norm1\.weight; unknown extra\.weight; "
            r"blocks\.0\.norm2\.bias is of shape \(31,\) instead of \(32,\)"
        )
        with pytest.raises(InputError, match=said):
            set_weights(encoder, checkpoint)
        assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.vit.state_dict().items())

    @pytest.mark.parametrize("naming", [official, transformers])
    def test_biases_that_the_model_does_not_have_raise(self, naming):
        with pytest.raises(InputError, match=r"unknown blocks\.0\.attn\.q_bias"):
            set_weights(tiny(UNBIASED), naming(tiny(BIASED)))

    def test_other_models_raise(self):
        for target, source in ((BIASED, GATED), ("rad_dino", BIASED), (BIASED, "dinov2_vitb14_reg")):
            with pytest.raises(InputError, match=f"not the weights of {target}|{target} expects weights with"):
                set_weights(tiny(target), official(tiny(source)))

    @pytest.mark.parametrize("content", [b"", b"half", None])
    def test_half_a_file_raises(self, content, tmp_path):
        path = tmp_path / "weights.safetensors"
        save_file(tiny(BIASED).vit.state_dict(), path)
        path.write_bytes(path.read_bytes()[:-500] if content is None else content)
        with pytest.raises(InputError, match="not a readable checkpoint"):
            read_weights(path)

    def test_pickle_under_the_other_name_raises(self, tmp_path):
        torch.save(tiny(BIASED).vit.state_dict(), tmp_path / "weights.safetensors")
        with pytest.raises(InputError, match="not a readable checkpoint"):
            read_weights(tmp_path / "weights.safetensors")
