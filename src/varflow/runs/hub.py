"""Runs on the Hugging Face hub: opened from there, read-only, and put there.

An address is ``hf://owner/name``, ``hf://owner/name/folder`` or either with ``@revision`` behind it: a branch, a tag
or a commit. What is fetched are the safetensors and JSON files of a run, by their names
(:data:`varflow.core.files.ARTEFACT`); whatever else a repository holds stays there. They lie in the hub's own cache,
which varflow does not write into.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from varflow.core.errors import RunError, SpecError, unknown
from varflow.core.files import (
    ARTEFACT,
    TRAINING_ROWS,
    make_folder,
    present,
    read_json,
    write_atomically,
    write_json,
)

if TYPE_CHECKING:
    from varflow.runs.run import Run

_SCHEME = "hf://"
#: What the hub takes as the name of an owner or a repository.
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
#: Other kinds of repositories, whose addresses begin like this.
_OTHERS = {"datasets": "data set", "spaces": "space", "buckets": "bucket", "kernels": "kernel"}
#: The pictures of a run, which may show examples of the data.
_FIGURES = ("figures/*.png", "figures/*.gif", "figures/index.json")


class Address(NamedTuple):
    """Where a run lies on the hub: repository ``owner/name``, folder in it, revision; empty ones are the default."""

    repository: str
    folder: str = ""
    revision: str = ""

    def __str__(self) -> str:
        path = f"{self.repository}/{self.folder}" if self.folder else self.repository
        return f"{_SCHEME}{path}" + (f"@{self.revision}" if self.revision else "")

    def inside(self, name: str) -> str:
        """The path of a file of the run in the repository."""
        return f"{self.folder}/{name}" if self.folder else name


def is_address(text: object) -> bool:
    """Whether this names a run on the hub and no folder; also where a Path has made one of the two slashes of it."""
    return isinstance(text, str | os.PathLike) and os.fspath(text).startswith("hf:/")


def address(text: str | os.PathLike[str], what: str = "run") -> Address:
    """The parts of ``hf://owner/name[/folder][@revision]``; the scheme may be left out.

    Raises:
        SpecError: anything else; the message calls it ``what``.
    """
    given = os.fspath(text)
    path, at, revision = re.sub("^hf:/+", "", given).partition("@")
    words = path.split("/")
    if words[0] in _OTHERS:
        raise SpecError(f"{what}: '{given}' is a {_OTHERS[words[0]]}; a run lies in a model repository, hf://owner/name")
    words = words[1:] if words[0] == "models" else words
    names = [word for word in words[:2] if _NAME.fullmatch(word) and "--" not in word and ".." not in word]
    if len(names) < 2 or not all(word not in ("", ".", "..") for word in words[2:]) or (at and not revision):
        raise SpecError(
            f"{what}: '{given}' is no address on the hub; write hf://owner/name, hf://owner/name/folder or "
            "hf://owner/name@revision"
        )
    return Address("/".join(names), "/".join(words[2:]), revision)


# -- from the hub ------------------------------------------------------------------------------------


def located(folder: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Where the files of a run lie; and its address with the commit, where it comes from the hub.

    Raises:
        SpecError: no address.
        RunError: nothing there, or out of reach.
    """
    return fetch(address(folder)) if is_address(folder) else (Path(folder), None)


def fetch(place: Address) -> tuple[Path, str]:
    """The run in the hub's cache, fetched as far as it is not there yet; and its address with the commit.

    Environment variables of the hub's client hold: HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT.

    Raises:
        RunError: no such repository or revision, no access to it, no run in it, or neither a network nor a copy in
            the cache.
    """
    client = _client("opening a run from the hub")
    how = {"revision": place.revision or None, **_agent()}
    with _explained(client, place):
        try:
            found = client.hf_hub_download(place.repository, place.inside("spec.json"), **how)
        except client.errors.LocalEntryNotFoundError as error:
            with contextlib.suppress(client.errors.LocalEntryNotFoundError):
                client.snapshot_download(place.repository, local_files_only=True, **how)
                raise RunError(
                    f"run: {place} is in the hub's cache without a varflow run (no {place.inside('spec.json')}), and "
                    f"{_unreached(error)}; or check the address"
                ) from None
            raise
        except client.errors.EntryNotFoundError:
            raise _no_run(place) from None
        _check_spec(Path(found), place)
        # …/snapshots/COMMIT/folder/spec.json: the rest is of the same commit, whatever is pushed meanwhile.
        depth = len(PurePosixPath(place.folder).parts)
        root = Path(found).parents[depth]
        client.snapshot_download(
            place.repository,
            revision=root.name,
            allow_patterns=[
                place._replace(folder=escape(place.folder)).inside(name) for name in (*ARTEFACT, *TRAINING_ROWS)
            ],
            **_agent(),
        )
    folder = root / place.folder
    told = read_json(folder / "run.json")
    second = isinstance(told, dict) and (told.get("outcome") or {}).get("code_prior")
    if second and not (folder / "prior" / "model.safetensors").exists():
        # Without it the run would be opened as one whose code prior has not begun.
        raise RunError(
            f"run: {place} lacks prior/model.safetensors; push the run again, or delete {root} to fetch it anew"
        )
    return folder, str(place._replace(revision=root.name))


def _check_spec(path: Path, place: Address) -> None:
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        spec = None
    if not isinstance(spec, dict) or "version" not in spec:
        raise RunError(f"run: {place} holds no varflow run (its spec.json is of something else); check the address")


def _no_run(place: Address) -> RunError:
    where = f"the folder '{place.folder}' of it" if place.folder else "it"
    hint = "check the address" if place.folder else "check the address, or name the folder, hf://owner/name/folder"
    return RunError(f"run: {place} holds no varflow run (no spec.json in {where}); {hint}")


def copy(run: Run, folder: str | Path, dtype: Literal["float16", "bfloat16"] | None = None) -> Run:
    """The run in a folder of its own, opened from there. It can be evaluated and reported there, and not resumed.

    Args:
        run: one with a folder, or from the hub.
        folder: new, or without a run.
        dtype: see :meth:`varflow.Run.copy`.

    Raises:
        RunError: a run in memory, a folder that holds a run or cannot be written, or a weight that is too large.
        SpecError: another dtype.
    """
    from varflow.report.card import CARD, write_card
    from varflow.runs.folder import ENVIRONMENT, prepare, read_about
    from varflow.runs.loading import load

    if dtype not in (None, "float16", "bfloat16"):
        raise unknown("dtype", str(dtype), ("float16", "bfloat16"))
    source, target = folder_of(run, "copy"), Path(folder)
    prepare(target, overwrite=False)
    names = present(source, [*ARTEFACT, *TRAINING_ROWS, ENVIRONMENT, CARD])
    if dtype is not None:
        # Estimates and scores are of the weights before they were rounded.
        names = [name for name in names if not name.startswith("evaluation/") and name != "training_scores.json"]
    for name in sorted(names, key=lambda name: name == "spec.json"):
        make_folder((target / name).parent)
        if name == "run.json" and run.origin is not None:
            write_json(target / name, {**read_about(source), "origin": run.origin})
        elif dtype is not None and name.endswith("model.safetensors"):
            _round_weights(source / name, target / name, dtype)
        else:
            _copy_file(source / name, target / name)
    write_card(target)
    own = {name: getattr(run.model, name, run.model) for name in read_about(source)["own_parts"]}
    copied = load(target, parts=own, device=str(next(run.model.parameters()).device))
    copied.take_data(run)
    copied.spec = run.spec
    return copied


def _round_weights(source: Path, target: Path, dtype: str) -> None:
    """The weights of a file in half the bytes; whole numbers stay as they are.

    Raises:
        RunError: a weight does not fit.
    """
    import torch

    from varflow.runs.folder import read_weights, save_weights, step_of

    rounded = {}
    for name, tensor in read_weights(source).items():
        rounded[name] = tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
        if not bool(rounded[name].isfinite().all()):
            raise RunError(f"dtype: '{name}' of {source} holds a number too large for {dtype}; use bfloat16")
    save_weights(target, rounded, step_of(source))


def _copy_file(source: Path, target: Path) -> None:
    with open(source, "rb") as file:
        write_atomically(target, lambda copy: shutil.copyfileobj(file, copy))


def folder_of(run: Run, verb: str) -> Path:
    """Where a run lies.

    Raises:
        RunError: in memory.
    """
    if run.folder is None:
        raise RunError(f"{verb}: this run is in memory; fit with out=... to have files")
    return run.folder


def check_writable(run: Run) -> None:
    """Refuse to write into a run that lies in the hub's cache.

    Raises:
        RunError: it does.
    """
    if run.origin is not None:
        raise RunError(
            f"run: {run.origin} lies in the hub's cache, which is not written to; take a copy first, "
            "run.copy('runs/mine'), or give --out on the command line"
        )


# -- to the hub --------------------------------------------------------------------------------------


def push(
    folder: str | Path,
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    figures: bool = False,
    training_rows: bool = False,
) -> str:
    """Put the run in a folder on the hub: see :meth:`varflow.Run.push`."""
    source, _ = located(folder)
    place = address(repository, "repository")
    if revision is not None and place.revision:
        raise SpecError(f"revision: was '{revision}', and the address says @{place.revision}; give one of the two")
    place = place._replace(revision=revision or place.revision)
    files = uploaded(source, place, figures, training_rows)
    client = _client("putting a run on the hub")
    api = client.HfApi(**_agent())
    branch = place.revision or None
    with _explained(client, place):
        api.create_repo(place.repository, private=private, exist_ok=True)
        if branch is not None and not branch.startswith("refs/"):
            api.create_branch(place.repository, branch=branch, exist_ok=True)
        there = api.list_repo_files(place.repository, revision=branch)
        gone = [name for name in there if _is_of_a_run(name, place) and name not in files]
        add = [client.CommitOperationAdd(path_in_repo=name, path_or_fileobj=what) for name, what in files.items()]
        drop = [client.CommitOperationDelete(path_in_repo=name) for name in gone]
        done = api.create_commit(
            place.repository,
            operations=[*add, *drop],
            commit_message=message or f"varflow run {source.resolve().name}",
            revision=branch,
        )
    return str(place._replace(revision=done.oid))


def uploaded(
    folder: Path, place: Address, figures: bool = False, training_rows: bool = False
) -> dict[str, bytes | Path]:
    """Path in the repository → content, or the file with it, of everything that a push puts there.

    Raises:
        RunError: no run, or one without weights.
    """
    found = artefact(folder, str(place), figures, training_rows)
    return {place.inside(name): content for name, content in found.items()}


def artefact(
    folder: Path, address: str, figures: bool = False, training_rows: bool = False
) -> dict[str, bytes | Path]:
    """The files of a run that others can use, by name: content, or the file with it; the card says ``address``.

    Where a file says where data lie on this machine, that is left out.

    Raises:
        RunError: no run, or one without weights.
    """
    from varflow.report.card import CARD, card, written_by_varflow

    if not (folder / "spec.json").exists():
        raise RunError(f"run: {folder} holds no run (no spec.json); give the folder that `varflow fit` wrote")
    if not (folder / "model.safetensors").exists():
        raise RunError(
            f"{folder / 'model.safetensors'}: missing; the run has not saved a model yet, resume or fit again"
        )
    names = present(folder, [*ARTEFACT, *(TRAINING_ROWS if training_rows else ())])
    found: dict[str, bytes | Path] = {}
    for name in names:
        found[name] = folder / name
        if name.endswith(".json"):
            here = read_json(folder / name)
            told = _told_elsewhere(name, here)
            if told != here:
                found[name] = (json.dumps(told, indent=2) + "\n").encode()
    for name in present(folder, _FIGURES if figures else ()):
        found[name] = folder / name
    path = folder / CARD
    before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    if before is None or written_by_varflow(before):
        before = card(folder, address, before, {name: _size(found[name]) for name in names})
    found[CARD] = before.encode()
    return found


def _told_elsewhere(name: str, content: Any) -> Any:
    """What a JSON file says to a reader on another machine: the same without the places of this one."""
    from varflow.data import SOURCES

    if not isinstance(content, dict):
        return content
    if name == "data.json":
        return _without_places(content)
    if name.startswith("evaluation/") and isinstance(content.get("data"), dict):
        return {**content, "data": _without_places(content["data"])}
    if name == "spec.json" and isinstance(content.get("data"), dict):
        data = {**content["data"], "data_dir": None}
        if data.get("data") not in SOURCES:
            data["data"] = Path(str(data.get("data"))).name
        return {**content, "data": data}
    return content


def _without_places(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != "folder" and not _is_place(name, value)}


def _is_place(name: str, value: Any) -> bool:
    return name == "source" and Path(str(value)).is_absolute()


def _size(what: bytes | Path) -> int:
    return len(what) if isinstance(what, bytes) else what.stat().st_size


def _is_of_a_run(path: str, place: Address) -> bool:
    """Whether a file of a repository is one that a push of a run there would have put there."""
    below = path.removeprefix(place.inside(""))
    known = (*ARTEFACT, *TRAINING_ROWS, *_FIGURES)
    return path == place.inside(below) and any(fnmatchcase(below, pattern) for pattern in known)


# -- the client --------------------------------------------------------------------------------------


def _client(purpose: str) -> Any:
    """huggingface_hub, imported now.

    Raises:
        RunError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise RunError(f"{purpose} needs huggingface_hub; install it with: pip install 'varflow[hub]'") from error
    return huggingface_hub


def _agent() -> dict[str, str]:
    """How the client says who asks."""
    from varflow import __version__

    return {"library_name": "varflow", "library_version": __version__}


@contextlib.contextmanager
def _explained(client: Any, place: Address) -> Iterator[None]:
    """What goes wrong between here and the hub, in one sentence."""
    errors = client.errors
    repository = place.repository
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except RunError:
        raise
    except errors.GatedRepoError as error:
        raise RunError(
            f"run: {repository} is gated; ask for access on its page on the hub, then {log_in}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise RunError(
            f"run: there is no model repository {repository} on the hub, or it is private and you have no access; "
            f"check the name, or {log_in}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RunError(
            f"run: {repository} has no revision '{place.revision or 'main'}'; give a branch, a tag or a commit of it"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise RunError(f"run: {place} is not in the hub's cache ({_cache()}), and {_unreached(error)}") from error
    except errors.LocalTokenNotFoundError as error:
        raise RunError(f"run: nobody is logged in to the hub; {log_in}") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise RunError(f"run: the hub refuses access to {repository} ({status}); {log_in}") from error
        hint = "; try again later" if status is None or status >= 500 else ""
        raise RunError(f"run: the hub answered for {repository}: {_first_line(error)}{hint}") from error
    except errors.HFValidationError as error:
        raise SpecError(f"run: '{place}' is no address on the hub ({_first_line(error)})") from error
    except ValueError as error:
        if "README" not in str(error):
            raise
        words = " ".join(str(error).split())[:300]
        raise RunError(f"run: the hub does not take README.md ({words}); mend its front matter") from error
    except Exception as error:
        # The client's transport has changed its package twice; its errors say where they come from.
        of_transport = type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests")
        if not of_transport and not isinstance(error, OSError):
            raise
        raise RunError(f"run: {place}: {_unreached(error)}") from error


def _unreached(error: BaseException) -> str:
    """Why the hub was not asked, or gave no answer: the first cause, below what the layers of the client say."""
    chain = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(below)
    if any(type(cause).__name__ == "OfflineModeIsEnabled" for cause in chain):
        return "HF_HUB_OFFLINE is set; unset it to reach the hub"
    return f"the hub cannot be reached ({_first_line(chain[-1])}); connect, and try again"


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
