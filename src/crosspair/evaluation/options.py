"""How embeddings are ranked, beyond what a protocol says of it."""

from dataclasses import dataclass

from crosspair.evaluation.metrics import MetricDefinition
from crosspair.evaluation.protocols import Evaluation, Protocol, Rankable
from crosspair.evaluation.ranking import DIRECTIONS, Direction, Metric


@dataclass(frozen=True)
class RankingOptions:
    """How embeddings are ranked, beyond the protocol: as `evaluate_retrieval` takes it."""

    metric: Metric = "cosine"
    metric_definition: MetricDefinition = "exact"
    directions: tuple[Direction, ...] = DIRECTIONS
    distractors: bool = False

    def evaluate(self, protocol: Protocol, embeddings: Rankable, device: str, *, progress: bool = False) -> Evaluation:
        """The evaluation of embeddings by a protocol."""
        return protocol.evaluate(
            embeddings,
            self.metric,
            self.metric_definition,
            device=device,
            progress=progress,
            directions=self.directions,
            distractors=self.distractors,
        )

    def facts(self) -> dict[str, str]:
        """What a result says of it; the metric and its definition show in the result itself."""
        directions = "both" if len(self.directions) == len(DIRECTIONS) else self.directions[0].replace("_", " ")
        return {"directions": directions, "distractors": "gallery only" if self.distractors else "refused"}

    @property
    def suffix(self) -> str:
        """What differs from the usual, for the name of a file: "" or ".euclidean.text-to-image"."""
        named: list[str] = [self.metric] if self.metric != "cosine" else []
        if len(self.directions) < len(DIRECTIONS):
            named.append(self.directions[0].replace("_", "-"))
        if self.distractors:
            named.append("distractors")
        return "".join(f".{name}" for name in named)


USUAL = RankingOptions()
