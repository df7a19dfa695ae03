"""What is installed: the configuration files with the code, and the version that it says."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_code_and_configuration_alike(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in filter(lambda name: (ROOT / name).is_file(), tracked):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*build, "--wheel-dir", tmp_path, source], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        n for n in tracked if n.startswith(("pipeline/", "models/", "data/", "conf/", "hydra_plugins/"))
    }
    assert expected <= names
    assert not [name for name in names if name.startswith("tests/")]


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert metadata.version("roundtrip") == version
    assert re.search(rf"^## \[{re.escape(version)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_locks_name_no_index_and_hash_everything() -> None:
    for path in ROOT.glob("requirements*.lock"):
        text = path.read_text()
        assert "://" not in text
        assert "--index" not in text
        pins = re.findall(r"^[a-z0-9.-]+==\S+", text, re.MULTILINE)
        assert pins
        for block in re.split(r"^(?=[a-z0-9.-]+==)", text, flags=re.MULTILINE)[1:]:
            assert "--hash=sha256:" in block
