"""Runtimes of the encoder: equal embeddings, equal masks, and errors for unavailable ones."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, LoadImage, Orientation, ResampleToMatch
from sklearn.metrics import average_precision_score, roc_auc_score

from scripts.data.transforms import UPRIGHT
from scripts.errors import InputError
from scripts.inference.inferer import DPMMInferer
from scripts.models.checkpoint import load_network, save_network
from scripts.models.encoder import EncoderBackend
from scripts.runtimes import auto, openvino_backend, quantization, select_runtime, selection
from scripts.runtimes.cache import RuntimeCache
from scripts.runtimes.encoder import export_blocks
from scripts.runtimes.onnxruntime_backend import CPU, OnnxRuntimeBackend, providers_for
from scripts.runtimes.openvino_backend import OpenVINOBackend
from scripts.runtimes.torch_backend import TorchBackend
from tests.conftest import make_encoder
from tests.tiny_bundle import ROOT, run_bundle, run_configs, run_workflow

pytestmark = pytest.mark.slow

SIZES = ((56, 56), (56, 84), (70, 42))


@pytest.fixture
def saved(fitted_network, tmp_path):
    save_network(fitted_network, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def images():
    return torch.rand(2, 1, 60, 75, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def no_bf16(monkeypatch):
    """A processor without bf16."""
    monkeypatch.setattr(selection, "_has_bf16", lambda runtime: False)


def make_backend(runtime, path):
    if runtime == "openvino":
        return OpenVINOBackend(path, "fp32")
    return OnnxRuntimeBackend(path, [CPU], "onnxruntime fp32")


def embed(encoder, backend, images):
    encoder.backend = backend
    try:
        return encoder(images)
    finally:
        encoder.backend = None


class TestBackends:
    @pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
    @pytest.mark.parametrize(
        "arguments", [{}, {"layers": [0, -1]}, {"scales": [1.0, 0.75]}, {"name": "dinov2_vits14_reg"}], ids=str
    )
    def test_embeddings_equal_torch(self, runtime, arguments, tmp_path):
        encoder = make_encoder(**arguments)
        export_blocks(encoder, tmp_path / "blocks.onnx")
        backend = make_backend(runtime, tmp_path / "blocks.onnx")
        for batch_size, size in enumerate(SIZES, start=1):
            images = torch.rand(batch_size, 3, *size)
            torch.testing.assert_close(embed(encoder, backend, images), encoder(images), rtol=0, atol=1e-5)

    def test_many_sizes_share_compiled_blocks(self, tmp_path):
        encoder = make_encoder()
        export_blocks(encoder, tmp_path / "blocks.onnx")
        backend = OpenVINOBackend(tmp_path / "blocks.onnx", "fp32")
        for width in range(2, 2 + 2 * openvino_backend.FIXED_SHAPES):
            images = torch.rand(1, 3, 28, 14 * width)
            torch.testing.assert_close(embed(encoder, backend, images), encoder(images), rtol=0, atol=1e-5)
        assert len(backend.compiled) == openvino_backend.FIXED_SHAPES + 1


class TestTorchBackend:
    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    def test_half_precision_is_close(self, precision):
        encoder, images = make_encoder(), torch.rand(2, 3, 56, 70)
        found = embed(encoder, TorchBackend(encoder, precision), images)
        expected = encoder(images)
        assert found.dtype == torch.float32
        assert (found * expected).sum(1).min() > 0.999
        assert not torch.allclose(found, expected, rtol=0, atol=1e-6)  # or it was not in half precision

    def test_compiled_blocks_equal_eager(self):
        encoder, images = make_encoder(), torch.rand(1, 3, 28, 42)
        found = embed(encoder, TorchBackend(encoder, compiled=True), images)
        torch.testing.assert_close(found, encoder(images), rtol=0, atol=1e-5)

    @pytest.mark.parametrize(("fits", "expected"), [(2, [5, 2, 2, 1]), (1, [5, 2, 1, 1, 1, 1, 1])])
    def test_low_gpu_memory_reduces_batches(self, monkeypatch, caplog, fits, expected):
        encoder, images, seen = make_encoder(), torch.rand(5, 3, 28, 28), []
        backend = TorchBackend(encoder)
        run = backend.run

        def short_of_memory(batch, positions):
            seen.append(len(batch))
            if len(batch) > fits:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run(batch, positions)

        monkeypatch.setattr(backend, "run", short_of_memory)
        torch.testing.assert_close(embed(encoder, backend, images), encoder(images))
        assert seen == expected
        assert f"going on with {fits}" in caplog.text

    def test_full_gpu_memory_falls_back_to_the_cpu(self, monkeypatch, caplog):
        encoder, images = make_encoder(), torch.rand(2, 3, 28, 28)
        backend = TorchBackend(encoder)
        run = backend.run

        def without_memory(batch, positions):
            if not backend.on_cpu:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run(batch, positions)

        monkeypatch.setattr(backend, "run", without_memory)
        for _ in range(2):
            torch.testing.assert_close(embed(encoder, backend, images), encoder(images))
        assert caplog.text.count("goes on on the CPU") == 1


class TestSelectRuntime:
    def test_tensorrt_comes_first_with_its_cache(self, tmp_path):
        (name, settings), *others = providers_for("tensorrt", "bf16", torch.device("cuda", 1), tmp_path)
        assert name == "TensorrtExecutionProvider"
        assert settings["trt_bf16_enable"]
        assert not settings["trt_fp16_enable"]
        assert settings["device_id"] == 1
        assert settings["trt_engine_cache_path"] == str(tmp_path)
        assert others[-1] == CPU

    @pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
    def test_maps_equal_torch(self, runtime, fitted_network, saved, images):
        expected = fitted_network(images)
        network = select_runtime(fitted_network, saved, runtime, "fp32")
        torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-4)
        assert network.encoder.backend_name == f"{runtime} fp32"

    def test_torch_fp32_is_exact(self, fitted_network, saved, images):
        expected = fitted_network(images)
        assert torch.equal(select_runtime(fitted_network, saved, "torch", "fp32")(images), expected)
        assert not saved.with_suffix(".compiled").exists()

    @pytest.mark.parametrize(
        ("runtime", "precision", "expected"),
        [
            (
                "tensorflow",
                "auto",
                "runtime must be one of auto, torch, openvino, onnxruntime, tensorrt; got 'tensorflow'",
            ),
            ("auto", "fp8", "precision must be one of auto, fp32, bf16, fp16, int8; got 'fp8'"),
            ("torch", "int8", "runtime torch has no precision int8 on device cpu; there are openvino int8"),
            ("tensorrt", "auto", "runtime tensorrt has no precision auto on device cpu"),
            ("openvino", "int8", "a quantised form of this very model"),
            ("auto", "int8", "a quantised form of this very model"),
            ("torch", "bf16", "bf16 with torch needs a processor that multiplies in it"),
            ("openvino", "bf16", "bf16 with openvino needs a processor that multiplies in it"),
        ],
    )
    def test_unavailable_combination_raises(self, runtime, precision, expected, fitted_network, saved, no_bf16):
        with pytest.raises(InputError) as raised:
            select_runtime(fitted_network, saved, runtime, precision)
        assert expected in str(raised.value)

    @pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
    def test_missing_package_raises(self, runtime, fitted_network, saved, monkeypatch):
        monkeypatch.setattr(selection, f"has_{runtime}", False)
        with pytest.raises(
            InputError, match=f"{runtime}, which is not installed; `pip install -r requirements-fast.txt`"
        ):
            select_runtime(fitted_network, saved, runtime, "fp32")

    def test_failing_start_raises(self, fitted_network, saved, monkeypatch):
        monkeypatch.setattr(selection, "OpenVINOBackend", lambda *_: 1 / 0)
        with pytest.raises(
            InputError, match=r"openvino fp32 does not start here \(division by zero\); take runtime auto"
        ):
            select_runtime(fitted_network, saved, "openvino", "fp32")


class SpoiltBackend(EncoderBackend):
    def __init__(self, path, precision):
        super().__init__(f"openvino {precision}")

    def __call__(self, images, positions):
        n_patches = images.shape[2] // 14 * images.shape[3] // 14
        return [torch.rand(len(images), n_patches, 32, generator=torch.Generator().manual_seed(0))]


class TestAutoBackend:
    def test_takes_the_fastest_that_keeps_the_mask(self, fitted_network, saved, images, caplog):
        caplog.set_level(logging.INFO, "scripts")
        expected = fitted_network(images)
        network = select_runtime(fitted_network, saved)
        found = network(images)
        fastest = "openvino bf16" if openvino_backend.has_bf16() else "openvino fp32"
        assert network.encoder.backend_name == fastest
        assert f"the encoder runs in {fastest}, the fastest here that keeps the mask" in caplog.text
        assert ((found >= 1) != (expected >= 1)).float().mean() < 0.01

    def test_missing_packages_are_logged(self, fitted_network, saved, images, monkeypatch, caplog, no_bf16):
        for name in ("has_openvino", "has_onnxruntime"):
            monkeypatch.setattr(selection, name, False)
        expected = fitted_network(images)
        network = select_runtime(fitted_network, saved)
        assert torch.equal(network(images), expected)
        assert network.encoder.backend_name == "torch fp32"
        assert "runtime openvino needs openvino, which is not installed" in caplog.text
        assert "bf16 with torch needs a processor" in caplog.text

    def test_rejects_a_changed_mask_and_remembers(self, fitted_network, saved, monkeypatch, caplog, no_bf16):
        images = torch.rand(4, 1, 56, 56, generator=torch.Generator().manual_seed(1))
        expected = fitted_network(images)
        assert (expected >= 1).float().mean() < 0.1  # noise is what the network was fitted on
        monkeypatch.setattr(selection, "OpenVINOBackend", SpoiltBackend)
        network = select_runtime(fitted_network, saved)
        torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-4)
        assert network.encoder.backend_name == "onnxruntime fp32"
        assert "openvino fp32 would not keep the mask" in caplog.text

        network.encoder.backend = None
        monkeypatch.setattr(auto.AutoBackend, "_compare", None)  # would fail where it is called
        assert select_runtime(network, saved).encoder.backend_name == "onnxruntime fp32"

    def test_skips_a_failing_start(self, fitted_network, saved, images, monkeypatch, caplog, no_bf16):
        monkeypatch.setattr(selection, "OpenVINOBackend", lambda *_: 1 / 0)
        network = select_runtime(fitted_network, saved)
        network(images)
        assert network.encoder.backend_name == "onnxruntime fp32"
        assert "openvino fp32 does not run the encoder here (division by zero); taking the next" in caplog.text

    def test_falls_back_to_torch(self, fitted_network, saved, monkeypatch, caplog):
        images = torch.rand(4, 1, 56, 56, generator=torch.Generator().manual_seed(1))
        expected = fitted_network(images)
        monkeypatch.setattr(selection, "OpenVINOBackend", SpoiltBackend)
        network = select_runtime(fitted_network, saved, "openvino", "auto")
        torch.testing.assert_close(network(images), expected)
        assert network.encoder.backend_name == "torch fp32"
        assert "None of what was asked for keeps the mask" in caplog.text


class TestRuntimeCache:
    def test_blocks_are_exported_once(self, fitted_network, saved, monkeypatch):
        path = RuntimeCache(saved).blocks(fitted_network.encoder)
        monkeypatch.setattr("scripts.runtimes.cache.export_blocks", None)
        assert RuntimeCache(saved).blocks(fitted_network.encoder) == path
        assert path.parent.parent == saved.with_suffix(".compiled")

    def test_new_checkpoint_replaces_the_files(self, fitted_network, saved, images):
        select_runtime(fitted_network, saved, "openvino", "fp32")
        old = RuntimeCache(saved).folder
        fitted_network.encoder = make_encoder()
        fitted_network.encoder.vit.blocks[0].mlp.fc1.weight.data.mul_(2)
        expected = fitted_network(images)
        save_network(fitted_network, saved)
        found = select_runtime(fitted_network, saved, "openvino", "fp32")(images)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert not old.exists()

    def test_unwritable_folder_is_replaced(self, fitted_network, saved, images, caplog):
        saved.with_suffix(".compiled").write_text("in the way")
        expected = fitted_network(images)
        network = select_runtime(fitted_network, saved, "openvino", "fp32")
        torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-4)
        assert "cannot be kept beside the model" in caplog.text
        assert saved.with_suffix(".compiled").read_text() == "in the way"


@pytest.fixture(scope="module")
def quantised(shipped, tmp_path_factory):
    """A folder with ``model.pt`` and its quantised form, both calibrated on the same held-out case."""
    folder = tmp_path_factory.mktemp("quantised")
    given = {"dataset_dir": str(shipped.parent / "normals"), "ckpt_path": str(folder / "model.pt")}
    run_bundle("training", **given, output_dir=str(folder / "fit"), calibration_folds="off")
    run_configs("quantize", ["train", "quantize"], **given, output_dir=str(folder / "output"))
    return folder


def infer(quantised, shipped, output, **settings):
    run_configs(
        "inference",
        ["inference"],
        dataset_dir=str(shipped.parent / "normals"),
        output_dir=str(output),
        ckpt_path=str(quantised / "model.pt"),
        report=False,
        **settings,
    )
    return json.loads((output / "summary.json").read_text())


class TestQuantization:
    @pytest.mark.parametrize("score", ["negative_log_likelihood", "cosine"])
    def test_auto_run_writes_report_and_summary(self, score, shipped, tmp_path):
        shutil.copy(shipped / "models" / "model.pt", tmp_path)
        run_configs(
            "inference",
            ["inference"],
            dataset_dir=str(shipped.parent / "normals"),
            output_dir=str(tmp_path / "out"),
            ckpt_path=str(tmp_path / "model.pt"),
            runtime="auto",
            precision="auto",
            score=score,
        )
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert summary["failed"] == {}
        assert summary["encoder_runs_in"].split()[0] in ("openvino", "torch")
        assert (tmp_path / "out" / "report.html").is_file()
        assert (tmp_path / "model.compiled").is_dir()

    @pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
    def test_int8_scores_are_close(self, runtime, quantised, shipped, tmp_path):
        expected = infer(quantised, shipped, tmp_path / "fp32", runtime="torch", precision="fp32")
        found = infer(quantised, shipped, tmp_path / "int8", runtime=runtime, precision="int8")
        assert found["encoder_runs_in"] == f"{runtime} int8"
        assert expected["encoder_runs_in"] == "torch fp32"
        for case, other in zip(found["cases"], expected["cases"], strict=True):
            assert case["image_score"] == pytest.approx(other["image_score"], abs=0.3)
            assert case["image_score"] != other["image_score"]

    def test_int8_has_its_own_thresholds(self, quantised):
        thresholds = torch.load(RuntimeCache(quantised / "model.pt").thresholds, weights_only=True)
        fitted = torch.load(quantised / "model.pt", weights_only=True)
        assert thresholds["rates"].equal(fitted["calibration.rates"])
        assert not thresholds["quantiles"].equal(fitted["calibration.quantiles"])
        torch.testing.assert_close(
            thresholds["quantiles"], fitted["calibration.quantiles"], rtol=0.2, atol=20, equal_nan=True
        )

    def test_failing_int8_keeps_the_thresholds(self, quantised, shipped, tmp_path, monkeypatch):
        expected = infer(quantised, shipped, tmp_path / "fp32", runtime="torch", precision="fp32")
        monkeypatch.setattr(selection, "OpenVINOBackend", lambda *_: 1 / 0)
        monkeypatch.setattr(selection, "OnnxRuntimeBackend", lambda *_: 1 / 0)
        monkeypatch.setattr(selection, "_has_bf16", lambda runtime: False)
        found = infer(quantised, shipped, tmp_path / "auto", runtime="auto", precision="auto")
        assert found["encoder_runs_in"] == "torch fp32"
        assert found["cases"] == expected["cases"]

    def test_refitted_model_is_not_quantised(self, quantised, shipped, tmp_path):
        shutil.copytree(quantised / "model.compiled", tmp_path / "model.compiled")
        state = torch.load(quantised / "model.pt", weights_only=True)
        state["mixture.weight_concentration"] += 1
        del state["_extra_state"]["digest"]  # of the fit before
        torch.save(state, tmp_path / "model.pt")
        with pytest.raises(RuntimeError) as raised:
            infer(tmp_path, shipped, tmp_path / "out", runtime="auto", precision="int8")
        assert "a quantised form of this very model" in str(raised.value.__cause__)
        assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def real_quantised(real_fit, tmp_path_factory):
    """The model of the short real fit, quantised on a few slices."""
    folder = tmp_path_factory.mktemp("real_quantised")
    shutil.copy(real_fit / "model.pt", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "SLICES", 12)
        run_workflow(
            "quantize",
            ["train", "quantize"],
            n_components=100,
            dataset_dir=str(real_fit / "normal"),
            validation_dir=str(real_fit / "validation"),
            output_dir=str(folder / "output"),
            ckpt_path=str(folder / "model.pt"),
        )
    return folder / "model.pt"


@pytest.fixture(scope="module")
def judged(shared, real_quantised):
    """Pixel AUROC and average precision on lesions, by runtime and precision."""
    data, found = shared / "data" / "brain_t1" / "anomalous", {}
    config = ConfigParser(json.loads((ROOT / "configs" / "inference.json").read_text()))
    config.update({"n_components": 100, "ckpt_path": str(real_quantised)})
    preprocess, inferer = config.get_parsed_content("preprocessing"), DPMMInferer(slice_batch_size=1)
    read = Compose([LoadImage(ensure_channel_first=True), Orientation(UPRIGHT, labels=None)])
    names = [f"sub-{number}_lesion-{lesion}.nii.gz" for number, lesion in ((33, 1), (35, 2), (38, 1))]
    volumes = [preprocess({"image": str(data / "images" / name)})["image"][None] for name in names]
    match = ResampleToMatch(mode="nearest", padding_mode="zeros")  # the images have the field of view of the fit
    truths = [match(read(data / "labels" / name), volume[0]) for name, volume in zip(names, volumes, strict=True)]
    labels = np.concatenate([np.asarray(truth).ravel() > 0 for truth in truths])

    def judge(runtime, precision):
        if (runtime, precision) not in found:
            network = load_network(config.get_parsed_content("network_def", instantiate=True), real_quantised)
            select_runtime(network, real_quantised, runtime, precision)
            with torch.no_grad():
                scores = np.concatenate([inferer(volume, network).numpy().ravel() for volume in volumes])
            found[runtime, precision] = roc_auc_score(labels, scores), average_precision_score(labels, scores)
        return found[runtime, precision]

    return judge


class TestRealFit:
    @pytest.mark.real_weights
    @pytest.mark.parametrize(
        ("runtime", "precision", "auroc_bound", "ap_bound"),
        [
            ("openvino", "fp32", 0.0001, 0.001),
            ("onnxruntime", "fp32", 0.0001, 0.001),
            ("openvino", "bf16", 0.002, 0.02),
            ("torch", "bf16", 0.002, 0.02),
            ("openvino", "int8", 0.005, 0.05),
            ("onnxruntime", "int8", 0.005, 0.05),
        ],
    )
    def test_lesion_metrics_equal_single_precision(self, judged, runtime, precision, auroc_bound, ap_bound):
        if precision == "bf16" and not selection._has_bf16(runtime):
            pytest.skip("this processor does not multiply in bf16")
        auroc, ap = judged("torch", "fp32")
        assert ap > 0.1
        found_auroc, found_ap = judged(runtime, precision)
        assert found_auroc == pytest.approx(auroc, abs=auroc_bound)
        assert found_ap == pytest.approx(ap, rel=ap_bound)
