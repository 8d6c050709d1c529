"""What pyproject.toml cannot say: a `.pth` file beside the installed modules, in wheels and in
editable installs.

Every start of Python in that environment runs it, so it reads no file: the finder that waits for
MS-SWIFT stands in it, what happens then in higgs_audio_swift_autoload.py. What is left of an
installation that was removed is no error."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

WAIT = """
import os, sys
class HiggsAudioSwiftAutoload:
    waits_for = {"swift", "swift.cli.main", "swift.arguments.base_args.base_args"}
    def find_spec(name, path=None, target=None):
        if name in HiggsAudioSwiftAutoload.waits_for:
            HiggsAudioSwiftAutoload.waits_for.remove(name)
            try:
                import higgs_audio_swift_autoload
                return higgs_audio_swift_autoload.find_spec(name, path, target)
            except (ImportError, SyntaxError):
                pass
names = [getattr(finder, "__name__", "") for finder in sys.meta_path]
is_there = "HiggsAudioSwiftAutoload" in names  # `site` runs the files of a venv twice
if os.environ.get("HIGGS_AUDIO_AUTOLOAD") != "0" and not is_there:
    sys.meta_path.insert(0, HiggsAudioSwiftAutoload)
"""


class BuildWithPth(build_py):
    def run(self) -> None:
        super().run()
        folder = self.build_lib
        if self.editable_mode:
            # An editable wheel takes nothing from build_lib, but all that lies where `install`
            # puts modules.
            folder = self.get_finalized_command("install").install_lib
        # `site` runs those lines that begin with "import".
        start = f"import sys; exec({WAIT!r}, {{}})\n"
        Path(folder, "higgs_audio_swift_autoload.pth").write_text(start, encoding="utf-8")


setup(cmdclass={"build_py": BuildWithPth})
