"""Losses of image-text matching. They know tensors alone: embeddings in, a scalar out."""

from cmpl.losses.cmpc import CMPCLoss, CMPCTerms, cmpc_terms
from cmpl.losses.cmpm import CMPMLoss, CMPMTerms, cmpm_terms
from cmpl.losses.distances import PairDistances, pair_distances
from cmpl.losses.infonce import InfoNCELoss, InfoNCETerms, infonce_terms
from cmpl.losses.scale import LearnedScale
from cmpl.losses.sdm import SDMLoss, SDMTerms, sdm_terms
from cmpl.losses.siglip import SigLIPLoss, SigLIPTerms, siglip_terms
from cmpl.losses.triplet import TripletLoss, TripletTerms, triplet_terms

__all__ = [
    "CMPCLoss",
    "CMPCTerms",
    "CMPMLoss",
    "CMPMTerms",
    "InfoNCELoss",
    "InfoNCETerms",
    "LearnedScale",
    "PairDistances",
    "SDMLoss",
    "SDMTerms",
    "SigLIPLoss",
    "SigLIPTerms",
    "TripletLoss",
    "TripletTerms",
    "cmpc_terms",
    "cmpm_terms",
    "infonce_terms",
    "pair_distances",
    "sdm_terms",
    "siglip_terms",
    "triplet_terms",
]
