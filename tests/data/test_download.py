"""Downloads, from a server on this machine."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import varflow.data as vd
from varflow.cli import main
from varflow.core.errors import DataError, SpecError
from varflow.data import sources
from varflow.data.sources import File, Source

CONTENT = b"pictures" * 10_000
SUM = sources.md5(CONTENT)
FILES = {
    "/good/a.bin": CONTENT,
    "/good/b.gz": gzip.compress(CONTENT),
    "/wrong/a.bin": CONTENT[:-1] + b"!",
    "/broken/b.gz": gzip.compress(CONTENT)[:-20],
}
ASKED: list[str] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        ASKED.append(self.path)
        short = self.path.replace("/short/", "/good/")
        if short not in FILES:
            self.send_error(404)
            return
        body = FILES[short]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if short == self.path else body[: len(body) // 2])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    ASKED.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


A, B = File("a.bin", SUM), File("b.gz", SUM, inside=True)


def use(monkeypatch: pytest.MonkeyPatch, mirrors: list[str], *files: File) -> None:
    monkeypatch.setitem(sources.DOWNLOADS, "toy", Source("toy", tuple(mirrors), files))


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_files_arrive_and_are_kept(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, [f"{server}/good/"], A, B)
    folder = vd.download("toy", tmp_path)
    assert folder == tmp_path / "toy"
    assert (folder / "a.bin").read_bytes() == CONTENT
    assert everything(tmp_path) == ["toy", "toy/a.bin", "toy/b.gz"]
    assert (folder / "a.bin").stat().st_mode & 0o777 == 0o644
    assert len(ASKED) == 2
    (folder / "a.bin").write_bytes(b"damaged")
    vd.download("toy", tmp_path)
    assert ASKED[2:] == ["/good/a.bin"], "what is right is not fetched again"
    assert (folder / "a.bin").read_bytes() == CONTENT


def test_what_is_fetched_is_said(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = File("b.gz", None)
    use(monkeypatch, [f"{server}/{place}/" for place in ("absent", "good")], A, unknown)
    monkeypatch.setattr("varflow.data.fetch._EVERY", 0.0)
    said: list[str] = []
    vd.download("toy", tmp_path, say=said.append)
    folder = tmp_path / "toy"
    assert said[0].startswith(f"{server}/absent/a.bin: ")
    assert "404" in said[0]
    assert said[1:3] == [
        f"{server}/good/a.bin: 0.1 of 0.1 MB",
        f"{server}/good/a.bin → {folder / 'a.bin'} (MD5 verified)",
    ]
    assert said[-1] == (
        f"{server}/good/b.gz → {folder / 'b.gz'} (not verified: no official checksum is known)"
    )
    said.clear()
    vd.download("toy", tmp_path, say=said.append)
    assert said[0] == f"{folder / 'a.bin'}: here already (MD5 verified)"
    assert said[1].endswith("here already (not verified: no official checksum is known)")
    said.clear()
    vd.download("toy", tmp_path, verify=False, say=said.append)
    assert said[0] == f"{folder / 'a.bin'}: here already (not verified)"


def test_the_command_says_it_beside_the_folder(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, [f"{server}/good/"], A)
    with pytest.raises(SystemExit) as end:
        main(["data", "download", "toy", "--data-dir", str(tmp_path)])
    assert end.value.code == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'toy'}\n"
    assert err == f"{server}/good/a.bin → {tmp_path / 'toy' / 'a.bin'} (MD5 verified)\n"


def test_the_next_mirror_helps(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, [f"{server}/{place}/" for place in ("absent", "wrong", "short", "good")], A)
    assert (vd.download("toy", tmp_path) / "a.bin").read_bytes() == CONTENT
    assert len(ASKED) == 4


@pytest.mark.parametrize(
    ("place", "file", "match"),
    [
        ("absent", A, "404"),
        ("short", A, "broke off after 40000 of 80000 bytes|broke off"),
        ("wrong", A, f"MD5 sum .*, should be {SUM}"),
        ("broken", B, "damaged gzip"),
    ],
)
def test_a_failure_leaves_nothing(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, place: str, file: File, match: str
) -> None:
    use(monkeypatch, [f"{server}/{place}/"], file)
    with pytest.raises(DataError, match=match):
        vd.download("toy", tmp_path)
    assert everything(tmp_path) == []
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / file.name).write_bytes(b"mine")
    with pytest.raises(DataError, match=match):
        vd.download("toy", tmp_path)
    assert (tmp_path / "toy" / file.name).read_bytes() == b"mine"
    assert everything(tmp_path) == ["toy", f"toy/{file.name}"]


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ["http://127.0.0.1:9/", (tmp_path / "gone").as_uri() + "/"], A)
    with pytest.raises(DataError, match=r"could not be fetched; http.*; file:"):
        vd.download("toy", tmp_path)
    assert everything(tmp_path) == []


def test_folder_that_cannot_be(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, [f"{server}/good/"], A)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        vd.download("toy", tmp_path / "file")


def test_downloaded_mnist_loads(
    tmp_path: Path, mnist: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    mnist("origin")  # type: ignore[operator]
    official = sources.DOWNLOADS["mnist"]
    files = tuple(
        file._replace(
            md5=sources.md5(gzip.decompress((tmp_path / "origin" / file.name).read_bytes()))
        )
        for file in official.files
    )
    mirror = (tmp_path / "origin").as_uri() + "/"
    monkeypatch.setitem(
        sources.DOWNLOADS, "mnist", official._replace(mirrors=(mirror,), files=files)
    )
    vd.download("mnist", tmp_path / "data")
    facts = vd.load("mnist", data_dir=tmp_path / "data").describe()
    assert all(check["verified"] for check in facts["checksums"].values())


def test_names_are_checked() -> None:
    with pytest.raises(SpecError, match="did you mean 'svhn'"):
        vd.download("shvn")
    with pytest.raises(SpecError, match="comes with varflow; there is nothing to download"):
        vd.download("digits")
    assert set(vd.DOWNLOADS) - {"binarized-mnist"} <= set(vd.SOURCES)
    assert all(
        file.name and source.mirrors for source in vd.DOWNLOADS.values() for file in source.files
    )
