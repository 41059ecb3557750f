"""The kit for plugin authors: does an objective or an evaluation keep its contract?

    def test_my_objective_keeps_the_contract():
        check_objective(MyObjective, {"batch_size": 8})

Each check that fails is an AssertionError telling what to mend. No model is loaded: embeddings are
random, and the encoders are a random projection of bytes.
"""

from __future__ import annotations

from trainer.testing.evaluation_checks import check_evaluation
from trainer.testing.fakes import FakeEncoder, default_samples
from trainer.testing.objective_checks import check_objective

__all__ = ["FakeEncoder", "check_evaluation", "check_objective", "default_samples"]
