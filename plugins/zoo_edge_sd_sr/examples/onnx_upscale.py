"""Enlarge an image of any size with an exported model: numpy, Pillow, onnxruntime; no torch.

zoo export edge-sd-sr -o model.onnx && python onnx_upscale.py model.onnx IN OUT
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

model, source, out = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
told = session.get_modelmeta().custom_metadata_map  # "range" is the range of all values: 0 to 1
scale, multiple, factor = (int(told[name]) for name in ("scale", "multiple", "factor"))
pixels: np.ndarray = np.asarray(Image.open(source).convert("RGB"), np.float32) / 255  # (h,w,3)
h, w = pixels.shape[:2]
pixels = np.pad(pixels, ((0, -h % multiple), (0, -w % multiple), (0, 0)), mode="reflect")
feed = {"image": pixels.transpose(2, 0, 1)[None]}
for noise in session.get_inputs()[1:]:  # only if the model's chain starts at noise
    shape = 1, noise.shape[1], *(n * scale // factor for n in pixels.shape[:2])
    feed[noise.name] = np.random.default_rng(0).standard_normal(shape, np.float32)
(made,) = session.run(None, feed)
large = made[0, :, : h * scale, : w * scale].transpose(1, 2, 0)  # (H,W,3)
Image.fromarray((large * 255).round().astype(np.uint8)).save(out)
