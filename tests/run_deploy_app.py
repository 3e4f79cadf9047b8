"""In the environment of the app: one study after the other, as `python deploy/app` would take each.

`python run_deploy_app.py MODELS STUDIES OUTPUT`: every folder in STUDIES into one of the same name in OUTPUT.
"""

import sys
from pathlib import Path

models, studies, output = map(Path, sys.argv[1:])
app = Path(__file__).resolve().parents[1] / "deploy" / "app"
sys.path[:0] = [str(models / "anomaly"), str(app)]

from app import run  # noqa: E402
from monai.deploy.core import init_app_context  # noqa: E402

for study in sorted(studies.iterdir()):
    print(f"=== {study.name}", file=sys.stderr, flush=True)
    context = init_app_context(["app", "-i", str(study), "-o", str(output / study.name), "-m", str(models)])
    print(f"status {run(context, models / 'anomaly')}", file=sys.stderr, flush=True)
