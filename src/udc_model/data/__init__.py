"""From raw images to checked, split and packed arrays."""
