"""The work itself: retriever, reranker, generator and plain tensors."""
