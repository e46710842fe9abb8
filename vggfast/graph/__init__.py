"""A network as a list of layers: what they are, and who reads them from a tree of modules."""
