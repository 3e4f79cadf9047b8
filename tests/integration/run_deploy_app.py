"""Run of the app on several studies in one process, as by `python deploy/app`.

`python run_deploy_app.py BUNDLES STUDIES OUTPUT SELECTIONS`: every folder in STUDIES into one of the same name in
OUTPUT, by the bundle of that name, or "anomaly". SELECTIONS is JSON: values of --series by study.
"""

import json
import sys
from pathlib import Path

bundles, studies, output = map(Path, sys.argv[1:4])
selections = json.loads(sys.argv[4])
app = Path(__file__).resolve().parents[2] / "deploy" / "app"
sys.path[:0] = [str(bundles / "anomaly"), str(app)]

from app import run  # noqa: E402
from monai.deploy.core import init_app_context  # noqa: E402

for study in sorted(studies.iterdir()):
    print(f"=== {study.name}", file=sys.stderr, flush=True)
    bundle = bundles / study.name if (bundles / study.name).exists() else bundles / "anomaly"
    context = init_app_context(["app", "-i", str(study), "-m", str(bundle)])
    context.output_path = output / study.name
    print(f"status {run(context, bundle, selections.get(study.name, ''))}", file=sys.stderr, flush=True)
