"""Models: what their configurations say, how they are loaded, and what feeds them."""
