"""Wheels of a few lines, which pip installs in no time."""

from pathlib import Path
from zipfile import ZipFile, ZipInfo

METADATA = "Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nLicense-Expression: MIT\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
# A command that does what the installer asks of the real one, or kills the installer if a variable says so.
COMMAND = """
import os, signal, sys
from pathlib import Path

def main():
    if os.environ.get("TINY_COMMAND") == "kills":
        os.kill(os.getppid(), signal.SIGKILL)
    for weights in Path(__file__).parent.glob("bundle/models/*.pth"):
        print(weights.read_text(), *sys.argv[1:])
"""


def write_wheel(folder, name, version="1.0", tag="py3-none-any", **files):
    """Write a wheel; ``files`` are texts by their paths in it."""
    info = f"{name}-{version}.dist-info"
    content = {f"{info}/METADATA": METADATA.format(name=name, version=version), f"{info}/WHEEL": WHEEL, **files}
    path = Path(folder) / f"{name}-{version}-{tag}.whl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with ZipFile(path, "w") as archive:
        for file, text in content.items():
            archive.writestr(ZipInfo(file), text)  # without the time, so that the same wheel has the same sum
        archive.writestr(ZipInfo(f"{info}/RECORD"), "".join(f"{file},,\n" for file in [*content, f"{info}/RECORD"]))
    return path


def write_command_wheel(folder):
    """Write a wheel with a stand-in for the command `dpmm` and its bundle."""
    files = {
        "dpmm/__init__.py": COMMAND,
        "dpmm/bundle/models/README.md": "weights",
        "dinov2_dpmm_anomaly-1.0.dist-info/entry_points.txt": "[console_scripts]\ndpmm = dpmm:main\n",
    }
    return write_wheel(folder, "dinov2_dpmm_anomaly", **files)
