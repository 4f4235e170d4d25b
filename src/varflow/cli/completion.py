"""Print a script by which bash, zsh or fish completes verbs, flags, recipes and runs.

The script asks ``varflow __complete`` at each press of the key, so it never grows old: the flags of ``fit`` are those
of the parts that are chosen so far. Nothing here imports torch.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin

from varflow.cli.common import config_file
from varflow.core.errors import VarflowError
from varflow.core.settings import SEVERAL, alternatives
from varflow.settings import recipes, toml
from varflow.settings.flags import parse, spec_types, types_of, with_choices
from varflow.settings.spec import RunSpec


@dataclass(frozen=True)
class Completion:
    """The script of a shell. bash: eval "$(varflow completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc, after
    compinit; fish: varflow completion fish > ~/.config/fish/completions/varflow.fish.
    """

    words: ClassVar[tuple[str, ...]] = ("shell",)

    shell: Literal["bash", "zsh", "fish"]
    """Which."""


def main(arguments: list[str]) -> int:
    print(_SCRIPTS[parse(Completion, arguments).shell], end="")
    return 0


_BASH = r"""# Completion of varflow for bash: eval "$(varflow completion bash)"
_varflow() {
    local candidate
    COMPREPLY=()
    while IFS= read -r candidate; do
        COMPREPLY+=("$candidate")
    done < <("${COMP_WORDS[0]}" __complete bash "$COMP_CWORD" "${COMP_WORDS[@]}" 2>/dev/null)
    # What goes on, a folder, gets no space behind it.
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == */ ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -F _varflow varflow
"""

_ZSH = r"""#compdef varflow
# Completion of varflow for zsh: eval "$(varflow completion zsh)" after compinit
_varflow() {
    local value help
    local -a whole whole_shown onward
    while IFS=$'\t' read -r value help; do
        if [[ $value == */ ]]; then
            onward+=("$value")
        else
            whole+=("$value")
            whole_shown+=("$value${help:+  -- $help}")
        fi
    done < <("${words[1]}" __complete zsh "$((CURRENT - 1))" "${(Q)words[@]}" 2>/dev/null)
    (( $#whole )) && compadd -V varflow -l -d whole_shown -a whole
    (( $#onward )) && compadd -V folders -S '' -a onward
}
compdef _varflow varflow
"""

_FISH = r"""# Completion of varflow for fish: varflow completion fish > ~/.config/fish/completions/varflow.fish
function __varflow_complete
    set -l before (commandline -opc)
    set -l current (string unescape -- (commandline -ct))
    $before[1] __complete fish (count $before) $before "$current" 2>/dev/null
end
complete -c varflow -f -a '(__varflow_complete)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


@dataclass(frozen=True)
class Candidate:
    """A word that may stand here, and what it means in a few words."""

    value: str
    help: str = ""


# -- what a shell asks for -------------------------------------------------------------------------------


def answer(arguments: list[str]) -> int:
    """``varflow __complete SHELL POSITION varflow WORDS…``: a candidate a line, its help after a tab.

    bash has no help, and takes the words for its own: it splits them at ``=`` and wants what it reads quoted.
    """
    shell, position, words = arguments[0], int(arguments[1]), arguments[2:]
    typed = words[1 : position + 1]
    if shell == "bash":
        typed = [_unquoted(word) for word in _joined(typed)]
    typed = typed or [""]
    current = typed[-1]
    flag, has_value, _ = current.partition("=")
    before = f"{flag}=" if has_value and current.startswith("--") else ""
    for found in candidates(typed):
        if shell == "bash":
            print(_quoted(found.value.removeprefix(before)))
        else:
            print(f"{found.value}\t{found.help}" if found.help else found.value)
    sys.stdout.flush()
    return 0


def candidates(words: list[str]) -> list[Candidate]:
    """What the last of the words after ``varflow`` may become, given those before it."""
    *before, current = words
    try:
        found = [one for one in _all(before, current) if one.value.startswith(current)]
    except (VarflowError, OSError):
        # A mistake in the words before, which the verb will name.
        return []
    return list({one.value: one for one in found}.values())


def _all(before: list[str], current: str) -> Iterator[Candidate]:
    from varflow.cli import VERBS

    if not before:
        for verb in VERBS:
            yield Candidate(verb, _first_line(import_module(f"varflow.cli.{verb}")))
        yield from (Candidate("--help", "What there is"), Candidate("--version", "Which varflow"))
        return
    verb, *given = before
    if verb not in VERBS:
        return
    if verb == "recipes":
        yield from (*_recipes(), Candidate("--json"), Candidate("--help"))
        return
    kind: type = getattr(import_module(f"varflow.cli.{verb}"), verb.title())
    spec = _spec(given) if verb in ("fit", "sweep") else None
    types = {**(spec_types(spec) if spec else {}), **types_of(kind)}
    flag, has_value, value = current.partition("=")
    if current.startswith("--") and has_value:
        for found in _values(verb, _name(flag), types, value, given):
            yield Candidate(f"{flag}={found.value}", found.help)
        return
    if (name := _waiting(given, types)) and not current.startswith("-"):
        yield from _values(verb, name, types, current, given)
        return
    if not current.startswith("-"):
        words = next((place for place, word in enumerate(given) if word.startswith("-")), len(given))
        if words == len(given):
            yield from _words(verb, kind, types, given, current)
    if current.startswith("-") or not _needs_word(verb, kind, given):
        yield from _flags(kind, spec, types, given)


#: Verbs that take runs without a number, and how many at least.
_SEVERAL_RUNS = {"compare": 2, "explore": 1}


def _waiting(given: list[str], types: dict[str, Any]) -> str:
    """The setting that the word before asks a value of; "" where it asks none, as a switch does."""
    last = given[-1] if given else ""
    name = _name(last)
    if not last.startswith("--") or "=" in last or name not in types:
        return ""
    return "" if bool in alternatives(types[name]) else name


def _needs_word(verb: str, kind: type, given: list[str]) -> bool:
    """Whether a verb is not complete without a word here."""
    if verb in ("fit", "sweep"):
        return not given
    if verb in _SEVERAL_RUNS:
        return len(given) < _SEVERAL_RUNS[verb]
    words = getattr(kind, "words", ())
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    return len(given) < len([name for name in words if name in required])


def _words(verb: str, kind: type, types: dict[str, Any], given: list[str], current: str) -> Iterator[Candidate]:
    """The next of the words that stand before all flags."""
    if verb in ("fit", "sweep"):
        if not given:
            yield from _recipes()
    elif verb in _SEVERAL_RUNS:
        yield from (one for one in _folders(current, "spec.json") if one.value.rstrip("/") not in given)
    elif len(given) < len(names := getattr(kind, "words", ())):
        yield from _values(verb, names[len(given)], types, current, given)
        if verb == "show":
            yield from _recipes()


def _values(verb: str, name: str, types: dict[str, Any], current: str, given: list[str]) -> Iterator[Candidate]:
    """What a setting may be."""
    from varflow import data

    for option in alternatives(types[name]) if name in types else ():
        if get_origin(option) is Literal:
            yield from (Candidate(str(choice)) for choice in get_args(option))
    if name in ("run", "resume"):
        yield from _folders(current, "plan.json" if (verb, name) == ("sweep", "resume") else "spec.json")
    elif name == "data" or (verb, name) == ("data", "name"):
        known = data.DOWNLOADS if given[:1] == ["download"] else data.SOURCES
        yield from (Candidate(source, data.SOURCES.get(source, "")) for source in known)
        if name == "data":
            yield from _paths(current)
    elif name in _PATHS:
        yield from _paths(current)
    elif name in _SOME:
        yield from map(Candidate, _SOME[name])


#: Settings that are files or folders, and words that others may be.
_PATHS = ("a", "b", "config", "space", "out", "storage", "spread", "pictures", "data_dir")
_SOME = {"device": ("cpu", "cuda"), "track": ("mlflow", "wandb", "trackio", "tensorboard", "none")}


def _flags(kind: type, spec: RunSpec | None, types: dict[str, Any], given: list[str]) -> Iterator[Candidate]:
    """Flags that are not there yet; a switch in the form that changes something."""
    seen = {_name(word) for word in given if word.startswith("--")}
    help_of = dict(_documented(kind))
    defaults = {f.name: f.default for f in fields(kind)}
    if spec is not None:
        for part in spec.parts.values():
            help_of |= {part.role.name: part.role.help} if part.role.table else {}
            help_of |= {name: known.help for name, known in part.role.settings(part.choice).items()}
        defaults |= {name: spec.get(name) for name in types if name not in defaults}
    for name, type_ in types.items():
        if (name in seen and type_ != SEVERAL) or f"no_{name}" in seen or name in getattr(kind, "words", ()):
            continue
        off = type_ is bool and defaults.get(name) is True
        yield Candidate(f"--{'no-' if off else ''}{name.replace('_', '-')}", _short(help_of.get(name, "")))
    yield Candidate("--help", "All of them")


def _spec(given: list[str]) -> RunSpec:
    """The settings that are chosen so far."""
    name = given[0] if given and given[0] in recipes.TABLE else None
    spec = recipes.find(name).spec if name else RunSpec()
    config = config_file([word for word in given if word.startswith("-") or word != name])
    if config is not None and Path(config).is_file():
        spec, _ = toml.read(config, name)
    try:
        return with_choices(spec, given)
    except VarflowError:
        return spec


def _recipes() -> Iterator[Candidate]:
    for recipe in recipes.every():
        yield Candidate(recipe.name, _short(recipe.summary))


# -- files -----------------------------------------------------------------------------------------------

#: Entries of a folder that are looked into for runs.
_ENTRIES = 200


def _folders(current: str, marker: str) -> Iterator[Candidate]:
    """Folders that hold ``marker``, and those on the way to one."""
    for shown, path in _beside(current):
        if not path.is_dir():
            continue
        if (path / marker).exists():
            yield Candidate(shown)
        elif _leads_to(path, marker, 2):
            yield Candidate(shown + "/")


def _leads_to(folder: Path, marker: str, depth: int) -> bool:
    try:
        inside = [path for path, _ in zip(folder.iterdir(), range(_ENTRIES), strict=False) if path.is_dir()]
    except OSError:
        return False
    return any((path / marker).exists() for path in inside) or (
        depth > 1 and any(_leads_to(path, marker, depth - 1) for path in inside)
    )


def _paths(current: str) -> Iterator[Candidate]:
    for shown, path in _beside(current):
        yield Candidate(shown + "/" if path.is_dir() else shown)


def _beside(current: str) -> list[tuple[str, Path]]:
    """The entries of the folder that ``current`` is in, as they would be typed; hidden ones only where asked for."""
    folder, slash, stem = current.rpartition("/")
    there = Path(folder + slash).expanduser() if folder or slash else Path()
    if not there.is_dir():
        return []
    return [
        (f"{folder}{slash}{path.name}", path)
        for path in sorted(there.iterdir())
        if path.name.startswith(stem) and (stem.startswith(".") or not path.name.startswith("."))
    ]


# -- words -----------------------------------------------------------------------------------------------


def _name(flag: str) -> str:
    return flag.partition("=")[0].removeprefix("--").replace("-", "_")


def _joined(words: Iterable[str]) -> list[str]:
    """Words that bash split at ``=`` put together again."""
    out: list[str] = []
    after = False
    for word in words:
        if out and (after or (word == "=" and out[-1].startswith("--"))):
            out[-1] += word
            after = word == "="
        else:
            out.append(word)
    return out


def _unquoted(word: str) -> str:
    return re.sub(r"\\(.)", r"\1", word.strip("'\""))


def _quoted(word: str) -> str:
    return re.sub(r"([^\w@%+=:,./~-])", r"\\\1", word)


def _first_line(module: Any) -> str:
    return (module.__doc__ or "").partition("\n")[0].rstrip(".")


def _short(text: str) -> str:
    """The first sentence or part of one, in one line."""
    first = re.split(r"(?<=[^.])[.;](?:\s|$)", " ".join(text.split()), maxsplit=1)[0]
    return first if len(first) <= 70 else first[:67].rstrip() + "..."


def _documented(kind: type) -> Iterator[tuple[str, str]]:
    """The words below each field of a class and of those it is derived from."""
    for one in reversed(kind.__mro__[:-1]):
        made = ast.parse(inspect.cleandoc("\n" + inspect.getsource(one))).body[0]
        assert isinstance(made, ast.ClassDef)
        for field, words in zip(made.body, made.body[1:], strict=False):
            target = getattr(field, "target", None)
            if isinstance(target, ast.Name) and isinstance(words, ast.Expr):
                yield target.id, str(ast.literal_eval(words.value))
