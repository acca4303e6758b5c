"""Classify photos with an exported model: numpy, Pillow, onnxruntime; no torch, no zoo.

zoo export lfa-photos -O labels="beach, dog" -o model.onnx
python onnx_classify.py model.onnx PHOTOS
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, *photos = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
told = session.get_modelmeta().custom_metadata_map
labels, side = json.loads(told["labels"]), int(told["side"])
for photo in photos:
    upright = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    square = ImageOps.fit(upright, (side, side), Image.Resampling.BICUBIC)
    (found,) = session.run(None, {"pixels": np.asarray(square)[None]})
    best = int(found[0].argmax())
    print(f"{photo}\t{labels[best]}\t{found[0, best]:.4f}")
