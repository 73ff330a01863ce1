"""Image data by name: `load` reads a set once, `Loader` hands out normalised batches of it.

::

    data = netslim.data.load("digits", validation=0.1, seed=0)
    augment = Augment(pad=1, flip=False)
    loader = Loader(data.train, 128, shuffle=True, augment=augment, mean=data.mean, std=data.std)
    for epoch in range(epochs):
        loader.set_epoch(epoch)             # order and augmentation depend on (seed, epoch) alone
        for images, labels in loader: ...    # float32 (B, C, H, W), int64 (B,)

Sets that fit in memory are `ImageTensors`, larger ones are `ImageStream`s that decode in worker
processes, and what is streamed from elsewhere is an `ImageSequence`; `Loader` takes any of them.
"""

from netslim.data.augment import Augment, RandomResizedCrop
from netslim.data.loader import Loader
from netslim.data.sequence import ImageSequence
from netslim.data.sources import load
from netslim.data.splits import Data, ImageStream, ImageTensors

__all__ = [
    "Augment",
    "Data",
    "ImageSequence",
    "ImageStream",
    "ImageTensors",
    "Loader",
    "RandomResizedCrop",
    "load",
]
