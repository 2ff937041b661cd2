"""The attention interface of transformers: a class's own code with our cached attention in the place of its own."""
