"""Everything that stands between this checkout and an upload: built into dist/, checked, and what is missing said.

    make release
    make release CHECKS="tree version"

RELEASING.md says what to do before and afterwards. Each check prints a line; the exit status is 0 if nothing is
missing.
"""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"

#: The builder of the wheel, and what makes the package page of the README.
WHEEL: dict[str, Any] = runpy.run_path(str(ROOT / "tests" / "wheel.py"))
SETUP: dict[str, Any] = runpy.run_path(str(ROOT / "setup.py"))

#: A heading of the newest version, "## 0.2.0 (2026-11-27)".
_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
_RELEASED = re.compile(r"(\d+\.\d+\.\d+) \((\d{4}-\d{2}-\d{2})\)")


def main(chosen: list[str]) -> int:
    unknown = [name for name in chosen if name not in CHECKS]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; checks: {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    names = chosen or list(CHECKS)
    missing = 0
    for name in names:
        try:
            found = list(CHECKS[name]())
        except (subprocess.CalledProcessError, OSError) as error:
            found = [f"could not be done: {error}"]
        for sentence in found or ["passed"]:
            print(f"{name:<12} {sentence}", flush=True)
        missing += len(found)
    said = "all is there" if not missing else f"{missing} missing; dist/ is not to be uploaded"
    print(f"\n{len(names)} checks of varflow {SETUP['version']()}: {said}")
    return int(missing > 0)


def tree() -> Iterator[str]:
    """Everything is committed."""
    changed = _git("status", "--porcelain").splitlines()
    if changed:
        yield f"{len(changed)} files are not committed: {', '.join(line[3:] for line in changed[:3])}"


def version() -> Iterator[str]:
    """One version everywhere, with its date, and not released before."""
    now = SETUP["version"]()
    if not re.fullmatch(r"\d+\.\d+\.\d+", now):
        yield f"src/varflow/__init__.py: __version__ is {now}; use MAJOR.MINOR.PATCH (semver.org)"
    heading = _HEADING.search((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    title = heading[1] if heading else ""
    released = _RELEASED.fullmatch(title)
    if released is None or released[1] != now:
        yield f"CHANGELOG.md: the newest heading is '## {title}'; should be '## {now} (YYYY-MM-DD)'"
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    cited = dict(re.findall(r"^(version|date-released): *\"?([^\"\n]+)\"?$", citation, re.MULTILINE))
    if cited.get("version") != now:
        yield f"CITATION.cff: version is {cited.get('version')}; should be {now}"
    if released is not None and cited.get("date-released") != released[2]:
        yield f"CITATION.cff: date-released is {cited.get('date-released')}; should be {released[2]}, as CHANGELOG.md"
    if _git("tag", "--list", f"v{now}").strip():
        yield f"git: the tag v{now} is there already; raise the version"


def address() -> Iterator[str]:
    """The package page knows where the source is."""
    if not SETUP["places"](SETUP["version"]()):
        yield "pyproject.toml: [tool.varflow] repository is empty; give the address of the published source"


def links() -> Iterator[str]:
    """What the README names is there."""
    for target in SETUP["relative_links"]((ROOT / "README.md").read_text(encoding="utf-8")):
        if not (ROOT / target.partition("#")[0]).exists():
            yield f"README.md: names {target}, which is not there"


def packages() -> Iterator[str]:
    """Both are built, hold what they should, and are described as an index wants it."""
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = WHEEL["build"](Path(folder))
        except SystemExit as error:
            yield str(error)
            return
        for path in made.parent.iterdir():
            shutil.copy2(path, DIST)
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    if not wheel.name.endswith("-py3-none-any.whl"):
        yield f"{wheel.name}: is of one system; compiled code is built on first use, and is no part of a wheel"
    tracked, files = WHEEL["tracked"](), WHEEL["contents"](wheel)
    lost = [name for name in tracked if name.startswith("src/") and name.removeprefix("src/") not in files]
    if lost:
        yield f"{wheel.name}: lacks {', '.join(lost[:5])}; see [tool.setuptools.package-data] in pyproject.toml"
    with tarfile.open(sdist) as held:
        inside = {name.partition("/")[2] for name in held.getnames()}
    lost = [name for name in tracked if not name.startswith(".") and name not in inside]
    if lost:
        yield f"{sdist.name}: lacks {', '.join(lost[:5])}; see MANIFEST.in"
    (metadata,) = (text for name, text in files.items() if name.endswith(".dist-info/METADATA"))
    told = message_from_bytes(metadata)
    body = told.get_payload(decode=True)
    assert isinstance(body, bytes)
    left = SETUP["relative_links"](body.decode())
    if left and SETUP["places"](SETUP["version"]()):
        yield f"{wheel.name}: its description names {', '.join(left[:3])}, which no package page can find"
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)], capture_output=True, text=True
    )
    if checked.returncode:
        yield f"twine check --strict: {' '.join((checked.stdout + checked.stderr).split())}"


def use() -> Iterator[str]:
    """The wheel, in a fresh environment without a compiler: the README's lines and every verb."""
    wheels = list(DIST.glob("*.whl"))
    if len(wheels) != 1:
        yield "dist/ holds no wheel; run the check packages too"
        return
    with tempfile.TemporaryDirectory() as folder:
        for _, name, outcome in WHEEL["tried"](sys.executable, wheels[0], Path(folder)):
            if outcome != "passed":
                yield f"{name}: {outcome}"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


CHECKS: dict[str, Callable[[], Iterator[str]]] = {
    "tree": tree, "version": version, "address": address, "links": links, "packages": packages, "use": use,
}  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
