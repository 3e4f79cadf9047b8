"""Attacks of every kind with fixed seeds; `make fuzz` tries others."""

from pathlib import Path
from random import Random

import pytest

from tests.fuzz.attack import Trial
from tests.fuzz.judge import judge_sentence, judge_sources, snapshot
from tests.fuzz.kinds import KINDS, try_attack
from tests.fuzz.worker import Worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """Start a process for attacks that may end it; its time limit only ends hanging ones."""
    with Worker(tmp_path_factory.mktemp("fuzz"), seconds=600) as worker:
        yield worker


class TestAttacks:
    @pytest.mark.parametrize("kind", KINDS)
    def test_attack_ends_in_a_result_or_a_sentence(self, kind, request, tmp_path):
        seeds = range(KINDS[kind].n_tested)
        if KINDS[kind].is_native:
            worker = request.getfixturevalue("worker")
            trials = [worker.try_attack(kind, seed) for seed in seeds]
        else:
            trials = [try_attack(kind, seed, tmp_path) for seed in seeds]
        failed = [str(trial) for trial in trials if trial.problems]
        assert not failed, f"{len(failed)} of {len(trials)}; repeat one by `python -m tests.fuzz`:\n" + "\n".join(
            failed
        )

    @pytest.mark.parametrize("kind", ["nifti", "dicom", "png", "jpeg", "meta_images"])
    def test_attack_depends_on_its_seed(self, kind, tmp_path):
        prepare = KINDS[kind].tries.keywords["prepare"]
        for seed in range(10):
            written = []
            for name in ("one", "other"):
                folder = tmp_path / f"{name}-{seed}"
                folder.mkdir()
                attack = prepare(Random(seed), folder)
                written.append((attack.what.replace(str(folder), ""), snapshot(folder)))
            if str(tmp_path) not in str(written):
                assert written[0] == written[1]


class TestJudge:
    @pytest.mark.parametrize(
        "sentence",
        [
            "",
            "two\nlines",
            "\x1b[31mred",
            "a right-to-left \u202e mark",
            "a name that is no text: \udcff",
            "it could not be read (ValueError)",
            "it could not be read (invalid literal for int() with base 10)",
            "the file /data/patients/doe.nii.gz is damaged",
            "x" * 1000,
            None,
        ],
    )
    def test_bad_sentence_is_noticed(self, sentence):
        assert judge_sentence(sentence, Path("/data"))

    @pytest.mark.parametrize(
        "sentence",
        [
            "every voxel is 7; expected an image with some contrast",
            "the slices of the series lie 1.5 to 4 mm apart; expected even gaps, so look for missing files",
            "sub/doe.nii.gz is damaged and/or cut off",
        ],
    )
    def test_good_sentence_passes(self, sentence):
        assert not judge_sentence(sentence, Path("/data"))

    def test_changed_source_is_noticed(self, tmp_path):
        for name in ("stays", "changes", "goes"):
            (tmp_path / name).write_text(name)
        before = snapshot(tmp_path)
        assert not judge_sources(before, tmp_path)
        (tmp_path / "changes").write_text("changed")
        (tmp_path / "goes").unlink()
        (tmp_path / "comes").touch()
        assert [problem.split("'")[1] for problem in judge_sources(before, tmp_path)] == ["changes", "goes"]

    def test_trial_is_printable(self):
        shown = str(Trial("names", 3, "a\nb\x1b[2J", ("bad \udcff",)))
        assert shown.splitlines() == ["--kind names --seed 3: a\\nb\\x1b[2J", "    bad \\udcff"]
