"""Losses of image-text matching, a file each. They know tensors alone: embeddings in, a scalar out."""

from crosspair.losses.base import LearnedScale, MatchingLoss
from crosspair.losses.cmpc import CMPCLoss, CMPCPrecisions, CMPCTerms, cmpc_precisions, cmpc_terms
from crosspair.losses.cmpm import CMPMLoss, CMPMTerms, cmpm_terms
from crosspair.losses.distances import PairDistances, pair_distances
from crosspair.losses.identity import IdentityLoss, IdentityTerms
from crosspair.losses.infonce import InfoNCELoss, InfoNCETerms, infonce_terms
from crosspair.losses.sdm import SDMLoss, SDMTerms, sdm_terms
from crosspair.losses.siglip import SigLIPLoss, SigLIPTerms, siglip_terms
from crosspair.losses.triplet import TripletLoss, TripletTerms, triplet_terms

__all__ = [
    "CMPCLoss",
    "CMPCPrecisions",
    "CMPCTerms",
    "CMPMLoss",
    "CMPMTerms",
    "IdentityLoss",
    "IdentityTerms",
    "InfoNCELoss",
    "InfoNCETerms",
    "LearnedScale",
    "MatchingLoss",
    "PairDistances",
    "SDMLoss",
    "SDMTerms",
    "SigLIPLoss",
    "SigLIPTerms",
    "TripletLoss",
    "TripletTerms",
    "cmpc_precisions",
    "cmpc_terms",
    "cmpm_terms",
    "infonce_terms",
    "pair_distances",
    "sdm_terms",
    "siglip_terms",
    "triplet_terms",
]
