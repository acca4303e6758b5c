"""Find objects with an exported model: numpy, Pillow, onnxruntime; no torch, no zoo.

zoo export simdetr --format onnx -o model.onnx
python onnx_detect.py model.onnx PHOTOS
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, *photos = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
told = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
names, height, width = told["names"], told["height"], told["width"]
nms, threshold = told["nms"], told["threshold"]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two boxes."""
    both = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    return float(both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both))


for photo in photos:
    upright = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    small = upright.resize((width, height), Image.Resampling.BILINEAR)
    boxes, scores = session.run(None, {"pixels": np.asarray(small)[None]})
    kept: list[tuple[np.ndarray, int]] = []
    for query, label in sorted(np.argwhere(scores >= threshold), key=lambda at: -scores[*at]):
        rivals = [box for box, other in kept if other == label]
        if all(overlap(boxes[query], rival) <= nms for rival in rivals):
            kept.append((boxes[query], label))
            corners = " ".join(f"{side:.1f}" for side in boxes[query] * [*upright.size * 2])
            print(f"{photo}\t{names[label]}\t{scores[query, label]:.3f}\t{corners}")
