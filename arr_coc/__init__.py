"""arr-coc: adapters that let a frozen vision-language model keep learning from a stream.

The public surface is `__all__`. The mathematics in this package imports torch only; `attach` and the attached
model live in `arr_coc.adapters`, which is imported when one of its names is first asked for.
"""

from importlib import import_module
from pathlib import Path

# From the repository root this folder shadows the installed mapping of the four folders to one package:
# extend the
# search path by the root, so that `arr_coc.adapters` means ../adapters there too.
_root = Path(__file__).resolve().parents[1]
if not (Path(__file__).parent / "adapters").is_dir() and (_root / "adapters" / "attach.py").is_file():
    __path__.append(str(_root))

from arr_coc._version import __version__  # noqa: E402
from arr_coc.answer import Answer  # noqa: E402
from arr_coc.config import ArrCocConfig  # noqa: E402
from arr_coc.learner import Learner  # noqa: E402
from arr_coc.percept import Percept  # noqa: E402

_ADAPTERS = {"ArrCocModel", "Handle", "attach"}

__all__ = [
    "Answer",
    "ArrCocConfig",
    "ArrCocModel",
    "Handle",
    "Learner",
    "Percept",
    "__version__",
    "attach",
]


def __getattr__(name: str) -> object:
    if name in _ADAPTERS:
        return getattr(import_module("arr_coc.adapters"), name)
    raise AttributeError(f"module 'arr_coc' has no attribute {name!r}; it offers {', '.join(__all__)}")
