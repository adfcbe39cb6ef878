"""Draw the same subject in many scenes with any Stable Diffusion, with or without training.

Its public names are those of ``__init__.pyi``; each is imported when it is first used.
"""

from importlib.metadata import version

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
__version__ = version("consist")
del attach_stub, version
