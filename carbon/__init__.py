"""Grid carbon intensity, generation directives, the mix optimizer and footprint accounting."""
