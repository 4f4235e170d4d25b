"""What a release is made of: the package page, the sdist, and the checks that say what is missing."""

import re
import runpy
import shutil
import subprocess
import sys
from email import message_from_string
from pathlib import Path

import pytest

import varflow as vf

ROOT = Path(__file__).parent.parent
PLACE = {
    "repository": "https://host/own/er",
    "page": "https://host/own/er/blob/v1.2.3/{path}",
    "file": "https://host/own/er/raw/v1.2.3/{path}",
}

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="this is no checkout")


@pytest.fixture(scope="module")
def setup():
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture(scope="module")
def tracked():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return names.splitlines()


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("![a plane](docs/plane.png)", "![a plane](https://host/own/er/raw/v1.2.3/docs/plane.png)"),
        ("[use](docs/using.md#rows)", "[use](https://host/own/er/blob/v1.2.3/docs/using.md#rows)"),
        ("[dot](./LICENSE)", "[dot](https://host/own/er/blob/v1.2.3/LICENSE)"),
        ('<img src="docs/a.svg" width="9">', '<img src="https://host/own/er/raw/v1.2.3/docs/a.svg" width="9">'),
        ("<a href='docs'>all</a>", "<a href='https://host/own/er/blob/v1.2.3/docs'>all</a>"),
        ("[![a](docs/a.png)](docs/a.md)", "[![a](https://host/own/er/raw/v1.2.3/docs/a.png)]"
         "(https://host/own/er/blob/v1.2.3/docs/a.md)"),
    ],
)  # fmt: skip
def test_relative_links_become_absolute(setup, text, moved):
    assert setup["relative_links"](text)
    assert setup["absolute"](text, PLACE) == moved
    assert not setup["relative_links"](moved)
    # Nowhere to point to: nothing is changed.
    assert setup["absolute"](text, {}) == text


@pytest.mark.parametrize(
    "text",
    [
        "[there](https://elsewhere.org/a.md)",
        "[below](#install)",
        "[write](mailto:a@b.c)",
        '<img src="//host/a.png">',
        "```python\nx = a[0](docs/a.md)\n```",
        "~~~\n![a](docs/a.png)\n~~~",
    ],
)
def test_other_links_and_code_stay(setup, text):
    assert setup["absolute"](text, PLACE) == text
    assert setup["relative_links"](text) == []


def test_the_readme_has_no_relative_link_left_and_names_what_is_there(setup):
    text = (ROOT / "README.md").read_text()
    found = setup["relative_links"](text)
    assert all((ROOT / target.partition("#")[0]).exists() for target in found)
    assert setup["relative_links"](setup["absolute"](text, PLACE)) == []


def test_the_addresses_follow_from_one_setting(setup):
    assert setup["urls"](PLACE)["Changelog"] == "https://host/own/er/blob/v1.2.3/CHANGELOG.md"
    assert setup["urls"]({}) == {}
    assert setup["version"]() == vf.__version__


def test_the_version_is_that_of_the_citation():
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == vf.__version__


def test_the_sdist_holds_what_the_checkout_holds(tracked):
    """MANIFEST.in names every folder and file at the top, so that nothing is forgotten."""
    named = {"setup.py", "pyproject.toml"}
    for line in (ROOT / "MANIFEST.in").read_text().splitlines():
        what, *words = line.split()
        named |= set(words) if what in ("include", "graft") else set()
    at_the_top = {name.partition("/")[0] for name in tracked if not name.startswith(".")}
    assert at_the_top <= named, "these are missing in MANIFEST.in"


def test_what_a_release_lacks_is_said(tracked, capsys):
    release = runpy.run_path(str(ROOT / "tests" / "release.py"))
    checks = release["CHECKS"]
    assert list(checks) == ["tree", "version", "address", "links", "packages", "use"]
    assert release["main"](["links"]) == 0
    assert "links        passed" in capsys.readouterr().out
    assert release["main"](["linx"]) == 2


def test_each_kind_of_version_that_does_not_agree_is_named(tmp_path, tracked, monkeypatch):
    release = runpy.run_path(str(ROOT / "tests" / "release.py"))
    where = release["version"].__globals__
    monkeypatch.setitem(where, "ROOT", tmp_path)
    monkeypatch.setitem(where, "_git", lambda *words: "")
    now = vf.__version__
    changelog, citation = tmp_path / "CHANGELOG.md", tmp_path / "CITATION.cff"

    def said(heading: str, cited: str) -> list[str]:
        changelog.write_text(f"# Changelog\n\n{heading}\n\n- a\n\n## 0.0.1 (2020-01-01)\n")
        citation.write_text(cited)
        return list(release["version"]())

    good = f'version: {now}\ndate-released: "2026-11-27"\n'
    assert said(f"## {now} (2026-11-27)", good) == []
    assert said("## Unreleased", good) == [
        f"CHANGELOG.md: the newest heading is '## Unreleased'; should be '## {now} (YYYY-MM-DD)'"
    ]
    (sentence,) = said(f"## {now} (2026-11-27)", f"version: {now}\n")
    assert sentence == "CITATION.cff: date-released is None; should be 2026-11-27, as CHANGELOG.md"
    assert "version is 9.9.9" in said(f"## {now} (2026-11-27)", good.replace(now, "9.9.9"))[0]
    monkeypatch.setitem(where, "_git", lambda *words: f"v{now}\n")
    assert said(f"## {now} (2026-11-27)", good) == [f"git: the tag v{now} is there already; raise the version"]


@pytest.mark.slow
def test_the_package_page_with_an_address(tmp_path, tracked):
    """Built with an address in the one place for it: no link of the description is relative any more."""
    pytest.importorskip("build")
    for name in tracked:
        if name.partition("/")[0] in ("src", "README.md", "LICENSE", "pyproject.toml", "setup.py", "MANIFEST.in"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    settings = (tmp_path / "pyproject.toml").read_text()
    changed = re.sub(r'^repository = ".*"$', 'repository = "https://host/own/er/"', settings, flags=re.MULTILINE)
    (tmp_path / "pyproject.toml").write_text(changed)
    program = (
        "import sys\nfrom build import ProjectBuilder\n"
        "print(ProjectBuilder(sys.argv[1]).metadata_path(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = message_from_string((Path(done.stdout.splitlines()[-1]) / "METADATA").read_text())
    assert told["Version"] == vf.__version__
    assert told["Description-Content-Type"] == "text/markdown"
    assert "Source, https://host/own/er" in told.get_all("Project-URL")
    assert f"https://host/own/er/raw/v{vf.__version__}/docs/" in told.get_payload()
    setup = runpy.run_path(str(ROOT / "setup.py"))
    assert setup["relative_links"](told.get_payload()) == []
