"""A kit with tiny wheels, made by the real builder."""

import ensurepip
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from dpmm.weights import FILES
from kit import builder
from kit.wheelhouse import read_wheel
from tests.kit.tiny_wheels import write_command_wheel, write_wheel

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


def pip_wheel():
    """Return the wheel of pip that comes with Python; a Debian has it elsewhere."""
    folders = [Path(ensurepip.__file__).parent / "_bundled", sysconfig.get_config_var("WHEEL_PKG_DIR")]
    folders.append("/usr/share/python-wheels")
    wheels = [wheel for folder in filter(None, folders) for wheel in Path(folder).glob("pip-*.whl")]
    if not wheels:
        pytest.skip(f"no wheel of pip in {folders}")
    return wheels[0]


@pytest.fixture(scope="session")
def build_tiny(tmp_path_factory):
    """Return a function that builds a kit of tiny wheels, without a network."""
    folder = tmp_path_factory.mktemp("sources")
    write_wheel(folder / "index", "tiny")
    pip = pip_wheel()
    shutil.copy(pip, folder / "index")
    (folder / "pip.txt").write_text(f"pip=={read_wheel(pip).version}\n")
    (folder / "pins.txt").write_text('tiny==1.0 ; sys_platform == "linux"\nabsent==1.0 ; python_version < "3"\n')
    (folder / FILES[1]).write_text("tiny weights")

    def build(output, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PIP_NO_INDEX", "1")
            patch.setenv("PIP_FIND_LINKS", str(folder / "index"))
            patch.setattr(builder, "REQUIREMENTS", folder / "pins.txt")
            patch.setattr(builder, "PIP", folder / "pip.txt")
            patch.setattr(builder, "download_weights", lambda models_dir: folder / FILES[1])
            patch.setattr(builder, "build_wheel", lambda wheels: read_wheel(write_command_wheel(wheels)))
            return builder.build_kit(output, [PYTHON], **options)

    return build


@pytest.fixture(scope="session")
def tiny_kit(build_tiny, tmp_path_factory):
    """Return the folder of a kit of tiny wheels, whose name has spaces. Tests leave it as it is."""
    kit = tmp_path_factory.mktemp("a kit") / "of tiny wheels"
    build_tiny(kit)
    return kit
