"""Is a digit drawn with straight strokes or with curves? A folder of images in, an answer for each further
image out.

    python folder_to_predict.py FOLDER IMAGE …
"""
import sys

from torch import nn

import exp.inference   # noqa: F401 (methods of Learner)
from exp.data_block import ImageList
from exp.layers import conv_layer
from exp.learner import Learner
from exp.metrics import accuracy

folder, *images = sys.argv[1:]
data = ImageList.from_folder(folder).split_random(0.2).label_from_folder().transform(size=28).databunch(
    bs=32).normalize()
body = [conv_layer(3, 16), conv_layer(16, 32), conv_layer(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
learn = Learner(data, nn.Sequential(*body, nn.Linear(64, data.c)), metrics=accuracy)
learn.fit_one_cycle(3, 1e-2)
for image in images:
    label, _, probs = learn.predict(image)
    print(f'{image}: {label} ({100*probs.max():.0f} %)')
