"""The method of arXiv 2505.19616: masks, attack, losses, and the step that joins them."""
