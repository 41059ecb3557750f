"""Make CLIP models forget people. Everything a plugin author imports is here."""

from trainer.api import (
    BadSample,
    Embeddings,
    Encoder,
    Evaluation,
    LossFn,
    Objective,
    Pair,
    Patterns,
    Sample,
    Source,
    StrictModel,
    Templates,
    Tower,
    decode_picture,
    in_turn,
)
from trainer.data.quotas import Quotas
from trainer.data.readers import read_shard
from trainer.data.streams import expand, expand_local
from trainer.hookspecs import hookimpl
from trainer.losses import (
    DISTANCES,
    Distance,
    Distances,
    cosine_distance,
    cosine_distances,
    forget_and_keep,
    gather_rows,
    multi_positive_info_nce,
    relative_distances,
)
from trainer.measures import Rows
from trainer.people.names import NameIndex, fold, read_names, word_spans
from trainer.people.pictures import Pictures, Unread, first_pictures, pictures_of, refuse_unseen
from trainer.people.roster import Identity, names_of, read_roster, refuse_named
from trainer.statistics import Estimate, mean, quantile, rate, rate_by_person, roc, roc_auc
from trainer.system.progress_bars import progress
from trainer.system.sharing import share_rows

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
    "Patterns",
    "Pictures",
    "Quotas",
    "Rows",
    "Sample",
    "Source",
    "StrictModel",
    "Templates",
    "Tower",
    "Unread",
    "DISTANCES",
    "Distance",
    "Distances",
    "cosine_distance",
    "cosine_distances",
    "relative_distances",
    "decode_picture",
    "expand",
    "expand_local",
    "first_pictures",
    "fold",
    "forget_and_keep",
    "gather_rows",
    "hookimpl",
    "in_turn",
    "mean",
    "multi_positive_info_nce",
    "names_of",
    "pictures_of",
    "progress",
    "quantile",
    "rate",
    "rate_by_person",
    "read_names",
    "read_roster",
    "read_shard",
    "refuse_named",
    "refuse_unseen",
    "roc",
    "roc_auc",
    "share_rows",
    "word_spans",
]
