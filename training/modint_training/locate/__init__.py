"""Where interference sits in a model: sites, edges, attention, encodings, and the modules of an adapter."""
