"""Command that writes the card of a fitted model.

Examples::

    python -m scripts.model_card --ckpt_path models/model.pt --output card.md
    python -m scripts.model_card --ckpt_path models/model.pt --fit_report output/fit_report.json --output card.md
    python -m scripts.model_card --ckpt_path models/model.pt --output card.md --false_regions 0.1

Settings of the operating point that are not given have the values of configs/inference.json.
"""

from __future__ import annotations

import fire

from .writer import write_model_card

if __name__ == "__main__":
    fire.Fire(write_model_card)
