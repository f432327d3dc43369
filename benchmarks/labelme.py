"""Write generated images with polygons as LabelMe exports them: the data of docs/guide/data.md.

Run: ``python -m benchmarks.labelme polyps-labelme``
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from shutil import copyfile

import cv2

from medisseg.data.folder import SegmentationFolder
from medisseg.phantom import write_phantom


def main(out: Path, images: int, seed: int) -> None:
    """Write ``NAME.jpg`` and ``NAME.json`` of each image into a new folder."""
    out.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        write_phantom(Path(folder), frames=0, images=images, seed=seed)
        for sample in (phantom := SegmentationFolder(folder)):
            image = phantom.files[sample.name].image
            copyfile(image, out / image.name)
            # A person clicks a corner every few pixels.
            edges, _ = cv2.findContours(sample.mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            corners = [cv2.approxPolyDP(edge, 1.0, True)[:, 0].tolist() for edge in edges]
            shapes = [
                {"label": "polyp", "points": points, "group_id": None, "description": "",
                 "shape_type": "polygon", "flags": {}, "mask": None}
                for points in corners if len(points) >= 3
            ]  # fmt: skip
            height, width = sample.mask.shape
            document = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image.name,
                    "imageData": None, "imageHeight": height, "imageWidth": width}  # fmt: skip
            (out / f"{sample.name}.json").write_text(json.dumps(document, indent=2) + "\n")
    print(f"{out}: {images} images with polygons")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder that does not exist yet")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    main(args.out, args.images, args.seed)
