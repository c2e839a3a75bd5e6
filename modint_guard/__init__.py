"""The core: what modality interference is, how it is probed, scored and decided."""
