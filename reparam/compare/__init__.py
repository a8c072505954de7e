"""Two models on the same images: what their layers and outputs differ by, whatever runs them."""
