"""Record the live page as a moving picture for the README, on a machine that does nothing else.

    python tools/picture_live_page.py --out docs/pictures/live-page.webp [--model edge-kvasir]

A generated colonoscopy is streamed at its own rate, headless Chromium shows the page, and its
screenshots become an animated WebP. A page that was not LIVE throughout, as on a busy machine, is
refused. Needs chromium, chromedriver and selenium.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

SIZE = (1280, 720)
WIDTH = 960  # pixels of the picture


def main() -> None:
    """Generate a video, run, watch, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="edge-kvasir", help="checkpoint, bundle or name")
    parser.add_argument("--seconds", type=float, default=8.0, help="of the picture (default: 8)")
    parser.add_argument("--rate", type=float, default=6.0, help="pictures a second (default: 6)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        medisseg = [sys.executable, "-m", "medisseg"]
        frames = str(int(25 * (args.seconds + 20)))
        phantom = [*medisseg, "phantom", folder, "--images", "10", "--frames", frames]
        subprocess.run([*phantom, "--seed", "11"], check=True)
        run = [*medisseg, "run", f"{folder}/video.mp4", "--model", args.model, "--realtime"]
        run += ["--serve", "127.0.0.1:0", "--out", f"{folder}/run"]
        with subprocess.Popen(
            run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as p:
            assert p.stdout is not None
            said = ""
            while not (found := re.search(r"http://\S+", said)):
                line = p.stdout.readline()
                if not line:
                    sys.exit(f"the runner ended before it served a page:\n{said}")
                said += line
            try:
                pictures, states = watch(found[0], args.seconds, args.rate)
            finally:
                p.terminate()
    if states != {"LIVE"}:
        sys.exit(
            f"the page showed {', '.join(sorted(states))}; expected LIVE throughout: nothing was "
            "written; close what else this machine does and record again"
        )
    first, *others = pictures
    each = round(1000 / args.rate)
    first.save(args.out, save_all=True, append_images=others, duration=each, loop=0, quality=60)
    print(f"{args.out}: {len(pictures)} pictures, {args.out.stat().st_size / 1e6:.2f} MB")


def watch(address: str, seconds: float, rate: float) -> tuple[list[Image.Image], set[str]]:
    """Open the page; return its screenshots, after five seconds to come to rest, and its states."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chosen = webdriver.ChromeOptions()
    chosen.binary_location = shutil.which("chromium") or "chromium-browser"
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        chosen.add_argument(word)
    chosen.add_argument(f"--window-size={SIZE[0]},{SIZE[1]}")
    browser = webdriver.Chrome(chosen, Service(shutil.which("chromedriver")))
    try:
        browser.get(address)
        time.sleep(5)
        pictures, states, due = [], set(), time.monotonic()
        for _ in range(round(seconds * rate)):
            shot = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
            states.add(browser.execute_script("return document.body.dataset.state"))
            pictures.append(shot.resize((WIDTH, round(WIDTH * shot.height / shot.width))))
            due += 1 / rate
            time.sleep(max(0.0, due - time.monotonic()))
        return pictures, states
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
