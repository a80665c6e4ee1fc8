"""The weighted sum of a recipe's losses, with the parameters that some of them learn."""

from torch import Tensor, nn

from cmpl.data.batching import Batch
from cmpl.losses import CMPCLoss, cmpc_terms, cmpm_terms
from cmpl.training.recipe import LossConfig


class MatchingLosses(nn.Module):
    """The weighted sum of a recipe's losses. `cmpc` holds the class weights when classification takes part."""

    def __init__(self, config: LossConfig, num_classes: int, embedding_dim: int) -> None:
        super().__init__()
        self.config = config
        self.cmpc = CMPCLoss(num_classes, embedding_dim, config.label_smoothing) if config.cmpc > 0 else None

    def forward(
        self, image_embeddings: Tensor, text_embeddings: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar to minimise, and its terms by the names they have in metrics.jsonl."""
        terms: dict[str, Tensor] = {}
        total = image_embeddings.new_zeros(())
        if self.config.cmpm > 0:
            matching = cmpm_terms(
                image_embeddings,
                text_embeddings,
                batch.image_labels,
                batch.text_labels,
                ratio_epsilon=self.config.cmpm_ratio_epsilon,
            )
            terms["cmpm_image_to_text"], terms["cmpm_text_to_image"] = matching
            terms["cmpm"] = matching.image_to_text + matching.text_to_image
            total = total + self.config.cmpm * terms["cmpm"]
        if self.cmpc is not None:
            paired_images = image_embeddings[batch.picture_rows]
            classification = cmpc_terms(
                paired_images, text_embeddings, batch.classes, self.cmpc.weight, self.config.label_smoothing
            )
            terms["cmpc_image_to_text"], terms["cmpc_text_to_image"] = classification
            terms["cmpc"] = classification.image_to_text + classification.text_to_image
            total = total + self.config.cmpc * terms["cmpc"]
        return total, terms
