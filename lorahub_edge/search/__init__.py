"""Search: gradient-free minimisation over a box. Sees a callable and numbers, nothing of LoRA, torch or files."""

from lorahub_edge.search.optimisers import NevergradSearcher, load_optimisers
from lorahub_edge.search.run import Evaluated, SearchResult, finite_objective, run_search
from lorahub_edge.search.searchers import SCREEN_BATCH, GuidedSearcher, Searcher, check_optimizer, make_searcher

__all__ = [
    "SCREEN_BATCH",
    "Evaluated",
    "GuidedSearcher",
    "NevergradSearcher",
    "SearchResult",
    "Searcher",
    "check_optimizer",
    "finite_objective",
    "load_optimisers",
    "make_searcher",
    "run_search",
]
