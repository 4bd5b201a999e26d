"""What each rung of the quality ladder costs and is worth on the operator's own documents: measured."""
