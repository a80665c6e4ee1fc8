"""Losses of image-text matching. They know tensors alone: embeddings in, a scalar out."""

from cmpl.losses.cmpc import CMPCLoss, CMPCTerms, cmpc_terms
from cmpl.losses.cmpm import CMPMLoss, CMPMTerms, cmpm_terms
from cmpl.losses.distances import PairDistances, pair_distances

__all__ = [
    "CMPCLoss",
    "CMPCTerms",
    "CMPMLoss",
    "CMPMTerms",
    "PairDistances",
    "cmpc_terms",
    "cmpm_terms",
    "pair_distances",
]
