"""The CUDA kernels of lorahub-edge, in a wheel of their own; lorahub_edge/kernels/routes.py looks here for them.

Both share C++ signatures, so they must be of one version. pip sees to it, `pip install --no-deps` does not.
"""

import lorahub_edge

__version__ = "0.1.0"

if lorahub_edge.__version__ != __version__:
    raise ImportError(
        f"lorahub-edge-cuda: expected the version of lorahub-edge, {lorahub_edge.__version__}, received {__version__}"
    )
