"""Ways to run a dense model fast, one engine a file: what a converted model has to beat on this device."""
