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
from trainer.measures import Rows
from trainer.pictures import Pictures
from trainer.quotas import Quotas
from trainer.readers import read_shard
from trainer.roster import Identity, NameIndex, fold, names_of, read_roster, refuse_named
from trainer.sharing import share_rows
from trainer.statistics import Estimate, mean, quantile, rate, rate_by_person, roc_auc
from trainer.streams import expand

__all__ = [
    "BadSample",
    "Embeddings",
    "Encoder",
    "Estimate",
    "Evaluation",
    "Identity",
    "LossFn",
    "NameIndex",
    "Objective",
    "Pair",
    "Pictures",
    "Quotas",
    "Rows",
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
    "mean",
    "multi_positive_info_nce",
    "names_of",
    "quantile",
    "rate",
    "rate_by_person",
    "read_roster",
    "read_shard",
    "refuse_named",
    "roc_auc",
    "share_rows",
]
