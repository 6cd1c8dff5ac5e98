"""Models converted in place: modules swapped for faster equals, tables quantized."""
