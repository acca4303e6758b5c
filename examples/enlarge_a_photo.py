"""Enlarge a photograph four times, and compare with bicubic interpolation.

Writes enlarged.png. The photograph (NASA, public domain) comes with scikit-image.
"""

from PIL import Image
from skimage.data import astronaut

import zoo
from zoo.images import to_tensor
from zoo.metrics import psnr_y

truth = Image.fromarray(astronaut()).crop((96, 0, 352, 256))
small = truth.resize((64, 64), Image.Resampling.BICUBIC)

model = zoo.load("edge-sd-sr")
large = model.upscale(small)
large.save("enlarged.png")

for name, image in {"bicubic": small.resize(truth.size, 3), "edge-sd-sr": large}.items():
    print(f"{name:10}  PSNR-Y {psnr_y(to_tensor(image), to_tensor(truth), 4):.2f} dB")
