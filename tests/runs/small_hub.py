"""A hub on this machine: what huggingface_hub asks of the server, answered from memory.

Requests go through the client's own code, so that what is tested ends at the network. Repositories, branches and
commits are kept; everything is a regular file, and nobody has to be logged in but for what is private or gated.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class SmallHub:
    """``address`` is what HF_ENDPOINT would be; ``commits`` holds the files of each commit."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.broken = False
        hub = self

        class Handler(_Handler):
            here = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def put(self, repository: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit files to a branch; returns the commit."""
        held = self.repositories.setdefault(repository, {"branches": {}})
        words = json.dumps([repository, branch, len(self.commits), sorted(files)])
        commit = hashlib.sha1(words.encode()).hexdigest()
        self.commits[commit] = files
        held["branches"][branch] = commit
        return commit

    def files(self, repository: str, branch: str = "main") -> dict[str, bytes]:
        """What a branch holds."""
        return self.commits[self.repositories[repository]["branches"][branch]]

    def found(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a revision."""
        commit = self.repositories[repository]["branches"].get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


class _Handler(BaseHTTPRequestHandler):
    here: SmallHub

    def log_message(self, *arguments: Any) -> None:
        pass

    def answer(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def refused(self, repository: str) -> bool:
        """Whether the repository is answered for with an error."""
        if self.here.broken:
            self.answer(500)
        elif repository in self.here.gated:
            self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        elif repository not in self.here.repositories or repository in self.here.private:
            self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        else:
            return False
        return True

    def do_POST(self) -> None:
        path, content = unquote(urlsplit(self.path).path), self.body()
        self.here.asked.append(("POST", path))
        if path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.here.repositories:
                self.answer(409, {"url": f"{self.here.address}/{name}"})
                return
            self.here.put(name, {".gitattributes": b""})
            self.here.repositories[name]["private"] = asked.get("private") or asked.get("visibility") == "private"
            self.answer(200, {"url": f"{self.here.address}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            text = json.loads(content)["content"]
            wrong = not text.startswith("---\n")
            errors = [{"message": "no front matter"}] if wrong else []
            self.answer(400 if wrong else 200, {"errors": errors, "warnings": []})
        else:
            _, _, _, owner, name, what, revision = path.split("/", 6)
            self.in_repository(f"{owner}/{name}", what, revision, content)

    def in_repository(self, repository: str, what: str, revision: str, content: bytes) -> None:
        if self.refused(repository):
            return
        if what == "branch":
            branches = self.here.repositories[repository]["branches"]
            branches.setdefault(revision, branches["main"])
            self.answer(200, {})
        elif what == "preupload":
            asked = json.loads(content)["files"]
            told = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
            self.answer(200, {"files": told})
        elif what == "commit":
            files = dict(self.here.files(repository, revision))
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "header":
                    self.here.messages.append(line["value"]["summary"])
                elif line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            commit = self.here.put(repository, files, revision)
            self.answer(200, {"commitUrl": f"{self.here.address}/{repository}/commit/{commit}", "commitOid": commit})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.here.asked.append((self.command, path))
        words = path.strip("/").split("/")
        about = words[0] == "api"
        repository = "/".join(words[2:4] if about else words[:2])
        if self.refused(repository):
            return
        if about and len(words) == 4:
            words += ["revision", "main"]
        place = self.here.found(repository, words[5] if about else words[3])
        if place is None:
            self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
            return
        commit, files = place
        if about and words[4] == "revision":
            siblings = [{"rfilename": name} for name in files]
            self.answer(200, {"id": repository, "sha": commit, "siblings": siblings, "private": False, "tags": []})
        elif about and words[4] == "tree":
            digests = {name: hashlib.sha1(blob).hexdigest() for name, blob in files.items()}
            kept = {"type": "file"}
            self.answer(200, [{**kept, "path": n, "size": len(files[n]), "oid": oid} for n, oid in digests.items()])
        else:
            name = "/".join(words[4:])
            if name not in files:
                self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                return
            tag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
            self.answer(200, files[name], ETag=tag, X_Repo_Commit=commit)

    do_HEAD = do_GET
