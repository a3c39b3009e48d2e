"""What holds on a GPU, compared with a CPU; `make test-gpu`."""
