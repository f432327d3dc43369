"""The extension in rough surroundings: fuzzing, sanitizers, forks, threads, bare builds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from kernels import frames

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_fuzzing_ends_in_results_or_errors(seed: int) -> None:
    done = run(sys.executable, HERE / "fuzz.py", "--seconds", "2", "--seed", str(seed))
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("preprocess", "resize", "postprocess", "outline", "overlay", "regions"):
        assert f"{name} done" in done.stdout and f"{name} refused" in done.stdout


@pytest.mark.slow
def test_fuzzing_is_clean_under_sanitizers(tmp_path: Path) -> None:
    if shutil.which(os.environ.get("CXX", "c++")) is None or shutil.which("cmake") is None:
        pytest.skip("no compiler or no cmake")
    done = run("bash", HERE / "sanitize.sh", sys.executable, "8", tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "preprocess done" in done.stdout


class Frames(Dataset[torch.Tensor]):
    """Preprocesses one frame an item, in the loader's worker."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        frame = np.full((600, 800, 3), index, np.uint8)
        return torch.from_numpy(frames.preprocess(frame, (512, 512), layout="RGB"))


def test_forked_workers_after_threads_were_started() -> None:
    """A forked child has none of its parent's threads; it starts its own."""
    before = frames.build_info()["threads"]
    frames.set_threads(2)
    dataset = Frames()
    want = torch.stack([dataset[i] for i in range(8)])
    loader = DataLoader(dataset, 4, num_workers=2, multiprocessing_context="fork", timeout=60)
    torch.testing.assert_close(torch.cat(list(loader)), want, rtol=0, atol=0)
    frames.set_threads(before)


def test_many_threads_at_once() -> None:
    """Callers share one pool: whoever finds it busy works alone, and all get the same."""
    frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    want = frames.preprocess(frame, (320, 320), layout="BGR")
    same: list[bool] = []

    def work(threads: int) -> None:
        for _ in range(30):
            frames.set_threads(threads)
            got = frames.preprocess(frame, (320, 320), layout="BGR")
            same.append(np.array_equal(got, want))

    before = frames.build_info()["threads"]
    workers = [threading.Thread(target=work, args=(1 + i % 2,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    frames.set_threads(before)
    assert len(same) == 120 and all(same)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CXX": "no-such-compiler"}, "no C++ compiler (no-such-compiler)"),
        ({"CUDACXX": "/none/nvcc", "MEDISSEG_CUDA": "1"}, "there is no nvcc"),
        ({"MEDISSEG_CUDA": "yes"}, "MEDISSEG_CUDA is 'yes'; expected 1, 0 or nothing"),
    ],
)
def test_builds_that_cannot_be_end_in_one_line(
    environment: dict[str, str], message: str, tmp_path: Path
) -> None:
    folders = ("--build-temp", tmp_path / "t", "--build-lib", tmp_path / "l")
    done = run(sys.executable, "setup.py", "-q", "build_ext", *folders, **environment)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert "Traceback" not in done.stderr
