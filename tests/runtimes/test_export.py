"""TorchScript and ONNX exports by `monai.bundle` equal the network."""

import json
import shutil
import tempfile

import nibabel as nib
import numpy as np
import onnx
import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export, onnx_export

from scripts.errors import InputError, cause_of
from scripts.export_bundle import export_bundle
from scripts.inference.inferer import DPMMInferer
from scripts.models.mixture import DirichletProcessMixture
from scripts.models.mixture.dirichlet_process import COVARIANCE_TYPES
from scripts.runtimes import export as exports
from scripts.runtimes.export import ExportableNetwork, load_exported
from tests.conftest import make_encoder
from tests.tiny_bundle import TINY, inference_config, run_bundle, run_configs
from tests.tiny_cases import brain, save

pytestmark = pytest.mark.slow

SHAPES = [(2, 1, 60, 45), (1, 3, 45, 60), (1, 1, 14, 90), (3, 3, 130, 131), (1, 1, 40, 46, 3), (2, 3, 56, 57, 2)]


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


def export(bundle, **overrides):
    """Make both exports with the documented commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bundle)
        ckpt_export(config_file="configs/inference.json", **overrides)
        onnx_export(args_file="configs/onnx_export.json", **overrides)


def eager(bundle):
    parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    parser["ckpt_path"] = str(bundle / "models" / "model.pt")
    parser["device"] = "cpu"
    return parser.get_parsed_content("fitted_network")


@pytest.fixture(scope="module")
def bundle(shipped, tmp_path_factory):
    """A copy of the bundle with both exports."""
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    shutil.copytree(shipped, folder)
    temporary = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        export(folder)
    assert not [path for path in temporary.rglob("*") if path.is_file() and path.stat().st_size > 0]
    return folder


@pytest.fixture(scope="module", params=["model.ts", "model.onnx"])
def exported(request, bundle):
    return bundle / "models" / request.param


class TestEquality:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_maps_equal_the_network(self, bundle, exported, shape):
        inferer, given = DPMMInferer(), images(*shape)
        torch.testing.assert_close(
            inferer(given, load_exported(exported)), inferer(given, eager(bundle)), rtol=1e-4, atol=1e-4
        )

    def test_several_scales_and_smoothed_student_t(self, tmp_path):
        for seed in range(5):
            save(tmp_path / "normals" / f"{seed}.nii.gz", brain(seed))
        fit = {"scales": [1.0, 0.75], "distribution": "student_t", "patch_smoothing": 0.5}
        given = {**fit, "output_dir": str(tmp_path / "fit"), "ckpt_path": str(tmp_path / "model.pt")}
        run_bundle("training", dataset_dir=str(tmp_path / "normals"), **given)
        export_bundle(tmp_path / "model.pt", tmp_path / "bundle", **{**TINY, **fit})
        export(tmp_path / "bundle")
        for shape in SHAPES[:4]:
            expected = eager(tmp_path / "bundle")(images(*shape))
            for name in ("model.ts", "model.onnx"):
                found = load_exported(tmp_path / "bundle" / "models" / name)(images(*shape))
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_one_file_is_enough(self, bundle, tmp_path):
        for name in ("model.ts", "model.onnx"):
            shutil.copy(bundle / "models" / name, tmp_path)
            assert load_exported(tmp_path / name)(images(1, 1, 50, 50)).shape == (1, 1, 50, 50)
        extra = {"metadata.json": "", "inference.json": ""}
        torch.jit.load(tmp_path / "model.ts", _extra_files=extra)
        assert json.loads(extra["inference.json"])["image_size"] == 56
        assert json.loads(extra["metadata.json"])["version"]

    def test_onnx_sizes_are_dynamic(self, bundle):
        model = onnx.load(bundle / "models" / "model.onnx")
        onnx.checker.check_model(model)
        names = [dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim]
        assert names == ["batch", "channels", "height", "width"]

    def test_run_writes_the_same_masks_and_maps(self, bundle, exported, tmp_path):
        save(tmp_path / "in" / "case.nii.gz", brain(50, lesion=(slice(16, 22), slice(20, 26), slice(2, 4))))
        given = {"dataset_dir": str(tmp_path / "in"), "ckpt_path": str(bundle / "models" / "model.pt")}
        run_configs("inference", ["inference"], **given, output_dir=str(tmp_path / "eager"))
        given = {**given, "ckpt_path": str(exported), "detection_limits#path": given["ckpt_path"]}
        run_configs("inference", ["inference", "exported"], **given, output_dir=str(tmp_path / "out"))
        for kind, slack in (("map", 1e-4), ("mask", 0)):
            expected, found = (
                np.asarray(nib.load(tmp_path / run / "case" / f"case_{kind}.nii.gz").dataobj)
                for run in ("eager", "out")
            )
            np.testing.assert_allclose(found, expected, rtol=0, atol=slack)
            assert expected.max() >= 1
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert summary["settings"]["ckpt_path"] == str(exported) and summary["settings"]["score"] is None
        assert summary["encoder_weights_digest"] is None


class Scores(torch.nn.Module):
    def __init__(self, mixture, kind):
        super().__init__()
        self.mixture, self.kind = mixture, kind
        self.register_buffer("active", mixture.active())

    def forward(self, x):
        return self.mixture.anomaly_score(x, self.kind, self.active)


class TestTracing:
    @pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
    def test_scores_for_any_number_of_patches(self, covariance_type):
        x = images(200, 12)
        mixture = DirichletProcessMixture(6, 12, covariance_type, reg_covar=1e-3, rank=3)
        mixture.initialize(x, generator=torch.Generator().manual_seed(0))
        mixture.partial_fit(x, 1.0)
        for kind in mixture.score_kinds:
            sizes = {"x": {0: torch.export.Dim.DYNAMIC}}
            traced = torch.export.export(Scores(mixture, kind), (x[:50],), dynamic_shapes=sizes).module()
            torch.testing.assert_close(traced(x), mixture.anomaly_score(x, kind), rtol=1e-4, atol=1e-4, msg=kind)

    @pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg"])
    def test_positions_for_every_size(self, name):
        network = make_encoder(name=name)
        sizes = {"images": {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}}
        traced = torch.export.export(network, (images(1, 3, 28, 42),), dynamic_shapes=sizes).module()
        for shape in [(1, 3, 518, 518), (1, 3, 518, 28), (1, 3, 42, 532)]:  # 518: the grid that was learned
            torch.testing.assert_close(traced(images(*shape)), network(images(*shape)), rtol=1e-5, atol=1e-5)

    def test_exportable_network_loads_another_fit(self, make_network):
        network, other = make_network(), make_network(target_fpr=0.1)
        traceable, given = ExportableNetwork(network), images(1, 3, 50, 60)
        state = other.state_dict()
        state["calibration.quantiles"] = state["calibration.quantiles"] * 2
        del state["_extra_state"]["digest"]  # that of the original thresholds
        traceable.load_state_dict(state)
        torch.testing.assert_close(traceable(given), network(given))
        assert not torch.allclose(traceable(given), make_network()(given))


class TestErrors:
    def test_unfitted_network_raises(self, shipped, tmp_path):
        bundle = tmp_path / "bundle"
        shutil.copytree(shipped, bundle)
        model = bundle / "models" / "model.pt"
        state = torch.load(model, weights_only=True)
        state["calibration.quantiles"].fill_(float("nan"))
        del state["_extra_state"]["digest"]  # that of the original thresholds
        torch.save(state, model)
        for command, arguments in (
            (ckpt_export, {"config_file": "configs/inference.json"}),
            (onnx_export, {"args_file": "configs/onnx_export.json"}),
        ):
            with pytest.MonkeyPatch.context() as patch, pytest.raises(Exception) as raised:
                patch.chdir(bundle)
                command(**arguments)
            assert isinstance(cause_of(raised.value), InputError)
            assert "calibrated" in str(cause_of(raised.value)) and "configs/train.json" in str(cause_of(raised.value))
        model.unlink()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Exception) as raised:
            patch.chdir(bundle)
            onnx_export(args_file="configs/onnx_export.json")
        assert "There is no fitted model" in str(cause_of(raised.value))
        assert {path.name for path in (bundle / "models").iterdir()} == set()

    @pytest.mark.parametrize("name", ["model.ts", "model.onnx"])
    def test_missing_or_damaged_export_raises(self, tmp_path, name):
        with pytest.raises(InputError, match=rf"no exported network .*{name}; make it with `python -m monai\.bundle"):
            load_exported(tmp_path / name)
        (tmp_path / name).write_text("not a network")
        with pytest.raises(InputError, match=r"make it anew with `python -m monai\.bundle"):
            load_exported(tmp_path / name)

    def test_other_files_raise(self, tmp_path):
        with pytest.raises(InputError, match=r"\.ts or \.onnx file; got .*model\.pt"):
            load_exported(tmp_path / "model.pt")
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "other", [value], [])
        graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1]))
        other = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(other, tmp_path / "other.onnx")
        with pytest.raises(InputError, match="expected image in and pred out"):
            load_exported(tmp_path / "other.onnx")

    def test_missing_onnxruntime_raises(self, tmp_path, monkeypatch):
        monkeypatch.setattr(exports, "has_onnxruntime", False)
        with pytest.raises(InputError, match="pip install onnxruntime"):
            load_exported(tmp_path / "model.onnx")


class TestRealFit:
    @pytest.mark.real_weights
    def test_exports_agree_on_real_slices(self, shared, real_fit, tmp_path):
        data = shared / "data" / "brain_t1"
        export_bundle(real_fit / "model.pt", tmp_path / "bundle")
        export(tmp_path / "bundle")

        network, inferer = eager(tmp_path / "bundle"), DPMMInferer()
        preprocess = inference_config().get_parsed_content("preprocessing")
        volume = preprocess({"image": str(data / "anomalous" / "images" / "sub-32_lesion-1.nii.gz")})["image"]
        picture = preprocess({"image": str(next((shared / "data" / "brain_tumour_png" / "test").rglob("*.jpg")))})[
            "image"
        ]
        for given in (volume[None, ..., 2:6], picture[None]):
            expected = inferer(given, network)
            for name in ("model.ts", "model.onnx"):
                found = inferer(given, load_exported(tmp_path / "bundle" / "models" / name))
                torch.testing.assert_close(found, expected, rtol=0, atol=3e-4)
                assert ((found >= 1) != (expected >= 1)).float().mean() <= 1e-4
            assert (expected >= 1).any()
