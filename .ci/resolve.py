"""Do the README's install lines give a torch and a torchaudio that load together, wherever nothing
holds pip back?

pip cannot know: no wheel of torchaudio says which torch, of which CUDA, it was built for. But the
pair of this environment loads, below and in every test. So each line, resolved as on a machine
without constraints, has to give the same minor releases. Downloads metadata, installs nothing.
"""

import json
import os
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torchaudio  # noqa: F401  ends here if it does not load beside this environment's torch

ROOT = Path(__file__).resolve().parents[1]
PAIR = ("torch", "torchaudio")


def install_lines() -> list[str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("\n## Install\n")[2].partition("\n## ")[0]
    lines = []
    for line in section.splitlines():
        if line.startswith("pip install "):
            lines.append(line.partition("#")[0].strip())
    return lines


def resolve(line: str) -> dict[str, str]:
    """The versions that an empty environment would get from `line`."""
    command = [sys.executable, "-m", "pip", *shlex.split(line)[1:], "--quiet"]
    command += ["--dry-run", "--ignore-installed", "--report", "-"]
    # An empty value would leave a constraint of pip.conf in force; the rest of it, such as the
    # index, stays.
    env = {**os.environ, "PIP_CONSTRAINT": os.devnull}
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True)
    versions = {}
    for package in json.loads(done.stdout)["install"]:
        metadata = package["metadata"]
        versions[metadata["name"]] = metadata["version"]
    return versions


def minor(release: str) -> list[str]:
    return release.split(".")[:2]


def check(line: str) -> None:
    resolved = resolve(line)
    for name in PAIR:
        if name not in resolved or minor(resolved[name]) != minor(version(name)):
            tested = " with ".join(f"{name} {version(name)}" for name in PAIR)
            sys.exit(
                f"README.md: `{line}` gives {name} {resolved.get(name)} to whom nothing holds back;"
                f" what loads and is tested is {tested}: cap it, or test the newer pair"
            )
    print(f"{line}: torch {resolved['torch']} with torchaudio {resolved['torchaudio']}")


lines = install_lines()
# The pair, then the package beside it.
if len(lines) != 2:
    sys.exit(f"README.md: Install has {len(lines)} lines of `pip install`, not 2")
for line in lines:
    check(line)
