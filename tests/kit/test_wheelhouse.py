"""Pins of a target, and the choice of its wheels in a folder with those of others."""

import pytest

from kit.builder import PYTHONS, REQUIREMENTS
from kit.install import GLIBC_MINOR
from kit.wheelhouse import CUDA, Target, find_wheels, lock, read_wheel
from scripts.errors import InputError
from tests.kit.tiny_wheels import write_wheel


@pytest.fixture
def target(tmp_path):
    """Return a function that makes targets of two pins."""
    (tmp_path / "pins.txt").write_text("tiny==1.0\ntorch==2.0\n")
    return lambda python="3.11.0", platform="gpu": Target(tmp_path / "pins.txt", python, GLIBC_MINOR, platform)


@pytest.mark.parametrize("python", PYTHONS)
def test_pins_are_the_same_for_every_release_of_a_python(python):
    first, later = (Target(REQUIREMENTS, f"{python}.{patch}", GLIBC_MINOR, "gpu").pins() for patch in (0, 99))
    assert first == later and {"torch", "monai", "openvino"} <= set(first)


@pytest.mark.parametrize("python", PYTHONS)
def test_platform_without_gpu_leaves_out_what_only_a_gpu_uses(python):
    gpu, cpu = (Target(REQUIREMENTS, f"{python}.0", GLIBC_MINOR, platform).pins() for platform in ("gpu", "cpu"))
    assert {name for name in gpu if f"{name}==".startswith(CUDA)} == set(gpu) - set(cpu) != set()


def test_wheels_of_each_python_are_found_in_one_folder(target, tmp_path):
    for python in ("cp310", "cp311"):
        write_wheel(tmp_path, "torch", "2.0", f"{python}-{python}-manylinux_2_28_x86_64")
    write_wheel(tmp_path, "torch", "2.0", "cp311-cp311-manylinux_2_34_x86_64")  # for a later glibc
    write_wheel(tmp_path, "torch", "2.0", "cp311-cp311-manylinux_2_28_aarch64")
    write_wheel(tmp_path, "torch", "2.1", "cp311-cp311-manylinux_2_28_x86_64")
    write_wheel(tmp_path, "tiny")
    for python in ("3.10.0", "3.11.0"):
        tiny, torch = find_wheels(tmp_path, target(python))
        tag = f"cp{python[0]}{python[2:4]}"
        assert torch.path.name == f"torch-2.0-{tag}-{tag}-manylinux_2_28_x86_64.whl" and tiny.name == "tiny"
        assert lock([tiny]) == f"tiny==1.0 --hash=sha256:{read_wheel(tiny.path).sha256}\n"


def test_wheels_that_fit_less_well_come_second(target, tmp_path):
    write_wheel(tmp_path, "torch", "2.0")
    for tag in ("py3-none-any", "cp38-abi3-manylinux2014_x86_64", "cp311-cp311-manylinux_2_28_x86_64"):
        write_wheel(tmp_path, "tiny", tag=tag)
        assert find_wheels(tmp_path, target())[0].path.name.endswith(f"{tag}.whl")


def test_torch_of_a_gpu_is_none_for_a_platform_without(target, tmp_path):
    write_wheel(tmp_path, "tiny")
    write_wheel(tmp_path, "torch", "2.0")
    with pytest.raises(InputError, match=r"lacks the wheels of torch==2.0; .*\+cpu"):
        find_wheels(tmp_path, target(platform="cpu"))
    write_wheel(tmp_path, "torch", "2.0+cpu")
    for platform in ("cpu", "gpu"):
        assert find_wheels(tmp_path, target(platform=platform))[1].version == "2.0+cpu"
