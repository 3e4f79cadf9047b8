"""Licences of the encoders' published weights."""

from __future__ import annotations

import logging
from typing import NamedTuple

from timm.models import get_pretrained_cfg

from .timm_encoder import PREFIX

logger = logging.getLogger(__name__)


class Licence(NamedTuple):
    """A licence of weights.

    Attributes:
        name: its name.
        commercial: whether it allows commercial use; None if that is not known.
        note: conditions that a user must know; empty if there are none.
    """

    name: str
    commercial: bool | None
    note: str = ""

    def __str__(self) -> str:
        """Return the name and the conditions."""
        use = {True: "", False: "no commercial use", None: "check whether your use is allowed"}[self.commercial]
        return "; ".join(filter(None, (self.name, use, self.note)))


RAD_DINO = Licence("MIT", True, "shared for research, not for clinical practice (its model card)")
DINOV2 = Licence("Apache-2.0", True)
UNKNOWN = Licence("unknown", None, "see its model card")
TIMM = {  # by the name that timm gives with the weights
    "apache-2.0": Licence("Apache-2.0", True),
    "mit": Licence("MIT", True),
    "dinov3-license": Licence(
        "DINOv3 License",
        True,
        "with conditions on use and redistribution (ai.meta.com/resources/models-and-libraries/dinov3-license)",
    ),
    "cc-by-nc-4.0": Licence("CC BY-NC 4.0", False),
    "fair-noncommercial-research-license": Licence("FAIR Noncommercial Research License", False, "for research"),
    "apple-amlr": Licence("Apple Machine Learning Research Model License", False, "for research"),
    "apple-ascl": Licence("Apple Sample Code License", None, "see its model card"),
    "sapiens2-license": Licence("Sapiens2 License", None, "with restrictions of use"),
}


def licence_of(encoder_name: str) -> Licence:
    """Find the licence of the weights that are published under an encoder's name.

    Args:
        encoder_name: see `make_encoder`.

    Returns:
        The licence; `UNKNOWN` if none is recorded. Other weights under this name may have another one.
    """
    if encoder_name == "rad_dino":
        return RAD_DINO
    if not encoder_name.startswith(PREFIX):
        return DINOV2 if encoder_name.startswith("dinov2_") else UNKNOWN
    pretrained = get_pretrained_cfg(encoder_name.removeprefix(PREFIX), allow_unregistered=True)
    return TIMM.get(str(pretrained.license).lower(), UNKNOWN) if pretrained is not None else UNKNOWN


def licence_warning(encoder_name: str) -> str | None:
    """Return a sentence on a licence that does not allow every use; None if it does."""
    licence = licence_of(encoder_name)
    if licence.commercial and not licence.note:
        return None
    return f"The weights of {encoder_name} have their own terms: {licence}."


def warn_of_licence(encoder_name: str) -> None:
    """Log the sentence of `licence_warning`, if there is one."""
    if warning := licence_warning(encoder_name):
        logger.warning(warning)
