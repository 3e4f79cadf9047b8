"""Bills of materials are valid, complete and the same for the same packages; pages mark what a reader must look at."""

import json
from email.parser import HeaderParser

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from scripts.errors import InputError
from scripts.sbom.environment import Package, installed_packages, packages_of, read_pins
from scripts.sbom.page import licence_page
from scripts.sbom.stated_licences import licence_kinds, licence_names
from scripts.sbom.writer import bill_of_packages, write_sbom
from tests.tiny_bundle import ROOT


def headers(text):
    return HeaderParser().parsestr(text)


def install(folder, name, version, text=""):
    """Write the metadata of an installed package."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{text}")


@pytest.fixture
def packages(tmp_path):
    """Return made-up installed packages."""
    install(tmp_path, "Free_Thing", "1.0", 'License-Expression: MIT\nRequires-Dist: bound; python_version > "3"\n')
    install(tmp_path, "bound", "2.0", "License: GPL-3.0-only\nLicense-File: COPYING\nRequires-Dist: absent\n")
    install(tmp_path, "silent", "3.0", "Requires-Dist: bound; extra == 'more'\n")
    return installed_packages([str(tmp_path)])


class TestLicences:
    @pytest.mark.parametrize(
        "text, names",
        [
            ("License-Expression: MIT OR ISC\nLicense: other", ["MIT OR ISC"]),
            ("License: BSD", ["BSD"]),
            ("License: UNKNOWN\nClassifier: License :: OSI Approved :: ISC License (ISCL)", ["ISC License (ISCL)"]),
            (f"License: {'text ' * 40}\nClassifier: License :: OSI Approved :: BSD License", ["BSD License"]),
            ("License: Permission\n is granted\nClassifier: License :: OSI Approved", []),
            ("", []),
        ],
    )
    def test_names(self, text, names):
        assert licence_names(headers(text)) == names

    @pytest.mark.parametrize(
        "names, kinds",
        [
            (["MIT"], ["permissive"]),
            (["BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0"], ["permissive"]),
            (["Apache-2.0 WITH LLVM-exception"], ["permissive"]),
            (["ISC License (ISCL)"], ["permissive"]),
            (["MPL-2.0 AND MIT"], ["weak copyleft"]),
            (["Mozilla Public License 2.0 (MPL 2.0)"], ["weak copyleft"]),
            (["GNU Lesser General Public License v3 (LGPLv3)"], ["weak copyleft"]),
            (["LGPL-2.1-only"], ["weak copyleft"]),
            (["GPL-2.0-only"], ["copyleft"]),
            (["GNU General Public License v3 (GPLv3)"], ["copyleft"]),
            (["AGPL-3.0-or-later"], ["copyleft"]),
            (["GPL-2.0-only OR MIT"], ["permissive"]),
            (["MIT AND (GPL-2.0-only OR BSD-3-Clause)"], ["permissive"]),
            (["MIT AND (GPL-2.0-only OR (MPL-1.1 AND MIT))"], ["weak copyleft"]),
            (["LicenseRef-NVIDIA-Proprietary"], ["own terms"]),
            (["Other/Proprietary License"], ["own terms"]),
            (["Whatever-1.0 AND GPL-3.0-only"], ["copyleft", "unknown"]),
            (["MIT", "GPL-3.0-only"], ["copyleft"]),
            (["Amitabh Licence"], ["unknown"]),
            ([], ["unknown"]),
        ],
        ids=str,
    )
    def test_kinds(self, names, kinds):
        assert licence_kinds(names) == kinds

    def test_no_alternative_is_worse_than_its_parts(self):
        names = ("MIT", "MPL-2.0", "GPL-3.0-only", "LicenseRef-x", "Whatever")
        for first in names:
            for second in names:
                assert licence_kinds([f"{first} OR {second}"]) in (licence_kinds([first]), licence_kinds([second]))


class TestBill:
    def test_made_up_packages(self, packages):
        text = bill_of_packages(list(packages.values()))
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        bill = json.loads(text)
        found = {one["name"]: one for one in bill["components"]}
        assert found["bound"]["licenses"] == [{"license": {"name": "GPL-3.0-only"}}]
        assert found["free-thing"]["purl"] == "pkg:pypi/free-thing@1.0" and "licenses" not in found["silent"]
        assert found["dinov2_vits14_pretrain.pth"]["type"] == "machine-learning-model"
        graph = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
        assert graph["pkg:pypi/free-thing@1.0"] == ["pkg:pypi/bound@2.0"]
        assert graph["pkg:pypi/silent@3.0"] == []  # an extra that nobody asked for
        assert set(graph["app"]) == {one["bom-ref"] for one in bill["components"]}

    def test_environment_of_the_tests_is_valid_and_complete(self):
        installed = installed_packages()
        text = bill_of_packages(packages_of("bundle", installed))
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        libraries = {one["name"]: one["version"] for one in json.loads(text)["components"] if one["type"] == "library"}
        assert set(libraries) == set(read_pins(ROOT / "requirements.txt"))
        assert all(version == installed[name].version for name, version in libraries.items())
        assert str(ROOT) not in text

    def test_same_packages_give_the_same_bill(self, packages):
        first, again = (bill_of_packages(list(packages.values())) for _ in range(2))
        other = bill_of_packages(list(packages.values())[:2])
        assert first == again and json.loads(first)["serialNumber"] != json.loads(other)["serialNumber"]


class TestPage:
    def test_marks(self, packages):
        lines = licence_page("x", list(packages.values())).splitlines()
        assert "| free-thing | 1.0 | MIT | permissive |  |" in lines
        assert "| bound | 2.0 | GPL-3.0-only | **copyleft** | COPYING |" in lines
        assert "| silent | 3.0 | none stated | **unknown** |  |" in lines
        assert any(line.startswith("| copyleft | 1 |") for line in lines)

    def test_metadata_cannot_break_the_table(self):
        package = Package("x", "1", headers("License: a | <b> `c`"), None)
        assert r"a \| \<b\> \`c\`" in licence_page("x", [package])

    def test_other_versions_than_the_pins_are_named(self):
        package = Package("x", "1", headers(""), "2")
        assert "x 1 (pinned 2)" in licence_page("x", [package])


class TestPins:
    def test_markers_and_comments(self, tmp_path):
        path = tmp_path / "requirements.txt"
        path.write_text("# pins\nA_b==1.0\nc==2 ; python_version < '3'\n\n")
        assert read_pins(path) == {"a-b": "1.0"}

    @pytest.mark.parametrize("line", ["a>=1", "a", "-r other.txt", "a==1,<2"])
    def test_other_lines_are_refused(self, tmp_path, line):
        (tmp_path / "requirements.txt").write_text(line)
        with pytest.raises(InputError, match="must pin packages as NAME==VERSION"):
            read_pins(tmp_path / "requirements.txt")

    def test_packages_that_are_not_installed_are_refused(self, packages):
        with pytest.raises(InputError, match=r"lacks \d+ packages of requirements\.txt"):
            packages_of("bundle", packages)

    def test_unknown_sets_are_refused(self, packages):
        with pytest.raises(InputError, match="pins must be of bundle, deploy, dev, fast, label, environment"):
            packages_of("../x", packages)


class TestCommand:
    def test_files_are_the_same_every_time(self, tmp_path):
        runs = []
        for _ in range(2):
            write_sbom(tmp_path / "out", ["bundle", "environment"])
            runs.append({path.name: path.read_bytes() for path in (tmp_path / "out").glob("[!.]*")})
        names = {"bundle.cdx.json", "bundle_licences.md", "environment.cdx.json", "environment_licences.md"}
        assert runs[0] == runs[1] and set(runs[0]) == names

    def test_foreign_folders_are_left_alone(self, tmp_path):
        (tmp_path / "bundle.cdx.json").write_text("mine")
        with pytest.raises(InputError, match="did not write"):
            write_sbom(tmp_path)
        assert (tmp_path / "bundle.cdx.json").read_text() == "mine"

    def test_nothing_is_written_if_a_set_is_wrong(self, tmp_path):
        with pytest.raises(InputError, match="pins must be of"):
            write_sbom(tmp_path / "out", ["bundle", "none"])
        assert not (tmp_path / "out").exists()
