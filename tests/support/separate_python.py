"""A Python environment with the libraries of this one but without this project."""

import json
import os
import site
import subprocess
import venv
from pathlib import Path
from typing import Any


class SeparatePython:
    """An interpreter that imports torch and diffusers and cannot import `grafting_core`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "env", with_pip=False, symlinks=True)
        [own] = (folder / "env" / "lib").glob("python*/site-packages")
        # Files *.pth of a folder that is named in one are not read, so that an editable installation of this
        # project, which is such a file, has no effect.
        (own / "libraries.pth").write_text("\n".join(site.getsitepackages()) + "\n")
        (folder / "elsewhere").mkdir()

    def run(self, code: str, *arguments: str, fails: bool = False) -> str:
        """Standard output of a program; with `fails`, what it wrote before it failed. Downloads nothing."""
        kept = {
            name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LD_LIBRARY_PATH")
        }
        settings = {"HF_HOME": str(self.folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [self.folder / "env" / "bin" / "python", "-c", code, *arguments],
            cwd=self.folder / "elsewhere",
            env={**kept, **settings},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert (done.returncode != 0) == fails, done.stderr[-3000:]
        return done.stderr if fails else done.stdout

    def json(self, code: str, *arguments: str) -> Any:
        """The last line of a program's standard output."""
        return json.loads(self.run(code, *arguments).splitlines()[-1])
