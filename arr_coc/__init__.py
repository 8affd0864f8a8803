"""arr-coc: adapters that let a frozen vision-language model keep learning from a stream.

The public surface is the list below. The mathematics (`arr_coc`) imports torch only; `attach` and what comes with
it is found in `arr_coc.adapters`, which is imported when it is first asked for.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

# From the repository root the folder arr_coc/ shadows the installed mapping: point the same names at the siblings.
for _folder in ("adapters", "training", "eval"):
    if not (Path(__file__).parent / _folder).is_dir() and (_root := Path(__file__).parents[1] / _folder).is_dir():
        __path__.append(str(_root.parent))

from arr_coc.config import ArrCocConfig

__version__ = "0.1.0"
