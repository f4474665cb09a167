"""Type of images in memory."""

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
"""uint8, gray [N, H, W] or with channels last [N, H, W, C]."""
