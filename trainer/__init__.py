"""Make CLIP models forget people. Everything a plugin author imports is here."""

from trainer.api import (
    BadSample,
    Embeddings,
    Encoder,
    Evaluation,
    LossFn,
    Objective,
    Pair,
    Sample,
    Source,
    StrictModel,
    Tower,
    decode_picture,
    in_turn,
)
from trainer.hookspecs import hookimpl
from trainer.losses import (
    cosine_distance,
    cosine_distances,
    gather_rows,
    multi_positive_info_nce,
)
from trainer.pictures import Pictures
from trainer.quotas import Quotas
from trainer.readers import read_shard
from trainer.roster import Identity, NameIndex, fold, names_of, read_roster, refuse_named
from trainer.streams import expand

__all__ = [
    "BadSample",
    "Embeddings",
    "Encoder",
    "Evaluation",
    "Identity",
    "LossFn",
    "NameIndex",
    "Objective",
    "Pair",
    "Pictures",
    "Quotas",
    "Sample",
    "Source",
    "StrictModel",
    "Tower",
    "cosine_distance",
    "cosine_distances",
    "decode_picture",
    "expand",
    "fold",
    "gather_rows",
    "hookimpl",
    "in_turn",
    "multi_positive_info_nce",
    "names_of",
    "read_roster",
    "read_shard",
    "refuse_named",
]
