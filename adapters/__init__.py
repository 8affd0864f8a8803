"""The bodies: attach an adapter to a Hugging Face model, read what it makes of its input, and answer with
it."""

from arr_coc.adapters.attach import ArrCocModel, attach
from arr_coc.adapters.perceived import Handle, Perceived, Prediction
from arr_coc.adapters.structure import Inspection

__all__ = ["ArrCocModel", "Handle", "Inspection", "Perceived", "Prediction", "attach"]
