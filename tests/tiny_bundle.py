"""Runs of the bundle's configs in this process, with a tiny random encoder."""

from pathlib import Path

from monai.bundle import ConfigParser, ConfigWorkflow

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "image_size": 56,
    "layers": [-1],
    "n_components": 8,
    "distribution": "gaussian",  # the tests' few random patches do not determine tails
    "patch_smoothing": 0.0,  # of 4 x 4 patches
    "encoder#vit_options": {"depth": 2, "embed_dim": 32, "num_heads": 2},
    "runtime": "torch",
    "precision": "fp32",
    "show_progress": False,
}


def inference_config():
    """Read `configs/inference.json` without a field of view, else it is that of a models/model.pt that is there."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / "inference.json"))
    parser["field_of_view"] = None
    return parser


def run_configs(run_id, configs, **overrides):
    """Run `python -m monai.bundle run <run_id>` of configs that overlay one another, with a tiny encoder."""
    fit = {"pretrained_encoder": "@encoder"} if configs[0] == "train" else {}
    run_workflow(run_id, configs, **{**TINY, **fit, **overrides})


def run_workflow(run_id, configs, **overrides):
    """Run `python -m monai.bundle run <run_id>` of configs that overlay one another."""
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / f"{name}.json") for name in configs],
        workflow_type=configs[0],
        run_id=run_id,
        bundle_root=str(ROOT),
        logging_file=False,
        **{"show_progress": False, **overrides},
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def run_bundle(run_id, **overrides):
    """Run the config that has this id, with a tiny encoder."""
    if run_id == "training":
        run_configs(run_id, ["train"], **{"max_epochs": 2, **overrides})
    else:
        run_configs(run_id, ["inference"], **overrides)
