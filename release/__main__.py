"""Command that makes everything that a release of the bundle needs.

Examples::

    python -m release --ckpt_path models/model.pt
    python -m release --ckpt_path models/model.pt --fit_report output/fit_report.json --output_dir release_output
    python -m release --ckpt_path models/model.pt --name brain_t1_anomaly_detection --allow_dirty

Config ids are flags as well, such as ``--false_regions 0.1``, and are written into the configs of the released bundle.
"""

from __future__ import annotations

import fire

from .maker import make_release

if __name__ == "__main__":
    fire.Fire(make_release)
