"""What was passed over, by reason and shard, and when it is too much."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

MIN_JUDGED = 1_000  # samples before their bad share is one


@dataclass
class Skips:
    """What was not used, and how much was."""

    used: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # of all that was passed over
    bad: Counter[tuple[str, str]] = field(default_factory=Counter)  # by shard and reason

    def __iadd__(self, other: Skips) -> Skips:
        self.used += other.used
        self.reasons.update(other.reasons)
        self.bad.update(other.bad)
        return self

    def judge(self, max_bad_share: float) -> None:
        """Raises ValueError where more is bad than may be."""
        num_bad = self.bad.total()
        if self.used + num_bad < MIN_JUDGED or num_bad <= max_bad_share * (self.used + num_bad):
            return
        (shard, reason), worst = self.bad.most_common(1)[0]
        raise ValueError(
            f"{num_bad} of {self.used + num_bad} samples cannot be used, more than "
            f"data.max_bad_share ({max_bad_share:g}) allows; most often {reason} in {shard} "
            f"({worst}); mend the shards, leave them out, or raise data.max_bad_share"
        )

    def by_reason(self) -> dict[str, int]:
        """Of the bad ones how many, as metrics."""
        found: Counter[str] = Counter()
        for (_, reason), count in self.bad.items():
            found[f"bad_samples/{reason}"] += count
        return dict(found)

    def worst_shards(self, count: int = 100) -> dict[str, dict[str, int]]:
        """Of the shards with most bad samples, how many by reason."""
        by_shard: dict[str, Counter[str]] = {}
        for (shard, reason), times in self.bad.items():
            by_shard.setdefault(shard, Counter())[reason] += times
        worst = sorted(by_shard, key=lambda shard: -by_shard[shard].total())[:count]
        return {shard: dict(by_shard[shard]) for shard in worst}
