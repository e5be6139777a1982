"""The product as a site installs it: the wheel, and what it depends on, below /opt/distrib.

No network: the wheel is built from the tree, its dependencies are copied from the environment that
the tests run in, those that the package itself names and no others.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from tests.batch.bed import BedHost

ROOT = Path(__file__).parents[2]
PREFIX = Path("/opt/distrib")
CACHE = ROOT / ".cache" / "batch"
EXTRAS = {"libvirt-python"}
TREE = ("distrib", "agent", "pyproject.toml", "README.md", "LICENSE")


def environment_layer() -> Path:
    """A directory with /opt/distrib: a virtual environment that holds all but the product."""
    found = _dependencies()
    python = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    named = "\n".join([str(python), *sorted(f"{one.name} {one.version}" for one in found)])
    layer = CACHE / f"opt-{hashlib.sha256(named.encode()).hexdigest()[:16]}"
    if layer.exists():
        return layer
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as made:
        prefix = Path(made) / "layer" / PREFIX.relative_to("/")
        subprocess.run([python, "-m", "venv", "--without-pip", prefix], check=True)
        (site,) = prefix.glob("lib/python3*/site-packages")
        for one in found:
            for file in one.files or ():
                source = Path(str(one.locate_file(file)))
                if ".." in file.parts or not source.is_file():
                    continue
                target = site / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        for path in [*prefix.parents][:2]:
            path.chmod(0o755)
        for old in CACHE.glob("opt-*"):
            shutil.rmtree(old, ignore_errors=True)
        (Path(made) / "layer").rename(layer)
    return layer


def install(host: BedHost, directory: Path) -> None:
    """Build the wheel of the tree as it is, and install it in a bed's /opt/distrib."""
    source = directory / "source"
    source.mkdir()
    for name in TREE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name)
        else:
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", directory, source], check=True
    )
    (wheel,) = directory.glob("distrib-*.whl")
    offline = ["--no-index", "--no-deps", "--no-compile"]
    host.run(*pip, "--python", PREFIX / "bin" / "python", "install", *offline, wheel)
    shutil.rmtree(source)


def _dependencies() -> list[Distribution]:
    """What the product needs at run time, and what that needs."""
    found: dict[str, Distribution] = {}
    wanted = ["distrib", *EXTRAS]
    while wanted:
        name = wanted.pop()
        try:
            one = distribution(name)
        except PackageNotFoundError:
            continue  # for another platform or Python
        key = one.name.lower()
        if key in found:
            continue
        found[key] = one
        for requirement in one.requires or ():
            if "extra ==" not in requirement:
                wanted.append(re.split(r"[\s\[<>=!~;(]", requirement, maxsplit=1)[0])
    del found["distrib"]
    return list(found.values())
