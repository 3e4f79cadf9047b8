"""The encoder of a run by its name: DINOv2, RAD-DINO, or any vision transformer of timm."""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from ..errors import InputError, printable, reason_of
from .encoder import DINOv2PatchEncoder, PatchEncoder

PREFIX = "timm:"


def make_encoder(
    name: str = "dinov2_vits14",
    image_size: int = 448,
    layers: float | Sequence[float] = (-1,),
    layer_reduction: str = "concat",
    scales: float | Sequence[float] = (1.0,),
    vit_options: Mapping[str, Any] | None = None,
) -> PatchEncoder:
    """Make an encoder with random weights.

    Args:
        name: see `DINOv2PatchEncoder`, or ``timm:NAME`` with a vision transformer of timm that has patch tokens. The
            part of NAME after a dot, as in ``vit_base_patch16_dinov3.lvd1689m``, chooses the normalisation of pixels.
        image_size: see `PatchEncoder`, as are the next three.
        layers: see there.
        layer_reduction: see there.
        scales: see there.
        vit_options: overrides of timm's model arguments, for small test models.

    Returns:
        The encoder, frozen.

    Raises:
        InputError: the name is unknown, or the model has no patch tokens; see also `PatchEncoder`.
    """
    if not name.startswith(PREFIX):
        return DINOv2PatchEncoder(name, image_size, layers, layer_reduction, scales, vit_options)
    vit = _make_vit(name.removeprefix(PREFIX), vit_options or {})
    kind = PatchEncoder if getattr(vit, "rope", None) is None else RotaryPatchEncoder
    pixels = vit.pretrained_cfg
    return kind(name, vit, image_size, layers, layer_reduction, scales, pixels["mean"], pixels["std"])


class RotaryPatchEncoder(PatchEncoder):
    """Patch embeddings of a vision transformer with rotary positions (RoPE; Su et al., 2021, arXiv 2104.09864).

    The positions of a patch are its learned position embedding, where the model has one, and the sines and cosines by
    which the blocks rotate queries and keys. Both are one tensor, so that an export of the blocks serves every size.

    Args:
        arguments: see `PatchEncoder`.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        vit = arguments[1]
        self.n_absolute = 0 if vit.pos_embed is None else int(vit.embed_dim)
        rotations = vit.rope.get_embed(shape=[1, 1])
        self.differs_by_block = rotations.dim() == 4  # [blocks,heads,N,R] instead of [N,R]
        self.n_heads = int(rotations.shape[1]) if self.differs_by_block else 1
        self.n_rotary = int(rotations.shape[-1])

    def patch_positions(self, h: int, w: int) -> torch.Tensor:
        """Return the positions ``[1,h*w,P]`` of an image of ``h`` by ``w`` patches."""
        rotations = self.vit.rope.get_embed(shape=[h, w]).to(self.mean)
        if self.differs_by_block:
            rotations = rotations.permute(2, 0, 1, 3).flatten(1)
        positions = rotations.unsqueeze(0)
        if self.vit.pos_embed is not None:
            absolute = self._resample(self.vit.pos_embed[:, self.n_prefix_positions :], h, w)
            positions = torch.cat([absolute, positions], dim=2)
        return positions

    def _add_positions(self, patches: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Add learned position embeddings to patches ``[B,N,D]``, if the model has them."""
        return patches if self.n_absolute == 0 else patches + positions[..., : self.n_absolute]

    def _rotation(self, positions: torch.Tensor, index: int) -> torch.Tensor | None:
        """Return the sines and cosines ``[heads or 1,N,R]`` of a block."""
        width = self.n_heads * self.n_rotary
        start = self.n_absolute + (index * width if self.differs_by_block else 0)
        return positions[0, :, start : start + width].unflatten(1, (self.n_heads, self.n_rotary)).transpose(0, 1)


def _make_vit(name: str, options: Mapping[str, Any]) -> Any:
    """Make a vision transformer of timm that takes images of every size, with random weights."""
    shown = f"{PREFIX}{printable(name)}"
    if not timm.is_model(name):  # otherwise timm would look for it elsewhere
        raise InputError(f"timm {timm.__version__} has no model {shown}; {_REMEDY}.")
    try:
        vit: Any = timm.create_model(name, pretrained=False, **{"num_classes": 0, "dynamic_img_size": True, **options})
    except TypeError as error:  # other models have no such argument
        raise InputError(
            f"{shown} has no patch tokens of images of every size ({reason_of(error)}); {_REMEDY}."
        ) from error
    patch_embed = getattr(vit, "patch_embed", None)
    if not (
        isinstance(vit, VisionTransformer | Eva)
        and type(patch_embed) is PatchEmbed
        and patch_embed.patch_size[0] == patch_embed.patch_size[1]
        and patch_embed.proj.in_channels == 3
        and (vit.pos_embed is not None or getattr(vit, "rope", None) is not None)
    ):
        raise InputError(f"{shown} is a {type(vit).__name__} of another kind; {_REMEDY}.")
    return vit


_REMEDY = "give a plain vision transformer of timm (VisionTransformer or Eva), such as timm:vit_small_patch16_dinov3"
