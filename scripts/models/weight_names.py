"""Names of the parameters of vision transformers: official, of timm and of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

# Names of transformers (Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel) -> official names, but for q, k and v.
_TRANSFORMERS = (
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^(encoder\.)?layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.(attention\.)?([qkv])(uery|ey|alue|_proj)\.", r".attn.\2."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.(weights_in|fc1)\.", ".mlp.fc1."),
    (r"\.mlp\.(weights_out|down_proj|fc2)\.", ".mlp.fc2."),
    (r"\.mlp\.gate_proj\.", ".mlp.w1."),
)
# Official names -> those of timm.
_OFFICIAL = (
    (r"^(register|storage)_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
# Parameters of the training and of heads, and constants of RoPE.
_UNUSED = re.compile(
    r"^(mask_token|rope_embed.*|rope_embeddings\..*|local_cls_norm\..*|head(_dist)?\..*)$|\.bias_mask$"
)


def timm_state_dict(
    state_dict: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Rename the parameters of a checkpoint to the names of timm. Its naming is detected from the names.

    Args:
        state_dict: parameters under official names (DINOv2, DINOv3) or those of timm or transformers.
        expected: state dict of timm's model.

    Returns:
        The parameters under the names of timm, without those that patch tokens do not need. Names that are not known
        are kept.
    """
    state = dict(state_dict)
    if "embeddings.cls_token" in state:
        state = from_transformers(state)
    if {"register_tokens", "cls_token", "pos_embed"} <= set(state):  # timm adds the position of the class to its token
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if _UNUSED.search(name) and name not in expected:
            continue
        name = _rename(name, _OFFICIAL)
        scale = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
        if scale in expected:
            name = scale
        if name.endswith(".attn.qkv.bias") and name not in expected:
            renamed.update(_split_bias(name, tensor, expected))
        else:
            renamed[name] = tensor
    return renamed


def from_transformers(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the parameters of transformers to official names, and join queries, keys and values.

    Args:
        state_dict: that of a ``Dinov2Model``, ``Dinov2WithRegistersModel`` or ``DINOv3ViTModel``. Keys of the last have
            no bias; the joint bias has zeros there.

    Returns:
        The parameters by official name.
    """
    state = {_rename(name, _TRANSFORMERS): tensor for name, tensor in state_dict.items()}
    for name in [name for name in state if ".mlp.up_proj." in name]:
        is_gated = re.sub(r"up_proj\.\w+$", "w1.weight", name) in state
        state[name.replace(".up_proj.", ".w2." if is_gated else ".fc1.")] = state.pop(name)
    for name in [name for name in state if ".attn.q." in name]:
        query, key, value = (state.pop(name.replace(".attn.q.", f".attn.{part}."), None) for part in "qkv")
        if query is not None and value is not None:
            key = torch.zeros_like(query) if key is None else key
            state[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([query, key, value])
    return state


def _split_bias(name: str, bias: torch.Tensor, expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Split a bias of DINOv3, whose part for the keys is masked; nothing if the model has none and it is 0."""
    query, _, value = bias.chunk(3)
    biases = {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): value}
    is_needed = set(biases) <= set(expected) or any(bool(part.any()) for part in biases.values())
    return biases if is_needed else {}


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
