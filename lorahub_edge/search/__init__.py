"""Search: gradient-free minimisation over a box. Sees a callable and numbers, nothing of LoRA, torch or files."""

from lorahub_edge.search.run import Evaluated, SearchResult, run_search
from lorahub_edge.search.searchers import NevergradSearcher, ScreeningSearcher, Searcher, make_searcher

__all__ = [
    "Evaluated",
    "NevergradSearcher",
    "ScreeningSearcher",
    "SearchResult",
    "Searcher",
    "make_searcher",
    "run_search",
]
