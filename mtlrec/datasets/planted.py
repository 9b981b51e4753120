"""The world behind the synthetic feed: users, videos, and the true probability of everything a user may do.

What is planted, and why so:

- Five unit-variance scores per (user, item, context), one each for click, long_view, like, share and watch time. The
  logit of p(task | parent) is linear in its score; the score of a child correlates with its parent's by `correlation`,
  exactly so over a large sample: five unrelated functions are made orthonormal on it, then mixed along the funnel.
- Somewhat over half of a score's variance is additive (item, segment, device, hour), which a linear model finds. The
  rest is not: user segment x category, the user's hidden taste x category, hour x category, bumps of session depth and
  of the time since the last visit, and the distance of a video's length from what the segment likes.
- The taste is no column. It shows in the user's id and in which videos the feed has shown them, hence in their history.

Everything is a table indexed by small ids, plus modest deviations per user and item, so that embeddings of dimension 16
learn it from about 1.6 million rows; no effect depends on the labels of other rows.

Shapes: N rows, U users, I items, F = 5 scores, S segments, C categories, K tastes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mtlrec.errors import ConfigError

SEGMENTS, CATEGORIES, DEVICES, TASTES, HOURS = 12, 20, 4, 6, 24
SPAN_S = 14 * 24 * 3600  # the feed covers two weeks, however many rows it has
TASKS = ("click", "long_view", "like", "share")
SCORES = (*TASKS, "watch_time")
PARENT = {"long_view": "click", "like": "long_view", "share": "long_view", "watch_time": "click"}
# Popularity of the item of rank r is proportional to (r + ZIPF_SHIFT) ** -ZIPF_EXPONENT.
ZIPF_EXPONENT, ZIPF_SHIFT = 1.0, 10.0
# Standard deviation of each part of a score, before the scores are made orthonormal.
WEIGHTS = {
    "item": 0.60,
    "user": 0.12,
    "segment": 0.40,
    "device": 0.25,
    "hour": 0.25,
    "depth": 0.30,
    "visit": 0.25,
    "length": 0.40,
    "segment_category": 0.55,
    "taste_category": 0.35,
    "hour_category": 0.12,
}
# Logit of p(task | parent) = INTERCEPT + SLOPE * score.
INTERCEPT = {"click": -0.75, "long_view": -0.2, "like": -1.8, "share": -2.6}
SLOPE = {"click": 1.3, "long_view": 1.0, "like": 1.0, "share": 1.0}
TASTE_FEED_SHARE = 0.6  # of the impressions come from the user's own taste, the others from the global ranking


@dataclass(frozen=True)
class Impressions:
    """Who saw what and when: the columns of N impressions that do not depend on what the user then did."""

    user: np.ndarray  # int64 [N], 0..U-1
    item: np.ndarray  # int64 [N], 0..I-1
    hour: np.ndarray  # int64 [N], 0..23
    session_depth: np.ndarray  # float32 [N], videos seen before in this session
    hours_since_visit: np.ndarray  # float32 [N], since the user's last session


class World:
    """The planted truth for one seed; sampling takes its own generator, so that chunks are independent."""

    def __init__(
        self, users: int, items: int, seed: int, correlation: float, rates: Mapping[str, float] | None = None
    ) -> None:
        rng = np.random.default_rng([seed, 0])
        self.users, self.items = users, items
        self.segment = rng.integers(SEGMENTS, size=users)
        self.device = rng.integers(DEVICES, size=users)
        self.user_age_days = np.exp(rng.normal(5.0, 1.2, users)).clip(1, 3000).astype(np.float32)
        self.taste = rng.integers(TASTES, size=users)
        # A user's activity varies by a factor of about four either way.
        self._user_cdf = _cdf(np.exp(rng.normal(0.0, 0.7, users)))
        self._place_items(rng)
        self._plant(rng)
        sample = self.impressions(rng, np.linspace(0, SPAN_S, 100_000, endpoint=False))
        self._mix = self._mixing(self._raw_scores(sample), correlation)
        self._intercept = self._intercepts(self.scores(sample), rates or {})

    def _place_items(self, rng: np.random.Generator) -> None:
        """Items by popularity rank, each with a category and a length."""
        self.category = rng.permutation(np.arange(self.items) % CATEGORIES)
        length = 2.9 + 0.5 * rng.normal(size=CATEGORIES)[self.category] + 0.6 * rng.normal(size=self.items)
        self.duration_s = np.exp(length).clip(3, 300).astype(np.float32)
        popularity = (np.arange(self.items) + 1 + ZIPF_SHIFT) ** -ZIPF_EXPONENT
        self._by_category = np.argsort(self.category, kind="stable")
        self._category_edges = np.searchsorted(self.category[self._by_category], np.arange(CATEGORIES + 1))
        self._item_cdf = np.concatenate([[0.0], _cdf(popularity[self._by_category])])
        likes = np.exp(2.0 * rng.normal(size=(TASTES, CATEGORIES)))
        self._taste_cdf = np.cumsum(likes / likes.sum(axis=1, keepdims=True), axis=1)

    def _plant(self, rng: np.random.Generator) -> None:
        """The tables of the five functions; the last axis of each is F."""
        f = len(SCORES)

        def table(name: str, *shape: int) -> np.ndarray:
            values = rng.normal(size=(*shape, f))
            values -= values.mean(axis=0)
            return (WEIGHTS[name] * values / values.std(axis=0)).astype(np.float32)

        deviation, by_category = table("item", self.items), table("item", CATEGORIES)
        self._item_effect = (0.4 * deviation + 0.9 * by_category[self.category]).astype(np.float32)
        self._user_effect = table("user", self.users)
        self._hour_effect = _smooth_over_day(table("hour", HOURS))
        self._device_effect = table("device", DEVICES)
        self._segment_effect = table("segment", SEGMENTS)
        self._segment_category = table("segment_category", SEGMENTS * CATEGORIES)
        self._hour_category = table("hour_category", 4 * CATEGORIES)  # quarters of the day
        self._taste_category = table("taste_category", TASTES * CATEGORIES)
        self._liked_length = (2.9 + 0.6 * rng.normal(size=(SEGMENTS, f))).astype(np.float32)
        self._depth_peak = rng.uniform(1.0, 2.5, f).astype(np.float32)
        self._visit_peak = rng.uniform(1.0, 3.5, f).astype(np.float32)
        self._sign = rng.choice([-1.0, 1.0], (2, f)).astype(np.float32)

    def impressions(self, rng: np.random.Generator, time_s: np.ndarray) -> Impressions:
        """Draw one impression for each of the N times (seconds since the first row's midnight)."""
        n = len(time_s)
        user = np.searchsorted(self._user_cdf, rng.random(n), side="right").astype(np.int64)
        item = self.shown_items(rng, user)
        hours = time_s / 3600.0
        return Impressions(
            user=user,
            item=item,
            hour=(hours.astype(np.int64)) % HOURS,
            session_depth=(rng.geometric(0.08, n) - 1).astype(np.float32),
            hours_since_visit=rng.lognormal(2.0, 1.0, n).astype(np.float32),
        )

    def shown_items(self, rng: np.random.Generator, user: np.ndarray) -> np.ndarray:
        """An item for each user [N], from a category of their taste or from all, by popularity: int64 [N]."""
        n = len(user)
        taste = self.taste[user]
        # Row k of the table occupies [k, k + 1) of the flattened one, so one search serves all tastes.
        flat = (self._taste_cdf + np.arange(TASTES)[:, None]).ravel()
        picked = np.searchsorted(flat, taste + rng.random(n), side="right") - taste * CATEGORIES
        picked = picked.clip(0, CATEGORIES - 1)
        edges = self._item_cdf[self._category_edges]
        low, high = edges[picked], edges[picked + 1]
        from_all = rng.random(n) >= TASTE_FEED_SHARE
        low, high = np.where(from_all, 0.0, low), np.where(from_all, 1.0, high)
        position = np.searchsorted(self._item_cdf, low + (high - low) * rng.random(n), side="right") - 1
        return self._by_category[position.clip(0, self.items - 1)].astype(np.int64)

    def scores(self, rows: Impressions) -> np.ndarray:
        """The five planted scores, float32 [N, F], each of mean 0 and variance 1 over impressions."""
        mean, matrix = self._mix
        return (self._raw_scores(rows) - mean) @ matrix

    def outcomes(
        self, rng: np.random.Generator, rows: Impressions
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The truth and what was drawn from it, by column.

        Returns:
            truth: true_<task>, the marginal probability over impressions, and true_watch_time in seconds; float32 [N].
            labels: <task>, int8 [N], a child only where its parent is 1; watch_time, float32 s, 0 without a click.
        """
        scores = self.scores(rows)
        truth: dict[str, np.ndarray] = {}
        labels: dict[str, np.ndarray] = {}
        conditional: dict[str, np.ndarray] = {}
        for column, task in enumerate(TASKS):
            logit = self._intercept[task] + SLOPE[task] * scores[:, column].astype(np.float64)
            conditional[task] = p = 1.0 / (1.0 + np.exp(-logit))
            drawn = rng.random(len(p)) < p
            parent = PARENT.get(task)
            if parent is not None:
                p, drawn = p * truth[f"true_{parent}"], drawn & (labels[parent] == 1)
            truth[f"true_{task}"], labels[task] = p, drawn.astype(np.int8)
        # A long view lasts about the video, another click a fifth of it; the score says how much more or less.
        length = self.duration_s[rows.item] * np.exp(0.3 * scores[:, SCORES.index("watch_time")])
        mean_if_long, mean_if_not = 1.0 * length, 0.2 * length
        q = conditional["long_view"]
        truth["true_watch_time"] = truth["true_click"] * (q * mean_if_long + (1 - q) * mean_if_not)
        mean = np.where(labels["long_view"] == 1, mean_if_long, mean_if_not)
        watched = mean * rng.gamma(4.0, 0.25, len(mean))
        labels["watch_time"] = np.where(labels["click"] == 1, watched, 0.0).astype(np.float32)
        return {name: p.astype(np.float32) for name, p in truth.items()}, labels

    def _raw_scores(self, rows: Impressions) -> np.ndarray:
        user, item = rows.user, rows.item
        segment, category = self.segment[user], self.category[item]
        total = self._item_effect[item] + self._user_effect[user] + self._hour_effect[rows.hour]
        total += self._device_effect[self.device[user]] + self._segment_effect[segment]
        total += self._segment_category[segment * CATEGORIES + category]
        total += self._hour_category[rows.hour // 6 * CATEGORIES + category]
        total += self._taste_category[self.taste[user] * CATEGORIES + category]
        total += WEIGHTS["length"] * (1 - np.abs(np.log(self.duration_s)[item, None] - self._liked_length[segment]))
        total += WEIGHTS["depth"] * 2 * _bump(np.log1p(rows.session_depth), self._depth_peak, 0.8) * self._sign[0]
        total += WEIGHTS["visit"] * 2 * _bump(np.log1p(rows.hours_since_visit), self._visit_peak, 0.8) * self._sign[1]
        return total

    @staticmethod
    def _intercepts(scores: np.ndarray, rates: Mapping[str, float]) -> dict[str, float]:
        """INTERCEPT, but where a rate is asked for the one that gives it: the mean of p(task) over the sample."""
        found: dict[str, float] = {}
        p: dict[str, np.ndarray] = {}
        for column, task in enumerate(TASKS):
            above = p[PARENT[task]] if task in PARENT else np.ones(len(scores))
            score = SLOPE[task] * scores[:, column].astype(np.float64)
            found[task] = INTERCEPT[task]
            if task in rates:
                if not 0 < rates[task] < above.mean():
                    most = above.mean()
                    raise ConfigError(
                        f"rates: {task} = {rates[task]:g} is out of reach; it lies between 0 and {most:.3g}"
                    )
                low, high = -40.0, 40.0
                while high - low > 1e-9:
                    middle = (low + high) / 2
                    too_high = (above / (1 + np.exp(-middle - score))).mean() > rates[task]
                    low, high = (low, middle) if too_high else (middle, high)
                found[task] = (low + high) / 2
            p[task] = above / (1 + np.exp(-found[task] - score))
        return found

    @staticmethod
    def _mixing(raw: np.ndarray, correlation: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean [F] and matrix [F, F] that make the raw scores of a sample standard, correlated along the funnel."""
        mean = raw.mean(axis=0)
        factor = np.linalg.cholesky(np.cov(raw.T.astype(np.float64)))
        columns: dict[str, np.ndarray] = {}
        for own, name in zip(np.eye(len(SCORES)), SCORES, strict=True):
            parent = PARENT.get(name)
            inherited = 0.0 if parent is None else correlation * columns[parent]
            columns[name] = inherited + (np.sqrt(1 - correlation**2) if parent else 1.0) * own
        mixed = np.linalg.solve(factor.T, np.stack([columns[name] for name in SCORES], axis=1))
        return mean, mixed.astype(np.float32)


def _cdf(weights: np.ndarray) -> np.ndarray:
    return np.cumsum(weights) / weights.sum()


def _bump(x: np.ndarray, center: np.ndarray, width: float) -> np.ndarray:
    """exp(-((x - center) / width)^2 / 2): x [N], center [F] -> [N, F]."""
    return np.exp(-0.5 * np.square((x[:, None] - center) / np.float32(width)))


def _smooth_over_day(table: np.ndarray) -> np.ndarray:
    """Average each hour with its two neighbors, around midnight too; [HOURS, F]."""
    return (np.roll(table, 1, axis=0) + table + np.roll(table, -1, axis=0)) / np.float32(np.sqrt(3))
