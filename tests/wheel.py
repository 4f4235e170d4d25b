"""A wheel and an sdist, built, and used in fresh environments with hard dependencies only, no compiler on the path.

    make test-wheel                                         with the Python of .venv
    make test-wheel PYTHONS="python3.11 python3.12 python3.13"

In each environment, from an empty folder: the README's lines, and every verb on a small run. Prints a table at the
end; the exit status is 0 if nothing failed. The sdist is built into a wheel too, which must hold the same files.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

ROWS = "import numpy as np; x = np.random.default_rng(0).normal(size=(300, 3)) * [50, 4, 0.001] + [1000, -3, 0.02]"
SAVED = "np.savetxt('t.csv', x, delimiter=',', header='weight,charge,width', comments='')"

#: What is tried: a name, and the words after the interpreter or after ``varflow``.
PYTHON = [
    ("rows", f"{ROWS}; {SAVED}"),
    ("no compiler", "from varflow import native; assert native.reason(), 'a compiler was found'"),
]
VERBS = [
    "--version",
    "recipes",
    "fit digits --steps 30 --latent 2 --hidden 16 --out vae",
    "fit density --data t.csv --steps 30 --out table",
    "fit energy --steps 30 --length 4 --out energy",
    "fit --resume vae --steps 40",
    "evaluate vae --samples 20 --limit 30",
    "evaluate table",
    "evaluate energy --samples 2000",
    "anneal vae --points 4 --chains 2 --temperatures 10",
    "gaps vae --points 4 --chains 2 --temperatures 10 --steps 20",
    "curve vae --limit 10",
    "score table t.csv --anomaly --out scores.csv",
    "score vae digits --samples 30 --out scores.csv",
    "embed vae --out z.npy",
    "embed table t.csv --out z.csv",
    "nearest vae --k 3 --out near.csv",
    "sample vae --count 9",
    "sample table --count 9 --out rows.csv",
    "sample energy --count 9",
    "reconstruct vae --count 8",
    "reconstruct table t.csv --out again.csv",
    "interpolate vae 0 5 --steps 5",
    "interpolate table 0 5 --data t.csv --out way.csv",
    "fit digits --steps 30 --latent 2 --hidden 16 --flow planar --out other",
    "evaluate other --samples 20 --limit 30",
    "compare vae other --out compare",
    "report vae",
    "show vae --toml",
    "export vae --format torch --out exported",
    "data list",
    "score table t.csv --json",
    "completion bash",
]


def main(pythons: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        wheel = build(room)
        rows = [row for python in pythons or [sys.executable] for row in tried(python, wheel, room)]
    width = max(len(name) for _, name, _ in rows)
    print()
    for version, name, outcome in rows:
        print(f"{version:<7} {name:<{width}}  {outcome}")
    failed = sum(outcome != "passed" for *_, outcome in rows)
    print(f"\n{len(rows)} steps, {failed} failed")
    return int(failed > 0)


def build(room: Path) -> Path:
    """The wheel, once the one that is made of the sdist holds the same files, to the byte; both lie in room/dist."""
    source, dist = room / "source", room / "dist"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "build", "setuptools>=77"], check=True)
    date = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=True)
    environment = {**os.environ, "SOURCE_DATE_EPOCH": date.stdout.strip()}
    # Named both, each is made of the source; without names the wheel would be made of the sdist.
    made = ["--no-isolation", "--sdist", "--wheel", "--outdir", dist, source]
    subprocess.run([sys.executable, "-m", "build", *made], check=True, stdout=subprocess.DEVNULL, env=environment)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    again = ["wheel", "--no-deps", "--no-build-isolation", "-w", room / "again", sdist]
    subprocess.run([*pip, *again], check=True, env=environment)
    (second,) = (room / "again").glob("*.whl")
    files, same = contents(wheel), contents(second)
    other = sorted(name for name in files.keys() | same.keys() if files.get(name) != same.get(name))
    if other:
        raise SystemExit(f"the sdist makes another wheel: {', '.join(other[:5])}")
    print(f"{wheel.name}: {wheel.stat().st_size // 1024} KiB, {len(files)} files; {sdist.name}")
    return wheel


def tracked() -> list[str]:
    """The files of the checkout, as they are now."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in names.split("\0") if name and (ROOT / name).is_file()]


def contents(wheel: Path) -> dict[str, bytes]:
    """name → what is in it."""
    with zipfile.ZipFile(wheel) as held:
        return {name: held.read(name) for name in held.namelist()}


def tried(python: str, wheel: Path, room: Path) -> list[tuple[str, str, str]]:
    """What each step came to, in an environment of this Python."""
    version = subprocess.run([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True,
                             text=True, check=True).stdout.strip()  # fmt: skip
    home, place = room / f"env-{version}", room / f"work-{version}"
    place.mkdir()
    subprocess.run([python, "-m", "venv", home], check=True)
    inside = home / "bin" / "python"
    constraint = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *constraint, wheel],
                   check=True)  # fmt: skip
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    # A path without /usr/bin, so that no compiler is there.
    cache = str(room / f"cache-{version}")
    environment = {**kept, "PATH": str(home / "bin"), "VARFLOW_CACHE": cache, "OMP_NUM_THREADS": "1"}
    steps = [(name, [inside, "-c", program]) for name, program in [*PYTHON, *readme()]]
    steps += [(f"varflow {verb}", [home / "bin" / "varflow", *verb.split()]) for verb in VERBS]
    rows = []
    for name, words in steps:
        done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, check=False)
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        bad = done.returncode or "Traceback" in done.stderr
        rows.append((version, name, f"FAILED: {said[-1] if said else done.returncode}" if bad else "passed"))
        print(f"{version} {name}: {rows[-1][2]}", flush=True)
    return rows


def readme() -> list[tuple[str, str]]:
    """The blocks of Python in the README, one after the other, with few epochs."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    text = blocks[0].replace("epochs=200", "epochs=2").replace('warmup="20 epochs"', 'warmup="1 epochs"')
    return [("README, first lines", text.replace("samples=500", "samples=20"))]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
