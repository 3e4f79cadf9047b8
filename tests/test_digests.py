"""Digests that identify objects, or None."""

import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.data.transforms import SmoothMapd
from scripts.digests import _source_digest, object_digest
from tests.tiny_bundle import ROOT

CODE = """
import functools, re, sys
from pathlib import Path
import numpy as np, torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism
sys.path.insert(0, {root!r})
from scripts.digests import object_digest
set_determinism(0)
parser = ConfigParser({{"preprocessing": ConfigParser.load_config_file({config!r})["preprocessing"],
                        "intensities": {{"_target_": "ScaleIntensityd", "keys": "image"}},
                        "field_of_view": 150.0, "spatial_dim": 2, "views": None}})
things = [parser.get_parsed_content("preprocessing"), functools.partial(max, 1), torch.float32, torch.device("cpu"),
          Path("/x"), {{"a", "b", "c"}}, np.arange(3), re.compile("x"), [1, (2.5, None, True)], b"x"]
print([object_digest(thing) for thing in things])
"""


class Local:
    def __init__(self, value):
        self.value = value


def made_inside():
    class Inner:
        pass

    return Inner()


class TestDigestOf:
    @pytest.mark.slow
    def test_equal_in_every_process(self, capsys):
        code = CODE.format(root=str(ROOT), config=str(ROOT / "configs" / "inference.json"))
        environment = {**os.environ, "PYTHONHASHSEED": "4711"}
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        exec(code, {})
        here = capsys.readouterr().out.splitlines()[-1]
        assert done.stdout.splitlines()[-1] == here and "None" not in here

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (1, 1.0),
            (1, True),
            (None, "None"),
            ([1, 2], (1, 2)),
            ([[1], 2], [1, [2]]),
            ({"a": 1}, {"a": 2}),
            ({1: 2}, {"1": 2}),
            (functools.partial(max, 1), functools.partial(max, 2)),
            (np.arange(3), np.arange(3.0)),
            (np.arange(3), np.arange(4)),
            (torch.float32, torch.float64),
            (torch.tensor([1]), torch.tensor([2])),
            (Local(1), Local(2)),
            (Local, Local(1)),
            (max, min),
            (Path("a"), Path("b")),
            (SmoothMapd("pred", 1.0), SmoothMapd("pred", 2.0)),
        ],
    )
    def test_different_objects(self, one, other):
        assert object_digest(one) != object_digest(other) and object_digest(one) is not None

    @pytest.mark.parametrize(
        "thing", [lambda: 1, made_inside(), sys.stdout, (item for item in [1]), functools.partial(lambda: 1)]
    )
    def test_objects_without_digest(self, thing):
        assert object_digest(thing) is None
        assert object_digest({"a": [thing]}) is None and object_digest(Local(thing)) is None

    def test_cyclic_object(self):
        loop = Local(1)
        loop.value = loop
        assert object_digest(loop) is not None

    def test_digest_depends_on_code(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)
        digests = []
        for number in (1, 2):
            (tmp_path / "own_transforms.py").write_text(f"def scale(image):\n    return image * {number}\n")
            monkeypatch.delitem(sys.modules, "own_transforms", raising=False)
            digests.append(object_digest(importlib.import_module("own_transforms").scale))
            _source_digest.cache_clear()
        assert digests[0] != digests[1] and None not in digests
