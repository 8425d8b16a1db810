"""Workers in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import PATIENCE

HERE = Path(__file__).parent


@contextmanager
def worker(folder: Path, *command: str) -> Iterator[subprocess.Popen]:
    """Runs `python -m COMMAND`; shows what it wrote if something fails."""
    log = folder / "worker.log"
    env = os.environ | {"PYTHONPATH": str(HERE), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    except BaseException:
        print(log.read_text(errors="replace"))
        raise
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
