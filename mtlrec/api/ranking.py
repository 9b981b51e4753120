"""How `evaluate` searches the fused score that ranks best, and judges it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtlrec.config import JobConfig
from mtlrec.errors import ConfigError

if TYPE_CHECKING:
    from mtlrec.data.loader import Loader
    from mtlrec.distributed.process_group import Ranks
    from mtlrec.evaluation.ranking import RankMetric
    from mtlrec.evaluation.ranking_report import RankingReport
    from mtlrec.evaluation.task_metrics import TaskMetrics
    from mtlrec.training.sharded import ShardedModel


@dataclass(frozen=True)
class Ranking:
    """What a rank metric and its options ask for."""

    metric: RankMetric
    relevance: dict[str, float]
    exponents: dict[str, float] | None

    @property
    def searched_on(self) -> list[str]:
        return ["valid"] if self.exponents is None else []


def ranking_of(job: JobConfig, rank_metric: str | None, relevance: str, exponents: str) -> Ranking | None:
    from mtlrec.evaluation.fused_score import exponents_of, relevance_of
    from mtlrec.evaluation.ranking import RankMetric

    if rank_metric is None:
        for option, given in (("--relevance", relevance), ("--exponents", exponents)):
            if given:
                raise ConfigError(f"{option} {given}: goes with --rank-metric, as in --rank-metric ndcg@10")
        return None
    by_default = {task.name: 1.0 for task in job.tasks if task.is_binary}
    ranking = Ranking(
        RankMetric.parse(rank_metric),
        relevance_of(relevance, job) if relevance else by_default,
        exponents_of(exponents, job) if exponents else None,
    )
    if not ranking.relevance:
        raise ConfigError("--rank-metric: the job has no binary task; say what is worth something with --relevance")
    if job.metrics.group_by is None:
        raise ConfigError("--rank-metric: whose impressions are ranked? --set metrics.group_by=user_id, or your column")
    if ranking.searched_on and not job.data.valid:
        raise ConfigError("data.valid: --rank-metric searches its powers there; name files, or give --exponents")
    return ranking


def rank(
    model: ShardedModel, loaders: Mapping[str, Loader], split: str, job: JobConfig, ranks: Ranks, ranking: Ranking
) -> tuple[TaskMetrics, RankingReport]:
    """Collective."""
    from mtlrec.distributed.process_group import on_first_rank
    from mtlrec.evaluation.ranking_report import ranked_rows, report_on

    splits = {name: ranked_rows(model, loader, job, ranks, ranking.relevance, name) for name, loader in loaders.items()}
    report = on_first_rank(ranks, lambda: report_on(splits, job, ranking.metric, ranking.relevance, ranking.exponents))
    return splits[split].metrics, report
