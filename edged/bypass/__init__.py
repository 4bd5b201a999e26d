"""When the reranker may be left out: by whom, for which questions, and what that costs."""
